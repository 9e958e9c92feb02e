"""Which row is delivered, and what an order that can't be met says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import Plans, infeasible, least, over, over_middle, ranked, show, to_build
from sarto.pipeline.contest import Score
from sarto.pipeline.order import Order
from sarto.pipeline.verify import after_overrun
from sarto.types import Budget, Cost, Plan, Request, Row

SHA = "sha256:" + "0" * 64


def cost(params: int, **more: float) -> Cost:
    return Cost.parse(
        {"params": params, "flops": 10, "memory_bytes": 10, "size_bytes": 10, "basis": "predicted", **more}
    )


def test_the_most_accurate_comes_first_and_of_equals_the_smallest() -> None:
    rows = [(0.8, cost(5), 0), (0.9, cost(9), 1), (0.9, cost(7), 2), (None, cost(1), 3), (None, cost(0), 4)]
    assert ranked(rows) == [2, 1, 0, 3, 4], "unmeasured rows last, in the order given"


def test_accuracies_that_differ_in_the_last_digit_are_equal() -> None:
    rows = [(1.0, cost(410), 0), (1.0 - 1e-16, cost(186), 1), (0.9999999999999999, cost(256), 2)]
    assert ranked(rows) == [1, 2, 0]
    assert ranked([(0.9, cost(1), 0), (0.901, cost(2), 1)]) == [1, 0]


def test_a_predicted_latency_refuses_only_below_its_floor() -> None:
    budget = Budget(latency_ms=1.0)
    assert over(cost(1, latency_low_ms=0.5), budget) == ()
    assert over(cost(1, latency_low_ms=1.5), budget) == ("latency_ms",)
    assert over(None, budget) == ()
    assert least(cost(1, latency_low_ms=1.5), "latency_ms") == 1.5
    assert least(cost(3), "params") == 3.0


def test_an_infeasible_latency_names_a_limit_that_is_kept() -> None:
    """Of an interval the middle decides last: a limit between its ends must still be told to be raised."""
    plan = pack(0.5, 10, 100)
    assert plan.predicted is not None
    said = plan.predicted.replace(latency_low_ms=0.02, latency_ms=0.5, latency_high_ms=4.0)
    order = plans(Budget(latency_ms=0.05)).order
    error = infeasible(Plans(order, (), ((plan.replace(predicted=said), ("latency_ms",)),)))
    assert "Floor: latency_ms 0.5" in str(error) and "Raise latency_ms to 0.5" in str(error)
    assert over_middle(said, Budget(latency_ms=error.nearest["latency_ms"])) == ()


def test_a_latency_that_is_known_from_flops_alone_is_told_as_the_least_that_it_can_be() -> None:
    plan = pack(0.5, 10, 100)
    assert plan.predicted is not None
    said = plan.predicted.replace(latency_low_ms=0.02)
    order = plans(Budget(latency_ms=1e-6, params=50)).order
    error = str(infeasible(Plans(order, (), ((plan.replace(predicted=said), ("latency_ms",)),))))
    assert "latency_ms at least 0.02" in error and "params 10" in error
    assert "Raise latency_ms to at least 0.02 (what its FLOPs alone take" in error


@pytest.mark.parametrize(
    ("name", "value", "text"), [("latency_ms", 0.28912, "0.289"), ("params", 261973.0, "261_973")]
)
def test_numbers_in_messages(name: str, value: float, text: str) -> None:
    assert show(name, value) == text


def pack(ratio: float, params: int, flops: int) -> Plan:
    nodes = {
        "donor": {"op": "source", "of": SHA},
        "cut": {"op": "slice", "of": "donor", "keep": {"*": ratio}, "select": "first", "classes": ["a"]},
        "features": {"op": "block", "of": "cut"},
        "head": {"op": "head", "of": "features", "kind": "ridge", "classes": ["a", "b"], "samples": SHA},
    }
    predicted = cost(params, flops=flops).model_dump(mode="json")
    return Plan.parse({"nodes": nodes, "out": "head", "engine": "slicepack", "predicted": predicted})


def plans(budget: Budget, *packs: Plan) -> Plans:
    request = Request.parse({"task": {"classes": ["a", "b"]}}).replace(budget=budget)
    # Nothing else of an order is read here.
    order = SimpleNamespace(request=request, sources={SHA: SimpleNamespace(name="donor", id=SHA)})
    return Plans(cast("Order", order), packs, ())


PACKS = (pack(0.9, 100, 300), pack(0.8, 80, 250), pack(0.7, 60, 120), pack(0.6, 50, 90), pack(0.5, 70, 200))


def test_the_largest_pack_is_built_and_one_of_half_its_size() -> None:
    assert [
        plan.predicted.params for plan in to_build(plans(Budget(params=100), *PACKS)) if plan.predicted
    ] == [
        100,
        50,
    ]


@pytest.mark.parametrize("budget", [Budget(latency_ms=3.0), Budget(flops=1_000)])
def test_where_time_is_limited_the_largest_of_clearly_fewer_flops_is_built_too(budget: Budget) -> None:
    found = [(p.predicted.params, p.predicted.flops) for p in to_build(plans(budget, *PACKS)) if p.predicted]
    assert found == [(100, 300), (70, 200), (50, 90)], "of all with at most three quarters of 300"


def scored(plan: Plan, accuracy: float) -> Score:
    row = Row(name="pack", role="plan", cost=plan.predicted, accuracy_loto=accuracy)
    return Score(row, plan, torch.zeros(0), torch.zeros(0))


def test_after_an_overrun_those_come_first_whose_flops_should_fit() -> None:
    """At twice the time allowed, half of the FLOPs should fit."""
    order = plans(Budget(latency_ms=2.0)).order
    over = cost(100, flops=300).replace(latency_ms=4.0, basis="measured")
    queue = [scored(PACKS[1], 0.9), scored(PACKS[3], 0.7), scored(PACKS[2], 0.8)]
    found = after_overrun(queue, cast("Builder", None), order, [], over)
    assert [score.plan for score in found] == [PACKS[3], PACKS[2], PACKS[1]], "else their order stays"
