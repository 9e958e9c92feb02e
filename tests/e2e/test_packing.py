"""Packs in a market: fronts shared by a donor's classes, two donors of one class, classes that come and go."""

from __future__ import annotations

from dataclasses import replace
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
from sarto.pipeline.editing import with_class, without_class
from sarto.pipeline.intakes import sources
from sarto.pipeline.loaded import load
from sarto.pipeline.make import make
from sarto.pipeline.order import check_order
from sarto.types import BlockNode, HeadNode, Plan, SliceNode, SourceNode

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


KINDS = {
    "plain": lambda note: note.endswith("extractor"),
    "trunk": lambda note: note.endswith("shared by a donor's classes"),
    "together": lambda note: note.endswith("together"),
    "own classifier": lambda note: note.endswith("own classifier"),
    "two donors": lambda note: note.endswith("two donors each"),
}


def packs(shop: Any, *classes: str, **more: Any) -> tuple[Any, dict[str, Plan]]:
    """An order, and the packs of fragments that are proposed for it, by their notes with sorted words."""
    order = check_order(shop.order(*classes, heldout=None, **more), shop.market.store)
    plans = [plan for plan in propose(order).all if plan.engine == "slicepack"]
    return order, {sorted_words(plan.note): plan for plan in plans if slices(plan)}


def sorted_words(note: str) -> str:
    """Names of classes that two donors give stand in the order of the task; here they are sorted."""
    words, each, _ = note.partition(" of two donors each")
    return ", ".join(sorted(words.split(", "))) + each if each else note


def slices(plan: Plan) -> list[SliceNode]:
    return [node for node in plan.nodes.values() if isinstance(node, SliceNode)]


def with_whole_donors(plan: Plan) -> bool:
    nodes = plan.nodes
    return any(isinstance(n, BlockNode) and isinstance(nodes[n.of], SourceNode) for n in nodes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_without_a_class_plus_that_class_is_the_pack_of_every_kind_and_size(
    rivals: Any, kind: str
) -> None:
    known = (*DISCS, "blue cross") if kind == "two donors" else (*DISCS, "red bar")
    known = DISCS if kind == "own classifier" else known
    store, tried = rivals.market.store, 0
    # What is left of the donor of several classes: two, then one.
    for wanted in (known, (*known[1:],) if kind != "own classifier" else known):
        for gone in wanted[: 2 if kind == "two donors" else 3]:
            rest = [cls for cls in wanted if cls != gone]
            small, fresh = packs(rivals, *rest)
            (_, before), (order, after) = packs(rivals, *wanted), packs(rivals, *rest, gone)
            for note in filter(KINDS[kind], before):
                less = without_class(before[note], small, store, gone, order.requirement.offers)
                tried += 1
                assert with_class(less, order, store).key() == after[note].key(), (note, gone)
                assert Plan.parse(less.to_json()) == less
                if note in fresh:
                    assert with_class(fresh[note], order, store).key() == after[note].key(), (note, gone)
                    assert with_whole_donors(before[note]) or less.key() == fresh[note].key(), (note, gone)
    assert tried >= 4


@pytest.mark.parametrize(
    "kind",
    [
        "trunk",
        "two donors",
        # Their plans are compared in the test above; built, they take a quarter of a minute each.
        pytest.param("plain", marks=pytest.mark.slow),
        pytest.param("together", marks=pytest.mark.slow),
    ],
)
def test_a_class_that_goes_and_comes_back_gives_the_same_model(rivals: Any, kind: str) -> None:
    classes = ("blue disc", "blue cross", "green disc", "red disc")
    order, found = packs(rivals, *classes, engines=["slicepack"])
    plan = next(plan for note, plan in found.items() if KINDS[kind](note) and not with_whole_donors(plan))
    edit, folder = rivals.market.edit, rivals.folder
    first = make(rivals.market.store, order.request, folder / "first", plan=plan, compare=False)
    smaller = edit(first, folder / "smaller", remove="red disc", compare=False)
    assert smaller.classes == classes[:-1] and smaller.damage() == []
    assert smaller.plan.key() != first.plan.key()
    again = edit(smaller, folder / "again", add="red disc", compare=False)
    assert again.classes == classes and again.plan.key() == first.plan.key() and same_model(again, first)


def test_fragments_that_outgrow_their_donor_give_way_to_it_and_come_back(shop: Any) -> None:
    store = shop.market.store
    small, found = packs(shop, "red disc", "green disc", "red bar")
    order = packs(shop, "red disc", "green disc", "red bar", "blue disc")[0]
    donor = shop.market.get("discs")
    whole = next(width.params for width in donor.widths if width.ratio == 1.0)
    builder, capped = builder_of(shop, order), 0
    # From the widest pack whose fragments of one donor are smaller than it.
    for plan in [p for note, p in found.items() if KINDS["plain"](note) and not with_whole_donors(p)][:4:3]:
        larger = with_class(plan, order, store)
        parts = builder.build(larger).parts
        assert sum(params for _, id_, _, params in parts if id_ == donor.id) <= whole
        capped += with_whole_donors(larger)
        less = without_class(larger, small, store, "blue disc", order.requirement.offers)
        assert less.key() == plan.key()
    assert capped == 1


def test_a_class_of_a_new_donor_gets_a_fragment_of_the_packs_own_kind(shop: Any) -> None:
    store, classes = shop.market.store, ("red disc", "blue cross")
    few = {"pool_steps": 2, "adapt_steps": 2, "combine_steps": 2, "pack_steps": 40}
    for more in (
        {"method": "paper", "paper": few},
        {"repair": {"lam": 0.5, "towards": "zero"}},
        {"budget": {"flops": 10**6}},
    ):
        _, before = packs(shop, *classes, **more)
        order, after = packs(shop, *classes, "red bar", **more)
        assert before.keys() == after.keys() and len(before) >= 3
        for note, plan in before.items():
            assert with_class(plan, order, store).key() == after[note].key(), note


def test_widths_that_are_not_stocked_say_nothing_of_a_new_donor(shop: Any) -> None:
    store, classes = shop.market.store, ("red disc", "blue cross")
    plan = next(iter(packs(shop, *classes)[1].values()))
    cuts = {name: node for name, node in plan.nodes.items() if isinstance(node, SliceNode)}
    odd = {name: node.replace(keep={group: 3 for group in node.keep}) for name, node in cuts.items()}
    plan = plan.replace(nodes={**plan.nodes, **odd}, note="widths solved for the time")
    with pytest.raises(
        RequestError, match=r"nothing says how wide a fragment of bars is.*add a class of .*discs"
    ):
        with_class(plan, packs(shop, *classes, "red bar")[0], store)
    larger = with_class(plan, packs(shop, *classes, "green disc")[0], store)
    assert {tuple(node.keep.values()) for node in slices(larger)} == {(3, 3)}


def test_a_pack_by_the_papers_method_that_would_outgrow_a_donor_is_refused(shop: Any) -> None:
    _, found = packs(shop, "red disc", "blue cross", method="paper")
    order = packs(shop, "red disc", "blue cross", "green disc", method="paper")[0]
    with pytest.raises(RequestError, match="the paper's method has a fragment for each class"):
        with_class(next(iter(found.values())), order, shop.market.store)


def test_a_donors_own_classifier_takes_the_donors_classes_alone(shop: Any) -> None:
    store = shop.market.store
    _, found = packs(shop, "red disc", "green disc")
    plan = next(plan for note, plan in found.items() if KINDS["own classifier"](note))
    with pytest.raises(
        RequestError, match=r"discs with its own classifier, .* no output for the red bar of bars"
    ):
        with_class(plan, packs(shop, "red disc", "green disc", "red bar")[0], store)


def test_fragments_that_were_cut_on_the_orders_samples_are_cut_on_the_new_ones(shop: Any) -> None:
    shop.add("bare", ("red ring", "green ring", "blue ring"), samples=None)
    every = ("red ring", "red disc", "green ring")
    pictures = shop.draw(("red disc", "red bar", "green disc"), 4, 5)
    own = shop.write_images(
        replace(pictures, classes=("red disc", "red ring", "green ring")), shop.folder / "o"
    )
    small, before = packs(shop, *every[:2], samples=str(own))
    order, after = packs(shop, *every, samples=str(own))
    for note in filter(KINDS["plain"], before):
        larger = with_class(before[note], order, shop.market.store)
        assert larger.key() == after[note].key()
        less = without_class(larger, small, shop.market.store, "green ring", order.requirement.offers)
        assert less.key() == before[note].key()


@pytest.mark.slow  # ten seconds and more
def test_edits_take_samples_of_their_own(shop: Any) -> None:
    write = shop.write_images
    own = write(shop.draw(("red disc", "blue cross"), 4, 5), shop.folder / "own")
    held = write(shop.draw(("red disc", "blue cross"), 4, 6), shop.folder / "held")
    every = ("red disc", "blue cross", "red bar")
    more, further = (write(shop.draw(every, 4, n), shop.folder / f"more{n}") for n in (7, 8))
    order, found = packs(shop, "red disc", "blue cross", samples=str(own), engines=["slicepack"])
    request = order.request.replace(heldout=str(held))
    plan = list(found.values())[-1]
    first = make(shop.market.store, request, shop.folder / "first", plan=plan, compare=False)
    out = shop.folder / "larger"
    with pytest.raises(RequestError, match=r"has none of class 'red bar'.*give samples of every class"):
        shop.market.edit(first, out, add="red bar", heldout=further)
    with pytest.raises(RequestError, match=r"has none of red bar: give .*--heldout PATH.* --no-heldout"):
        shop.market.edit(first, out, add="red bar", samples=more)
    with pytest.raises(RequestError, match="given or left out; one of the two"):
        shop.market.edit(first, out, add="red bar", heldout=further, without_heldout=True)
    said = ["--samples", str(more), "--quick", "--market", str(shop.market.path), "--json"]
    for name, words, read in (
        ("a", ["--heldout", str(further)], str(further)),
        ("b", ["--no-heldout"], None),
    ):
        done = CliRunner().invoke(
            app, ["pack", "add", str(first.folder), "red bar", *said, *words, "-o", str(shop.folder / name)]
        )
        assert done.exit_code == 0, done.stderr
        larger = Artifact.read(shop.folder / name)
        assert larger.classes == every and larger.requirement.n_samples == dict.fromkeys(every, 4)
        assert (larger.request.samples, larger.request.heldout) == (str(more), read)
        assert (larger.report.pick.accuracy_heldout is None) == (read is None)


@pytest.mark.slow  # ten seconds and more
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
    # Of so small a pack grey noise lies near the threshold, black and white noise far beyond it.
    noise = 255 * np.random.default_rng(0).integers(0, 2, (8, 16, 16, 3), dtype=np.uint8)
    told = model(noise)
    assert not any(found.known for found in told), "noise is none of the classes"
    assert all(found.novelty is not None and found.novelty > rejection.threshold for found in told)
    own = model(shared.draw(made.classes, 5, 999).images)
    assert sum(found.known for found in own) >= 0.7 * len(own)


def test_a_donors_own_classifier_says_none_of_the_above_too(shop: Any) -> None:
    request = shop.order(*DISCS, heldout=None, engines=["slicepack"])
    plan = next(
        plan
        for plan in shop.market.plan(request).feasible
        if isinstance(head := plan.nodes[plan.out], HeadNode) and head.kind == "restrict"
    )
    artifact = shop.make(request, plan=plan)
    rejection = artifact.report.rejection
    assert rejection is not None and rejection.false_reject <= rejection.target + 1 / rejection.n_samples
    model = load(artifact.folder)
    noise = 255 * np.random.default_rng(0).integers(0, 2, (8, 16, 16, 3), dtype=np.uint8)
    assert not any(found.known for found in model(noise)), "noise is none of the classes"
    # What the loaded model reads is what the threshold was set on: so many of the order's own are refused.
    own = model(shop.draw(artifact.classes, 5, 999).images)
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


@pytest.mark.slow  # ten seconds and more
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
