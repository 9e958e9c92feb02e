"""An order by the paper's method ends in a verified model, and its report says how it was made."""

from __future__ import annotations

from typing import Any

import pytest

from sarto import Request, RequestError
from sarto.types import HeadNode, PaperSettings, Plan, SliceNode

#: Enough to run every stage.
FEW = {"pool_steps": 2, "adapt_steps": 2, "combine_steps": 2, "pack_steps": 40}


def test_an_order_by_the_papers_method_is_trained_packed_and_verified(shop: Any) -> None:
    request = shop.order(
        "red disc", "green cross", "blue bar", method="paper", paper=FEW, engines=["slicepack"]
    )
    artifact = shop.make(request)
    report, plan = artifact.report, artifact.plan
    cuts = [node for node in plan.nodes.values() if isinstance(node, SliceNode)]
    assert len(cuts) == 3
    assert {cut.method for cut in cuts} == {"paper"}
    assert {cut.paper for cut in cuts} == {PaperSettings.parse(FEW)}
    head = plan.nodes[plan.out]
    assert isinstance(head, HeadNode) and head.kind == "paper"
    assert "the paper's method" in report.pick.name
    assert all(check.ok for check in report.checks)
    assert report.pick.accuracy_heldout is not None and report.pick.accuracy_heldout > 0.6
    assert any(text.startswith("combining") for text in shop.said)
    assert [row.role for row in report.rows].count("control") == 1


def test_two_plans_differ_where_the_numbers_of_the_method_do_and_only_there(shop: Any) -> None:
    one, same, other = (
        shop.market.plan(shop.order("red disc", "green cross", method="paper", paper=paper)).all
        for paper in (FEW, FEW, {**FEW, "gamma": 2.0})
    )
    keys = [[plan.key() for plan in plans if plan.engine == "slicepack"] for plans in (one, same, other)]
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])
    written = Plan.parse(one[0].to_json())
    assert written.key() == one[0].key()


def test_what_goes_against_the_papers_method_is_said_at_once() -> None:
    classes = {"classes": ["cat", "dog"]}
    with pytest.raises(RequestError, match="give method: paper, or leave them out"):
        Request.parse({"task": classes, "paper": FEW})
    with pytest.raises(RequestError, match="a threshold decides sizes by itself"):
        Request.parse({"task": classes, "method": "paper", "paper": {"select": "threshold"}})
    with pytest.raises(RequestError) as refused:
        SliceNode.parse(
            {
                "of": "donor",
                "keep": {"*": 0.5, "conv1": [0, 1]},
                "select": "css",
                "repair": {},
                "samples": "sha256:" + "0" * 64,
                "paper": {"beta": 0.3},
            }
        )
    told = "\n".join(refused.value.problems)
    for words in (
        "select: the paper's method by rate is 'energy' here, got 'css'",
        "repair: the paper's method trains its own repair",
        "paper.beta: must be the ratio of '*', which is 0.5; got 0.3",
        "keep.conv1: the paper's method chooses units itself",
    ):
        assert words in told
    head = {"of": "pack", "classes": ["cat", "dog"], "samples": "sha256:" + "0" * 64}
    with pytest.raises(RequestError, match="a head of kind 'paper' needs its numbers"):
        HeadNode.parse({**head, "kind": "paper"})
    with pytest.raises(RequestError, match="has no such numbers"):
        HeadNode.parse({**head, "kind": "ridge", "paper": {}})
