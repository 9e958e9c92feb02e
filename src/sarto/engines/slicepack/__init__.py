"""Slice-and-Pack in closed form: slice each wanted class out of its donor, pack the fragments into one model."""

from __future__ import annotations

from sarto.engines.slicepack.fragment import make_fragment
from sarto.engines.slicepack.polish import Evidence
from sarto.engines.slicepack.propose import pack_plan, propose, slice_node
from sarto.engines.slicepack.readings import Readings, read_donor
from sarto.engines.slicepack.repair import GRAIL, RepairSettings
from sarto.engines.slicepack.settings import HALF, LAM, PRUNED, SHARES, WPOS
from sarto.engines.slicepack.trunk import trunk_costs
from sarto.engines.slicepack.units import choose_units
from sarto.engines.slicepack.widths import allocate, allocate_within, rate_widths

__all__ = [
    "GRAIL",
    "HALF",
    "LAM",
    "PRUNED",
    "SHARES",
    "WPOS",
    "Evidence",
    "Readings",
    "RepairSettings",
    "allocate",
    "allocate_within",
    "choose_units",
    "make_fragment",
    "pack_plan",
    "propose",
    "rate_widths",
    "read_donor",
    "slice_node",
    "trunk_costs",
]
