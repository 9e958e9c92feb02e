"""An order's images without labels: each has the class that the donors of the wanted classes decide for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.market import Samples, Store, has_no_labels, read_unlabelled
from sarto.pipeline.builder import run
from sarto.pipeline.indexing import ready_graph
from sarto.pipeline.intakes import intake_of
from sarto.types import ClassOffer, Learnware, Request

#: Names of left-out classes that are told.
_MOST = 5


@dataclass(frozen=True, eq=False)
class Decided:
    """Images with the donors' decisions as their labels.

    Attributes:
        samples: those that a donor takes for a wanted class, in the order of the wanted ones.
        n_left_out: images that no donor takes for one.
    """

    samples: Samples
    n_left_out: int

    def note(self, path: str) -> str:
        """What the order is told of its labels."""
        n, left = len(self.samples) + self.n_left_out, ""
        if self.n_left_out:
            verb = "is" if self.n_left_out == 1 else "are"
            left = f"; {self.n_left_out:,} that {verb} taken for none of the wanted classes {verb} left out"
        return (
            f"the {n:,} images in {path} carry no labels: each has the class that its donors decide{left}. Accuracy on "
            "them is agreement with the donors; that they are right is not shown"
        )


def without_labels(request: Request) -> bool:
    """Whether an order's samples are images without labels."""
    return request.samples is not None and has_no_labels(Path(request.samples))


def decide(
    path: Path,
    classes: Sequence[str],
    offers: Sequence[ClassOffer],
    learnwares: Mapping[str, Learnware],
    store: Store,
) -> Decided:
    """Images in a folder, each labelled by the donors that the wanted classes are taken from.

    An image's class is the decision of the donor that is surest of its own, among donors that decide for a wanted
    class; where there is none, the image is left out. Donors of different classes were not trained to be compared:
    labels of orders from several donors are rougher than those of one.

    Args:
        classes: the wanted ones.
        offers: of each wanted class its donor; a donor may know further wanted classes, and decide for them too.

    Raises:
        RequestError, ShapeError: the images can't be read, by a donor either, or a wanted class gets none.
    """
    held = read_unlabelled(path)
    donors = [learnwares[id_] for id_ in dict.fromkeys(offer.learnware for offer in offers)]
    best = torch.full((len(held),), -1.0)
    labels = torch.full((len(held),), -1)
    for donor in donors:
        shares = _probabilities(store, donor, held, path)
        own = {donor.classes.index(cls): place for place, cls in enumerate(classes) if cls in donor.classes}
        share, said = shares.max(1)
        for output, place in own.items():
            taken = (said == output) & (share > best)
            best[taken], labels[taken] = share[taken], place
    counts = torch.bincount(labels[labels >= 0], minlength=len(classes))
    without = [cls for cls, count in zip(classes, counts.tolist(), strict=True) if not count]
    if without:
        told = ", ".join(without[:_MOST]) + (
            f" and {len(without) - _MOST} more" if len(without) > _MOST else ""
        )
        names = " and ".join(donor.name for donor in donors[:_MOST])
        raise RequestError(
            f"samples: {path} holds {len(held):,} images without labels, and {names} "
            f"{'takes' if len(donors) == 1 else 'take'} none of them for {told}: give images of every wanted class, or "
            "labelled ones (one sub-folder a class)",
            where="samples",
        )
    kept = (labels >= 0).nonzero().flatten()
    found = Samples(held.images[kept.numpy()], labels[kept].numpy(), tuple(classes))
    return Decided(found.only(classes), len(held) - len(kept))


def _probabilities(store: Store, donor: Learnware, held: Samples, path: Path) -> Tensor:
    """Of each image and class of a donor."""
    try:
        inputs = intake_of(store, donor).tensor(held)
    except (RequestError, ShapeError) as error:
        told = "; ".join(error.problems) or error.detail
        raise type(error)(
            f"samples: {path}: {donor.name}: {told}", where="samples", problems=error.problems
        ) from None
    return run(ready_graph(store, donor), inputs).softmax(1)
