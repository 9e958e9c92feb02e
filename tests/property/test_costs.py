"""Costs of random networks and random slices: equal to PyTorch's counter, and never more for fewer units."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sarto.devices import LatencyModel, count, flops_by_node, params_by_tensor, predict, timeline
from sarto.graph import ModelGraph, Selection, capture, slice
from sarto.testing.random_nets import MOVES, random_net
from sarto.types import Cost

#: Moves whose FLOPs the counter of torch sees: no fused attention or recurrent layer.
COUNTED = tuple(move for move in MOVES if move not in ("attention", "grouped_queries", "gru", "both_ways"))


@st.composite
def graphs(draw: st.DrawFn, moves_from: tuple[str, ...] = MOVES) -> ModelGraph:
    moves = draw(st.lists(st.sampled_from(moves_from), min_size=1, max_size=4))
    model, x = random_net(moves, draw(st.integers(0, 99)), flatten=draw(st.booleans()))
    return capture(model, x, prove=False)


def shares(draw: st.DrawFn, graph: ModelGraph) -> dict[str, int]:
    return {group.id: draw(st.integers(1, group.size)) for group in graph.analysis.sliceable}


def kept(counts: dict[str, int]) -> Selection:
    return Selection({group: tuple(range(number)) for group, number in counts.items()})


@settings(max_examples=15)
@given(st.data())
def test_costs_of_a_random_slice_equal_torch(data: st.DataObject) -> None:
    graph = data.draw(graphs(COUNTED))
    selection = kept(shares(data.draw, graph))
    small = slice(graph, selection)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.module()(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    cost = count(small)
    assert cost.flops == counter.get_total_flops()
    assert cost.params == sum(small.tensors[name].numel() for name in small.parameters)
    assert cost.size_bytes == sum(tensor.numel() * tensor.element_size() for tensor in small.tensors.values())
    assert cost == count(slice(graph.sketch(), selection))


@settings(max_examples=15)
@given(st.data())
def test_fewer_units_never_cost_more(data: st.DataObject) -> None:
    graph = data.draw(graphs()).sketch()
    more = shares(data.draw, graph)
    fewer = {group: data.draw(st.integers(1, number)) for group, number in more.items()}
    large, small = slice(graph, kept(more)), slice(graph, kept(fewer))
    for table in (flops_by_node, params_by_tensor):
        before, after = table(large), table(small)
        assert before.keys() == after.keys()
        assert all(after[name] <= before[name] for name in before)
    assert all(
        after.live_bytes <= before.live_bytes
        for before, after in zip(timeline(large), timeline(small), strict=True)
    )
    costs = count(small), count(large)
    if fewer != more:
        assert costs[0].params < costs[1].params and costs[0].flops < costs[1].flops
    assert costs[0].memory_bytes <= costs[1].memory_bytes and costs[0].size_bytes <= costs[1].size_bytes


terms = st.floats(0, 10, allow_nan=False)
sizes = st.integers(0, 10**9)


@given(
    terms,
    terms,
    terms,
    st.floats(0.05, 1),
    st.floats(1, 20),
    sizes,
    sizes,
    st.integers(1, 500),
    st.integers(0, 500),
)
def test_predicted_latency_grows_with_flops_and_nodes(
    fixed: float,
    per_mflop: float,
    per_node: float,
    low: float,
    high: float,
    few: int,
    more: int,
    nodes: int,
    extra: int,
) -> None:
    model = LatencyModel(fixed, per_mflop, per_node, low, high, "drawn")

    def at(flops: int, n_nodes: int) -> tuple[float, float, float]:
        return predict(
            model, Cost(params=1, flops=flops, memory_bytes=1, size_bytes=1, basis="measured"), n_nodes
        )

    one, two = at(few, nodes), at(few + more, nodes + extra)
    assert one[0] <= one[1] <= one[2]
    assert all(a <= b for a, b in zip(one, two, strict=True))
