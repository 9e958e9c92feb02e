from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.devices import count
from sarto.errors import RequestError
from sarto.graph import ModelGraph, Selection, block, capture, cut_points, slice
from sarto.graph.expressions import kept_positions, units_in
from sarto.pipeline.anatomy import Anatomy, describe, explain, group_named
from sarto.pipeline.anatomy.layout import stages_of
from sarto.pipeline.anatomy.parting import block_names
from sarto.testing.pico import PICO, pico

NAMES = tuple(PICO)


class Attention(nn.Module):
    """Queries, keys and values of two heads from one layer norm, a shortcut around it, and a gated product."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 8)
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.proj = nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.norm(x)
        q, k, v = (layer(y).view(-1, 6, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 6, 8))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return self.head(x.mean(1))


def graph_of(name: str) -> ModelGraph:
    if name == "attention":
        return capture(Attention().eval(), torch.zeros(2, 6, 5), prove=False)
    return capture(*pico(name), prove=False)


@pytest.fixture(scope="module", params=[*NAMES, "attention"])
def model(request: pytest.FixtureRequest) -> tuple[ModelGraph, Anatomy]:
    graph = graph_of(request.param)
    return graph, describe(graph)


@pytest.fixture(scope="module")
def attention() -> tuple[ModelGraph, Anatomy]:
    graph = graph_of("attention")
    return graph, describe(graph)


def test_costs_are_those_that_counting_gives(model: tuple[ModelGraph, Anatomy]) -> None:
    graph, found = model
    assert found.cost == count(graph)
    assert sum(part.params for part in found.blocks) == found.cost.params
    assert sum(part.flops for part in found.blocks) == found.cost.flops
    assert sum(step.params for step in found.steps) == found.cost.params
    assert sum(step.flops for step in found.steps) == found.cost.flops


def test_a_block_costs_what_it_costs_alone(model: tuple[ModelGraph, Anatomy]) -> None:
    graph, found = model
    for part in found.blocks:
        alone = count(block(graph, part.start or None, part.end or None))
        assert (part.params, part.flops) == (alone.params, alone.flops)
        assert part.memory_bytes == alone.memory_bytes


def test_every_cut_is_listed_with_what_lies_before_it(model: tuple[ModelGraph, Anatomy]) -> None:
    graph, found = model
    assert [cut.value for cut in found.cut_points] == [cut.value for cut in cut_points(graph)]
    for cut in found.cut_points:
        before = count(block(graph, None, cut.value))
        assert (cut.params, cut.flops) == (before.params, before.flops)
    canonical = [cut.value for cut in found.cut_points if cut.canonical]
    assert [part.end for part in found.blocks[:-1]] == canonical
    assert [part.start for part in found.blocks[1:]] == canonical


def test_a_unit_carries_what_is_lost_without_it(model: tuple[ModelGraph, Anatomy]) -> None:
    graph, found = model
    whole = count(graph)
    assert found.sliceable or found.pinned
    for group in found.sliceable:
        rest = count(slice(graph.sketch(), Selection({group.id: tuple(range(1, group.size))})))
        assert group.params_per_unit == whole.params - rest.params
        assert group.flops_per_unit == whole.flops - rest.flops


def test_sliceable_parameters_are_those_that_some_unit_takes_along(
    model: tuple[ModelGraph, Anatomy],
) -> None:
    graph, found = model
    total = 0
    for name in graph.parameters:
        stays = np.ones(tuple(graph.tensors[name].shape), dtype=bool)
        for axis, expr in enumerate(graph.analysis.tensor_axes[name]):
            kept = set(range(stays.shape[axis]))
            for group in units_in(expr):
                for unit in range(graph.analysis.groups[group].size):
                    others = tuple(u for u in range(graph.analysis.groups[group].size) if u != unit)
                    kept &= set(kept_positions(expr, {group: others}).tolist())
            stays &= np.isin(np.arange(stays.shape[axis]), list(kept)).reshape(
                [-1 if place == axis else 1 for place in range(stays.ndim)]
            )
        total += int((~stays).sum())
    assert found.sliceable_params == total
    assert 0 <= found.sliceable_share <= 1


def test_steps_come_after_what_they_read_and_keep_to_their_blocks(model: tuple[ModelGraph, Anatomy]) -> None:
    _, found = model
    seen: set[str] = set()
    for step in found.steps:
        assert set(step.reads) <= seen
        seen.add(step.id)
        assert 0 <= step.sliceable <= step.channels
        assert step.channels * step.positions == int(np.prod(step.shape))
    numbers = [step.block for step in found.steps]
    assert numbers == sorted(numbers) and max(numbers) < len(found.blocks)
    layers = [step for step in found.steps if step.kind == "layer"]
    assert sum(part.layers for part in found.blocks) == len(layers)


def test_an_anatomy_is_written_down_and_read_again(model: tuple[ModelGraph, Anatomy]) -> None:
    _, found = model
    assert Anatomy.parse(found.to_json()) == found


def test_batch_norms_belong_to_their_layers_and_sums_are_joins() -> None:
    found = describe(graph_of("residual"))
    by_name = {step.name: step for step in found.steps}
    assert by_name["a2"].absorbed == ("bn",) and "bn" not in by_name
    one, two = (step for step in found.steps if step.kind == "join")
    assert set(one.reads) == {by_name["stem"].id, by_name["a2"].id}
    assert set(two.reads) == {by_name["shortcut"].id, by_name["b2"].id}
    # The long branch is drawn first, whatever order the model computes them in.
    order = [step.name for step in found.steps]
    assert order.index("b1") < order.index("b2") < order.index("shortcut")


def test_a_layer_its_norm_and_its_activation_end_in_one_cut() -> None:
    graph = graph_of("plain")
    found = describe(graph)
    ends = [graph.node(part.end).op.split(".")[1] for part in found.blocks[:-1]]
    assert ends[0] == "relu" and "conv2d" not in ends and "batch_norm" not in ends
    assert [part.layers for part in found.blocks].count(1) == 4
    assert found.blocks[1].name == "max_pool2d" and found.blocks[1].layers == 0


def test_reasons_are_grouped_by_operator(attention: tuple[ModelGraph, Anatomy]) -> None:
    graph, found = attention
    (norm,) = (pin for pin in found.pins if pin.operator == "layer_norm")
    assert norm.groups == ("enter.weight:0",) and norm.units == 8
    assert [graph.node(node).op for node in norm.nodes] == ["aten.layer_norm.default"]
    assert norm.axes == len(graph.analysis.groups["enter.weight:0"].places)
    (output,) = (pin for pin in found.pins if not pin.operator)
    assert (output.reason, output.groups) == ("outputs of the model", ("head.weight:0",))


def test_attention_is_a_step_with_the_channels_of_all_heads(attention: tuple[ModelGraph, Anatomy]) -> None:
    _, found = attention
    step = next(step for step in found.steps if step.op == "scaled_dot_product_attention")
    assert (step.channels, step.positions, step.kind) == (8, 6, "join")
    assert len(set(stages_of(found.steps)[1:-1])) == 1
    by_id = {step.id: step.name for step in found.steps}
    assert [by_id[name] for name in step.reads] == ["q", "k", "v"]


def test_a_group_is_explained(attention: tuple[ModelGraph, Anatomy]) -> None:
    graph, found = attention
    lines = list(explain(graph, found, group_named(found, "enter")))
    assert lines[0] == ("group", "enter.weight:0: 8 units of a stream")
    assert ("pinned", "by layer_norm at node layer_norm (norm)") in lines
    assert ("lies in", "head.weight, axis 1 of 3 \N{MULTIPLICATION SIGN} 8") in lines
    assert ("made by", "proj (linear at node linear_4)") in lines
    free = dict(explain(graph, found, group_named(found, "gate.weight:0")))
    params = 2 * (8 + 1) + 8
    assert free["sliceable"].startswith(f"one unit fewer is {params} parameters")
    inside = next(group for group in found.groups if group.kind == "query-key pairs")
    assert "only where a selection names" in dict(explain(graph, found, inside))["note"]


def test_an_unknown_group_is_refused_with_the_nearest(attention: tuple[ModelGraph, Anatomy]) -> None:
    _, found = attention
    with pytest.raises(RequestError, match=r"no channel group 'gat'.*did you mean 'gate'.*--all lists them"):
        group_named(found, "gat")


def test_blocks_with_one_prefix_name_their_layers_too() -> None:
    inside = [["stem"], ["b.0.q", "b.0.k", "b.0.proj.weight"], ["b.0.fc1", "b.0.fc2"], ["b.1.q", "c"], []]
    assert block_names(inside) == ["stem", "b.0 (q, k, proj)", "b.0 (fc1, fc2)", "b.1.q to c", ""]


class Fused(nn.Module):
    """Attention whose queries, keys and values come from one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.head = nn.Linear(8, 24), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 8)
        return self.head(F.relu(self.proj(x)).mean(1))


def test_fixed_factors_are_listed_but_not_counted() -> None:
    found = describe(capture(Fused().eval(), torch.zeros(2, 5, 8), prove=False))
    fixed = [group for group in found.groups if group.kind == "fixed factor"]
    assert [group.size for group in fixed] == [3]
    assert not any(set(pin.groups) & {group.id for group in fixed} for pin in found.pins)
    assert found.n_groups == len(found.groups) - 1 == len(found.sliceable) + len(found.pinned)
    assert [(entry.shape, entry.dtype) for entry in found.inputs] == [((5, 8), "float32")]
    with pytest.raises(RequestError, match=r"'qkv' makes 2 channel groups; name one of .*\(heads\)"):
        group_named(found, "qkv")
