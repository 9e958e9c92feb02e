"""A fragment: the donor with the units that a class needs, its dropped units repaired in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sarto.engines.slicepack.polish import Evidence, polish
from sarto.engines.slicepack.readings import Readings
from sarto.engines.slicepack.recalibration import recalibrated
from sarto.engines.slicepack.repair import CLOSED_FORM, RepairSettings, fit_repair
from sarto.engines.slicepack.units import Criterion, choose_units
from sarto.graph import ModelGraph, Selection, slice


def make_fragment(
    readings: Readings,
    classes: Sequence[int],
    keep: Mapping[str, int | tuple[int, ...]],
    *,
    criterion: Criterion = "css",
    repair: RepairSettings | None = CLOSED_FORM,
    wpos: float = 0.33,
    beta: float | Mapping[str, float] | None = None,
    seed: int = 0,
    tell: Callable[[Evidence], None] | None = None,
) -> tuple[ModelGraph, Selection]:
    """The whole donor, sliced for some of its classes and repaired; its classifier still reads all classes.

    Args:
        classes: labels whose fragment it is.
        keep: channel group -> number of units, or which units.
        repair: None leaves the dropped units out (plain pruning).
        wpos: weight of the classes in the choice of units.
        beta: of the threshold criterion, for all groups or by group.
        tell: is told what samples that were left out say of polishing, and whether it was taken.

    Reference:
        Slice-and-Pack, AAAI 2025, "slice". Differs: the linear layer l_i is solved, not trained, at the place where
        the next linear operator reads (after activation and pooling), where it folds exactly.
    """

    def closed_form(given: Readings, settings: RepairSettings) -> tuple[ModelGraph, Selection]:
        selection = choose_units(given, classes, keep, criterion, wpos=wpos, beta=beta, seed=seed)
        sliced = slice(given.graph, selection)
        fitted = fit_repair(given, classes, selection, sliced, settings)
        graph = replace(sliced, tensors={**dict(sliced.tensors.items()), **fitted.weights})
        if settings.recalibrate:
            graph = recalibrated(given, classes, selection, graph, wpos=settings.wpos)
        return graph, selection

    if repair is None:
        selection = choose_units(readings, classes, keep, criterion, wpos=wpos, beta=beta, seed=seed)
        return slice(readings.graph, selection), selection
    if not repair.polish:
        return closed_form(readings, repair)
    graph, selection, evidence = polish(
        readings, classes, lambda given: closed_form(given, repair), wpos=repair.wpos
    )
    if tell is not None:
        tell(evidence)
    return graph, selection
