"""GRAIL's plan: units by their weights, all classes alike."""

from __future__ import annotations

import pytest
import torch

from sarto.engines.baselines import GrailSettings, grail_plan, largest_units
from sarto.engines.baselines.grail import unit_of_positions
from sarto.errors import RequestError
from sarto.graph import capture
from sarto.graph.expressions import Fixed, Product, Sum, Unit
from sarto.testing.pico import pico
from sarto.types import HeadNode, Plan, SliceNode

IDS = tuple("sha256:" + letter * 64 for letter in "abc")


def test_the_unit_at_each_position_of_an_axis() -> None:
    own = Unit("g", 3)
    assert unit_of_positions(own, "g", 3).tolist() == [0, 1, 2]
    assert unit_of_positions(Product((own, Fixed(2))), "g", 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert unit_of_positions(Product((Fixed(2), own)), "g", 3).tolist() == [0, 1, 2, 0, 1, 2]
    mixed = Sum((Unit("other", 2), own, Fixed(1)))
    assert unit_of_positions(mixed, "g", 3).tolist() == [-1, -1, 0, 1, 2, -1]


def test_the_largest_filters_stay() -> None:
    module, example = pico("plain")
    graph = capture(module, example)
    kept = largest_units(graph, GrailSettings(ratio=0.5))
    sizes = module.conv1.weight.detach().abs().sum((1, 2, 3))
    assert kept["conv1.weight:0"] == tuple(sorted(sizes.topk(4).indices.tolist()))
    assert all(list(units) == sorted(set(units)) for units in kept.values())
    assert largest_units(graph, counts={"conv1.weight:0": 2}) == {
        "conv1.weight:0": tuple(sorted(sizes.topk(2).indices.tolist()))
    }


def test_wanda_weighs_what_is_read() -> None:
    module, example = pico("plain")
    graph = capture(module, example)
    seen: list[torch.Tensor] = []
    module.fc2.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    module(example)
    scores = module.fc2.weight.detach().abs().sum(0) * seen[0].norm(dim=0)
    kept = largest_units(graph, GrailSettings(ratio=0.3, selector="wanda"), example)
    assert kept["fc1.weight:0"] == tuple(sorted(scores.topk(3).indices.tolist()))
    with pytest.raises(RequestError, match="give samples, or select by 'l1'"):
        largest_units(graph, GrailSettings(selector="wanda"))


@pytest.mark.parametrize("name", ["residual", "mobile", "dense"])
@pytest.mark.parametrize("selector", ["l1", "wanda"])
def test_every_group_gets_its_share(name: str, selector: str) -> None:
    module, example = pico(name)
    graph = capture(module, example)
    kept = largest_units(graph, GrailSettings(ratio=0.5, selector=selector), example)  # type: ignore[arg-type]
    groups = {group.id: group.size for group in graph.analysis.sliceable}
    assert {group: len(units) for group, units in kept.items()} == {
        group: max(1, round(size / 2)) for group, size in groups.items()
    }


def test_the_plan_knows_no_classes_in_its_slices() -> None:
    module, example = pico("plain")
    graph = capture(module, example)
    plan = grail_plan(
        {IDS[0]: graph, IDS[1]: graph}, {IDS[0]: IDS[2], IDS[1]: IDS[2]}, ("cat", "dog"), IDS[2]
    )
    slices = [node for node in plan.nodes.values() if isinstance(node, SliceNode)]
    assert len(slices) == 2
    for node in slices:
        assert node.classes == () and node.explicit
        assert node.repair is not None and (node.repair.lam, node.repair.sequential) == (1e-3, False)
        assert node.repair.towards == "zero"
    assert plan.classes == ("cat", "dog")
    head = plan.nodes[plan.out]
    assert isinstance(head, HeadNode) and (head.kind, head.lam) == ("ridge", None), "the head of packs"
    assert Plan.parse(plan.to_json()).key() == plan.key()
