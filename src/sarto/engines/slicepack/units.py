"""Which units a fragment keeps: class-weighted column subsets, and the paper's criteria beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from sarto.engines.slicepack.readings import Read, Readings, reader_weights
from sarto.errors import RequestError
from sarto.graph import Selection
from sarto.training import above_threshold, column_subset, energy, one_against_rest, random_units, top

Criterion = Literal["css", "energy", "fisher", "threshold", "random", "first"]


def choose_units(
    readings: Readings,
    classes: Sequence[int],
    keep: Mapping[str, int | tuple[int, ...]],
    criterion: Criterion,
    *,
    wpos: float,
    beta: float | Mapping[str, float] | None = None,
    seed: int = 0,
) -> Selection:
    """The units that a fragment of these classes keeps.

    Args:
        classes: whose fragment it is; their moments weigh `wpos`, those of the others 1 - wpos.
        keep: channel group -> how many units, or which.
        criterion: `css` takes the units from which the others are best predicted; `energy` the most active ones
            (equation (5)); `threshold` those above 1 - beta of the most active one (equation (4)); `fisher` those
            whose mean tells the classes from the others best; `random` and `first` are controls.
        beta: of the threshold, for all groups or by group; needed there.
        seed: of `random`.

    Raises:
        RequestError: a threshold without its beta, or `fisher` where classes have no others beside them.

    Reference:
        Slice-and-Pack, equations (4) and (5). Differs: `css` is ours (weighted by the readers' weights).
    """
    kept: dict[str, tuple[int, ...]] = {}
    for place, (name, amount) in enumerate(sorted(keep.items())):
        if isinstance(amount, tuple):
            kept[name] = amount
            continue
        size = readings.graph.analysis.groups[name].size
        if amount >= size and criterion != "threshold":
            kept[name] = tuple(range(size))
        elif criterion == "first":
            kept[name] = tuple(range(amount))
        elif criterion == "random":
            kept[name] = _indices(random_units(amount, size, seed=1_000_003 * seed + place))
        elif criterion == "fisher":
            kept[name] = _indices(top(fisher_scores(readings, name, classes), amount))
        else:
            gram, weights = group_moment(readings, name, classes, wpos)
            if criterion == "css":
                kept[name] = _indices(column_subset(gram, weights, amount).kept)
            elif criterion == "energy":
                kept[name] = _indices(top(energy(gram), amount))
            else:
                scores = group_moment(readings, name, classes, 1.0)[0].diagonal().clamp_min(0).sqrt()
                own = beta.get(name) if isinstance(beta, Mapping) else beta
                if own is None:
                    raise RequestError(
                        f"a threshold needs a beta for every group; {name!r} has none", where=name
                    )
                kept[name] = _indices(above_threshold(scores, own))
    return Selection(kept)


def group_moment(
    readings: Readings, group: str, classes: Sequence[int], wpos: float
) -> tuple[Tensor, Tensor]:
    """Second moment of a group's units and the weight of an error in each, over all its readers.

    Each reader counts alike: its moment is scaled to a mean diagonal of 1 and its weights to a mean of 1.

    Returns:
        moment, float64 (units, units); weights (units,).
    """
    size = readings.graph.analysis.groups[group].size
    moment = torch.zeros(size, size, dtype=torch.float64)
    weights = torch.zeros(size, dtype=torch.float64)
    for read in _reads(readings, group):
        mixed = mix_classes(readings, readings.grams[read], classes, wpos)
        moment += mixed / mixed.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        weights += reader_weights(readings, read)
    return moment, weights


def fisher_scores(readings: Readings, group: str, classes: Sequence[int]) -> Tensor:
    """How far a unit's mean on the classes lies from its mean on the others, in their common spread, shape (units,).

    A unit's value on a sample is its mean over positions; each reader counts alike.

    Raises:
        RequestError: the samples are all of the classes, or none of them is.
    """
    size = readings.graph.analysis.groups[group].size
    scores = torch.zeros(size, dtype=torch.float64)
    own = torch.isin(readings.labels, torch.tensor(list(classes)))
    if not bool(own.any()) or bool(own.all()):
        raise RequestError(
            "fisher chooses units that tell a fragment's classes from the others; here are all classes or none of them "
            "on one side: name some of the classes, or choose by css or energy"
        )
    for read in _reads(readings, group):
        units = readings.units(read)
        values = (units.flatten(2).mean(2) if units.ndim > 2 else units).to(torch.float64)
        inside, outside = values[own], values[~own]
        if not len(outside):
            continue
        between = (inside.mean(0) - outside.mean(0)).square()
        within = inside.var(0, correction=0) + outside.var(0, correction=0)
        # A unit that never moves tells nothing apart.
        scores += torch.where(between > 0, between / within.clamp_min(1e-12), 0.0)
    return scores


def mix_classes(readings: Readings, grams: Tensor, classes: Sequence[int], wpos: float) -> Tensor:
    """Moments by class (n_classes, u, u) as one: the fragment's classes weigh wpos together."""
    counts = torch.bincount(readings.labels, minlength=readings.n_classes)
    if len(classes) == 1:
        shares = one_against_rest(torch.eye(readings.n_classes, dtype=torch.float64), counts, wpos=wpos)[
            classes[0]
        ]
    else:
        shares = class_shares(readings.n_classes, classes, wpos)
    return torch.tensordot(shares.to(grams.dtype), grams, dims=1)


def class_shares(n_classes: int, classes: Sequence[int], wpos: float) -> Tensor:
    """Weight of each class, shape (n_classes,), summing to 1; all alike where the fragment is of all or of none."""
    own = torch.zeros(n_classes, dtype=torch.bool)
    own[list(classes)] = True
    if not bool(own.any()) or bool(own.all()):
        return torch.full((n_classes,), 1.0 / n_classes, dtype=torch.float64)
    shares = torch.full((n_classes,), (1.0 - wpos) / int((~own).sum()), dtype=torch.float64)
    shares[own] = wpos / int(own.sum())
    return shares


def _reads(readings: Readings, group: str) -> list[Read]:
    return [read for read in readings.grams if read[2] == group]


def _indices(units: Tensor) -> tuple[int, ...]:
    return tuple(int(unit) for unit in units.tolist())
