"""Indexed zoos in orders: chains of blocks are planned, counted, built, delivered, and read by other plan nodes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sarto import Samples
from sarto.cli.app import app
from sarto.devices import count
from sarto.devices.profiling import Predictor
from sarto.engines.reassembly import astar
from sarto.errors import GraphError, InfeasibleError, RequestError, StoreError
from sarto.graph import read_graph
from sarto.pipeline.artifact import GRAPH
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import Plans, infeasible, propose
from sarto.pipeline.indexed_zoo import steadiest, zoo_of
from sarto.pipeline.indexing import index_zoo, indices
from sarto.pipeline.order import check_order
from sarto.pipeline.zoo_front import draw_front, zoo_front
from sarto.pipeline.zoo_map import similarity_map
from sarto.pipeline.zoo_picture import draw_map
from sarto.types import ChainNode, HeadNode, Plan, SliceNode, SourceNode
from tests.e2e.conftest import Shop
from tests.e2e.test_profiled_orders import profile

RED = ("red disc", "green disc")
SMALL = {"n_probes": 32, "batch": 8}


@pytest.fixture
def indexed(shop: Shop) -> Shop:
    done = index_zoo(shop.market.store, "zoo", **SMALL)
    assert set(done.added) == set(shop.donors) and not done.skipped
    return shop


def _chains(shop: Shop, *classes: str, **more: Any) -> list[Plan]:
    order = check_order(shop.order(*classes, **more), shop.market.store)
    return [plan for plan in propose(order).feasible if plan.engine == "reassembly"]


def _builder(shop: Shop, *classes: str) -> Builder:
    order = check_order(shop.order(*classes), shop.market.store)
    held = {s.digest: s for s in order.donor_samples.values()}
    return Builder(shop.market.store, {order.samples.digest: order.samples, **held})


def test_chains_are_proposed_and_cost_what_was_predicted(indexed: Shop) -> None:
    plans = _chains(indexed, *RED)
    assert {"restrict", "ridge"} == {
        node.kind for plan in plans for node in plan.nodes.values() if node.op == "head"
    }
    builder = _builder(indexed, *RED)
    for plan in (plans[0], plans[-1]):
        built, said = count(builder.build(plan).graph), plan.predicted
        assert said is not None
        assert (built.params, built.flops, built.size_bytes) == (said.params, said.flops, said.size_bytes)
        assert sum(part[3] for part in builder.build(plan).parts) == built.params
        again = _builder(indexed, *RED).build(plan).graph
        assert all(
            torch.equal(again.tensors[name], t) for name, t in builder.build(plan).graph.tensors.items()
        )


def test_a_budget_leaves_the_chains_that_keep_it(indexed: Shop) -> None:
    every = _chains(indexed, *RED)
    limit = sorted(plan.predicted.params for plan in every if plan.predicted)[0]
    kept = _chains(indexed, *RED, budget={"params": limit})
    assert kept
    assert all(plan.predicted is not None and plan.predicted.params <= limit for plan in kept)


def test_a_chain_is_delivered_like_any_other_model(indexed: Shop) -> None:
    request = indexed.order(*RED, engines=["reassembly", "baselines"], baselines=[])
    plan = _chains(indexed, *RED)[0]
    artifact = indexed.make(request, "chained", plan=plan)
    names = [part.name for part in artifact.report.where_params]
    assert any("block 1 of" in name for name in names)
    assert all(check.ok for check in artifact.report.checks)
    assert {row.role for row in artifact.report.rows} >= {"pick", "donor"}
    assert set(plan.learnwares) <= {donor.learnware for donor in artifact.report.lineage}
    blocks = [part for part in artifact.report.where_params if part.span is not None]
    assert [part.learnware for part in blocks] == _donors(plan)
    spans = [part.span for part in blocks if part.span is not None]
    assert spans[0][0] == 0.0 and spans[-1][1] == 1.0
    assert all(start < end for start, end in spans)
    page = (artifact.folder / "report.html").read_text(encoding="utf-8")
    drawn = page.partition("Which block of which donor")[2].partition("</section>")[0]
    assert drawn.count('class="bar"') == len(set(_donors(plan)))
    assert drawn.count('title="not used"') == 2


def _donors(plan: Plan) -> list[str]:
    """The donor of each block of a chain."""
    (chain,) = [node for node in plan.nodes.values() if isinstance(node, ChainNode)]
    sources = [plan.nodes[name] for name in chain.of]
    return [source.of for source in sources if isinstance(source, SourceNode)]


def test_chains_stand_beside_their_controls_in_a_report(indexed: Shop) -> None:
    request = indexed.order(*RED, engines=["reassembly", "baselines"], baselines=[])
    report = indexed.make(request, "free").report
    named = {row.name: row.role for row in report.rows}
    assert any(name.startswith("chain ") for name in named)
    assert named.get("random stitches, same blocks") == "control"
    assert any("stitched to itself" in name and role == "baseline" for name, role in named.items())
    assert named.get("chain of blocks drawn at random, fitted stitches") == "control"
    assert any(text.startswith("The best single donor within the budget") for text in report.sentences)
    ranked = [
        (-row.accuracy_loto, row.cost.params)
        for row in report.rows
        if row.role in ("pick", "plan", "donor", "probe", "ensemble")
        and row.accuracy_loto is not None
        and row.cost
    ]
    # The same samples rank donors and chains; of equals the smaller is delivered.
    assert report.pick.accuracy_loto is not None and report.pick.cost is not None
    assert (-report.pick.accuracy_loto, report.pick.cost.params) == min(ranked)
    assert {row.role for row in report.rows} >= {"donor", "plan"}


def test_a_chain_can_be_sliced_and_a_slice_can_be_a_donor(indexed: Shop) -> None:
    builder = _builder(indexed, *RED)
    plain = next(
        p
        for p in _chains(indexed, *RED)
        if any(getattr(n, "kind", "") == "restrict" for n in p.nodes.values())
    )
    held = next(iter(builder.samples))
    nodes = plain.model_dump(mode="json")["nodes"]
    nodes["narrow"] = {"op": "slice", "of": "chain", "keep": {"*": 0.5}, "select": "first", "samples": held}
    nodes["head"]["of"] = "narrow"
    sliced = Plan.parse({"nodes": nodes, "out": "head"})
    assert count(builder.build(sliced).graph).params < count(builder.build(plain).graph).params
    nodes = plain.model_dump(mode="json")["nodes"]
    first = nodes["chain"]["of"][0]
    nodes["slim"] = {"op": "slice", "of": first, "keep": {"*": 0.5}, "select": "first", "samples": held}
    nodes["chain"]["of"][0] = "slim"
    of_slice = Plan.parse({"nodes": nodes, "out": "head"})
    assert count(builder.build(of_slice).graph).params < count(builder.build(plain).graph).params


def test_chains_donors_and_pruned_donors_stand_on_one_front(indexed: Shop) -> None:
    order = check_order(indexed.order(*RED), indexed.market.store)
    plans = [plan for plan in propose(order).feasible if plan.predicted is not None]
    own = [p for p in plans if isinstance(node := p.nodes[p.out], HeadNode) and node.kind == "restrict"]
    chains = [p for p in own if any(isinstance(n, ChainNode) for n in p.nodes.values())]
    pruned = [p for p in own if any(isinstance(n, SliceNode) for n in p.nodes.values())]
    whole = [p for p in own if p not in chains and p not in pruned]
    assert chains and pruned and whole
    params = [plan.predicted.params for plan in (*chains, *pruned, *whole) if plan.predicted]
    limit = sorted(params)[len(params) // 2]
    kept = propose(check_order(indexed.order(*RED, budget={"params": limit}), indexed.market.store)).feasible
    # One budget holds for all three alike.
    for kind in (chains, pruned, whole):
        fitting = {p.key() for p in kind if p.predicted is not None and p.predicted.params <= limit}
        assert fitting <= {plan.key() for plan in kept}
    assert all(plan.predicted is None or plan.predicted.params <= limit for plan in kept)


def test_indexing_again_adds_only_what_is_new(indexed: Shop) -> None:
    store = indexed.market.store
    assert index_zoo(store, "zoo").added == ()
    indexed.add("more", ("red bar", "blue bar", "green bar"), indexed.models["discs"], samples=None)
    done = index_zoo(store, "zoo")
    # The same network under other class names is a copy, and is not entered again.
    assert ("more", "it is a copy of 'discs': the same graph and weights") in done.skipped
    assert set(done.known) == set(indexed.donors)
    with pytest.raises(StoreError, match="other probe images"):
        index_zoo(store, "zoo", probes=_images(40))


def test_a_changed_index_is_found_by_verifying_the_market(indexed: Shop) -> None:
    assert indexed.market.verify() == []
    path = indexed.market.path / "indices" / "zoo" / "signatures.f32"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    assert any("were changed" in text for text in indexed.market.verify())


def test_a_removed_donor_is_left_out_and_one_model_is_no_zoo(indexed: Shop) -> None:
    store = indexed.market.store
    names = list(indexed.donors)
    indexed.market.remove(names[0])
    zoo, kept = zoo_of(store, indices(store).get("zoo"))
    assert names[0] not in {item.name for item in kept} and len(zoo.entries) == 2
    indexed.market.remove(names[1])
    with pytest.raises(RequestError, match=r"1 models that can be used \(2 were removed"):
        zoo_of(store, indices(store).get("zoo"))


def test_too_few_probe_images_are_told_with_the_number_that_is_needed(shop: Shop) -> None:
    with pytest.raises(RequestError, match="needs at least 64 probe images, got 9"):
        index_zoo(shop.market.store, "zoo", probes=_images(9))
    assert indices(shop.market.store).names() == ()


class _Wide(nn.Module):
    """Reads larger images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_what_can_not_be_indexed_is_left_out_with_the_reason(shop: Shop) -> None:
    wide = {**shop.preprocessing, "size": [24, 24]}
    shop.add("wide", ("x", "y"), _Wide().eval(), samples=None, preprocessing=wide)
    done = index_zoo(shop.market.store, "zoo", probes=_images(16), batch=8)
    (skipped,) = done.skipped
    assert skipped[0] == "wide" and "images are 16x16" in skipped[1]
    zoo, kept = zoo_of(shop.market.store, indices(shop.market.store).get("zoo"))
    assert len(zoo.entries) == len(kept) == len(shop.donors)


class _Turned(nn.Module):
    """A network that reads blue, green, red."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.flip(1))


def test_a_donor_of_another_order_of_channels_is_told(shop: Shop) -> None:
    said = {
        **shop.preprocessing,
        "mean": shop.preprocessing["mean"][::-1],
        "std": shop.preprocessing["std"][::-1],
    }
    known = shop.donors["discs"][1]
    shop.add(
        "turned",
        known,
        _Turned(shop.models["discs"]).eval(),
        samples=shop.draw(known, 8, 3),
        preprocessing=said,
    )
    done = index_zoo(shop.market.store, "zoo", **SMALL)
    assert "turned" in done.added
    ((name, why),) = done.doubtful
    assert name == "turned" and "seems to read blue, green, red" in why


def test_a_zoo_of_one_model_or_without_cut_points_says_so(shop: Shop) -> None:
    store = shop.market.store
    index_zoo(store, "one", ["discs"], **SMALL)
    with pytest.raises(RequestError, match="has 1 models that can be used"):
        similarity_map(store, indices(store).get("one"))
    request = shop.order(*RED, engines=["reassembly"])
    with pytest.raises(InfeasibleError, match=r"index .one. has 1 models that can be used.*index more"):
        shop.market.plan(request)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).eval()
    shop.add("flat", ("x", "y", "z"), flat, samples=None)
    assert [name for name, why in index_zoo(store, "one").skipped if "no cut point" in why] == ["flat"]


def test_a_joint_that_is_no_cut_point_is_refused(indexed: Shop) -> None:
    plan = _chains(indexed, *RED)[0]
    nodes = plan.model_dump(mode="json")["nodes"]
    nodes["chain"]["joints"][0][1] = "nowhere"
    with pytest.raises(GraphError, match="'nowhere' is no cut point"):
        _builder(indexed, *RED).build(Plan.parse({"nodes": nodes, "out": "head"}))


def test_too_many_blocks_name_the_models_that_have_too_few_cut_points(indexed: Shop) -> None:
    store = indexed.market.store
    index = indices(store).get("zoo")
    with pytest.raises(InfeasibleError, match="60 blocks are too many") as caught:
        similarity_map(store, index, 60)
    assert all(name in str(caught.value) for name in indexed.donors)
    floor = caught.value.floor["k"]
    assert similarity_map(store, index, floor).k == floor


def test_a_map_names_every_piece_and_draws_it(indexed: Shop, tmp_path: Path) -> None:
    found = similarity_map(indexed.market.store, indices(indexed.market.store).get("zoo"))
    total = sum(len(model.places) for model in found.models)
    cka = np.array(found.cka)
    assert cka.shape == (total, total)
    assert np.allclose(np.diag(cka), 1.0, atol=1e-3)
    assert all(set(model.sets) <= set(range(found.k)) for model in found.models)
    errors = np.array(found.cka_errors)
    assert errors.shape == cka.shape and np.allclose(errors, errors.T) and errors.max() > 0
    assert found.mean_error is not None and 0 < found.mean_error < found.mean_similarity
    assert f"{errors[np.triu_indices(total, 1)].max():.3f} at most" in found.errors_told
    draw_map(found, tmp_path / "map.svg")
    assert (tmp_path / "map.svg").stat().st_size > 1_000
    with pytest.raises(RequestError, match=r"\.svg or \.png"):
        draw_map(found, tmp_path / "map.txt")


def test_on_a_profiled_device_blocks_cost_milliseconds(indexed: Shop) -> None:
    indexed.market.store.profiles.put(profile(unit_step=1))
    device = {"profile": "paper"}
    every = _chains(indexed, *RED, device=device, engines=["reassembly"])
    builder = _builder(indexed, *RED)
    taken = {}
    for plan in every:
        assert plan.predicted is not None and plan.predicted.latency_ms is not None
        taken[plan.key()] = plan.predicted.latency_high_ms or 0.0
    own = next(p for p in every if getattr(p.nodes[p.out], "kind", "") == "restrict")
    whole = Predictor(profile(unit_step=1)).predict(builder.build(own).graph)
    assert own.predicted is not None
    assert own.predicted.latency_ms == pytest.approx(whole.middle, rel=1e-6)
    limit = sorted(taken.values())[len(taken) // 2]
    kept = _chains(indexed, *RED, device=device, engines=["reassembly"], budget={"latency_ms": limit})
    assert kept
    assert all((plan.predicted.latency_high_ms or 0.0) <= limit for plan in kept if plan.predicted)
    tight = indexed.order(*RED, device=device, engines=["reassembly"], budget={"latency_ms": 1e-3})
    told = (
        r"no plan fits latency_ms <= 0\.001\. .*25% of its units by class\. Raise latency_ms to .*"
        r"no chain of blocks keeps latency_ms <= 0\.001\. Floor of each alone"
    )
    with pytest.raises(InfeasibleError, match=told):
        indexed.market.plan(tight)


def test_the_front_of_a_zoo_has_chains_and_donors_that_nothing_beats(indexed: Shop, tmp_path: Path) -> None:
    store = indexed.market.store
    found = zoo_front(store, indices(store).get("zoo"))
    front = [point for point in found.points if point.on_front]
    assert [p.cost for p in front] == sorted({p.cost for p in front})
    assert [p.value for p in front] == sorted({p.value for p in front})
    whole = {point.donors[0]: point for point in found.points if len(point.donors) == 1}
    assert set(whole) == set(indexed.donors)
    for name, point in whole.items():
        assert point.cost == indexed.market.get(name).cost.params
        assert point.on_front or any(p.cost <= point.cost and p.value >= point.value for p in front)
    told = zoo_front(store, indices(store).get("zoo"), "flops", classes=RED)
    assert {point.donors[-1] for point in told.points} == {"discs"}
    assert found.exact and not any("cut off" in note for note in found.notes)
    draw_front(found, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1_000
    with pytest.raises(RequestError, match=r"\.svg or \.png"):
        draw_front(found, tmp_path / "front.txt")


def test_a_front_whose_search_was_cut_off_says_so(indexed: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from sarto.cli.app import app

    limited = functools.partial(astar.best_chains, most_expanded=2)
    monkeypatch.setattr(astar, "best_chains", limited)
    words = ["zoo", "front", "zoo", "-m", str(indexed.market.path)]
    told = "search cut off after 2 partial chains: cheaper points may be missing"
    assert told in " ".join(CliRunner().invoke(app, words).stdout.split())
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found["exact"] is False and any(note.startswith(told) for note in found["notes"])


def test_a_map_of_one_batch_of_probe_images_says_that_it_has_no_errors(shop: Shop) -> None:
    store = shop.market.store
    index_zoo(store, "small", n_probes=12, batch=8)
    found = similarity_map(store, indices(store).get("small"))
    assert found.cka_errors is None and found.mean_error is None and found.errors_told == ""
    assert "no errors of similarities: 12 probe images are one batch of 8" in found.notes


def _images(n: int) -> Samples:
    pixels = np.random.default_rng(5).integers(0, 255, (n, 16, 16, 3)).astype(np.uint8)
    return Samples(pixels, np.zeros(n, np.int64), ("probe",))


def test_the_commands_index_list_map_and_remove(shop: Shop) -> None:
    from typer.testing import CliRunner

    from sarto.cli.app import app

    runner, market = CliRunner(), str(shop.market.path)
    made = runner.invoke(
        app, ["zoo", "index", "z", "--n-probes", "32", "--batch", "8", "-m", market, "--json"]
    )
    assert made.exit_code == 0, made.output
    assert set(json.loads(made.stdout)["added"]) == set(shop.donors)
    listed = json.loads(runner.invoke(app, ["zoo", "ls", "-m", market, "--json"]).stdout)
    assert listed["indices"][0]["name"] == "z"
    shown = runner.invoke(app, ["zoo", "map", "z", "-m", market])
    assert "mean functional similarity" in shown.stdout and " +- 0." in shown.stdout
    assert "CKA of two places, leaving out each batch of probe images once: standard error 0." in shown.stdout
    steady = runner.invoke(app, ["zoo", "map", "z", "--steady", "-m", market, "--json"])
    assert 2 <= json.loads(steady.stdout)["k"] <= 6
    assert len(json.loads(steady.stdout)["cka_errors"]) == len(json.loads(steady.stdout)["cka"])
    both = runner.invoke(app, ["zoo", "map", "z", "--steady", "--blocks", "3", "-m", market])
    assert both.exit_code == 2 and "give one of them" in both.stderr
    for title, slack in json.loads(steady.stdout)["widened"]:
        told = runner.invoke(app, ["zoo", "map", "z", "--steady", "-m", market]).stdout
        assert f"{title} can't be parted within the size limit" in told and f"{1 + slack:.2f} times" in told
    front = json.loads(
        runner.invoke(app, ["zoo", "front", "z", "--by", "flops", "-m", market, "--json"]).stdout
    )
    assert front["resource"] == "flops" and any(point["on_front"] for point in front["points"])
    assert "donor as it is" in runner.invoke(app, ["zoo", "front", "z", "-m", market]).stdout
    wrong = runner.invoke(app, ["zoo", "front", "z", "--by", "flop", "-m", market, "--json"])
    assert wrong.exit_code != 0 and "did you mean" in wrong.output + wrong.stderr
    assert runner.invoke(app, ["zoo", "rm", "z", "-m", market]).exit_code == 0
    assert runner.invoke(app, ["zoo", "map", "z", "-m", market]).exit_code == 1


def test_the_delivered_file_says_what_the_chain_in_memory_says(indexed: Shop) -> None:
    plan = _chains(indexed, *RED)[0]
    indexed.make(indexed.order(*RED, engines=["reassembly"]), "same", plan=plan)
    model = _builder(indexed, *RED).build(plan)
    inputs = torch.rand(4, 3, 16, 16)
    assert torch.equal(read_graph(indexed.folder / "same" / GRAPH)(inputs), model.graph(inputs))


def _chain_of(plan: Plan) -> ChainNode:
    (chain,) = [node for node in plan.nodes.values() if isinstance(node, ChainNode)]
    return chain


def test_an_order_says_into_how_many_blocks_models_are_parted(indexed: Shop) -> None:
    index = indices(indexed.market.store).get("zoo")
    floor = min(len(model.places) for model in index.models()) - 1
    two = propose_all(indexed, parting={"blocks": 2})
    assert {len(_chain_of(plan).of) for plan in two.feasible} == {2}
    told = rf"{floor + 1} blocks are too many.*take {floor}, or let models skip sets"
    with pytest.raises(InfeasibleError, match=told):
        propose_all(indexed, parting={"blocks": floor + 1})
    # Beside other engines an order that asks something of chains is told why there are none.
    beside = propose(check_order(indexed.order(*RED, parting={"blocks": floor + 1}), indexed.market.store))
    assert beside.feasible and any("blocks are too many" in note for note in beside.order.requirement.notes)
    more = propose_all(indexed, parting={"blocks": floor + 1, "skip": 0.4})
    assert max(len(_chain_of(plan).of) for plan in more.feasible) <= floor + 1, "the shallow one skips a set"


def propose_all(shop: Shop, **more: Any) -> Plans:
    """The plans of an order for chains alone; an order that has none ends in the error that says why."""
    plans = propose(check_order(shop.order(*RED, engines=["reassembly"], **more), shop.market.store))
    if not plans.feasible:
        raise infeasible(plans)
    return plans


def test_the_steadiest_number_of_blocks_reaches_an_order(indexed: Shop) -> None:
    store = indexed.market.store
    index = indices(store).get("zoo")
    steady = steadiest(zoo_of(store, index)[0], index)
    plans = propose_all(indexed, parting={"blocks": "steady"})
    assert any(f"parted into {steady} blocks: of 2 to 6" in note for note in plans.order.requirement.notes)
    same = propose_all(indexed, parting={"blocks": steady})
    assert [plan.key() for plan in plans.all] == [plan.key() for plan in same.all]


@pytest.mark.parametrize(("k", "skip"), [(2, None), (2, -1.0), (3, 0.4), (3, 1.0)])
def test_models_may_skip_sets_and_the_map_counts_blocks_alone(
    indexed: Shop, k: int, skip: float | None
) -> None:
    store = indexed.market.store
    found = similarity_map(store, indices(store).get("zoo"), k, skip=skip)
    skipped = sum(start < 0 for model in found.models for start, _ in model.bounds)
    assert (skipped > 0) == (k == 3), "one donor has two blocks at most"
    # Mean similarity of a block to its set, block by block: both CKA with every block of the set, itself among them.
    cka, first = np.array(found.cka), np.cumsum([0, *(len(model.places) for model in found.models)])
    means = []
    for place in range(found.k):
        ends = [
            (first[i] + model.bounds[place][0], first[i] + model.bounds[place][1])
            for i, model in enumerate(found.models)
            if model.bounds[place][0] >= 0
        ]
        means += [np.mean([cka[a, c] + cka[b, d] for c, d in ends]) for a, b in ends]
    assert found.mean_similarity == pytest.approx(np.mean(means), abs=2e-3)
    if skip is not None:
        plans = _chains(indexed, *RED, parting={"blocks": k, "skip": skip})
        builder = _builder(indexed, *RED)
        for plan in plans[:3]:
            assert plan.predicted is not None
            assert count(builder.build(plan).graph).params == plan.predicted.params
        if skip == -1.0:
            without = _chains(indexed, *RED, parting={"blocks": k})
            assert [plan.key() for plan in plans] == [plan.key() for plan in without]


def test_blocks_are_asked_of_chains_alone(indexed: Shop) -> None:
    for asked, told in (
        ({"blocks": 1}, "blocks"),
        ({"blocks": "many"}, "blocks"),
        ({"skip": 1.5}, "skip"),
        ({"skip": float("nan")}, "skip"),
    ):
        with pytest.raises(RequestError, match=told):
            indexed.order(*RED, parting=asked)
    with pytest.raises(RequestError, match=r"only chains have blocks; name reassembly"):
        indexed.order(*RED, parting={"blocks": 3}, engines=["slicepack"])
    common = ["--classes", ",".join(RED), "--market", str(indexed.market.store.path)]
    done = CliRunner().invoke(app, ["plan", *common, "--blocks", "steady", "--skip", "-1", "--json"])
    assert done.exit_code == 0, done.output
    assert "of 2 to 6 so many change least" in done.output
    wrong = CliRunner().invoke(app, ["plan", *common, "--blocks", "many"])
    assert wrong.exit_code != 0 and "blocks" in wrong.output
    mapped = CliRunner().invoke(
        app, ["zoo", "map", "zoo", "-k", "3", "--skip", "1", "--market", common[-1], "--json"]
    )
    assert mapped.exit_code == 0, mapped.output
    assert any([-1, -1] in model["bounds"] for model in json.loads(mapped.stdout)["models"])


def test_what_of_the_probe_images_is_other_than_asked_is_told(shop: Shop) -> None:
    store = shop.market.store
    there = sum(len(store.samples(item.id)) for item in store.learnwares())
    done = index_zoo(store, "zoo", n_probes=10**4, batch=8)
    short, left = done.notes if there % 8 else (*done.notes, "")
    assert short == f"{there} probe images, not 10000: learnwares came with no more of one size"
    assert left == "" or left.startswith(f"{there % 8} of {there} probe images fill no batch of 8")
    again = index_zoo(store, "zoo", batch=16)
    assert "stays as it was made (batch 8, not 16)" in again.notes[0]
    assert not index_zoo(store, "other", probes=store.samples("discs").take(4), batch=4).notes
