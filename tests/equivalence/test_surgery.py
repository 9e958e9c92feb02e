"""The same numbers by another road: slicing against zeroing, folding against explicit maps, parts against the whole."""

from __future__ import annotations

from functools import cache

import pytest
import torch
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
    features,
    fold,
    normalise,
    prove,
    relative_difference,
    repair,
    repairable,
    restrict,
    slice,
    with_head,
    zeroed,
)
from sarto.testing.pico import PICO, pico
from sarto.testing.tolerances import EXACT


@cache
def graph_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[ModelGraph, Tensor]:
    model, x = pico(name, dtype=dtype)
    return capture(model, x), x


def some_units(graph: ModelGraph, seed: int, share: float = 0.5) -> Selection:
    generator = torch.Generator().manual_seed(seed)
    return Selection(
        {
            group.id: tuple(
                torch.randperm(group.size, generator=generator)[: max(1, int(share * group.size))].tolist()
            )
            for group in graph.analysis.sliceable
        }
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", PICO)
def test_slice_equals_zeroing_what_the_readers_read(name: str, dtype: torch.dtype) -> None:
    graph, x = graph_of(name, dtype)
    for seed in range(3):
        selection = some_units(graph, seed)
        assert selection.kept, "every pico model has a sliceable group"
        have, _ = evaluate(slice(graph, selection), x)
        assert relative_difference(have, zeroed(graph, selection, (x,))) <= EXACT[dtype]
        assert relative_difference(have, evaluate(graph, x)[0]) > 1e-6, "slicing half must change something"


@pytest.mark.parametrize("name", PICO)
def test_a_sliced_model_runs_at_any_batch_size_and_compiles_to_the_recorded_shapes(name: str) -> None:
    graph, x = graph_of(name)
    small = slice(graph, some_units(graph, 1))
    whole = small(torch.cat([x, x, x]))
    for n in (1, 2, 7):
        torch.testing.assert_close(small(torch.cat([x, x, x])[:n]), whole[:n])
    _, values = evaluate(small, x, watch=list(small.index))
    for node in small.nodes:
        recorded = [x.shape[0] * d.times if hasattr(d, "times") else d for d in node.shape]
        assert list(values[node.name].shape) == recorded, node.name


@pytest.mark.parametrize("name", PICO)
def test_slicing_twice_is_slicing_once(name: str) -> None:
    graph, x = graph_of(name)
    outer = some_units(graph, 2, 0.7)
    once = slice(graph, outer)
    inner = some_units(once, 3, 0.6)
    twice, direct = slice(once, inner), slice(graph, outer.then(inner))
    assert all(torch.equal(twice.tensors[key], direct.tensors[key]) for key in direct.tensors)
    assert [node.args for node in twice.nodes] == [node.args for node in direct.nodes]
    assert torch.equal(twice(x), direct(x))


def test_the_source_never_changes() -> None:
    graph, x = graph_of("mobile")
    before = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    slice(graph, some_units(graph, 4))
    graph(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.tensors.items())


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "dense", "text"])
def test_fold_equals_the_explicit_map(name: str) -> None:
    graph, x = graph_of(name)
    selection = some_units(graph, 5)
    generator = torch.Generator().manual_seed(6)
    group_maps = {
        group.id: torch.randn(
            group.size, len(selection.kept[group.id]), generator=generator, dtype=torch.float64
        )
        for group in graph.analysis.sliceable
    }
    maps = {
        c.node: expand_map(c.expr, group_maps, selection)
        for c in graph.analysis.consumptions
        if repairable(graph, c) is None and any(place in selection.kept for place in _units(c))
    }
    assert maps
    repaired = repair(graph, selection, maps)
    folded = fold(repaired)
    assert len(folded.nodes) == len(graph.nodes) < len(repaired.nodes)
    have, _ = evaluate(folded, x)
    assert relative_difference(have, evaluate(repaired, x)[0]) <= EXACT[torch.float64]
    assert sum(t.numel() for t in folded.tensors.values()) < sum(t.numel() for t in graph.tensors.values())


def _units(consumption: object) -> list[str]:
    from sarto.graph.expressions import units_in

    return list(units_in(consumption.expr))  # type: ignore[attr-defined]


def test_an_exact_map_gives_the_model_back() -> None:
    """Units that are copies of kept ones are repaired without loss."""
    model, x = pico("plain")
    weight = model.conv1.weight.data
    weight[4:] = 2 * weight[:4]
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(model.bn1, name).data[4:] = getattr(model.bn1, name).data[:4]
    model.bn1.running_mean.zero_(), model.bn1.bias.data.zero_()
    graph = capture(model, x)
    selection = Selection({"conv1.weight:0": (0, 1, 2, 3)})
    matrix = torch.cat([torch.eye(4), 2 * torch.eye(4)]).double()
    small = fold(repair(graph, selection, {"conv2d_1": matrix}))
    assert small.tensors["conv1.weight"].shape[0] == 4
    assert relative_difference((small(x),), (graph(x),)) <= EXACT[torch.float64]


def test_a_map_is_refused_where_it_can_not_fold() -> None:
    graph, _ = graph_of("grouped")
    reader = next(c for c in graph.analysis.consumptions if graph.node(c.node).args.get("groups", 1) != 1)
    assert "grouped convolution" in str(repairable(graph, reader))
    selection = some_units(graph, 1)
    with pytest.raises(GraphError, match="grouped convolution"):
        repair(graph, selection, {reader.node: torch.eye(2)})


@pytest.mark.parametrize("name", PICO)
def test_cut_everywhere_and_chained_back_is_the_same_bits(name: str) -> None:
    graph, x = graph_of(name)
    cuts = cut_points(graph)
    assert len(cuts) >= 2
    blocks = dissect(graph, [cut.value for cut in cuts])
    whole = chain(blocks)
    assert torch.equal(whole(x), graph(x))
    assert whole.parameters == graph.parameters
    value = x
    for part in blocks:
        value = part(value)
    assert torch.equal(value, graph(x))


def test_a_block_that_is_no_block_is_refused() -> None:
    graph, _ = graph_of("residual")
    inside = next(
        node.name for node in graph.nodes if node.args.get("weight") is not None and "a1" in str(node.args)
    )
    with pytest.raises(GraphError, match="no cut point"):
        block(graph, start=inside)


def test_branch_runs_a_common_trunk_once_and_joins_in_order() -> None:
    graph, x = graph_of("residual")
    trunk = features(graph).value
    body = block(graph, end=trunk)
    one, two = restrict(graph, [0, 2]), restrict(graph, [3])
    joined = branch([one, two, body])
    assert torch.equal(joined(x), torch.cat([one(x), two(x), body(x)], 1))
    assert len(joined.nodes) == len(graph.nodes) + 2, "one more classifier and the join"
    mean = branch([one, restrict(graph, [1, 3])], join="mean")
    torch.testing.assert_close(mean(x), (graph(x)[:, [0, 2]] + graph(x)[:, [1, 3]]) / 2)


def test_branch_of_different_models_keeps_both() -> None:
    one, x = graph_of("residual")
    two, _ = graph_of("mobile")
    joined = branch([one, two])
    assert torch.equal(joined(x), torch.cat([one(x), two(x)], 1))
    assert sum(joined.tensors[name].numel() for name in joined.parameters) == sum(
        graph.tensors[name].numel() for graph in (one, two) for name in graph.parameters
    )


def test_slice_of_a_branch_and_branch_of_slices_agree() -> None:
    one, x = graph_of("residual")
    two, _ = graph_of("mobile")
    whole = branch([one, two])
    mine, theirs = some_units(one, 1), some_units(two, 2)
    names = {**{k: k for k in mine.kept}}
    for group in theirs.kept:
        names[group] = (
            group
            if group in whole.analysis.groups and group not in mine.kept
            else group.replace(".", "_1.", 1)
        )
    both = {**mine.kept, **{names[group]: units for group, units in theirs.kept.items()}}
    have = slice(whole, Selection(both))(x)
    torch.testing.assert_close(have, branch([slice(one, mine), slice(two, theirs)])(x))


def test_head_and_normalisation() -> None:
    graph, x = graph_of("residual")
    body = block(graph, end=features(graph).value)
    weight, bias = torch.randn(2, 8).double(), torch.randn(2).double()
    torch.testing.assert_close(with_head(body, weight, bias)(x), body(x) @ weight.T + bias)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    shifted = (x - torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)) / torch.tensor(
        std, dtype=torch.float64
    ).view(1, 3, 1, 1)
    assert torch.equal(normalise(graph, mean, std)(x), graph(shifted))
    assert prove(normalise(graph, mean, std)).difference <= EXACT[torch.float64]


@pytest.mark.parametrize("name", PICO)
def test_every_capture_proves_itself_and_not_vacuously(name: str) -> None:
    graph, _ = graph_of(name)
    proof = prove(graph)
    assert proof.groups == len(graph.analysis.sliceable) > 0
    assert not proof.refused
    assert proof.difference <= EXACT[torch.float64]
    assert proof.moved > 1e-3
    assert proof.cuts >= 2
