"""A group without units against the oracle that zeroes all of them: the same numbers, without the layers."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.errors import GraphError
from sarto.graph import ModelGraph, Selection, capture, relative_difference, slice, zeroed
from sarto.graph.gate import gate, gate_layout
from sarto.graph.hollow import hollow
from sarto.graph.validity import check_graph, check_shapes
from sarto.testing.pico import PICO, pico
from sarto.testing.tolerances import EXACT


@cache
def graph_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[ModelGraph, Tensor]:
    model, x = pico(name, dtype=dtype)
    return capture(model, x), x


def without(graph: ModelGraph, groups: tuple[str, ...], x: Tensor) -> Tensor:
    """What the source computes when every reader reads zero for these groups."""
    return zeroed(graph, Selection({group: () for group in groups}), (x,))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", PICO)
def test_hollow_equals_zeroing_all_units(name: str, dtype: torch.dtype) -> None:
    graph, x = graph_of(name, dtype)
    before = {key: tensor.clone() for key, tensor in graph.tensors.items()}
    groups = [group.id for group in graph.analysis.sliceable]
    for chosen in [*((group,) for group in groups), *combinations(groups, 2), tuple(groups)]:
        small = hollow(graph, chosen)
        check_graph(small)
        check_shapes(small)
        for given in (x, x[:1], torch.cat([x, x, x])[:7]):
            assert relative_difference((small(given),), (without(graph, chosen, given),)) <= EXACT[dtype]
        assert small.tensors.keys() <= graph.tensors.keys() | {
            t for t in small.tensors if t.endswith(".zeros")
        }
        assert sum(t.numel() for t in small.tensors.values()) < sum(t.numel() for t in before.values())
    assert all(torch.equal(before[key], tensor) for key, tensor in graph.tensors.items())


@pytest.mark.parametrize("name", PICO)
def test_slice_takes_a_selection_that_leaves_some_groups_empty(name: str) -> None:
    graph, x = graph_of(name)
    for place, empty in enumerate(graph.analysis.sliceable):
        others = [group for group in graph.analysis.sliceable if group is not empty]
        kept = {group.id: tuple(range(place % 2, group.size, 2)) for group in others}
        selection = Selection({**kept, empty.id: ()})
        small = slice(graph, selection)
        check_graph(small)
        check_shapes(small)
        assert relative_difference((small(x),), zeroed(graph, selection, (x,))) <= EXACT[x.dtype]


def test_a_padded_convolution_without_input_is_its_bias_everywhere() -> None:
    graph, _ = graph_of("residual")
    small = hollow(graph, ["a1"])
    assert "a1.weight" not in small.tensors and "a2.weight" not in small.tensors
    node = small.node("conv2d_2")
    assert node.op == "aten.expand.default"
    value = small.module()
    assert torch.equal(value.a2.bias, graph.tensors["a2.bias"]), "the bias is still a parameter"
    assert "a2.bias" in small.parameters


def test_a_layer_without_bias_becomes_zero() -> None:
    graph, _ = graph_of("mobile")
    small = hollow(graph, ["expand"])
    (name,) = [name for name in small.tensors if name.endswith(".zeros")]
    assert name not in small.parameters
    assert not small.tensors[name].any()
    assert "bn3.weight" in small.tensors, "the batch norm behind it still adds its constant"


def test_a_concatenation_only_loses_columns() -> None:
    graph, _ = graph_of("dense")
    small = hollow(graph, ["one"])
    assert small.tensors["two.weight"].shape[1] == 4
    assert small.tensors["bn.weight"].shape == (10,)
    assert small.node("cat_1").op == "aten.cat.default"


def test_what_is_left_is_still_sliceable_and_gateable() -> None:
    graph, x = graph_of("residual")
    small = hollow(graph, ["a1"])
    rest = {group.id for group in small.analysis.sliceable}
    assert rest == {group.id for group in graph.analysis.sliceable} - {"a1.weight:0"}
    layout = gate_layout(small)
    shut = torch.ones(len(x), max(stop for _, stop in layout.values()), dtype=x.dtype)
    start, stop = layout["b1.weight:0"]
    shut[:, start:stop] = 0
    want = hollow(graph, ["a1", "b1"])(x)
    assert relative_difference((gate(small)(x, shut),), (want,)) <= EXACT[x.dtype]
    assert relative_difference((hollow(small, ["b1"])(x),), (want,)) <= EXACT[x.dtype]


class Heads(nn.Module):
    """Fused attention with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.Linear(5, 8), nn.Linear(8, 3)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        batch, tokens, width = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        return self.fc((x + self.out(mixed)).amax(1))


def test_attention_without_heads_or_values_is_a_bias_and_without_keys_is_refused() -> None:
    torch.manual_seed(0)
    graph, x = capture(Heads().double().eval(), torch.randn(3, 4, 5).double()), torch.randn(3, 4, 5).double()
    kinds = {group.kind: group.id for group in graph.analysis.sliceable}
    for kind in ("heads", "value dims"):
        small = hollow(graph, [kinds[kind]])
        assert relative_difference((small(x),), (without(graph, (kinds[kind],), x),)) <= EXACT[x.dtype]
        assert not any("attention" in node.op for node in small.nodes)
    with pytest.raises(GraphError, match=r"scaled_dot_product_attention\.default at .* would read nothing"):
        hollow(graph, [kinds["query-key pairs"]])


class Summed(nn.Module):
    """A product with a sum over units."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[:, 0] * F.gelu(self.up(x)).sum(2).sum(1, keepdim=True))


def test_other_readers_are_refused_by_name() -> None:
    graph = capture(Summed().double().eval(), torch.randn(3, 2, 4).double())
    with pytest.raises(
        GraphError, match=r"aten\.sum\.dim_IntList at sum_1 would read nothing.*Keep at least one"
    ):
        hollow(graph, ["up"])


def test_shapes_alone_are_enough() -> None:
    graph, _ = graph_of("mobile")
    have, want = hollow(graph.sketch(), ["expand"]), hollow(graph, ["expand"])
    assert have.nodes == want.nodes
    assert {k: t.shape for k, t in have.tensors.items()} == {k: t.shape for k, t in want.tensors.items()}


def test_pinned_and_unknown_groups_are_refused() -> None:
    graph, _ = graph_of("pinned")
    with pytest.raises(GraphError, match=r"can't be sliced: .*layer_norm at layer_norm"):
        hollow(graph, ["conv2"])
    with pytest.raises(GraphError, match="no channel group 'convv'"):
        hollow(graph, ["convv"])
