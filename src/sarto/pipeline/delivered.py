"""What came out of an order, before anything is reported of it."""

from __future__ import annotations

from dataclasses import dataclass

from sarto.market import Labelled
from sarto.pipeline.builder import Assembly
from sarto.pipeline.contest import Score
from sarto.pipeline.verify import Verified
from sarto.types import Plan, Rejection


@dataclass(frozen=True, eq=False)
class Delivered:
    """What came out of an order; the pick is the first of the rows.

    Attributes:
        compared: whether donors, baselines and random units were scored beside it, where there are any.
    """

    assembly: Assembly
    verified: Verified
    rows: tuple[Score, ...]
    heldout: Labelled | None
    rejection: Rejection | None = None
    compared: bool = True

    @property
    def pick(self) -> Score:
        return self.rows[0]

    @property
    def plan(self) -> Plan:
        return self.assembly.plan
