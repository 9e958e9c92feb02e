"""Repair of dropped units: a linear map for every reader, fitted in closed form and folded into its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sarto.engines.slicepack.readers import Reader
from sarto.engines.slicepack.readings import Readings
from sarto.engines.slicepack.rows import term_rows, terms_of, units_of
from sarto.engines.slicepack.settings import GRAIL_LAM, RIVALS
from sarto.engines.slicepack.units import class_shares, mix_classes
from sarto.engines.slicepack.walk import walk
from sarto.graph import ModelGraph, Selection, expand_map
from sarto.graph.expressions import AxisExpr, kept_positions, units_in
from sarto.graph.repair import fold_weight
from sarto.training import cross_moment, reconstruction_map, second_moment, selection_matrix


@dataclass(frozen=True)
class RepairSettings:
    """How dropped units are given back.

    Attributes:
        lam: ridge strength of the maps, in units of the mean diagonal of the moment.
        wpos: weight of the fragment's own classes; the donor's other classes share the rest.
        sequential: fit each map on what the already sliced layers give, so that it corrects their errors too.
        rivals: samples of other classes that run through the sliced layers, dealt over these classes; None: all.
        towards: what a map is drawn to where the samples say little: the kept units as they are, or zero.
        recalibrate: move the statistics of batch norms too; hardly changes anything, a switch for ablations.
        polish: distil towards the donor's features in small steps where samples left out say that it helps.
    """

    lam: float = 1e-2
    wpos: float = 0.33
    sequential: bool = True
    rivals: int | None = RIVALS
    towards: Literal["kept", "zero"] = "kept"
    recalibrate: bool = False
    polish: bool = False


#: The default.
CLOSED_FORM = RepairSettings()
#: GRAIL's setting: no class weighs more, one pass of the donor, maps drawn to zero.
#: Reference: GRAIL, arXiv 2602.23795.
GRAIL = RepairSettings(lam=GRAIL_LAM, sequential=False, towards="zero")


@dataclass(frozen=True, eq=False)
class Fitted:
    """Repair maps, and the readers' weights with them folded in.

    Attributes:
        maps: reader -> matrix from the kept positions of what it reads to all of them.
        weights: stored tensor -> its new value.
    """

    maps: dict[str, Tensor]
    weights: dict[str, Tensor]


def fit_repair(
    readings: Readings,
    classes: Sequence[int],
    selection: Selection,
    sliced: ModelGraph,
    settings: RepairSettings,
) -> Fitted:
    """A map for every reader of sliced units, and its weight on what it is left with."""
    readers = tuple(
        reader
        for reader in readings.readers
        if reader.repairable
        and reader.weight is not None
        and units_in(reader.consumption.expr) & selection.kept.keys()
    )
    fitted = Fitted({}, {})

    def fold(reader: Reader, maps: list[dict[str, Tensor]]) -> None:
        matrix = _axis_map(reader, selection, maps)
        fitted.maps[reader.name] = matrix
        fitted.weights[str(reader.weight)] = fold_weight(_rows_left(readings, reader, selection), matrix)

    if not settings.sequential:
        for reader in readers:
            fold(reader, _maps_of_grams(readings, reader, selection, classes, settings))
        return fitted
    chosen = sequential_samples(readings.labels, classes, settings.rivals)
    labels = readings.labels[chosen]
    counts = torch.bincount(labels, minlength=readings.n_classes).clamp_min(1)
    shares = class_shares(readings.n_classes, classes, settings.wpos)
    weights = (shares / counts)[labels]

    def see(reader: Reader, rows: Tensor | None) -> Tensor | None:
        if reader.name not in fitted.maps:
            if rows is None:
                # A recurrent layer's own states come after its weight: the donor's states stand for them.
                maps = _maps_of_grams(readings, reader, selection, classes, settings)
            else:
                maps = _maps_of_rows(readings, reader, rows, chosen, weights, selection, settings)
            fold(reader, maps)
        return fitted.weights[str(reader.weight)]

    until = readers[-1].node if readers else None
    if until is not None:
        walk(
            readings.graph,
            sliced,
            readings.inputs[chosen],
            readers,
            see,
            counts=selection.counts,
            until=until,
        )
    return fitted


def sequential_samples(labels: Tensor, classes: Sequence[int], rivals: int | None) -> Tensor:
    """Indices of the samples that run through the sliced layers: all of these classes, and `rivals` of the others.

    The first of each other class, then the second of each, and so on; at least one of each other class.
    """
    own = torch.isin(labels, torch.tensor(list(classes), dtype=labels.dtype))
    if rivals is None or not bool(own.any()) or bool(own.all()):
        return torch.arange(len(labels))
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    others = torch.nonzero(~own).flatten()
    order = others[torch.argsort(rank[others], stable=True)]
    enough = max(rivals, len(labels[~own].unique()))
    return torch.cat([torch.nonzero(own).flatten(), order[:enough]]).sort().values


def _maps_of_grams(
    readings: Readings,
    reader: Reader,
    selection: Selection,
    classes: Sequence[int],
    settings: RepairSettings,
) -> list[dict[str, Tensor]]:
    """Maps of each term of what the reader reads, from the donor's own moments."""
    found: list[dict[str, Tensor]] = []
    for place, term in enumerate(terms_of(reader.consumption.expr)):
        maps: dict[str, Tensor] = {}
        for group in sorted(units_in(term) & selection.kept.keys()):
            gram = mix_classes(readings, readings.grams[reader.name, place, group], classes, settings.wpos)
            kept = torch.tensor(selection.kept[group])
            columns = gram.index_select(1, kept)
            maps[group] = _map(columns.index_select(0, kept), columns, kept, settings)
        found.append(maps)
    return found


def _maps_of_rows(
    readings: Readings,
    reader: Reader,
    rows: Tensor,
    chosen: Tensor,
    weights: Tensor,
    selection: Selection,
    settings: RepairSettings,
) -> list[dict[str, Tensor]]:
    """Maps of each term, from what the sliced layers give (rows) to what the donor's give on the same samples."""
    expr, found = reader.consumption.expr, []
    wanted = readings.rows[reader.name][chosen]
    for place, term in enumerate(terms_of(expr)):
        whole, left = term_rows(wanted, expr, place, {}), term_rows(rows, expr, place, selection.counts)
        maps: dict[str, Tensor] = {}
        for group in sorted(units_in(term) & selection.kept.keys()):
            target = _without(whole, term, group, selection)
            given = units_of(left, 1, term, group, selection.counts)
            kept = torch.tensor(selection.kept[group])
            maps[group] = _map(
                second_moment(given, weights), cross_moment(target, given, weights), kept, settings
            )
        found.append(maps)
    return found


def _without(whole: Tensor, term: AxisExpr, group: str, selection: Selection) -> Tensor:
    """All units of one group; of the other groups of the term (dims inside heads) only what they keep."""
    others = {name: units for name, units in selection.kept.items() if name != group}
    if units_in(term) & others.keys():
        whole = whole.index_select(1, torch.from_numpy(kept_positions(term, others)))
    return units_of(whole, 1, term, group, {name: len(units) for name, units in others.items()})


def _map(gram: Tensor, cross: Tensor, kept: Tensor, settings: RepairSettings) -> Tensor:
    towards = selection_matrix(kept, cross.shape[0])
    if settings.towards == "zero":
        towards = torch.zeros_like(towards)
    return reconstruction_map(gram, cross, lam=settings.lam, towards=towards)


def _rows_left(readings: Readings, reader: Reader, selection: Selection) -> Tensor:
    """The reader's weight without the rows of units that it no longer makes; it still reads all units."""
    weight = str(reader.weight)
    rows = kept_positions(readings.graph.analysis.tensor_axes[weight][0], selection.kept)
    return readings.graph.tensors[weight].index_select(0, torch.from_numpy(rows))


def _axis_map(reader: Reader, selection: Selection, maps: list[dict[str, Tensor]]) -> Tensor:
    """The matrix over the whole axis that a reader reads, (positions, kept positions), from the maps of its terms."""
    terms = terms_of(reader.consumption.expr)
    matrix: Tensor = torch.block_diag(
        *(expand_map(term, own, selection) for term, own in zip(terms, maps, strict=True))
    )
    return matrix
