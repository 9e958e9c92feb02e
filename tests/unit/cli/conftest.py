from __future__ import annotations

from tests.unit.cli.markets import market

__all__ = ["market"]
