"""Surgery is a calculus: operations take graphs and give graphs, in any order, and never touch what they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sarto.errors import GraphError
from sarto.graph import (
    ModelGraph,
    Selection,
    block,
    branch,
    capture,
    chain,
    cut_points,
    dissect,
    evaluate,
    expand_map,
    fold,
    relative_difference,
    repair,
    repairable,
    restrict,
    slice,
    zeroed,
)
from sarto.graph.expressions import units_in
from sarto.graph.gate import gate, gate_layout, gateable
from sarto.graph.hollow import hollow
from sarto.graph.validity import check_graph, check_shapes
from sarto.testing.random_nets import MOVES, random_net
from sarto.testing.tolerances import EXACT

TOLERANCE = EXACT[torch.float64]
recipes = st.tuples(
    st.lists(st.sampled_from(MOVES), min_size=1, max_size=4), st.integers(0, 2**16), st.booleans()
)


def graph_of(recipe: tuple[list[str], int, bool]) -> tuple[ModelGraph, Tensor]:
    moves, seed, flatten = recipe
    model, x = random_net(moves, seed, flatten=flatten)
    return capture(model, x, prove=False), x


def bits(graph: ModelGraph) -> Mapping[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in graph.tensors.items()}


def some_units(graph: ModelGraph, generator: torch.Generator, least: int = 2) -> Selection:
    """About half the units of each sliceable group; two at least, so that later selections find the groups."""
    kept = {}
    for group in graph.analysis.sliceable:
        count = max(min(least, group.size), round(0.6 * group.size))
        kept[group.id] = tuple(torch.randperm(group.size, generator=generator)[:count].tolist())
    return Selection(kept)


def can_be_gated(graph: ModelGraph) -> bool:
    return any(gateable(graph, group) is None for group in graph.analysis.sliceable)


def row_of(selection: Selection, layout: Mapping[str, tuple[int, int]]) -> Tensor:
    """The gates that are open for the units of a selection, shape (1, units)."""
    row = torch.zeros(1, max(stop for _, stop in layout.values()), dtype=torch.float64)
    for group, (start, _) in layout.items():
        row[0, [start + unit for unit in selection.kept[group]]] = 1
    return row


@dataclass(frozen=True)
class Step:
    """What an operation made of a graph, what its inputs are now, and what it must compute by another road."""

    graph: ModelGraph
    inputs: tuple[Tensor, ...]
    want: tuple[Tensor, ...]


def step_slice(graph: ModelGraph, inputs: tuple[Tensor, ...], generator: torch.Generator) -> Step:
    selection = some_units(graph, generator)
    return Step(slice(graph, selection), inputs, zeroed(graph, selection, inputs))


def step_gate(graph: ModelGraph, inputs: tuple[Tensor, ...], generator: torch.Generator) -> Step:
    groups = [group.id for group in graph.analysis.sliceable if gateable(graph, group) is None]
    chosen = groups[:: 1 + int(torch.randint(2, (1,), generator=generator))]
    if not chosen:
        return Step(graph, inputs, evaluate(graph, inputs)[0])
    layout = gate_layout(graph, chosen)
    units = max(stop for _, stop in layout.values())
    rows = (torch.rand(len(inputs[0]), units, generator=generator) < 0.7).double()
    want = [
        zeroed(
            graph,
            Selection({g: tuple(row[a:b].nonzero()[:, 0].tolist()) for g, (a, b) in layout.items()}),
            tuple(tensor[place : place + 1] for tensor in inputs),
        )[0]
        for place, row in enumerate(rows)
    ]
    return Step(gate(graph, chosen), (*inputs, rows), (torch.cat(want),))


def step_hollow(graph: ModelGraph, inputs: tuple[Tensor, ...], generator: torch.Generator) -> Step:
    groups = [group.id for group in graph.analysis.sliceable]
    if not groups:
        return Step(graph, inputs, evaluate(graph, inputs)[0])
    chosen = groups[int(torch.randint(len(groups), (1,), generator=generator))]
    try:
        emptied = hollow(graph, [chosen])
    except GraphError as refused:
        # What reads these units is no constant without them: a product, a recurrent layer.
        assert "only a convolution or a linear layer" in str(refused)
        return Step(graph, inputs, evaluate(graph, inputs)[0])
    return Step(emptied, inputs, zeroed(graph, Selection({chosen: ()}), inputs))


def step_cut(graph: ModelGraph, inputs: tuple[Tensor, ...], generator: torch.Generator) -> Step:
    cuts = [cut.value for cut in cut_points(graph)]
    return Step(chain(dissect(graph, cuts)) if cuts else graph, inputs, evaluate(graph, inputs)[0])


def step_repair(graph: ModelGraph, inputs: tuple[Tensor, ...], generator: torch.Generator) -> Step:
    selection = some_units(graph, generator)
    group_maps = {
        group.id: torch.randn(group.size, len(selection.kept[group.id]), generator=generator).double()
        / group.size
        for group in graph.analysis.sliceable
    }
    maps = {
        c.node: expand_map(c.expr, group_maps, selection)
        for c in graph.analysis.consumptions
        if repairable(graph, c) is None and units_in(c.expr) & selection.kept.keys()
    }
    repaired = repair(graph, selection, maps)
    return Step(fold(repaired), inputs, evaluate(repaired, inputs)[0])


def step_branch(graph: ModelGraph, inputs: tuple[Tensor, ...], generator: torch.Generator) -> Step:
    whole = evaluate(graph, inputs)[0][0]
    try:
        parts = [restrict(graph, [2]), restrict(graph, [0, 1])]
    except GraphError:  # the classifier is a constant by now, or has other outputs
        return Step(graph, inputs, (whole,))
    return Step(branch(parts), inputs, (whole[:, [2, 0, 1]],))


STEPS: Mapping[str, Callable[[ModelGraph, tuple[Tensor, ...], torch.Generator], Step]] = {
    "slice": step_slice,
    "gate": step_gate,
    "hollow": step_hollow,
    "cut": step_cut,
    "repair": step_repair,
    "branch": step_branch,
}


@settings(max_examples=12)
@given(recipes, st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4))
def test_any_operation_follows_any_other(recipe: tuple[list[str], int, bool], program: list[str]) -> None:
    graph, x = graph_of(recipe)
    inputs: tuple[Tensor, ...] = (x,)
    generator = torch.Generator().manual_seed(recipe[1])
    for name in program:
        before, text = bits(graph), repr(graph)
        step = STEPS[name](graph, inputs, generator)
        assert bits(graph) == before and repr(graph) == text, f"{name} changed its source"
        check_graph(step.graph)
        check_shapes(step.graph)
        have, _ = evaluate(step.graph, step.inputs)
        assert relative_difference(have, step.want) <= TOLERANCE, name
        single, _ = evaluate(step.graph, tuple(tensor[:1] for tensor in step.inputs))
        assert relative_difference(single, tuple(tensor[:1] for tensor in have)) <= TOLERANCE, name
        graph, inputs = step.graph, step.inputs


@settings(max_examples=10)
@given(recipes)
def test_a_chain_is_sliced_and_gated_like_the_whole(recipe: tuple[list[str], int, bool]) -> None:
    graph, x = graph_of(recipe)
    generator = torch.Generator().manual_seed(recipe[1])
    again = chain(dissect(graph, [cut.value for cut in cut_points(graph)]))
    selection = some_units(graph, generator)
    assert torch.equal(slice(again, selection)(x), slice(graph, selection)(x))
    assume(can_be_gated(graph))
    layout = gate_layout(graph)
    assert gate_layout(again) == layout
    rows = row_of(selection, layout).expand(len(x), -1)
    assert torch.equal(gate(again)(x, rows), gate(graph)(x, rows))
    gated = Selection({group: units for group, units in selection.kept.items() if group in layout})
    assert relative_difference((gate(graph)(x, rows),), (slice(graph, gated)(x),)) <= TOLERANCE


@settings(max_examples=10)
@given(recipes)
def test_the_gate_of_a_slice_is_a_smaller_slice(recipe: tuple[list[str], int, bool]) -> None:
    graph, x = graph_of(recipe)
    generator = torch.Generator().manual_seed(recipe[1])
    outer = some_units(graph, generator)
    small = slice(graph, outer)
    inner = some_units(small, generator)
    assume(can_be_gated(small))
    layout = gate_layout(small)
    rows = row_of(inner, layout).expand(len(x), -1)
    gated = Selection({group: units for group, units in inner.kept.items() if group in layout})
    assert relative_difference((gate(small)(x, rows),), (slice(graph, outer.then(gated))(x),)) <= TOLERANCE


@settings(max_examples=10)
@given(recipes, st.integers(0, 100))
def test_blocks_of_branches_and_folded_repairs_of_sliced_blocks(
    recipe: tuple[list[str], int, bool], place: int
) -> None:
    graph, x = graph_of(recipe)
    generator = torch.Generator().manual_seed(recipe[1])
    joined = branch([restrict(graph, [0]), restrict(graph, [1, 2])])
    cuts = [cut.value for cut in cut_points(joined)]
    assume(cuts)
    at = cuts[place % len(cuts)]
    head, tail = block(joined, end=at), block(joined, start=at)
    assert torch.equal(tail(head(x)), joined(x))
    assert relative_difference((joined(x),), (graph(x),)) <= TOLERANCE

    value = head(x)
    assert isinstance(value, Tensor)
    small = slice(tail, some_units(tail, generator))
    before = bits(small)
    step = step_repair(small, (value,), generator)
    assert relative_difference(evaluate(step.graph, step.inputs)[0], step.want) <= TOLERANCE
    whole = chain([head, step.graph])
    assert relative_difference((whole(x),), step.want) <= TOLERANCE
    assert bits(small) == before


@settings(max_examples=10)
@given(recipes)
def test_shut_gates_are_a_hollow_group(recipe: tuple[list[str], int, bool]) -> None:
    graph, x = graph_of(recipe)
    for group in graph.analysis.sliceable:
        if gateable(graph, group) is not None:
            assert group.kind == "recurrent units"
            continue
        gates = torch.zeros(len(x), group.size, dtype=x.dtype)
        try:
            have = hollow(graph, [group.id])(x)
        except GraphError as refused:
            assert "only a convolution or a linear layer" in str(refused)
            continue
        assert relative_difference((have,), (gate(graph, [group.id])(x, gates),)) <= TOLERANCE
