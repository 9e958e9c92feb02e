"""Trainings in plans and orders: what they read and give, what changes their key, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sarto.errors import RequestError
from sarto.types import Plan, Request

A, B, S, T = ("sha256:" + letter * 64 for letter in "abcd")


def _plan(towards: str = "features", **more: Any) -> dict[str, Any]:
    tune = {"op": "tune", "of": "c", "towards": towards, "samples": [S], **more}
    head = {"op": "head", "of": "t", "kind": "restrict", "classes": ["x", "y"]}
    if towards == "labels":
        tune, head = tune | {"of": "h"}, head | {"of": "c"}
    nodes = {
        "a": {"op": "source", "of": A},
        "b": {"op": "source", "of": B},
        "c": {"op": "chain", "of": ["a", "b"], "joints": [["r", "s"]], "samples": S},
        "t": tune,
        "h": head,
    }
    return {"nodes": nodes, "out": "t" if towards == "labels" else "h"}


@pytest.mark.parametrize("towards", ["features", "labels"])
def test_a_training_gives_what_it_reads(towards: str) -> None:
    plan = Plan.parse(_plan(towards))
    assert plan.kinds["t"].form == ("model" if towards == "features" else "logits")
    assert plan.classes == ("x", "y")
    assert plan.learnwares == (A, B)
    again = Plan.parse(plan.to_json())
    assert again.key() == plan.key() == plan.normal().key()


def test_every_setting_of_a_training_changes_the_key() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"epochs": 6},
        {"scope": "full"},
        {"batch": 32},
        {"rate": 0.01},
        {"decay": 0.0},
        {"seed": 1},
        {"samples": [S, T]},
        {"scope": "full", "start": "fresh"},
    ]
    keys = {Plan.parse(_plan(**change)).key() for change in changes}
    assert len(keys) == len(changes)
    assert Plan.parse(_plan("labels")).key() not in keys


def test_a_training_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(RequestError, match="new weights are all trained, towards features"):
        Plan.parse(_plan(start="fresh"))
    wrong = _plan()
    wrong["nodes"]["t"]["of"] = "a"
    with pytest.raises(RequestError, match="a training reads a chain of blocks, 'a' is of none"):
        Plan.parse(wrong)
    wrong = _plan()
    wrong["nodes"]["t"]["towards"] = "labels"
    with pytest.raises(RequestError, match="towards labels reads logits, 'c' gives a model"):
        Plan.parse(wrong)
    wrong = _plan("labels")
    wrong["nodes"]["t"]["towards"] = "features"
    with pytest.raises(RequestError, match="towards features reads a model, 'h' gives logits"):
        Plan.parse(wrong)
    wrong = _plan("labels")
    wrong["nodes"]["again"] = {"op": "head", "of": "t", "kind": "restrict", "classes": ["x"]}
    wrong["out"] = "again"
    with pytest.raises(RequestError, match="a restrict head reads a model"):
        Plan.parse(wrong)


def test_orders_that_can_train_no_chain_are_refused() -> None:
    order = {"task": {"classes": ["x", "y"]}, "train": {"epochs": 2}}
    assert Request.parse(order).train is not None
    with pytest.raises(RequestError, match=r"name reassembly under \.engines"):
        Request.parse({**order, "engines": ["slicepack"]})
    with pytest.raises(RequestError, match="a task by its properties has a supernet"):
        Request.parse({"task": {"properties": ["p"]}, "train": {"epochs": 2}})
    with pytest.raises(RequestError, match="epochs"):
        Request.parse({**order, "train": {"scope": "full"}})
