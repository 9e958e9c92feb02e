"""Which units a fragment keeps: class-weighted column subsets, and the paper's criteria beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from sarto.engines.slicepack.readings import Readings, reader_weights
from sarto.graph import Selection
from sarto.training import above_threshold, column_subset, energy, one_against_rest, random_units, top

Criterion = Literal["css", "energy", "threshold", "random", "first"]


def choose_units(
    readings: Readings,
    classes: Sequence[int],
    keep: Mapping[str, int | tuple[int, ...]],
    criterion: Criterion,
    *,
    wpos: float,
    beta: float | None = None,
    seed: int = 0,
) -> Selection:
    """The units that a fragment of these classes keeps.

    Args:
        classes: whose fragment it is; their moments weigh `wpos`, those of the others 1 - wpos.
        keep: channel group -> how many units, or which.
        criterion: `css` takes the units from which the others are best predicted; `energy` the most active ones
            (equation (5)); `threshold` those above 1 - beta of the most active one (equation (4)); `random` and
            `first` are controls.
        beta: of the threshold; needed there.
        seed: of `random`.

    Reference:
        Slice-and-Pack, equations (4) and (5). Differs: `css` is ours (specifically weighted by the readers' weights).
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
        else:
            gram, weights = group_moment(readings, name, classes, wpos)
            if criterion == "css":
                kept[name] = _indices(column_subset(gram, weights, amount).kept)
            elif criterion == "energy":
                kept[name] = _indices(top(energy(gram), amount))
            else:
                scores = group_moment(readings, name, classes, 1.0)[0].diagonal().clamp_min(0).sqrt()
                kept[name] = _indices(above_threshold(scores, beta if beta is not None else 0.5))
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
    for reader in readings.readers:
        grams = readings.grams.get((reader.node, group))
        if grams is None:
            continue
        mixed = mix_classes(readings, grams, classes, wpos)
        moment += mixed / mixed.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        weights += reader_weights(readings, reader, group)
    return moment, weights


def mix_classes(readings: Readings, grams: Tensor, classes: Sequence[int], wpos: float) -> Tensor:
    """Moments by class (n_classes, u, u) as one: the fragment's classes weigh wpos together."""
    counts = torch.bincount(readings.labels, minlength=readings.n_classes)
    if len(classes) == 1:
        return one_against_rest(grams, counts, wpos=wpos)[classes[0]]
    weights = class_shares(readings.n_classes, classes, wpos).to(grams.dtype)
    return torch.tensordot(weights, grams, dims=1)


def class_shares(n_classes: int, classes: Sequence[int], wpos: float) -> Tensor:
    """Weight of each class, shape (n_classes,), summing to 1; all alike where the fragment is of all or of none."""
    own = torch.zeros(n_classes, dtype=torch.bool)
    own[list(classes)] = True
    if not bool(own.any()) or bool(own.all()):
        return torch.full((n_classes,), 1.0 / n_classes, dtype=torch.float64)
    shares = torch.full((n_classes,), (1.0 - wpos) / int((~own).sum()), dtype=torch.float64)
    shares[own] = wpos / int(own.sum())
    return shares


def _indices(units: Tensor) -> tuple[int, ...]:
    return tuple(int(unit) for unit in units.tolist())
