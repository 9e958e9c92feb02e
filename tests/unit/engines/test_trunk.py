"""Trunks: what fragments of one donor share costs exactly what is predicted, and never more than the donor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sarto.devices import count
from sarto.engines.slicepack import propose, trunk_costs
from sarto.engines.slicepack.trunk import front_to_back, shared_nodes
from sarto.graph import ModelGraph, Selection, block, branch, capture, features, leading, slice
from sarto.testing.pico import pico
from sarto.types import (
    ClassOffer,
    Cost,
    HeadNode,
    Learnware,
    Preprocessing,
    Request,
    Requirement,
    SliceNode,
    TrunkCost,
    WidthCost,
)

NAMES = ["plain", "residual", "mobile", "dense", "text"]


def donor_of(name: str) -> ModelGraph:
    model, x = pico(name)
    return capture(model, x[:2], prove=False)


def extractor(graph: ModelGraph) -> ModelGraph:
    return block(graph, end=features(graph).value)


def own_units(graph: ModelGraph, keep: dict[str, int], place: int) -> Selection:
    """Other units for each fragment."""
    sizes = {name: graph.analysis.groups[name].size for name in keep}
    return Selection(
        {
            name: tuple((place + 2 * unit) % sizes[name] for unit in range(n))
            if 2 * n <= sizes[name]
            else tuple((place + unit) % sizes[name] for unit in range(n))
            for name, n in keep.items()
        }
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [0.3, 0.5, 0.9])
def test_a_trunk_costs_what_fragments_save(name: str, depth: float) -> None:
    graph = donor_of(name)
    keep = {group.id: max(1, group.size // 2) for group in graph.analysis.sliceable}
    small = extractor(slice(graph, leading(keep)))
    for trunk in trunk_costs(graph, small, keep, [depth]):
        rest = {group: units for group, units in keep.items() if group not in trunk.groups}
        front = slice(graph, own_units(graph, {group: keep[group] for group in trunk.groups}, 0))
        # Weights that no two fragments have in common, so that nothing is shared by chance.
        fragments = [
            extractor(_changed(slice(front, own_units(front, rest, place)), graph, rest, place))
            for place in range(3)
        ]
        packed, alone = count(branch(fragments)), count(fragments[0])
        assert packed.params == 3 * alone.params - 2 * trunk.params
        assert packed.flops == 3 * alone.flops - 2 * trunk.flops
        assert trunk.held_bytes > 0


def _changed(graph: ModelGraph, donor: ModelGraph, own: dict[str, int], place: int) -> ModelGraph:
    shared = shared_nodes(donor, own)
    front = {
        name
        for node in graph.nodes
        if node.name in shared
        for name in [getattr(arg, "name", "") for arg in node.args.values()]
    }
    tensors = {
        name: tensor if name in front or not tensor.is_floating_point() else tensor + 0.01 * place
        for name, tensor in graph.tensors.items()
    }
    return replace(graph, tensors=tensors)


def test_groups_stand_in_the_order_in_which_they_are_made() -> None:
    graph = donor_of("plain")
    names = [group.id for group in graph.analysis.sliceable]
    assert front_to_back(graph, reversed(names)) == tuple(sorted(names, key=_first(graph)))
    assert trunk_costs(graph, extractor(graph), names[:1]) == (), "one group leaves nothing to share"


def _first(graph: ModelGraph):  # type: ignore[no-untyped-def]
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    return lambda name: min(places[node] for node in graph.analysis.groups[name].producers)


SHA = "sha256:" + 64 * "0"


def width(ratio: float, params: int, fronts: list[int]) -> WidthCost:
    groups = tuple(f"g{place}" for place in range(len(fronts) + 1))
    return WidthCost(
        ratio=ratio,
        keep={group: 2 for group in groups} if ratio < 1 else {},
        params=params,
        flops=params,
        memory_bytes=8,
        output_bytes=4,
        size_bytes=4 * params,
        width=1,
        trunks=tuple(
            TrunkCost(
                groups=groups[: place + 1], params=front, flops=front, size_bytes=4 * front, held_bytes=4
            )
            for place, front in enumerate(fronts)
        ),
    )


def learnware(name: str, classes: tuple[str, ...], widths: list[WidthCost], place: int) -> Learnware:
    return Learnware(
        id="sha256:" + 64 * str(place),
        name=name,
        classes=classes,
        preprocessing=Preprocessing(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3),
        graph_hash=SHA,
        weights_hash=SHA,
        samples_hash=None,
        licence="",
        notes="",
        origin="",
        input_shape=(3, 8, 8),
        n_samples=dict.fromkeys(classes, 3),
        skill=None,
        skill_basis=None,
        cost=Cost(params=1, flops=1, memory_bytes=1, size_bytes=1, basis="measured"),
        created="2026-01-01T00:00:00+00:00",
        widths=tuple(widths),
    )


@st.composite
def markets(draw: st.DrawFn) -> dict[str, Learnware]:
    found = {}
    for place in range(draw(st.integers(1, 3))):
        whole = draw(st.integers(100, 10_000))
        widths = [width(1.0, whole, [])]
        for ratio in (0.5, 0.25, 0.1):
            params = draw(st.integers(10, whole))
            fronts = sorted(draw(st.lists(st.integers(0, params), max_size=3)))
            widths.append(width(ratio, params, fronts))
        classes = tuple(f"c{place}{n}" for n in range(draw(st.integers(1, 6))))
        made = learnware(f"donor{place}", classes, widths, place)
        found[made.id] = made
    return found


def requirement_for(learnwares: dict[str, Learnware]) -> Requirement:
    offers = [
        ClassOffer(cls=cls, learnware=donor.id, label=label)
        for donor in learnwares.values()
        for label, cls in enumerate(donor.classes)
    ]
    request = Request.parse({"task": {"classes": [offer.cls for offer in offers]}})
    return Requirement(
        request=request,
        offers=tuple(offers),
        n_samples={offer.cls: 3 for offer in offers},
        samples_digest=SHA,
    )


@given(markets())
def test_fragments_of_a_donor_are_never_larger_than_it(learnwares: dict[str, Learnware]) -> None:
    requirement = requirement_for(learnwares)
    plans = propose(requirement, learnwares, dict.fromkeys(learnwares, SHA))
    limit = sum(next(w.params for w in donor.widths if w.ratio == 1.0) for donor in learnwares.values())
    n_classes = len(requirement.offers)
    assert plans
    for plan in plans:
        assert plan.predicted is not None and plan.normal().classes == plan.classes
        most_features = n_classes * (n_classes + 1)
        assert plan.predicted.params <= limit + most_features, plan.note


def test_five_classes_of_one_donor_give_way_to_it() -> None:
    classes = ("a", "b", "c", "d", "e")
    donor = learnware("donor", classes, [width(1.0, 1000, []), width(0.26, 260, [60])], 1)
    plans = propose(requirement_for({donor.id: donor}), {donor.id: donor}, {donor.id: SHA})
    told = {plan.note: plan for plan in plans}
    assert set(told) == {
        "probe on donor",
        "26% of each donor's extractor, classes of a donor together",
        "26% of the donor's extractor, its own classifier",
    }, "5 x 26 % is more than the donor, with the front shared too (260 + 4 x 200)"
    assert told["probe on donor"].predicted is not None
    assert told["probe on donor"].predicted.params == 1000 + 5 * 2


def test_classes_of_one_donor_may_keep_its_classifier() -> None:
    donor = learnware("donor", ("a", "b", "c"), [width(1.0, 1000, []), width(0.25, 250, [])], 1)
    requirement = requirement_for({donor.id: donor})
    plans = propose(requirement, {donor.id: donor}, {donor.id: SHA})
    own = next(plan for plan in plans if "its own classifier" in plan.note)
    head, cut = own.nodes[own.out], own.nodes["slice_0"]
    assert isinstance(head, HeadNode) and (head.kind, head.samples) == ("restrict", None)
    assert isinstance(cut, SliceNode) and cut.classes == head.classes == requirement.request.task.classes
    assert own.predicted is not None and own.predicted.params == 250 + 2 * len(head.classes)


def test_fragments_that_share_a_front_are_cut_from_one_trunk() -> None:
    donor = learnware("donor", ("a", "b"), [width(1.0, 1000, []), width(0.25, 250, [100, 200])], 1)
    plans = propose(requirement_for({donor.id: donor}), {donor.id: donor}, {donor.id: SHA})
    shared = next(plan for plan in plans if "front 67%" in plan.note)
    slices = {name: node for name, node in shared.nodes.items() if isinstance(node, SliceNode)}
    trunk = next(name for name, node in slices.items() if node.classes == ("a", "b"))
    tails = [node for name, node in slices.items() if name != trunk]
    assert set(slices[trunk].keep) == {"g0", "g1"}
    assert [(node.of, node.classes, set(node.keep)) for node in tails] == [
        (trunk, ("a",), {"g2"}),
        (trunk, ("b",), {"g2"}),
    ]
    assert shared.predicted is not None and shared.predicted.params == 2 * 250 - 200 + 2 * 3
    torch.testing.assert_close(shared.predicted.memory_bytes, max(4 + 4 + 8, 2 * 8))
