"""A chain of blocks is sliced by class within a plan, and a fragment of a class gives blocks to a chain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sarto.devices import count
from sarto.engines.slicepack import slice_node
from sarto.graph import evaluate, features
from sarto.pipeline.agreeing import choose_chains
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import propose
from sarto.pipeline.indexing import index_zoo
from sarto.pipeline.order import Order, check_order
from sarto.types import ChainNode, Plan, SliceNode
from tests.e2e.conftest import Shop

RED = ("red disc", "green disc")


@pytest.fixture(scope="module")
def indexed(shared: Shop) -> Shop:
    index_zoo(shared.market.store, "zoo", n_probes=32, batch=8)
    return shared


def _order(shop: Shop, **more: Any) -> Order:
    return check_order(shop.order(*RED, engines=["reassembly"], **more), shop.market.store)


def _sliced(order: Order) -> list[Plan]:
    return [p for p in propose(order).feasible if any(isinstance(n, SliceNode) for n in p.nodes.values())]


def _builder(shop: Shop, order: Order) -> Builder:
    held = {s.digest: s for s in order.donor_samples.values()}
    return Builder(shop.market.store, {order.samples.digest: order.samples, **held})


def test_a_slice_of_a_chain_keeps_a_budget_that_no_chain_keeps_and_is_delivered(indexed: Shop) -> None:
    plans = propose(_order(indexed)).feasible
    whole = [p for p in plans if not any(isinstance(n, SliceNode) for n in p.nodes.values())]
    own = [p for p in whole if getattr(p.nodes[p.out], "kind", "") == "restrict"]
    sizes = [plan.predicted.params for plan in own if plan.predicted is not None]
    sliced = _sliced(_order(indexed))
    assert [p.predicted.params for p in sliced if p.predicted] == sorted(
        (p.predicted.params for p in sliced if p.predicted), reverse=True
    )
    limit = sliced[1].predicted.params if sliced[1].predicted is not None else 0
    assert 0 < limit < min(sizes)
    order = _order(indexed, budget={"params": limit})
    found = choose_chains(_builder(indexed, order), propose(order)).plans
    chosen = [(p, told) for p, told in found if any(isinstance(n, SliceNode) for n in p.nodes.values())]
    assert [(p.key(), told) for p, told in chosen] == [(sliced[1].key(), "")]
    request = indexed.order(*RED, engines=["reassembly"], baselines=[], budget={"params": limit})
    artifact = indexed.make(request, "sliced", plan=sliced[1])
    assert artifact.report.measured.params == limit
    assert all(check.ok for check in artifact.report.checks)
    (chain,) = [n for n in sliced[1].nodes.values() if isinstance(n, ChainNode)]
    # Units of every block are gone, and every class is said to come from all donors of the chain.
    before = _builder(indexed, _order(indexed)).build(own[0])
    for one, two in zip(before.parts, artifact.report.where_params, strict=True):
        assert two.params < one[3] or one[3] == 0
    named = {id_: indexed.market.store.get(id_).name for id_ in sliced[1].learnwares}
    assert len(named) >= 2 and len(chain.of) >= 2
    for score in artifact.report.per_class:
        assert score.donor is not None and all(name in score.donor for name in named.values())
    assert (artifact.folder / "lock.json").is_file()


def test_the_repair_gives_a_sliced_chain_what_its_classifier_is_used_to(indexed: Shop) -> None:
    order = _order(indexed)
    builder, plan = _builder(indexed, order), _sliced(order)[1]
    node = next(n for n in plan.nodes.values() if isinstance(n, SliceNode))
    assert node.select == "css" and node.classes == RED and node.repair is not None
    bare = plan.replace(
        nodes={n: v.replace(repair=None) if isinstance(v, SliceNode) else v for n, v in plan.nodes.items()}
    )
    uncut = {n: v for n, v in plan.nodes.items() if not isinstance(v, SliceNode)}
    whole = Plan(nodes={**uncut, "head": plan.nodes["head"].replace(of=node.of)}, out="head")
    samples = builder.samples[node.samples or ""].only(RED)
    logits = [builder.logits(one, samples) for one in (plan, bare, whole)]
    errors = [float((one - logits[2]).square().mean()) for one in logits[:2]]
    assert errors[0] < 0.5 * errors[1]


def test_a_fragment_of_a_class_gives_blocks_to_a_chain(indexed: Shop) -> None:
    order = _order(indexed)
    builder = _builder(indexed, order)
    plan = next(p for p in propose(order).feasible if getattr(p.nodes[p.out], "kind", "") == "restrict")
    (chain,) = [n for n in plan.nodes.values() if isinstance(n, ChainNode)]
    front = chain.of[0]
    donor = indexed.market.store.get(getattr(plan.nodes[front], "of", ""))
    own = indexed.market.store.samples(donor.id)
    builder.hold(own)
    cut = slice_node({"*": 0.5}, own.digest).replace(of=front, classes=donor.classes[:1])
    nodes = {**plan.nodes, "fragment": cut, "chain": chain.replace(of=("fragment", *chain.of[1:]))}
    hybrid = plan.replace(nodes=nodes, predicted=None, note="a fragment in front")
    built = builder.build(hybrid)
    first, whole = built.parts[0], builder.build(plan).parts[0]
    assert first[1] == whole[1] == donor.id and first[3] < whole[3]
    assert sum(part[3] for part in built.parts) == count(built.graph).params
    # The stitch is fitted on what the fragment gives: what it leads into is closer than with another map.
    stray = {**nodes, "chain": nodes["chain"].replace(stitch=chain.stitch.replace(random=1))}
    tail = indexed.market.store.get(getattr(plan.nodes[chain.of[-1]], "of", ""))
    images = builder.intake(hybrid).tensor(order.samples)
    wanted = _features(builder, Plan.parse(_whole(tail.id)), images)
    errors = [
        float((_features(builder, one, images) - wanted).square().mean())
        for one in (hybrid, hybrid.replace(nodes=stray))
    ]
    assert errors[0] < 0.7 * errors[1]


def _whole(id_: str) -> dict[str, Any]:
    nodes = {
        "donor": {"op": "source", "of": id_},
        "head": {"op": "head", "of": "donor", "kind": "restrict", "classes": list(RED)},
    }
    return {"nodes": nodes, "out": "head"}


def _features(builder: Builder, plan: Plan, images: Tensor) -> Tensor:
    graph = builder.build(plan).graph
    value = features(graph).value
    with torch.no_grad():
        _, kept = evaluate(graph, images, watch=[value])
    return kept[value]
