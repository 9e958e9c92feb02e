"""Which chains of a list are worth more: a cascade from what is free to what needs labels.

Step 0 is the list itself, in the order of its additive values. Step 1 asks, without labels, how much a stitched chain
still behaves like the donor that its classifier comes from. Step 2 asks, with labels, how well a closed-form head on
its features does when one of each class is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor

from sarto.engines.reassembly.assembly import Assembler, Piece, tidy
from sarto.engines.reassembly.problem import Choice
from sarto.errors import GraphError
from sarto.graph import features
from sarto.training import ridge_loto


@dataclass(frozen=True)
class Ranked:
    """A chain and what the cascade found out about it; None: not asked.

    Attributes:
        value: the additive value.
        agreement: share of probe images on which it decides as its tail donor does.
        divergence: mean KL divergence from the tail donor's probabilities to its own.
        closeness: mean cosine between its final features and the tail donor's.
        accuracy_loto: of a ridge head on its final features, one of each class left out.
    """

    pieces: tuple[Piece, ...]
    value: float
    agreement: float | None = None
    divergence: float | None = None
    closeness: float | None = None
    accuracy_loto: float | None = None


@dataclass(frozen=True)
class Likeness:
    """How much a model decides like another on the same images; no label is read.

    Attributes:
        agreement: share of the images on which both decide alike.
        divergence: mean KL divergence from the other's probabilities to its own; NaN where logits are not finite.
    """

    agreement: float
    divergence: float


def likeness(logits: Tensor, wanted: Tensor) -> Likeness:
    """How much logits (n, classes) are like those of another model on the same images."""
    told = F.log_softmax(logits.double(), 1)
    want = F.log_softmax(wanted.double(), 1)
    return Likeness(
        float((logits.argmax(1) == wanted.argmax(1)).double().mean()),
        float((want.exp() * (want - told)).sum(1).mean()),
    )


def cascade(
    maker: Assembler,
    chains: Sequence[tuple[tuple[Piece, ...], Choice]],
    *,
    checked: int = 50,
    headed: int = 10,
    labels: Tensor | None = None,
    n_classes: int = 0,
) -> tuple[Ranked, ...]:
    """The chains, best first, after as many steps as labels allow.

    Args:
        chains: blocks and choices, best first by additive value.
        checked: chains that go on to step 1.
        headed: chains that go on to step 2, where labels are given.
        labels: of the probe images, shape (n,).
    """
    known = [Ranked(tuple(pieces), choice.value) for pieces, choice in chains]
    # Neighbours in this order share the longest beginnings, which are then computed once.
    near = sorted(known[:checked], key=lambda item: _order(item.pieces))
    seen = sorted((_functional(maker, item) for item in near), key=_step_one)
    if labels is not None and n_classes > 1:
        front = [_headed(maker, item, labels, n_classes) for item in seen[:headed]]
        front.sort(key=lambda item: (-(item.accuracy_loto or 0.0), _step_one(item)))
        seen = [*front, *seen[headed:]]
    return (*seen, *known[checked:])


def final_features(maker: Assembler, pieces: Sequence[Piece]) -> Tensor:
    """What the last donor's classifier reads in a chain on the probe images, shape (n, width).

    Raises:
        GraphError: the last donor's output is not made by a linear layer.
    """
    chained = tidy(pieces)
    last = chained[-1]
    donor = maker.donors[last.donor]
    read = features(donor.graph).value
    number = donor.anatomy.number.get(read)
    if number is not None and (last.start is None or number > last.start):
        return maker.after((*chained[:-1], replace(last, end=number)))
    if number is not None and number == last.start:
        return _given(maker, chained)
    raise GraphError(
        f"{read!r}, which the classifier of {donor.key!r} reads, is no cut point after the last joint"
    )


def _given(maker: Assembler, chained: Sequence[Piece]) -> Tensor:
    made = maker.stitch(chained).graph(maker.after(chained[:-1]))
    if not isinstance(made, Tensor):
        raise GraphError("a stitch gives one value")
    return made


def _functional(maker: Assembler, item: Ranked) -> Ranked:
    chained = tidy(item.pieces)
    tail = chained[-1].donor
    found = likeness(maker.after(chained), maker.own(tail, None))
    closeness: float | None
    try:
        mine = final_features(maker, chained).double()
        donor = maker.donors[tail]
        number = donor.anatomy.number[features(donor.graph).value]
        closeness = float(F.cosine_similarity(mine, maker.own(tail, number).double(), dim=1).mean())
    except (GraphError, KeyError):
        closeness = None
    return replace(
        item,
        agreement=found.agreement,
        divergence=found.divergence,
        closeness=closeness,
    )


def _headed(maker: Assembler, item: Ranked, labels: Tensor, n_classes: int) -> Ranked:
    found = ridge_loto(final_features(maker, item.pieces), labels, n_classes)
    return replace(item, accuracy_loto=found.accuracy)


def _step_one(item: Ranked) -> tuple[float, float]:
    return (item.divergence if item.divergence is not None else float("inf"), -item.value)


def _order(pieces: Sequence[Piece]) -> tuple[tuple[int, int, int], ...]:
    return tuple(
        (p.donor, -1 if p.start is None else p.start, -1 if p.end is None else p.end) for p in pieces
    )


def kendall(scores: Sequence[float], measured: Sequence[float]) -> float | None:
    """Kendall's tau-b between scores and measured accuracies; None for fewer than three or constant ones."""
    if len(scores) < 3 or len(set(scores)) < 2 or len(set(measured)) < 2:
        return None
    return float(kendalltau(scores, measured).statistic)
