"""Packs in a market: fronts shared by a donor's classes, two donors of one class, classes that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sarto import Market
from sarto.cli.app import app
from sarto.errors import InfeasibleError, RequestError, StoreError
from sarto.graph import branch
from sarto.graph.encoding import encode
from sarto.pipeline import Artifact
from sarto.pipeline.builder import Builder, count_params
from sarto.pipeline.choose import propose, trunks
from sarto.pipeline.intakes import sources
from sarto.pipeline.loaded import load
from sarto.pipeline.order import check_order
from sarto.types import Plan, SliceNode

DISCS = ("red disc", "green disc", "blue disc")


def builder_of(shop: Any, order: Any) -> Builder:
    held = {s.digest: s for s in order.donor_samples.values()}
    return Builder(shop.market.store, {order.samples.digest: order.samples, **held})


def test_a_pack_of_one_donor_costs_what_was_predicted_and_never_more_than_the_donor(shop: Any) -> None:
    order = check_order(shop.order(*DISCS), shop.market.store)
    plans = propose(order).feasible
    builder = builder_of(shop, order)
    whole = next(plan for plan in plans if plan.note == "probe on discs")
    limit = count_params(builder.build(whole).graph)
    for plan in [plan for plan in plans if trunks(plan)][::3]:
        graph = builder.build(plan).graph
        features = sum(part[3] for part in builder.build(plan).parts if part[0] == "head")
        assert plan.predicted is not None
        members = builder.members_of(plan)
        shared = sum(map(count_params, members)) - count_params(branch(members))
        # What fragments happen to share beside their front comes off.
        assert count_params(graph) <= plan.predicted.params <= count_params(graph) + shared
        assert count_params(graph) - features <= limit


def test_five_classes_of_one_donor_are_never_larger_than_it(shop: Any) -> None:
    classes = (*DISCS, "red bar", "green bar")
    torch.manual_seed(0)
    shop.add("five", classes, shop.donors["discs"][0](5).eval(), samples=shop.draw(classes, 4, 7))
    order = check_order(shop.order(*(f"five:{cls}" for cls in classes)), shop.market.store)
    plans = [plan for plan in propose(order).all if plan.engine == "slicepack"]
    builder = builder_of(shop, order)
    whole = next(plan for plan in propose(order).all if plan.note == "probe on five")
    extractor = count_params(builder.members_of(whole)[0])
    for plan in plans[:: max(1, len(plans) // 6)]:
        parts = builder.build(plan).parts
        assert sum(params for name, _, _, params in parts if name != "head") <= extractor, plan.note


@pytest.fixture
def rivals(shop: Any) -> Any:
    """Another learnware that knows red discs, hardly trained."""
    torch.manual_seed(5)
    classes = ("red disc", "blue cross", "green bar")
    shop.add("rough", classes, shop.donors["discs"][0](3).eval(), samples=shop.draw(classes, 6, 31))
    return shop


def test_a_class_that_two_donors_offer_is_tried_from_each_and_from_both(rivals: Any) -> None:
    request = rivals.order("red disc", "green disc", "red bar")
    order = check_order(request, rivals.market.store)
    names = {learnware.id: learnware.name for learnware in order.learnwares.values()}
    given = {
        frozenset(
            names[next(sources(plan, name))]
            for name, node in plan.nodes.items()
            if isinstance(node, SliceNode) and node.classes == ("red disc",)
        )
        for plan in propose(order).all
        if plan.engine == "slicepack"
    }
    assert {frozenset({"discs"}), frozenset({"rough"}), frozenset({"discs", "rough"})} <= given
    artifact = rivals.make(request)
    told = [row.name for row in artifact.report.rows]
    assert any("red disc of rough" in name for name in told)
    assert any("red disc of two donors each" in name for name in told)
    assert "discs" in artifact.report.per_class[0].donor


def test_asking_from_one_donor_tries_no_other(rivals: Any) -> None:
    order = check_order(rivals.order("rough:red disc", "green disc", "red bar"), rivals.market.store)
    assert order.requirement.others == ()
    assert all("two donors" not in plan.note for plan in propose(order).all)


def test_equal_names_with_different_meanings_are_refused_with_a_way_out(rivals: Any) -> None:
    with pytest.raises(RequestError, match=r"stock one of them under another class name"):
        check_order(rivals.order("discs:red disc", "rough:red disc", "red bar"), rivals.market.store)


def same_model(one: Artifact, two: Artifact) -> bool:
    left, right = one.graph, two.graph
    return encode(left) == encode(right) and all(
        torch.equal(tensor, right.tensors[name]) for name, tensor in left.tensors.items()
    )


def test_a_class_that_goes_and_comes_back_gives_the_same_model(shop: Any) -> None:
    request = shop.order("red disc", "blue cross", "red bar", budget={"params": 3_000}, heldout=None)
    first = shop.make(request, "first")
    smaller = shop.market.edit(first, shop.folder / "smaller", remove="red bar")
    assert smaller.classes == ("red disc", "blue cross")
    assert smaller.plan.key() != first.plan.key() and smaller.damage() == []
    again = shop.market.edit(smaller, shop.folder / "again", add="red bar")
    assert again.classes == first.classes
    if not trunks(first.plan):
        assert again.plan.key() == first.plan.key() and same_model(again, first)
    larger = shop.market.edit(first, shop.folder / "larger", add="green disc")
    assert larger.classes == (*first.classes, "green disc")
    assert load(larger.folder)(shop.draw(("green disc",), 1, 3).images)[0].probabilities.keys() == set(
        larger.classes
    )


def test_a_pack_keeps_the_donors_that_it_was_made_of(shop: Any) -> None:
    request = shop.order("red disc", "blue cross", "red bar", budget={"params": 3_000}, heldout=None)
    first = shop.make(request, "first")
    smaller = shop.market.edit(first, shop.folder / "smaller", remove="red bar")
    # An order of the same classes would now take red discs from the newcomer, which is as good and comes first.
    shop.add("another", DISCS, samples=shop.draw(DISCS, 2, 78))
    newcomer = shop.market.get("another")
    assert check_order(request, shop.market.store).donors[0] == newcomer
    again = shop.market.edit(smaller, shop.folder / "again", add="red bar")
    assert again.requirement.samples_digest == first.requirement.samples_digest
    assert newcomer.id not in {donor.learnware for donor in again.report.lineage}
    if not trunks(first.plan):
        assert again.plan.key() == first.plan.key() and same_model(again, first)


def test_edits_that_can_not_be_are_refused(made: Artifact, shared: Any, tmp_path: Path) -> None:
    market: Market = shared.market
    with pytest.raises(RequestError, match="tells 'red disc' apart already"):
        market.edit(made, tmp_path / "a", add="red disc")
    with pytest.raises(RequestError, match=r"does not know 'red dics' .did you mean 'red disc'"):
        market.edit(made, tmp_path / "a", remove="red dics")
    with pytest.raises(RequestError, match="give exactly one of the two"):
        market.edit(made, tmp_path / "a")
    with pytest.raises(RequestError, match="no model in the market knows 'purple disc'"):
        market.edit(made, tmp_path / "a", add="purple disc")


def test_a_delivered_model_says_none_of_the_above(made: Artifact, shared: Any) -> None:
    rejection = made.report.rejection
    assert rejection is not None and rejection.n_outsiders > 0 and rejection.detected is not None
    assert rejection.false_reject <= rejection.target
    assert set(rejection.outsiders).isdisjoint(made.classes)
    assert any("none of the above" in sentence for sentence in made.report.sentences)
    model = load(made.folder)
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    told = model(noise)
    assert not any(found.known for found in told), "noise is none of the classes"
    assert all(found.novelty is not None and found.novelty > rejection.threshold for found in told)
    own = model(shared.draw(made.classes, 5, 999).images)
    assert sum(found.known for found in own) >= 0.7 * len(own)


def test_a_delivered_model_is_shown_in_a_line_and_refuses_nothing_at_all(made: Artifact) -> None:
    model = load(made.folder)
    assert repr(model) == f"<Model of images: {', '.join(made.classes)}>"
    for nothing in (np.zeros((0, 16, 16, 3), np.uint8), []):
        with pytest.raises(RequestError, match=r"reads images: give at least one, got shape .0"):
            model(nothing)


def test_one_sample_a_class_gives_a_model_without_a_measure_of_novelty(shop: Any) -> None:
    request = shop.order("red disc", "blue cross", samples_per_class=1, heldout=None)
    artifact = shop.make(request)
    assert artifact.report.rejection is None
    assert any("three samples of every class" in line for line in artifact.report.not_tried)
    found = load(artifact.folder)(shop.draw(artifact.classes, 1, 3).images)
    assert all(one.known and one.novelty is None for one in found)


def test_a_budget_below_the_smallest_pack_says_what_the_floor_is(shop: Any) -> None:
    with pytest.raises(InfeasibleError, match="Floor: params") as caught:
        shop.make(shop.order(*DISCS, budget={"params": 10}))
    assert caught.value.floor is not None and caught.value.floor["params"] > 10


def test_plans_of_removed_learnwares_say_who_is_gone(shop: Any) -> None:
    request = shop.order("red disc", "blue cross", heldout=None)
    artifact = shop.make(request)
    shop.market.remove("crosses")
    plan: Plan = artifact.plan
    with pytest.raises(RequestError, match="no model in the market knows 'blue cross'"):
        shop.make(request, "again", plan=plan)
    gone = r"'blue cross' of the model comes from a learnware that is not .*'crosses' .*was removed on .*add it again"
    with pytest.raises(StoreError, match=gone):
        shop.market.edit(artifact, shop.folder / "edited", add="red bar")
    assert not (shop.folder / "edited").exists()
    assert load(artifact.folder)(shop.draw(("red disc",), 1, 3).images), "what was delivered works on"


def test_a_given_plan_whose_donor_was_removed_says_so_whoever_else_knows_the_class(shop: Any) -> None:
    request = shop.order("red disc", "blue cross", heldout=None)
    plan = next(plan for plan in shop.market.plan(request).feasible if plan.engine == "slicepack")
    removed = r"the given plan can't be built: learnware 'crosses' .*was removed on .*: add it again first"
    shop.market.remove("crosses")
    with pytest.raises(StoreError, match=removed):
        shop.make(request, plan=plan)
    crosses = shop.donors["crosses"][1]
    shop.add("newcomer", crosses, samples=shop.draw(crosses, 3, 78))
    with pytest.raises(StoreError, match=removed):
        shop.make(request, plan=plan)
    assert not (shop.folder / "out").exists()


def test_classes_come_and_go_from_the_command_line(shop: Any) -> None:
    request = shop.order("red disc", "blue cross", "red bar", budget={"params": 3_000}, heldout=None)
    first = shop.make(request, "first")
    said = ["--market", str(shop.market.path), "--json", "-o"]
    runner, smaller, again = CliRunner(), str(shop.folder / "smaller"), str(shop.folder / "again")
    for words in (
        ["pack", "remove", str(first.folder), "red bar", "--quick", *said, smaller],
        ["pack", "add", smaller, "red bar", *said, again],
    ):
        assert runner.invoke(app, words).exit_code == 0
    assert same_model(Artifact.read(again), first)
    told = "donors, baselines and random units beside it: left out, as asked (--quick)"
    for folder, quick in ((smaller, True), (again, False)):
        report = Artifact.read(folder).report
        assert (told in report.not_tried) == quick and all(check.ok for check in report.checks)
        assert ({"probe", "control", "finetune"} & {row.role for row in report.rows} == set()) == quick
    narrow = ["pack", "add", smaller, "red bar", "--max-params", "10", *said, str(shop.folder / "narrow")]
    refused = runner.invoke(app, narrow)
    assert refused.exit_code == 2 and "keeps params <= 10 as measured" in refused.stderr
    wide = ["pack", "add", again, "green disc", "--max-params", "100000", *said, str(shop.folder / "wide")]
    assert runner.invoke(app, wide).exit_code == 0
    assert Artifact.read(shop.folder / "wide").request.budget.params == 100_000
    refused = runner.invoke(app, ["pack", "add", smaller, "red disc", *said, str(shop.folder / "no")])
    assert refused.exit_code == 2 and "tells 'red disc' apart already" in refused.stderr
