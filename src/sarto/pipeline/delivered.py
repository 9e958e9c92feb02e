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
    """What came out of an order; the pick is the first of the rows."""

    assembly: Assembly
    verified: Verified
    rows: tuple[Score, ...]
    heldout: Labelled | None
    rejection: Rejection | None = None

    @property
    def pick(self) -> Score:
        return self.rows[0]

    @property
    def plan(self) -> Plan:
        return self.assembly.plan
