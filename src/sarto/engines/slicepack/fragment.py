"""A fragment: the donor with the units that a class needs, its dropped units repaired in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sarto.engines.slicepack.readings import Reader, Readings, stride_of, units_read, with_weights
from sarto.engines.slicepack.units import Criterion, choose_units, class_shares
from sarto.graph import ModelGraph, Selection, expand_map, slice
from sarto.graph.expressions import kept_positions, units_in
from sarto.graph.repair import fold_weight
from sarto.graph.run import run_node
from sarto.training import cross_moment, reconstruction_map, second_moment, selection_matrix


@dataclass(frozen=True)
class RepairSettings:
    """How dropped units are given back.

    Attributes:
        lam: ridge strength of the maps, in units of the mean diagonal of the moment.
        wpos: weight of the fragment's own classes; the donor's other classes share the rest.
        sequential: fit each map on what the already sliced layers give, so that it corrects their errors too.
    """

    lam: float = 1e-2
    wpos: float = 0.33
    sequential: bool = True


def make_fragment(
    readings: Readings,
    classes: Sequence[int],
    keep: Mapping[str, int | tuple[int, ...]],
    *,
    criterion: Criterion = "css",
    repair: RepairSettings | None = RepairSettings(),
    wpos: float = 0.33,
    beta: float | None = None,
    seed: int = 0,
) -> tuple[ModelGraph, Selection]:
    """The whole donor, sliced for some of its classes and repaired; its classifier still reads all classes.

    Args:
        classes: labels whose fragment it is.
        keep: channel group -> number of units, or which units.
        repair: None leaves the dropped units out (plain pruning).
        wpos: weight of the classes in the choice of units.
        beta: of the threshold criterion.

    Reference:
        Slice-and-Pack, AAAI 2025, "slice". Differs: the linear layer l_i is solved, not trained, at the place where
        the next linear operator reads (after activation and pooling), where it folds exactly.
    """
    selection = choose_units(readings, classes, keep, criterion, wpos=wpos, beta=beta, seed=seed)
    sliced = slice(readings.graph, selection)
    if repair is None:
        return sliced, selection
    return _repaired(readings, classes, selection, sliced, repair), selection


def _repaired(
    readings: Readings,
    classes: Sequence[int],
    selection: Selection,
    sliced: ModelGraph,
    settings: RepairSettings,
) -> ModelGraph:
    """Walk the sliced donor once; at every reader fit the map on what arrives there, fold it, and go on."""
    shares = class_shares(readings.n_classes, classes, settings.wpos)
    counts = torch.bincount(readings.labels, minlength=readings.n_classes)
    weights = (shares / counts)[readings.labels]
    readers = {reader.node: reader for reader in readings.readers if reader.repairable}
    batch = len(readings.inputs)
    env: dict[str, Any] = {sliced.inputs[0].name: readings.inputs}
    last = {name: users[-1] for name, users in sliced.readers.items()}
    fitted: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in sliced.nodes:
            reader = readers.get(node.name)
            if reader is not None and reader.weight is not None and _reads_sliced(reader, selection):
                given = env[reader.source] if settings.sequential else _kept_of(readings, reader, selection)
                fitted.update(_fit_reader(readings, reader, given, selection, weights, settings.lam))
            env[node.name] = run_node(with_weights(sliced, fitted), node, env, batch)
            for name in [name for name in env if last.get(name) == node.name]:
                del env[name]
    return with_weights(sliced, fitted)


def _reads_sliced(reader: Reader, selection: Selection) -> bool:
    return any(group in selection.kept for group in units_in(reader.consumption.expr))


def _kept_of(readings: Readings, reader: Reader, selection: Selection) -> Tensor:
    positions = torch.from_numpy(kept_positions(reader.consumption.expr, selection.kept))
    return readings.values[reader.source].index_select(reader.consumption.axis, positions)


def _fit_reader(
    readings: Readings,
    reader: Reader,
    given: Tensor,
    selection: Selection,
    weights: Tensor,
    lam: float,
) -> dict[str, Tensor]:
    """The reader's weight on the kept units, with the maps of its groups folded in."""
    consumption, counts = reader.consumption, selection.counts
    wanted = readings.values[reader.source]
    maps: dict[str, Tensor] = {}
    for group in sorted(units_in(consumption.expr) & selection.kept.keys()):
        # Other groups on the axis (dims inside heads) are positions here: those that they keep.
        others = {name: units for name, units in selection.kept.items() if name != group}
        left = torch.from_numpy(kept_positions(consumption.expr, others))
        whole = units_read(
            readings.graph,
            reader,
            wanted.index_select(consumption.axis, left),
            group,
            {name: len(units) for name, units in others.items()},
        )
        kept = units_read(readings.graph, reader, given, group, counts)
        stride = stride_of(whole)
        towards = selection_matrix(torch.tensor(selection.kept[group]), whole.shape[1])
        maps[group] = reconstruction_map(
            second_moment(kept, weights, stride=stride),
            cross_moment(whole, kept, weights, stride=stride),
            lam=lam,
            towards=towards,
        )
    weight = str(reader.weight)
    rows = kept_positions(readings.graph.analysis.tensor_axes[weight][0], selection.kept)
    original = readings.graph.tensors[weight].index_select(0, torch.from_numpy(rows))
    return {weight: fold_weight(original, expand_map(consumption.expr, maps, selection))}
