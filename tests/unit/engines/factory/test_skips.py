"""Skipped blocks: groups without an open unit equal the gated supernet, and cost less than the smallest subnet did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sarto import zoo
from sarto.devices import count
from sarto.engines.factory.costs import CostTable
from sarto.engines.factory.openings import counted
from sarto.engines.factory.search import search
from sarto.engines.factory.skips import skippable, without_constants
from sarto.engines.factory.subnets import together
from sarto.engines.factory.supernet import Supernet, as_placed, assembler_for, placed, selection
from sarto.errors import GraphError, InfeasibleError
from sarto.graph import ModelGraph, Selection, capture, relative_difference
from sarto.graph import slice as cut
from sarto.types import AssemblerSettings, Budget, TaskSpace

SPACE = TaskSpace.parse(
    {
        "name": "few",
        "groups": {"quantifier": ["has", "exactly_2"], "predicate": ["digit_7", "digit_1", "odd"]},
        "function": "none:none",
        "answers": ["no", "yes"],
    }
)
NAMES = ["basic", "bottleneck", "mobilenet", "vit"]
LIMITS = ["params", "flops", "size_bytes", "memory_bytes"]


def backbone(name: str) -> ModelGraph:
    torch.manual_seed(0)
    if name == "vit":
        net: nn.Module = zoo.vit_cifar(2, width=16, depth=2, heads=2)
        example = torch.rand(2, 3, 32, 32)
    elif name == "mobilenet":
        net, example = zoo.mobilenet_v2(2), torch.rand(2, 3, 32, 32)
    else:
        net, example = zoo.resnet(2, 1, (2, 1), 8, name == "bottleneck", "cifar"), torch.rand(2, 1, 12, 12)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that a skipped branch is a constant other than zero
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return capture(net.eval(), example, prove=False)


def supernet(name: str, placement: str = "paper", *, skips: bool = True) -> Supernet:
    graph = backbone(name)
    groups = placed(graph, placement)  # type: ignore[arg-type]
    graph = as_placed(graph, placement)  # type: ignore[arg-type]
    torch.manual_seed(1)
    shape = AssemblerSettings(hidden=16, gaters=2, most=1.0, skips=skips)
    return Supernet(graph, SPACE, groups, assembler_for(graph, groups, SPACE, shape).eval())


@pytest.mark.parametrize("placement", ["paper", "wide"])
@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_block_equals_closed_gates(name: str, placement: str) -> None:
    net = supernet(name, placement)
    skips = net.assembler.skips
    assert skips and all(net.graph.analysis.group(group).kind != "stream" for group in skips)
    shape = [int(size) for size in net.graph.inputs[0].shape[1:]]
    inputs, gated = torch.rand(3, *shape), net.gated()
    table = CostTable(net.graph, net.groups)
    for closed in ({sorted(skips)[0]}, set(skips)):
        gates = torch.ones(net.assembler.units)
        for group in closed:
            gates[columns(net, group)] = 0.0
        small = net.subnet(gates)
        whole = gated(inputs, gates.expand(3, -1).contiguous())
        assert relative_difference(small(inputs), whole) <= 1e-5
        assert not closed & {group.id for group in small.analysis.groups.values()}
        # What is promised before building is never less than what is built.
        promised, built = table.costs(counted(gates[None], net.layout), LIMITS), count(small)
        assert all(getattr(built, limit) <= promised[limit][0] for limit in LIMITS)


def columns(net: Supernet, group: str) -> slice:
    return slice(*net.layout[group])


def test_a_skipped_block_is_one_number_a_channel() -> None:
    net = supernet("basic")
    group = sorted(net.assembler.skips)[0]
    gates = torch.ones(net.assembler.units)
    gates[columns(net, group)] = 0.0
    plain = cut(net.graph, Selection({group: ()}))
    small = net.subnet(gates)
    (name,) = [name for name in small.tensors if name.endswith(".constant")]
    assert small.tensors[name].shape[0] == 1 and small.tensors[name].shape[2:] == (1, 1)
    # conv1, bn1, relu, conv2 (two nodes of its constant) and bn2 are gone.
    assert len(small.nodes) < len(plain.nodes) < len(net.graph.nodes)
    inputs = torch.rand(2, 1, 12, 12)
    assert torch.equal(small(inputs), plain(inputs))
    assert without_constants(net.graph) is net.graph


def test_groups_that_everything_passes_are_not_skipped() -> None:
    chain = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 2)
    )
    graph = capture(chain.eval(), torch.rand(2, 1, 8, 8), prove=False)
    assert skippable(graph, placed(graph)) == frozenset()
    net = supernet("basic", "wide")
    with pytest.raises(GraphError, match="has no open gate; a group keeps at least one unit"):
        selection(torch.zeros(net.assembler.units), net.layout, net.assembler.skips)


@pytest.mark.parametrize("placement", ["paper", "wide"])
def test_the_floor_is_lower_and_orders_reach_it(placement: str) -> None:
    net, without = supernet("basic", placement), supernet("basic", placement, skips=False)
    table, task = CostTable(net.graph, net.groups), [SPACE.seen[0]]
    least = {
        held.assembler.settings.skips: table.costs(
            np.array([[held.assembler.least[group] for group in held.layout]]), LIMITS
        )
        for held in (net, without)
    }
    assert all(least[True][limit][0] < least[False][limit][0] for limit in LIMITS[:3])
    budget = Budget(params=int(least[False]["params"][0]) - 1)
    with pytest.raises(InfeasibleError, match="no subnet"):
        search(without, task, budget, CostTable(without.graph, without.groups))
    found = search(net, task, budget, table)
    small = net.subnet(found.gates)
    assert count(small).params <= float(budget.params or 0)
    assert any(not found.gates[columns(net, group)].any() for group in net.assembler.skips)
    inputs = torch.rand(2, 1, 12, 12)
    whole = net.gated()(inputs, found.gates.expand(2, -1).contiguous())
    assert relative_difference(small(inputs), whole) <= 1e-5


def test_one_model_of_several_tasks_without_a_block_that_none_has() -> None:
    net = supernet("basic")
    group = sorted(net.assembler.skips)[0]
    gates = torch.ones(2, net.assembler.units)
    gates[:, columns(net, group)] = 0.0
    gates[0, -2:] = 0.0
    graph, told = together(net, gates)
    inputs = torch.rand(2, 1, 12, 12)
    for place in range(2):
        shared = graph(inputs, told[place].expand(2, -1).contiguous())
        assert relative_difference([shared], [net.subnet(gates[place])(inputs)]) <= 1e-5
