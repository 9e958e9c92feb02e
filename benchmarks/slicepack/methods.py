"""How a fragment is cut in a table: share of the donor, choice of units, repair; the paper's mode beside ours."""

from __future__ import annotations

import time
from dataclasses import dataclass
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


def cut_fragment(cut: Cut, donor: Donor, readings: Readings, cls: str, seed: int) -> Fragment:
    """The fragment of one class."""
    begun = time.perf_counter()
    whole = cut.share
    keep = allocate(readings, (whole,))[whole] if cut.allocated else rate_widths(donor.graph, whole**0.5)
    classes = [] if cut.agnostic else [donor.classes.index(cls)]
    repair = RepairSettings(wpos=cut.wpos, sequential=cut.sequential) if cut.repair else None
    graph, _ = make_fragment(
        readings, classes, keep, criterion=cut.criterion, repair=repair, wpos=cut.wpos, seed=seed
    )
    return Fragment(block(graph, end=features(graph).value), time.perf_counter() - begun)
