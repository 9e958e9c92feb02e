"""How channel groups are named and looked up, what a selection may hold, and what is said where it can't be kept."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sarto.errors import GraphError, ShapeError
from sarto.graph import (
    KINDS,
    ModelGraph,
    Selection,
    analyse,
    branch,
    capture,
    normalise,
    relative_difference,
    repair,
    slice,
    trim,
    with_head,
    zeroed,
)
from sarto.testing.pico import pico
from sarto.testing.random_nets import random_net
from sarto.zoo import vit


@cache
def attention() -> ModelGraph:
    torch.manual_seed(0)
    model = vit(n_classes=5, side=16, patch=8, width=16, depth=1, heads=4)
    return capture(model, torch.randn(2, 3, 16, 16), prove=False)


@cache
def plain() -> tuple[ModelGraph, Tensor]:
    model, x = pico("plain")
    return capture(model, x, prove=False), x


def made_of(move: str) -> ModelGraph:
    return capture(*random_net([move], 1), prove=False)


# --- kinds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "name", "size"),
    [
        (attention, "blocks.0.attn.qkv.weight:0.0", 3),
        (lambda: made_of("gru"), "body.gru0.core.weight_ih_l0:0.0", 3),
        (lambda: made_of("both_ways"), "body.both_ways0.core.weight_ih_l0_reverse:0.0", 4),
        (lambda: made_of("pixels"), "body.pixels0.one.weight:0.1", 4),
    ],
    ids=["fused projection", "gru gates", "lstm gates, backwards", "pixels"],
)
def test_parts_of_an_axis_with_jobs_of_their_own_are_fixed_factors(graph: Any, name: str, size: int) -> None:
    group = graph().analysis.groups[name]
    assert (group.kind, group.size) == ("fixed factor", size)
    assert group.pinned and "no linear operator reads these units" not in group.pinned


def test_a_pinned_factor_that_is_read_keeps_its_kind() -> None:
    group = made_of("group_norm").analysis.groups["stem.weight:0.1"]
    assert (group.kind, group.pinned) == ("filters", ("group_norm at group_norm",))


def test_what_the_model_returns_is_of_kind_outputs_for_one_reason() -> None:
    group = plain()[0].analysis.groups["fc2.weight:0"]
    assert (group.kind, group.pinned) == ("outputs", ("output 'linear_1'",))
    assert {"outputs", "fixed factor"} <= set(KINDS)


def test_a_stream_that_is_also_returned_is_still_a_stream() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.one(x)
            x = x + self.two(x.relu())
            return x, self.head(x)

    group = capture(Both(), torch.randn(2, 3), prove=False).analysis.groups["one.weight:0"]
    assert (group.kind, group.pinned) == ("stream", ("output 'add'",))


# --- names --------------------------------------------------------------------------------------------------


def test_a_layer_with_several_groups_lists_them_all() -> None:
    with pytest.raises(GraphError) as caught:
        attention().analysis.group("blocks.0.attn.qkv")
    assert str(caught.value) == (
        "'blocks.0.attn.qkv' names 3 channel groups; name one by its id: 'blocks.0.attn.qkv.weight:0.0' (3 fixed "
        "factor), 'blocks.0.attn.qkv.weight:0.1' (4 heads), 'blocks.0.attn.qkv.weight:0.2' (4 head dims)"
    )
    with pytest.raises(GraphError, match=r"'blocks\.0\.attn\.qkv\.weight:0' names 3 channel groups"):
        attention().analysis.group("blocks.0.attn.qkv.weight:0")


def test_a_layer_names_the_one_group_that_it_makes_or_writes_to() -> None:
    residual = capture(*pico("residual"), prove=False).analysis
    assert residual.group("stem") is residual.group("stem.weight:0") is residual.group("a2")
    recurrent = made_of("both_ways").analysis
    assert recurrent.group("body.both_ways0.core").kind == "recurrent units"


def test_a_name_above_the_layers_lists_what_lies_below_and_a_wrong_one_suggests_layers() -> None:
    with pytest.raises(GraphError, match=r"'blocks\.0\.mlp' names no layer.*'blocks\.0\.mlp\.fc1\.weight:0'"):
        attention().analysis.group("blocks.0.mlp")
    with pytest.raises(
        GraphError, match=r"no channel group 'conv3' in this graph \(did you mean 'conv\d'\?\)"
    ):
        plain()[0].analysis.group("conv3")


# --- selections ---------------------------------------------------------------------------------------------


def test_a_selection_takes_layer_names_wherever_it_is_taken() -> None:
    graph, x = plain()
    by_layer, by_id = Selection({"conv1": (1, 2)}), Selection({"conv1.weight:0": (1, 2)})
    want = slice(graph, by_id)
    assert torch.equal(slice(graph, by_layer)(x), want(x))
    assert relative_difference(zeroed(graph, by_layer, (x,)), zeroed(graph, by_id, (x,))) == 0
    matrix = torch.randn(8, 2, dtype=torch.float64)
    one, two = (repair(graph, kept, {"conv2d_1": matrix}) for kept in (by_layer, by_id))
    assert torch.equal(one(x), two(x))
    images = torch.randn(2, 3, 16, 16)
    one, two = (
        trim(attention(), Selection({name: range(12)}), images).graph  # type: ignore[dict-item]
        for name in ("patch_embed.proj", "patch_embed.proj.weight:0")
    )
    assert torch.equal(one(images), two(images))


def test_a_group_that_is_named_twice_is_refused() -> None:
    with pytest.raises(GraphError, match=r"group 'conv1\.weight:0' is named twice"):
        slice(plain()[0], Selection({"conv1": (1,), "conv1.weight:0": (1, 2)}))


@pytest.mark.parametrize("operation", [slice, lambda graph, kept: zeroed(graph, kept, (plain()[1],))])
def test_a_plain_dict_is_refused_by_name(operation: Any) -> None:
    with pytest.raises(
        GraphError, match=r"must be a sarto\.graph\.Selection, found dict: give Selection\(\{"
    ):
        operation(plain()[0], {"conv1.weight:0": (1,)})


def test_equal_selections_have_one_hash() -> None:
    one, two = Selection({"a": (2, 1), "b": ()}), Selection({"b": (), "a": (1, 2, 2)})
    assert one == two and len({one, two}) == 1
    assert len({one, Selection({"a": (1, 2)})}) == 2


def test_the_oracle_refuses_what_slicing_refuses() -> None:
    graph, x = plain()
    with pytest.raises(GraphError, match=r"no channel group 'conv9'.*|2 problems") as caught:
        zeroed(graph, Selection({"conv9": (0,), "fc2.weight:0": (1,)}), (x,))
    assert len(caught.value.problems) == 2


def test_reasons_of_one_operator_come_together_and_trim_is_named_where_it_helps() -> None:
    with pytest.raises(GraphError) as caught:
        slice(attention(), Selection({"patch_embed.proj": (0,)}))
    assert str(caught.value) == (
        "group 'patch_embed.proj' can't be sliced: layer_norm at 3 nodes (layer_norm, layer_norm_1, layer_norm_2); "
        "`trim` slices it approximately, and fits these norms again on samples"
    )
    with pytest.raises(GraphError, match=r"select at 3 nodes \(select, select_1, select_2\)$"):
        slice(attention(), Selection({"blocks.0.attn.qkv.weight:0.0": (0,)}))
    with pytest.raises(GraphError, match=r"can't be sliced: output 'linear_4'$"):
        slice(attention(), Selection({"head": (0,)}), analysis=analyse(attention(), follow_statistics=True))


# --- words of joins -----------------------------------------------------------------------------------------


def test_shapes_are_told_in_words() -> None:
    graph, _ = plain()
    other = capture(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.randn(2, 3, 2, 2), prove=False)
    maps = capture(nn.Conv2d(3, 4, 1), torch.randn(2, 3, 2, 2), prove=False)
    with pytest.raises(
        ShapeError,
        match=r"graph 1 of the branch reads \(batch, 3, 2, 2\) float32 where the first one reads "
        r"\(batch, 3, 8, 8\) float64",
    ):
        branch([graph, other])
    with pytest.raises(
        ShapeError, match=r"outputs of shapes \(batch, 4\), \(batch, 4, 2, 2\) can't be joined by 'concat'"
    ):
        branch([other, maps])
    with pytest.raises(
        ShapeError, match=r"a head of shape \(2, 9\) can't read an output of shape \(batch, 4\)"
    ):
        with_head(other, torch.zeros(2, 9))
    with pytest.raises(ShapeError, match=r"the input has shape \(batch, 3, 2, 2\)"):
        normalise(other, [0.0], [1.0])


def test_the_difference_of_tensors_that_take_gradients() -> None:
    one = torch.ones(3, requires_grad=True)
    assert relative_difference((one * 2,), (one,)) == 1.0
