"""Orders ask chains, without labels, how much they are like their last donors, and build those that are most."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from sarto import Market
from sarto.cli.app import app
from sarto.errors import GraphError
from sarto.pipeline import Artifact, agreeing, schooling
from sarto.pipeline.agreeing import Chosen, choose_chains
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import Plans, propose
from sarto.pipeline.indexing import index_zoo, indices
from sarto.pipeline.locking import read_lock
from sarto.pipeline.make import DRAWN_AT_RANDOM, score_all
from sarto.pipeline.order import check_order
from sarto.pipeline.reassembling import BUILT
from sarto.pipeline.rebuilding import rebuild
from sarto.types import ChainNode, HeadNode, Plan, SliceNode, SourceNode
from tests.e2e.conftest import Shop, train

RED = ("red disc", "green disc")
CHAINS: dict[str, Any] = {"engines": ["reassembly"], "baselines": [], "heldout": None}


@pytest.fixture(scope="module")
def indexed(
    pristine: Path, models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """A market with a fourth donor, so that two of them know the ordered classes."""
    folder = tmp_path_factory.mktemp("agreeing")
    shutil.copytree(pristine / "market", folder / "market")
    with Market.open(folder / "market") as market:
        shop = Shop(market, pristine / "heldout", models, folder)
        known = shop.donors["discs"][1]
        shop.add("reds", known, train(shop.donors["crosses"][0], known, 5))
        index_zoo(market.store, "zoo", n_probes=32, batch=8)
        yield shop


@pytest.fixture(autouse=True)
def _no_students(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schooling, "STUDENT_FLOPS", 0.0)


@pytest.fixture(scope="module")
def made(indexed: Shop) -> Artifact:
    """The delivered model of an order of chains; what was said on the way is kept in the shop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schooling, "STUDENT_FLOPS", 0.0)
        return indexed.make(indexed.order(*RED, **CHAINS), "made")


def _plans(shop: Shop, **more: Any) -> Plans:
    return propose(check_order(shop.order(*RED, **{**CHAINS, **more}), shop.market.store))


def _builder(shop: Shop, plans: Plans) -> Builder:
    order = plans.order
    held = {s.digest: s for s in (order.samples, *order.donor_samples.values())}
    return Builder(shop.market.store, held, shop.progress)


def _chain(plan: Plan) -> ChainNode:
    return next(node for node in plan.nodes.values() if isinstance(node, ChainNode))


def _kind(plan: Plan) -> str:
    head = plan.nodes[plan.out]
    assert isinstance(head, HeadNode)
    return head.kind


def _whole(plans: Plans, kind: str) -> list[Plan]:
    whole = [p for p in plans.chains if not any(isinstance(n, SliceNode) for n in p.nodes.values())]
    return [plan for plan in whole if _kind(plan) == kind]


def _asked(shop: Shop, plan: Plan) -> tuple[float, float]:
    """Divergence and agreement of a chain by another road: plans of the chain alone and of its last donor alone."""
    store, probes = shop.market.store, indices(shop.market.store).get("zoo").probes()
    node = _chain(plan)
    tail = plan.nodes[node.of[-1]]
    assert isinstance(tail, SourceNode)
    held = store.get(tail.of)
    builder = Builder(store, {})

    def logits(of: str, nodes: dict[str, Any]) -> Tensor:
        head = HeadNode(of=of, kind="restrict", classes=held.classes)
        return builder.logits(Plan(nodes={**nodes, "all": head}, out="all"), probes).double()

    alone = {name: n for name, n in plan.nodes.items() if name == "chain" or isinstance(n, SourceNode)}
    own, made = logits("tail", {"tail": tail}), logits("chain", alone)
    p, q = own.softmax(1), made.softmax(1)
    return float((p * (p / q).log()).sum(1).mean()), float((own.argmax(1) == made.argmax(1)).double().mean())


def test_the_chains_that_diverge_least_are_built_and_the_report_says_what_was_found(
    indexed: Shop, made: Artifact
) -> None:
    plans = _plans(indexed)
    said = "stitching chains of blocks, to see how they agree with their donors"
    assert indexed.said.count(said) > 2 * BUILT
    rows = {row.plan_key: row for row in made.report.rows if row.role in ("pick", "plan")}
    names = {item.id: item.name for item in indexed.market.learnwares()}
    reordered = False
    for kind in ("restrict", "ridge"):
        listed = _whole(plans, kind)
        assert len(listed) > BUILT
        asked = {plan.key(): _asked(indexed, plan) for plan in listed}
        best = sorted(listed, key=lambda plan: asked[plan.key()][0])
        reordered |= best[:BUILT] != listed[:BUILT]
        assert {plan.key() for plan in listed if plan.key() in rows} == {plan.key() for plan in best[:BUILT]}
        for rank, plan in enumerate(best[:BUILT], 1):
            divergence, agreement = asked[plan.key()]
            tail = plan.nodes[_chain(plan).of[-1]]
            assert isinstance(tail, SourceNode)
            assert rows[plan.key()].note.endswith(
                f"agrees with {names[tail.of]} on {agreement:.0%} of 32 probe images; of {len(listed)} chains number "
                f"{rank} by divergence from it ({divergence:.2g}), number {listed.index(plan) + 1} as listed by "
                "additive value"
            )
            assert rows[plan.key()].name == plan.note
    # With these donors the additive value alone would have built others.
    assert reordered
    drawn = next(row for row in made.report.rows if row.name == DRAWN_AT_RANDOM)
    assert drawn.role == "control" and drawn.plan_key not in rows


def test_an_order_that_was_cut_short_does_not_ask_again_and_its_lock_repeats_the_model(
    indexed: Shop, made: Artifact
) -> None:
    request = indexed.order(*RED, **CHAINS)

    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "building and scoring" and done == 1:
            raise StoppedError

    out = indexed.folder / "stopped"
    with pytest.raises(StoppedError):
        indexed.market.make(request, out, progress=stop)
    indexed.said.clear()
    artifact = indexed.make(request, out)
    assert "building and scoring" in indexed.said
    assert not any(text.startswith("stitching chains") for text in indexed.said)
    assert [row.note for row in artifact.report.rows] == [row.note for row in made.report.rows]
    assert artifact.plan.key() == made.plan.key()
    lock = read_lock(out)
    whole = not any(isinstance(node, SliceNode) for node in lock.plan.nodes.values())
    assert lock.solver["blocks"].endswith("the least divergence from the last donor") is whole
    again = rebuild(indexed.market.store, lock, indexed.folder / "again")
    assert again.plan.key() == made.plan.key()


def test_what_was_chosen_is_written_and_read_and_no_chain_is_stitched_twice(
    indexed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = _plans(indexed)
    builder, stitched = _builder(indexed, plans), list[str]()
    make = Builder._chain

    def counted(self: Builder, plan: Plan, name: str, *rest: Any) -> Any:
        stitched.append(plan.subkeys()[name])
        return make(self, plan, name, *rest)

    monkeypatch.setattr(Builder, "_chain", counted)
    chosen = choose_chains(builder, plans)
    assert Chosen.from_plain(json.loads(json.dumps(chosen.to_plain()))) == chosen
    for plan, _ in chosen.plans:
        builder.build(plan)
    assert len(stitched) == len(set(stitched))
    held = [key for key in stitched if key in builder._graphs]
    assert 0 < len(held) < len(stitched)
    # Nothing is asked where a plan is given.
    given = chosen.plans[0][0]
    (score, *_) = score_all(builder, plans, given, Chosen())
    assert score.row.name == given.note and "agrees with" not in score.row.note


def test_a_chain_that_can_not_be_made_is_left_out_and_the_next_one_is_built(
    indexed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = _plans(indexed)
    free = choose_chains(_builder(indexed, plans), plans)
    (first, _), (second, _), *_ = free.plans
    ranked = sorted(_whole(plans, "restrict"), key=lambda plan: _asked(indexed, plan)[0])
    make = Builder._chain

    def broken(self: Builder, plan: Plan, name: str, *rest: Any) -> Any:
        graph = make(self, plan, name, *rest)
        if plan.subkeys()[name] == first.subkeys()["chain"]:
            raise GraphError("this one holds no water")
        if plan.subkeys()[name] == second.subkeys()["chain"]:
            tensors = {key: value * torch.nan for key, value in graph.tensors.items()}
            return replace(graph, tensors=tensors)
        return graph

    monkeypatch.setattr(Builder, "_chain", broken)
    request = indexed.order(*RED, **{**CHAINS, "engines": ["reassembly", "baselines"]})
    report = indexed.make(request, "broken").report
    built = {row.plan_key for row in report.rows if row.role in ("pick", "plan")}
    assert built and not built & {first.key(), second.key()}
    assert {plan.key() for plan in ranked[2 : 2 + BUILT]} <= built
    for plan, why in (
        (first, "this one holds no water"),
        (second, "it or its last donor gives NaN or infinity for the probe images"),
    ):
        name = plan.note.partition(", classifier of")[0]
        assert f"{name} is not built: {why}" in report.not_tried


def test_an_order_of_chains_that_all_fail_says_why_each_does(
    indexed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise GraphError("this one holds no water")

    monkeypatch.setattr(Builder, "_chain", broken)
    request = indexed.order(*RED, **CHAINS)
    with pytest.raises(GraphError, match="no plan can be built") as caught:
        indexed.make(request, "hopeless")
    assert len(caught.value.problems) > BUILT
    assert all(text.endswith("is not built: this one holds no water") for text in caught.value.problems)


def test_more_chains_are_listed_than_are_built_and_planning_stitches_none(
    indexed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a chain was asked")

    monkeypatch.setattr(Builder, "_chain", never)
    monkeypatch.setattr(agreeing, "likeness", never)
    plans = _plans(indexed)
    assert len(_whole(plans, "ridge")) == 12


def test_what_was_left_out_of_an_index_stands_in_plans_and_reports(indexed: Shop, made: Artifact) -> None:
    words = ["plan", "--classes", ",".join(RED), "--engines", "reassembly", "--json"]
    done = CliRunner().invoke(app, [*words, "-m", str(indexed.market.path)])
    told = json.loads(done.stdout)["notes"]
    fewer = [note for note in told if re.match(r"index zoo: models are parted into \d blocks, not 4", note)]
    assert len(fewer) == 1 and f"note: {fewer[0]}" in done.stderr
    assert fewer[0] in made.report.not_tried
    assert made.requirement is not None and fewer[0] in made.requirement.notes
    # Reports of orders without chains say nothing of indices.
    plain = _plans(indexed, engines=["slicepack"])
    assert plain.order.requirement.notes == ()
