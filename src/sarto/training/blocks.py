"""The head of a pack from inner products of its blocks: classes and fragments come and go without a new start.

A block is the features of one fragment. Everything that a ridge head needs of it is the matrix of inner products of
the samples, A A^T: a new sample borders it, a new fragment brings one more, and what goes is deleted. The head is then
solved over samples, with its strength chosen by leaving one of each class out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError, suggest
from sarto.training.fit import FittedHead, calibrated
from sarto.training.folds import one_of_each
from sarto.training.heads import RIDGE_LAM, Head, sign_targets
from sarto.training.kernel import solve_dual_ridge
from sarto.training.loto import LAM_GRID, dual_loto, lam_grid, nothing_counted
from sarto.training.scaling import balanced_weights, fit_scaling


@dataclass(frozen=True, eq=False)
class PackState:
    """The samples of a pack as its fragments see them; a value: adding and removing give a new one.

    Attributes:
        classes: outputs of the head, in order.
        labels: (n,), places in `classes`.
        features: fragment -> features of the samples, (n, width), float64; the order is that of the joined features.
        grams: fragment -> inner products of the samples, (n, n), float64.
    """

    classes: tuple[str, ...]
    labels: Tensor
    features: Mapping[str, Tensor]
    grams: Mapping[str, Tensor]

    @classmethod
    def of(cls, features: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str]) -> PackState:
        """The state of fragments whose features (n, width) of all samples are known.

        Raises:
            RequestError: no fragment, labels out of range, or a class without samples.
            ShapeError: features are not one row a sample.
        """
        if not features:
            raise RequestError("a pack needs at least one fragment, got none")
        values = {name: found.detach().to(torch.float64) for name, found in features.items()}
        for name, found in values.items():
            if found.ndim != 2 or found.shape[0] != labels.shape[0]:
                raise ShapeError(
                    f"features of {name!r} must be ({labels.shape[0]}, width), one row a sample; "
                    f"got {tuple(found.shape)}"
                )
        missing = [name for label, name in enumerate(classes) if not bool((labels == label).any())]
        if missing or int(labels.max()) >= len(classes) or int(labels.min()) < 0:
            problem = f"no samples of {', '.join(missing)}" if missing else "a label that is no class"
            raise RequestError(
                f"labels must say one of {len(classes)} classes, each at least once; found {problem}"
            )
        grams = {name: found @ found.T for name, found in values.items()}
        return cls(tuple(classes), labels.to(torch.int64), values, grams)

    def with_class(self, name: str, features: Mapping[str, Tensor]) -> PackState:
        """The state with one more class, last; its samples' features (k, width) under every fragment are given.

        Raises:
            RequestError: the class is there already, has no samples, or a fragment is missing or unknown.
        """
        if name in self.classes:
            raise RequestError(f"the pack tells {name!r} apart already; remove it first")
        if features.keys() != self.features.keys():
            raise RequestError(
                f"features under {', '.join(self.features)} were asked for, got {', '.join(features) or 'none'}"
            )
        new = {part: features[part].detach().to(torch.float64) for part in self.features}
        counts = {found.shape[0] for found in new.values()}
        if len(counts) != 1 or not min(counts):
            raise RequestError(f"class {name!r} needs the same samples, at least one, under every fragment")
        grams = {}
        for part, gram in self.grams.items():
            cross, corner = self.features[part] @ new[part].T, new[part] @ new[part].T
            grams[part] = torch.cat([torch.cat([gram, cross], 1), torch.cat([cross.T, corner], 1)])
        return PackState(
            (*self.classes, name),
            torch.cat([self.labels, torch.full((counts.pop(),), len(self.classes))]),
            {part: torch.cat([found, new[part]]) for part, found in self.features.items()},
            grams,
        )

    def without_class(self, name: str) -> PackState:
        """The state without a class and its samples.

        Raises:
            RequestError: the pack does not know it, or only one class would be left.
        """
        if name not in self.classes:
            raise RequestError(f"the pack does not know {name!r}{suggest(name, self.classes)}")
        if len(self.classes) < 3:
            raise RequestError(f"without {name!r} one class is left, which leaves nothing to tell apart")
        gone = self.classes.index(name)
        left = torch.nonzero(self.labels != gone).flatten()
        labels = self.labels[left]
        return PackState(
            tuple(cls for cls in self.classes if cls != name),
            labels - (labels > gone).long(),
            {part: found[left] for part, found in self.features.items()},
            {part: gram[left][:, left] for part, gram in self.grams.items()},
        )

    def with_part(self, name: str, features: Tensor) -> PackState:
        """The state with one more fragment, last; its features (n, width) of all samples are given.

        Raises:
            RequestError: a fragment of that name is there already.
            ShapeError: features are not one row a sample.
        """
        if name in self.features:
            raise RequestError(f"the pack has a fragment {name!r} already; remove it first")
        alone = PackState.of({name: features}, self.labels, self.classes)
        return replace(
            self, features={**self.features, **alone.features}, grams={**self.grams, **alone.grams}
        )

    def without_part(self, name: str) -> PackState:
        """The state without a fragment.

        Raises:
            RequestError: there is no such fragment, or it is the only one.
        """
        if name not in self.features:
            raise RequestError(f"the pack has no fragment {name!r}{suggest(name, self.features)}")
        if len(self.features) == 1:
            raise RequestError(f"{name!r} is the only fragment of the pack; remove the pack instead")
        return replace(
            self,
            features={part: found for part, found in self.features.items() if part != name},
            grams={part: gram for part, gram in self.grams.items() if part != name},
        )

    def head(
        self, *, lam: float | Sequence[float] | None = None, pairings: int = 5, seed: int = 0
    ) -> FittedHead:
        """The ridge head of the pack, as `fit_head` makes it, from the inner products alone.

        Args:
            lam: strength, or strengths to choose from; None chooses from `LAM_GRID` by leaving one of each class out.
            pairings: as in `one_of_each`.
            seed: as in `one_of_each`.

        Reference:
            Slice-and-Pack, equations (11) and (12): the head H^K on all fragments.
            Differs: closed form on the joined features themselves, no encoder.
        """
        grid = lam_grid(LAM_GRID if lam is None else lam)
        n, q = len(self.labels), len(self.classes)
        width = sum(found.shape[1] for found in self.features.values())
        # Blocks are scaled one by one: together they need not lie side by side.
        scalings = {part: fit_scaling(found) for part, found in self.features.items()}
        kernel = torch.zeros(n, n, dtype=torch.float64)
        for part, gram in self.grams.items():
            kernel += gram / (scalings[part].scale[0].square() * width)
        means = kernel.mean(0)
        kernel = kernel - means - means.unsqueeze(1) + means.mean()
        targets, weights = sign_targets(self.labels, q), balanced_weights(self.labels, q)
        folds = one_of_each(self.labels, q, pairings=pairings, seed=seed)
        dual = solve_dual_ridge(kernel, targets, weights, torch.tensor(grid, dtype=torch.float64))
        usual = min(grid, key=lambda strength: abs(math.log(strength / RIDGE_LAM)))
        if folds.count:
            loto = dual_loto(dual, targets, folds, self.labels, q, grid)
        else:
            loto = nothing_counted(folds, self.labels, q, usual)
        place = grid.index(loto.lam if loto.lam is not None else usual)
        alpha, bias = dual.alpha[place], dual.bias[place]
        folded = []
        for part, scaling in scalings.items():
            centred = alpha.T @ self.features[part] - alpha.sum(0).unsqueeze(1) * scaling.mean
            weight, bias = scaling.fold(centred / (scaling.scale * width), bias)
            folded.append(weight)
        raw = torch.cat(folded, 1)
        return calibrated(Head(raw.float(), bias.float()), loto, self.labels, self.classes)
