"""How a fragment is cut in a table: share of the donor, choice of units, repair; the paper's mode beside ours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.slicepack.donors import Donor
from sarto.engines.slicepack import Readings, RepairSettings, allocate, make_fragment, rate_widths
from sarto.graph import ModelGraph, block, features


@dataclass(frozen=True)
class Cut:
    """A way to cut fragments.

    Attributes:
        share: of the extractor's parameters.
        allocated: widths solved per layer at this size; else the same share sqrt(share) of every layer.
        agnostic: all classes weigh alike, as in a repair that knows no classes.
    """

    name: str
    share: float
    allocated: bool = True
    criterion: Literal["css", "energy", "random"] = "css"
    repair: bool = True
    agnostic: bool = False
    sequential: bool = True
    wpos: float = 0.33


#: Shares are those of the paper's packs and of the first experiments: 25, 17 and 6.3 % of the whole donors; 3 and 1.5 %
#: show where slices break.
CUTS = {
    cut.name: cut
    for cut in (
        Cut("ours_25", 0.25),
        Cut("ours_17", 0.168),
        Cut("ours_6", 0.0625),
        Cut("ours_3", 0.03),
        Cut("ours_1", 0.015),
        Cut("ours_37", 0.37),
        Cut("ours_20", 0.2),
        Cut("ours_50", 0.5),
        Cut("ours_30", 0.3),
        Cut("ours_same_share_25", 0.25, allocated=False),
        Cut("ours_same_share_17", 0.168, allocated=False),
        Cut("ours_same_share_6", 0.0625, allocated=False),
        Cut("ours_agnostic_25", 0.25, agnostic=True),
        Cut("ours_agnostic_17", 0.168, agnostic=True),
        Cut("ours_agnostic_6", 0.0625, agnostic=True),
        Cut("ours_agnostic_3", 0.03, agnostic=True),
        Cut("ours_agnostic_1", 0.015, agnostic=True),
        Cut("ours_parallel_25", 0.25, sequential=False),
        Cut("ours_parallel_6", 0.0625, sequential=False),
        Cut("random_25", 0.25, criterion="random"),
        Cut("random_17", 0.168, criterion="random"),
        Cut("random_6", 0.0625, criterion="random"),
        Cut("random_3", 0.03, criterion="random"),
        Cut("random_1", 0.015, criterion="random"),
        Cut("random_same_share_25", 0.25, allocated=False, criterion="random"),
        Cut("energy_same_share_25", 0.25, allocated=False, criterion="energy"),
        Cut("energy_same_share_25_no_repair", 0.25, allocated=False, criterion="energy", repair=False),
        Cut("ours_25_no_repair", 0.25, repair=False),
    )
}


@dataclass(frozen=True, eq=False)
class Fragment:
    """What a fragment gives and took: its extractor, and seconds without the reading of the samples."""

    graph: ModelGraph
    seconds: float


def cut_fragments(
    cut: Cut, owner: Mapping[str, Donor], readings: Mapping[str, Readings], classes: Iterable[str], seed: int
) -> dict[str, Fragment]:
    """The fragment of each class; widths are solved once for a donor, and all of its classes share these seconds."""
    solved: dict[str, tuple[dict[str, int], float]] = {}
    made: dict[str, Fragment] = {}
    for cls in classes:
        donor = owner[cls]
        if donor.name not in solved:
            begun = time.perf_counter()
            keep = widths(cut, donor, readings[donor.name])
            solved[donor.name] = keep, (time.perf_counter() - begun) / len(donor.classes)
        keep, shared = solved[donor.name]
        one = cut_fragment(cut, donor, readings[donor.name], cls, seed, keep)
        made[cls] = replace(one, seconds=one.seconds + shared)
    return made


def widths(cut: Cut, donor: Donor, readings: Readings) -> dict[str, int]:
    """Units of every group that fragments of this donor keep."""
    if cut.allocated:
        return dict(allocate(readings, (cut.share,))[cut.share])
    return dict(rate_widths(donor.graph, cut.share**0.5))


def cut_fragment(
    cut: Cut, donor: Donor, readings: Readings, cls: str, seed: int, keep: Mapping[str, int] | None = None
) -> Fragment:
    """The fragment of one class.

    Args:
        keep: units of every group, where they are known.
    """
    begun = time.perf_counter()
    kept = widths(cut, donor, readings) if keep is None else dict(keep)
    classes = [] if cut.agnostic else [donor.classes.index(cls)]
    repair = RepairSettings(wpos=cut.wpos, sequential=cut.sequential) if cut.repair else None
    graph, _ = make_fragment(
        readings, classes, kept, criterion=cut.criterion, repair=repair, wpos=cut.wpos, seed=seed
    )
    return Fragment(block(graph, end=features(graph).value), time.perf_counter() - begun)
