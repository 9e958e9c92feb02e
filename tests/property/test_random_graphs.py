"""Random networks from a generator that composes every operator family: the laws of surgery hold for all of them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.graph import (
    ModelGraph,
    Selection,
    capture,
    chain,
    cut_points,
    dissect,
    evaluate,
    relative_difference,
    slice,
    zeroed,
)
from sarto.graph.expressions import full_size, kept_size, units_in
from sarto.testing.random_nets import MOVES, random_net
from sarto.testing.tolerances import EXACT

recipes = st.tuples(
    st.lists(st.sampled_from(MOVES), min_size=1, max_size=4), st.integers(0, 2**16), st.booleans()
)


def some_units(graph: ModelGraph, seed: int, least: int) -> Selection:
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph.analysis.sliceable:
        least_here = min(least, group.size)
        count = int(torch.randint(least_here, group.size + 1, (1,), generator=generator))
        kept[group.id] = tuple(torch.randperm(group.size, generator=generator)[:count].tolist())
    return Selection(kept)


@settings(max_examples=12)
@given(recipes)
def test_the_laws_of_surgery(recipe: tuple[list[str], int, bool]) -> None:
    moves, seed, flatten = recipe
    model, x = random_net(moves, seed, flatten=flatten)
    graph = capture(model, x, prove=False)
    with torch.no_grad():
        assert relative_difference((graph(x),), (model(x),)) <= EXACT[torch.float64]
    before = {name: tensor.clone() for name, tensor in graph.tensors.items()}

    selection = some_units(graph, seed, least=1)
    small = slice(graph, selection)

    have, _ = evaluate(small, x)
    assert relative_difference(have, zeroed(graph, selection, (x,))) <= EXACT[torch.float64]
    for batch in (1, 2, 7):
        wide = x[:1].expand(batch, -1, -1, -1)
        torch.testing.assert_close(small(wide), small(x[:1]).expand(batch, -1))

    cuts = [cut.value for cut in cut_points(graph)]
    if cuts:
        assert torch.equal(chain(dissect(graph, cuts))(x), graph(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.tensors.items())


@settings(max_examples=12)
@given(recipes)
def test_slicing_composes(recipe: tuple[list[str], int, bool]) -> None:
    """Groups keep their names as long as none on the same axis is cut to one unit, so selections compose."""
    moves, seed, flatten = recipe
    model, x = random_net(moves, seed, flatten=flatten)
    graph = capture(model, x, prove=False)
    selection = some_units(graph, seed, least=2)
    small = slice(graph, selection)
    one_by_one = graph
    for name, units in selection.kept.items():
        one_by_one = slice(one_by_one, Selection({name: units}))
    assert all(torch.equal(one_by_one.tensors[name], small.tensors[name]) for name in small.tensors)
    inner = some_units(small, seed + 1, least=2)
    twice, direct = slice(small, inner), slice(graph, selection.then(inner))
    assert all(torch.equal(twice.tensors[name], direct.tensors[name]) for name in direct.tensors)
    assert [node.args for node in twice.nodes] == [node.args for node in direct.nodes]


@settings(max_examples=12)
@given(recipes)
def test_groups_are_closed_and_sizes_follow(recipe: tuple[list[str], int, bool]) -> None:
    moves, seed, flatten = recipe
    model, x = random_net(moves, seed, flatten=flatten)
    graph = capture(model, x, prove=False)
    analysis = graph.analysis
    for name, exprs in analysis.tensor_axes.items():
        assert [full_size(expr) for expr in exprs] == list(graph.tensors[name].shape)
    for group in analysis.sliceable:
        held = {
            (name, axis)
            for name, exprs in analysis.tensor_axes.items()
            for axis, expr in enumerate(exprs)
            if group.id in units_in(expr)
        }
        assert held == set(group.places), "every axis that names the group is one of its places"
        assert group.producers and group.consumptions
        counts = {group.id: 1}
        small = slice(graph, Selection({group.id: (0,)}))
        for name, exprs in analysis.tensor_axes.items():
            assert [kept_size(expr, counts) for expr in exprs] == list(small.tensors[name].shape)
