"""Chains in plans: what they read and give, their joints, and their normal form."""

from __future__ import annotations

from typing import Any

import pytest

from sarto.errors import RequestError
from sarto.types import Plan

A, B, S = ("sha256:" + letter * 64 for letter in "abc")


def _plan(of: list[str], joints: list[list[str]], **more: Any) -> dict[str, Any]:
    return {
        "nodes": {
            "a": {"op": "source", "of": A},
            "b": {"op": "source", "of": B},
            "c": {"op": "chain", "of": of, "joints": joints, "samples": S, **more},
            "h": {"op": "head", "of": "c", "kind": "restrict", "classes": ["x", "y"]},
        },
        "out": "h",
    }


def test_a_chain_gives_a_model_that_heads_blocks_and_slices_read() -> None:
    plan = Plan.parse(_plan(["a", "b"], [["relu", "relu_3"]]))
    assert plan.kinds["c"].form == "model"
    assert plan.classes == ("x", "y")
    assert plan.learnwares == (A, B)
    nodes = dict(plan.model_dump(mode="json")["nodes"])
    nodes["s"] = {"op": "slice", "of": "c", "keep": {"*": 0.5}, "select": "first"}
    nodes["h"]["of"] = "s"
    assert Plan.parse({"nodes": nodes, "out": "h"}).kinds["s"].form == "model"


def test_a_plan_with_a_chain_is_the_same_after_json() -> None:
    plan = Plan.parse(
        _plan(["a", "b", "a"], [["r", "s"], ["t", "u"]], stitch={"rank": 3, "sequential": False})
    )
    again = Plan.parse(plan.to_json())
    assert again == plan and again.key() == plan.key()
    assert plan.normal().key() == plan.key()


def test_neighbouring_blocks_that_continue_each_other_are_one() -> None:
    long = Plan.parse(_plan(["a", "a", "b"], [["r", "r"], ["t", "u"]]))
    short = Plan.parse(_plan(["a", "b"], [["t", "u"]]))
    assert long.key() == short.key()
    other = Plan.parse(_plan(["a", "a", "b"], [["r", "q"], ["t", "u"]]))
    assert other.key() != short.key()


def test_a_chain_of_one_model_cut_and_joined_is_the_model() -> None:
    nodes = _plan(["a", "a"], [["r", "r"]])["nodes"]
    del nodes["b"]
    plan = Plan.parse({"nodes": nodes, "out": "h"})
    bare = {"a": nodes["a"], "h": {**nodes["h"], "of": "a"}}
    assert plan.key() == Plan.parse({"nodes": bare, "out": "h"}).key()


def test_a_control_keeps_its_cuts() -> None:
    nodes = _plan(["a", "a"], [["r", "r"]], stitch={"keep_cuts": True})["nodes"]
    del nodes["b"]
    plan = Plan.parse({"nodes": nodes, "out": "h"})
    assert any(node.op == "chain" for node in plan.normal().nodes.values())


@pytest.mark.parametrize("change", [{"stitch": {"lam": 0.1}}, {"stitch": {"random": 1}}, {"samples": A}])
def test_settings_of_a_chain_change_its_key(change: dict[str, Any]) -> None:
    assert (
        Plan.parse(_plan(["a", "b"], [["r", "s"]], **change)).key()
        != Plan.parse(_plan(["a", "b"], [["r", "s"]])).key()
    )


def test_a_chain_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError, match="2 models have 1 joints, got 2"):
        Plan.parse(_plan(["a", "b"], [["r", "s"], ["t", "u"]]))
    bad = _plan(["a", "f"], [["r", "s"]])
    bad["nodes"]["f"] = {"op": "block", "of": "b"}
    with pytest.raises(RequestError, match="a chain reads models, 'f' gives features"):
        Plan.parse(bad)
