"""Subnets in plans: typed as models, keyed by what they are cut from and for; tasks in orders."""

from __future__ import annotations

from typing import Any

import pytest

from sarto.errors import RequestError
from sarto.types import Plan, Request

NET, OTHER, SAMPLES = ("sha256:" + digit * 64 for digit in "ab5")


def plan(**subnet: Any) -> Plan:
    node = {"op": "subnet", "of": NET, "tasks": [["b", "a"]], **subnet}
    out = {"op": "head", "kind": "restrict", "of": "s", "classes": ["yes", "no"]}
    return Plan.parse({"nodes": {"s": node, "out": out}, "out": "out"})


def test_a_subnet_is_a_model_with_features_and_outputs() -> None:
    made = plan(limit=0.1)
    assert made.classes == ("yes", "no") and made.kinds["s"].form == "model"
    assert made.supernets == (NET,) and made.learnwares == ()
    features = Plan.parse({"nodes": {"s": made.nodes["s"], "f": {"op": "block", "of": "s"}}, "out": "f"})
    assert features.kinds["f"].form == "features"
    assert Plan.parse(made.to_json()) == made and made.normal().key() == made.key()


def test_the_key_tells_apart_what_gives_other_models_and_nothing_else() -> None:
    one = plan(keep={"g": [0, 2]})
    assert one.key() == plan(keep={"g": [2, 0]}, tasks=[["a", "b"]]).key()
    assert one.key() == plan(keep={"g": [0, 2]}, tasks=[["a", "b"], ["b", "a"]]).key()
    others = [
        plan(keep={"g": [0, 1]}),
        plan(keep={"g": [0, 2]}, of=OTHER),
        plan(keep={"g": [0, 2]}, tasks=[["a"]]),
        plan(keep={"g": [0, 2]}, samples=SAMPLES),
        plan(keep={"g": [0, 2], "h": []}),
        plan(limit=0.5),
        plan(limit=0.25),
    ]
    assert len({one.key(), *(other.key() for other in others)}) == 8
    assert Plan.parse(others[4].to_json()) == others[4]


@pytest.mark.parametrize(
    ("subnet", "says"),
    [
        ({}, r"nodes\.s\.limit: give the limit, or under \.keep"),
        ({"limit": 0.5, "keep": {"g": [0]}}, r"nodes\.s\.limit: give the limit, or under \.keep"),
        ({"limit": 0.0}, r"nodes\.s\.limit"),
        ({"limit": 1.5}, r"nodes\.s\.limit"),
        ({"keep": {"g": 0.5}}, r"nodes\.s\.keep\.g: a subnet names its units, got 0\.5"),
        ({"limit": 0.5, "tasks": []}, r"nodes\.s\.tasks"),
        ({"limit": 0.5, "tasks": [[]]}, r"nodes\.s\.tasks\[0\]: a task has properties"),
    ],
)
def test_broken_subnets_are_refused(subnet: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        plan(**subnet)


def test_an_order_is_for_classes_or_for_a_task() -> None:
    order = Request.parse({"task": {"properties": ["has", "odd"], "also": [["has", "digit_1"]]}})
    assert order.task.tasks == (("has", "odd"), ("has", "digit_1")) and order.task.wanted == ()
    assert order.task.title == ("has+odd", "has+digit_1")
    assert Request.parse({"task": {"classes": ["a", "b"]}}).task.tasks == ()
    for task, says in (
        ({}, r"task\.classes: name the classes"),
        ({"classes": ["a"], "properties": ["b"]}, "by classes or by properties"),
        ({"classes": ["a"], "space": "s"}, r"task\.space: goes with properties"),
        ({"properties": ["a", "a"]}, "named twice"),
        ({"properties": ["a"], "also": [[]]}, r"task\.also\[0\]"),
    ):
        with pytest.raises(RequestError, match=says):
            Request.parse({"task": task})
    with pytest.raises(RequestError, match="recalibrate: takes statistics from the order's samples"):
        Request.parse({"task": {"properties": ["a"]}, "recalibrate": True})
