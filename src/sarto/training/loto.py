"""Accuracy of a head on the samples that it is fitted on: leave one of each class out (LOTO).

Leaving out a single sample tilts a balanced training set against its class and makes the accuracy several
points too low; leaving out one of each class keeps the balance.

Reference:
    The bias of plain leave-one-out: Austin et al., Science Advances 11(48), 2025, eadx6976.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sarto.errors import RequestError, SartoError
from sarto.training._inputs import check_positive, check_samples
from sarto.training.folds import Folds, one_of_each
from sarto.training.heads import LOGISTIC_LAM, RIDGE_LAM, sign_targets
from sarto.training.kernel import DualRidge, left_out_residuals, solve_dual_ridge
from sarto.training.logistic import LogisticFits, principal_axes, solve_logistic
from sarto.training.scaling import balanced_weights, fit_scaling
from sarto.training.score import LotoScore, entry_weights, summarise

LAM_GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Strengths tried when lam is chosen by LOTO."""
_NEIGHBOURS = 3
"""Inner folds looked at on either side of each outer fold when lam is chosen inside."""
_PROBLEM_NUMBERS = 1 << 23
"""Scores of all refits computed at a time: 64 MiB."""


@dataclass(frozen=True)
class LamChoice:
    """The strength with the smallest LOTO loss (None: too few samples), and (lam, loss) of each tried."""

    lam: float | None
    losses: tuple[tuple[float, float], ...]


def ridge_loto(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    lam: float | Sequence[float] = RIDGE_LAM,
    blocks: tuple[int, ...] | None = None,
    per_feature: bool = False,
    pairings: int = 5,
    seed: int = 0,
    groups: Tensor | None = None,
) -> LotoScore:
    """LOTO score of `ridge_head`, exact and without refits.

    Equal to refitting for each fold with the scaling (which reads no labels) and the sample weights of the
    whole set. With several lam, the one used in a fold is chosen by inner folds in which both are left out,
    so the accuracy is free of that choice's optimism; `lam` of the result is the choice on all samples.

    Args:
        features: raw features, shape (n, d).
        labels: 0..n_classes-1, shape (n,), each class at least once.
        n_classes: q.
        lam: strength, or strengths to choose from.
        blocks: as in `ridge_head`.
        per_feature: as in `ridge_head`.
        pairings: as in `one_of_each`.
        seed: as in `one_of_each`.
        groups: as in `one_of_each`.

    Raises:
        ShapeError: features, labels, blocks or groups don't fit together.
        RequestError: labels out of range, a class without samples, non-finite features, or lam <= 0.
    """
    labels = check_samples(features, labels, n_classes)
    grid = lam_grid(lam)
    folds = one_of_each(labels, n_classes, pairings=pairings, seed=seed, groups=groups)
    if not folds.count:
        return nothing_counted(folds, labels, n_classes, _default(grid, RIDGE_LAM))
    dual, targets = _dual(features, labels, n_classes, grid, blocks, per_feature)
    return dual_loto(dual, targets, folds, labels, n_classes, grid)


def dual_loto(
    dual: DualRidge, targets: Tensor, folds: Folds, labels: Tensor, n_classes: int, grid: tuple[float, ...]
) -> LotoScore:
    """LOTO score of ridge regressions solved over samples, one for each lam of the grid (ascending)."""
    residuals = left_out_residuals(dual.inverse, dual.alpha, folds.left_out)
    losses = residuals.square().mean(3)
    best = _smallest(losses, folds, labels, n_classes)
    if len(grid) == 1:
        pick = torch.zeros(folds.count, dtype=torch.int64)
        basis = f"closed form, lam {grid[0]:g} fixed"
    elif folds.per_pairing < 3:
        best = grid.index(_default(grid, RIDGE_LAM))
        pick = torch.full((folds.count,), best)
        basis = f"closed form, too few samples to choose lam: {grid[best]:g} taken"
    else:
        pick = _choose_inside(dual, folds, labels, n_classes)
        basis = f"closed form, lam chosen anew in each fold (on all samples: {grid[best]:g})"
    row = torch.arange(folds.count)
    scores = targets[folds.left_out.clamp(min=0)] - residuals[pick, row]
    return summarise(scores, losses[pick, row], folds, labels, n_classes, lam=grid[best], basis=basis)


def logistic_loto(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    lam: float | Sequence[float] = LOGISTIC_LAM,
    blocks: tuple[int, ...] | None = None,
    per_feature: bool = False,
    pairings: int = 5,
    seed: int = 0,
    groups: Tensor | None = None,
) -> LotoScore:
    """LOTO score of `logistic_head` by refitting all folds side by side.

    With several lam, the one used in a fold is chosen by the losses of the samples outside the fold. Their
    fits saw the fold's samples, so a small optimism remains, which `basis` states. Arguments and errors as
    in `ridge_loto`; the scaling is that of the whole set here too.
    """
    labels = check_samples(features, labels, n_classes)
    grid = lam_grid(lam)
    folds = one_of_each(labels, n_classes, pairings=pairings, seed=seed, groups=groups)
    if not folds.count:
        return nothing_counted(folds, labels, n_classes, _default(grid, LOGISTIC_LAM))
    scores = _refit_logistic(features, labels, n_classes, grid, blocks, per_feature, folds)
    losses = log_losses(scores, folds, labels)
    best = _smallest(losses, folds, labels, n_classes)
    if len(grid) == 1:
        pick = torch.zeros(folds.count, dtype=torch.int64)
        basis = f"refits, lam {grid[0]:g} fixed"
    else:
        pick = _choose_outside(losses, folds, labels, n_classes)
        basis = f"refits, lam chosen outside each fold (on all samples: {grid[best]:g}), slightly optimistic"
    row = torch.arange(folds.count)
    return summarise(
        scores[pick, row], losses[pick, row], folds, labels, n_classes, lam=grid[best], basis=basis
    )


def choose_lam(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    kind: Literal["ridge", "logistic"],
    grid: Sequence[float] = LAM_GRID,
    blocks: tuple[int, ...] | None = None,
    per_feature: bool = False,
    pairings: int = 2,
    seed: int = 0,
    groups: Tensor | None = None,
) -> LamChoice:
    """Strength with the smallest LOTO loss: squared error for ridge, log loss for logistic; ties: the larger.

    With 5 to 20 samples a class the defaults of the heads did a little better than this choice. Arguments and
    errors as in `ridge_loto`.
    """
    labels = check_samples(features, labels, n_classes)
    strengths = lam_grid(grid)
    folds = one_of_each(labels, n_classes, pairings=pairings, seed=seed, groups=groups)
    if not folds.count:
        return LamChoice(None, ())
    if kind == "ridge":
        dual, _ = _dual(features, labels, n_classes, strengths, blocks, per_feature)
        losses = left_out_residuals(dual.inverse, dual.alpha, folds.left_out).square().mean(3)
    elif kind == "logistic":
        scores = _refit_logistic(features, labels, n_classes, strengths, blocks, per_feature, folds)
        losses = log_losses(scores, folds, labels)
    else:
        raise RequestError(f"kind of head must be 'ridge' or 'logistic', got {kind!r}")
    means = (losses * entry_weights(folds, labels, n_classes)).sum((1, 2)).tolist()
    best = _smallest(losses, folds, labels, n_classes)
    return LamChoice(strengths[best], tuple(zip(strengths, means, strict=True)))


def log_losses(scores: Tensor, folds: Folds, labels: Tensor) -> Tensor:
    """Minus the log likelihood (..., F, m) of the samples left out, from their scores (..., F, m, q)."""
    truth = labels[folds.left_out.clamp(min=0)].expand(scores.shape[:-1])
    return -torch.log_softmax(scores, -1).gather(-1, truth.unsqueeze(-1)).squeeze(-1)


def _dual(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    grid: tuple[float, ...],
    blocks: tuple[int, ...] | None,
    per_feature: bool,
) -> tuple[DualRidge, Tensor]:
    x = fit_scaling(features, blocks=blocks, per_feature=per_feature).apply(features)
    targets = sign_targets(labels, n_classes)
    lams = torch.tensor(grid, dtype=torch.float64)
    return solve_dual_ridge(x @ x.T / x.shape[1], targets, balanced_weights(labels, n_classes), lams), targets


def _refit_logistic(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    grid: tuple[float, ...],
    blocks: tuple[int, ...] | None,
    per_feature: bool,
    folds: Folds,
) -> Tensor:
    """Scores (L, F, m, q) of the samples left out, each fold refitted from the fit on all samples."""
    x = fit_scaling(features, blocks=blocks, per_feature=per_feature).apply(features)
    coordinates, _ = principal_axes(x)
    targets = torch.nn.functional.one_hot(labels, n_classes).to(torch.float64)
    kept = folds.training_mask(labels.shape[0])
    # Weights of the remaining samples are balanced anew, as `logistic_head` would do.
    counts = kept.to(torch.float64) @ targets
    weights = kept.sum(1, keepdim=True) / (n_classes * counts) @ targets.T * kept
    chunk = max(1, _PROBLEM_NUMBERS // (labels.shape[0] * n_classes))
    result = []
    for strength in grid:
        penalty = torch.tensor([strength * x.shape[1]], dtype=torch.float64)
        whole = solve_logistic(
            coordinates, targets, balanced_weights(labels, n_classes).unsqueeze(0), penalty
        )
        parts = []
        for start in range(0, folds.count, chunk):
            rows = slice(start, start + chunk)
            fits = solve_logistic(
                coordinates, targets, weights[rows], penalty.expand(weights[rows].shape[0]), start=whole
            )
            parts.append(_scores(coordinates, fits, folds.left_out[rows]))
            if not bool(fits.converged.all()):
                raise SartoError(
                    f"refits of the logistic head with lam={strength:g} did not converge in {fits.steps} "
                    f"steps; choose a larger lam, for instance {LOGISTIC_LAM}"
                )
        result.append(torch.cat(parts))
    return torch.stack(result)


def _scores(coordinates: Tensor, fits: LogisticFits, left_out: Tensor) -> Tensor:
    return coordinates[left_out.clamp(min=0)] @ fits.weight + fits.bias.unsqueeze(1)


def _choose_inside(dual: DualRidge, folds: Folds, labels: Tensor, n_classes: int) -> Tensor:
    """For each fold the position of the lam that is best on other folds of its pairing, both left out."""
    size, count = folds.left_out.shape[1], folds.count
    weights = entry_weights(folds, labels, n_classes)
    one_hot = torch.nn.functional.one_hot(labels, n_classes).to(torch.float64)
    fold = torch.arange(count)
    first = fold - fold % folds.per_pairing
    losses = torch.zeros(dual.alpha.shape[0], count, dtype=torch.float64)
    for offset in range(1, min(folds.per_pairing // 2, _NEIGHBOURS) + 1):
        other = first + (fold - first + offset) % folds.per_pairing
        theirs, mine = folds.left_out[other], folds.left_out
        same = (theirs.unsqueeze(2) == mine.unsqueeze(1)) & (mine >= 0).unsqueeze(1)
        union = Folds(
            torch.cat([torch.where(same.any(2), -1, theirs), mine], 1), folds.pairing, folds.per_pairing, ()
        )
        trained = union.training_mask(labels.shape[0]).to(torch.float64) @ one_hot > 0
        residuals = left_out_residuals(dual.inverse, dual.alpha, union.left_out).square().mean(3)
        # One fit without both folds says what either thinks of the other; opposite folds meet twice.
        seen = [(fold, other, theirs, same.any(2), residuals[:, :, :size])]
        if 2 * offset < folds.per_pairing:
            seen.append((other, fold, mine, same.any(1), residuals[:, :, size:]))
        for outer, inner, samples, shared, found in seen:
            usable = (samples >= 0) & ~shared & trained.gather(1, labels[samples.clamp(min=0)])
            losses[:, outer] += (found * torch.where(usable, weights[inner], 0.0)).sum(2)
    return _first_from_strong(losses)


def _choose_outside(losses: Tensor, folds: Folds, labels: Tensor, n_classes: int) -> Tensor:
    """For each fold the position of the lam with the smallest loss on the samples outside the fold."""
    entries = folds.left_out >= 0
    weighted = (losses * entry_weights(folds, labels, n_classes))[:, entries]
    n = labels.shape[0]
    by_sample = torch.zeros(losses.shape[0], n, dtype=torch.float64).index_add_(
        1, folds.left_out[entries], weighted
    )
    return _first_from_strong(by_sample @ folds.training_mask(n).to(torch.float64).T)


def _smallest(losses: Tensor, folds: Folds, labels: Tensor, n_classes: int) -> int:
    means = (losses * entry_weights(folds, labels, n_classes)).sum((1, 2))
    return int(_first_from_strong(means.unsqueeze(1))[0])


def _first_from_strong(losses: Tensor) -> Tensor:
    """Position of the smallest loss in each column (L, F); equal losses: the last, which is the strongest."""
    reach = losses.min(0).values * (1 + 1e-9)
    positions = torch.arange(losses.shape[0]).unsqueeze(1)
    return torch.where(losses <= reach, positions, -1).max(0).values


def lam_grid(lam: float | Sequence[float]) -> tuple[float, ...]:
    """The strengths to choose from, each once, ascending.

    Raises:
        RequestError: none, or one that is not above 0.
    """
    strengths = tuple(lam) if isinstance(lam, Sequence) else (lam,)
    if not strengths:
        raise RequestError("at least one lam was asked for, got none; pass a number or a few to choose from")
    return tuple(sorted({check_positive("lam", strength) for strength in strengths}))


def _default(grid: tuple[float, ...], usual: float) -> float:
    return min(grid, key=lambda strength: abs(math.log(strength / usual)))


def nothing_counted(folds: Folds, labels: Tensor, n_classes: int, lam: float) -> LotoScore:
    """The score where no sample could be left out."""
    empty = torch.empty(0, 1, n_classes, dtype=torch.float64)
    return summarise(
        empty, empty[:, :, 0], folds, labels, n_classes, lam=lam, basis="no sample could be left out"
    )
