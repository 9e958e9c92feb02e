"""Which row is delivered, and what an order that can't be met says."""

from __future__ import annotations

import pytest

from sarto.pipeline.choose import least, over, ranked, show
from sarto.types import Budget, Cost


def cost(params: int, **more: float) -> Cost:
    return Cost.parse(
        {"params": params, "flops": 10, "memory_bytes": 10, "size_bytes": 10, "basis": "predicted", **more}
    )


def test_the_most_accurate_comes_first_and_of_equals_the_smallest() -> None:
    rows = [(0.8, cost(5), 0), (0.9, cost(9), 1), (0.9, cost(7), 2), (None, cost(1), 3), (None, cost(0), 4)]
    assert ranked(rows) == [2, 1, 0, 3, 4], "unmeasured rows last, in the order given"


def test_a_predicted_latency_refuses_only_below_its_floor() -> None:
    budget = Budget(latency_ms=1.0)
    assert over(cost(1, latency_low_ms=0.5), budget) == ()
    assert over(cost(1, latency_low_ms=1.5), budget) == ("latency_ms",)
    assert over(None, budget) == ()
    assert least(cost(1, latency_low_ms=1.5), "latency_ms") == 1.5
    assert least(cost(3), "params") == 3.0


@pytest.mark.parametrize(
    ("name", "value", "text"), [("latency_ms", 0.28912, "0.289"), ("params", 261973.0, "261_973")]
)
def test_numbers_in_messages(name: str, value: float, text: str) -> None:
    assert show(name, value) == text
