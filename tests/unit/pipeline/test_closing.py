"""A budget filled by measurement, on devices that are known: how many plans are measured until one fills it."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarto.pipeline import closing
from sarto.pipeline.closing import GUARD, UNUSED, closed, fullest, roomy
from sarto.pipeline.filling import MARGIN
from sarto.types import Budget, Cost, Plan, SourceNode

LIMIT = 10.0


def plan(latency_ms: float) -> Plan:
    """A plan that should take so long; another one for each number."""
    name = hashlib.sha256(repr(latency_ms).encode()).hexdigest()
    cost = Cost(params=1, flops=1, memory_bytes=1, size_bytes=1, basis="predicted", latency_ms=latency_ms)
    bounds = {"latency_low_ms": 0.8 * latency_ms, "latency_high_ms": 1.2 * latency_ms}
    source = {"donor": SourceNode(of=f"sha256:{name}")}
    return Plan(nodes=source, out="donor", engine="slicepack", predicted=cost.replace(**bounds))


def said(of: Plan) -> float:
    assert of.predicted is not None and of.predicted.latency_ms is not None
    return of.predicted.latency_ms


@pytest.fixture(autouse=True)
def every_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of any latency can be solved, by the ratio that is handed over; there is one kind of them."""

    def refilled(order: Any, given: Plan, ratio: float) -> Plan:
        return plan((1 - MARGIN) * order.request.budget.latency_ms / ratio)

    monkeypatch.setattr(closing, "refilled", refilled)
    monkeypatch.setattr(closing, "reopened", lambda *_: None)


def times(slope: float, fixed_ms: float) -> list[float]:
    """What each measured plan takes on a device that takes so much more for each predicted millisecond."""
    order: Any = SimpleNamespace(request=SimpleNamespace(budget=Budget(latency_ms=LIMIT)))

    def measured(of: Plan) -> Cost:
        taken = slope * said(of) + fixed_ms
        same = {"latency_low_ms": taken, "latency_ms": taken, "latency_high_ms": taken}
        assert of.predicted is not None
        return of.predicted.replace(**same, basis="measured")

    rounds = closed(order, plan(LIMIT / 1.2), measured)
    return [one.cost.latency_ms or 0.0 for one in rounds]


@given(slope=st.floats(0.55, 1.6), share=st.floats(0.0, 0.35))
def test_two_measured_plans_say_how_wide_the_third_may_be(slope: float, share: float) -> None:
    found = times(slope, share * LIMIT)
    assert len(found) <= 3
    assert (1 - UNUSED) * LIMIT <= found[-1] <= (1 - GUARD) * LIMIT
    if len(found) == 3:
        assert found[-1] == pytest.approx((1 - MARGIN) * LIMIT)


def test_what_leaves_room_for_another_measurement_goes_before_what_only_just_keeps_the_budget() -> None:
    tight, near, over = (plan(share * LIMIT).predicted for share in (1 - GUARD / 2, 1 - GUARD, 1.01))
    assert tight is not None and near is not None and over is not None
    budget, same = Budget(latency_ms=LIMIT), (lambda cost: cost)
    assert roomy([tight, near, over], same, budget) == [near]
    assert roomy([tight, over], same, budget) == [tight], "better than nothing"
    assert roomy([over], same, budget) == []
    assert roomy([tight, over], same, Budget(params=1)) == [tight, over]


def test_of_packs_that_are_as_good_the_slowest_of_the_wider_ones_is_taken() -> None:
    cost = plan(LIMIT).predicted
    assert cost is not None
    right = {"first": 36, "wider": 35, "widest": 34, "narrow": 36, "tight": 36}
    costs = {
        name: cost.replace(params=params, latency_low_ms=ms, latency_ms=ms, latency_high_ms=ms)
        for name, params, ms in (
            ("first", 100, 2.0),
            ("wider", 120, 3.0),
            ("widest", 140, 4.0),
            ("narrow", 80, 5.0),
            ("tight", 150, 9.9),
        )
    }

    def best(*names: str) -> str:
        return fullest(names, costs.__getitem__, lambda name: float(right[name]), LIMIT)

    assert best("first", "wider", "widest", "narrow") == "wider", "one sample does not count, two do"
    assert best("first", "widest", "narrow") == "first"
    assert best("narrow", "first") == "narrow", "it takes longer already"
    assert best("first", "tight") == "first", "another measurement may say that it is over"
    assert best("tight", "first") == "tight"


def test_a_device_that_follows_no_prediction_is_left_after_a_few_plans() -> None:
    found = times(0.01, 1.2 * LIMIT)
    assert 1 < len(found) <= closing.ROUNDS and min(found) > LIMIT
