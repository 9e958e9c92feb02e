"""Gates against slices: a pattern of zeros and ones is a selection, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.errors import GraphError
from sarto.graph import (
    ModelGraph,
    Selection,
    block,
    capture,
    chain,
    cut_points,
    dissect,
    read_graph,
    relative_difference,
    slice,
    write_graph,
    zeroed,
)
from sarto.graph.gate import GATES, gate, gate_layout, gateable
from sarto.graph.validity import check_graph, check_shapes
from sarto.testing.pico import PICO, pico
from sarto.testing.tolerances import EXACT


class Windows(nn.Module):
    """An MLP on windows of a map; the windows are folded into the batch, outside or inside of the samples."""

    def __init__(self, outside: bool) -> None:
        super().__init__()
        self.outside = outside
        self.stem = nn.Conv2d(3, 6, 1)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch = x.shape[0]
        y = x.permute(0, 2, 3, 1).reshape(batch, 2, 2, 2, 2, 6)
        y = y.permute(1, 3, 0, 2, 4, 5) if self.outside else y.permute(0, 1, 3, 2, 4, 5)
        y = self.down(torch.sigmoid(self.up(y.reshape(4 * batch, 4, 6))))
        if self.outside:
            y = y.reshape(2, 2, batch, 2, 2, 6).permute(2, 0, 3, 1, 4, 5)
        else:
            y = y.reshape(batch, 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, 4, 4, 6).permute(0, 3, 1, 2)
        return self.fc((x + y).mean((2, 3)))


class TokensFirst(nn.Module):
    """Tokens on axis 0 and the batch on axis 1; a sum over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.fc = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(torch.sigmoid(self.up(x.transpose(0, 1))))
        return self.fc(F.gelu(x).sum(0))


class ChannelsFirst(nn.Module):
    """Units on axis 0, ahead of the batch: the batch is summed away from the right."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.Linear(5, 7), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        units = self.up(x).permute(2, 0, 1)
        return self.fc(torch.tanh(units).sum(0))


class Attention(nn.Module):
    """Separate projections and fused attention: heads, query-key pairs and value dims on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 8)
        self.out, self.fc = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, 8)
        return self.fc(F.gelu(self.out(y)).amax(1))


class FoldedHeads(nn.Module):
    """`nn.MultiheadAttention` with tokens first: heads are folded into the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.attention = nn.Linear(5, 8), nn.MultiheadAttention(8, 2)
        self.mid, self.fc = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).transpose(0, 1)
        y = self.attention(x, x, x, need_weights=False)[0]
        return self.fc(F.gelu(self.mid(y)).amax(0))


class Products(nn.Module):
    """Attention by batched matrix products, heads folded into the batch; the output by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 6)
        self.out, self.fc = nn.Parameter(0.3 * torch.randn(3, 2, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, 3, 2).transpose(1, 2).reshape(3 * batch, tokens, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v).view(batch, 3, tokens, 2)
        return self.fc(F.gelu(torch.einsum("bhtd,hde->bte", y, self.out)).amax(1))


class Recurrent(nn.Module):
    """Two recurrent layers between linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.lstm = nn.Linear(5, 6), nn.LSTM(6, 7, 2, batch_first=True)
        self.mid, self.fc = nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.sigmoid(self.mid(self.lstm(torch.tanh(self.up(x)))[0])).amax(1))


MODELS: Mapping[str, tuple[type[nn.Module], tuple[bool, ...], tuple[int, ...]]] = {
    "windows inside": (Windows, (False,), (3, 4, 4)),
    "windows outside": (Windows, (True,), (3, 4, 4)),
    "tokens first": (TokensFirst, (), (4, 5)),
    "channels first": (ChannelsFirst, (), (4, 5)),
    "attention": (Attention, (), (4, 5)),
    "folded heads": (FoldedHeads, (), (4, 5)),
    "products": (Products, (), (4, 5)),
}


@cache
def graph_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[ModelGraph, Tensor]:
    if name in PICO:
        model, x = pico(name, dtype=dtype)
    else:
        made, options, shape = MODELS[name]
        torch.manual_seed(3)
        model, x = made(*options).to(dtype).eval(), torch.randn(3, *shape, dtype=dtype)
    return capture(model, x, prove=name in PICO), x


def patterns(layout: Mapping[str, tuple[int, int]], rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Zeros and ones, shape (rows, units), at least one unit of each group open."""
    generator = torch.Generator().manual_seed(seed)
    units = max(stop for _, stop in layout.values())
    drawn = (torch.rand(rows, units, generator=generator) < 0.5).to(dtype)
    for start, stop in layout.values():
        opened = torch.randint(start, stop, (rows,), generator=generator)
        drawn[torch.arange(rows), opened] = 1
    return drawn


def selected(layout: Mapping[str, tuple[int, int]], row: Tensor) -> Selection:
    return Selection(
        {group: tuple(row[start:stop].nonzero()[:, 0].tolist()) for group, (start, stop) in layout.items()}
    )


EVERY = (*PICO, *MODELS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_open_gates_are_the_source(name: str, dtype: torch.dtype) -> None:
    graph, x = graph_of(name, dtype)
    gated = gate(graph)
    check_graph(gated)
    check_shapes(gated)
    assert gated.inputs[:-1] == graph.inputs
    entry = gated.inputs[-1]
    assert entry.name == GATES
    have = gated(x, torch.ones(len(x), entry.shape[1], dtype=dtype))
    assert relative_difference((have,), (graph(x),)) <= EXACT[dtype]
    pinned = {group.id for group in gated.analysis.groups.values() if "input 'gates'" in group.pinned}
    assert pinned, "the gated graph can be analysed, and gated units are not sliced"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_each_sample_has_its_own_slice(name: str, dtype: torch.dtype) -> None:
    graph, x = graph_of(name, dtype)
    layout = gate_layout(graph)
    assert set(layout) == {group.id for group in graph.analysis.sliceable}
    rows = patterns(layout, len(x), dtype)
    have = gate(graph)(x, rows)
    for place, row in enumerate(rows):
        selection, one = selected(layout, row), x[place : place + 1]
        assert (
            relative_difference((have[place : place + 1],), (slice(graph, selection)(one),)) <= EXACT[dtype]
        )
    assert relative_difference((have,), (graph(x),)) > 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_one_pattern_for_all_samples_is_a_slice_and_no_unit_is_allowed(name: str) -> None:
    graph, x = graph_of(name)
    layout = gate_layout(graph)
    gated, x = gate(graph), torch.cat([x, x, x])[:7]
    row = patterns(layout, 1, x.dtype, seed=1)
    want = slice(graph, selected(layout, row[0]))(x)
    assert relative_difference((gated(x, row.expand(7, -1)),), (want,)) <= EXACT[x.dtype]
    shut = torch.zeros(7, row.shape[1], dtype=x.dtype)
    nothing = zeroed(graph, Selection({group: () for group in layout}), (x,))
    assert relative_difference((gated(x, shut),), nothing) <= EXACT[x.dtype]


@pytest.mark.parametrize("name", EVERY)
def test_groups_can_be_gated_one_by_one(name: str) -> None:
    graph, x = graph_of(name)
    for group in graph.analysis.sliceable:
        layout = gate_layout(graph, [group.id])
        assert layout == {group.id: (0, group.size)}
        row = patterns(layout, len(x), x.dtype, seed=2)
        gated = gate(graph, [group.id])
        want = torch.cat(
            [slice(graph, selected(layout, one))(x[place : place + 1]) for place, one in enumerate(row)]
        )
        assert relative_difference((gated(x, row),), (want,)) <= EXACT[x.dtype]


@pytest.mark.parametrize("name", ["plain", "mobile", "dense", "grouped", "windows outside", "tokens first"])
def test_gradients_of_the_gates_are_finite_differences(name: str) -> None:
    graph, x = graph_of(name)
    gated = gate(graph).module()
    units = gate(graph).inputs[-1].shape[1]
    start = torch.rand(2, units, dtype=x.dtype, generator=torch.Generator().manual_seed(4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda gates: gated(x[:2], gates), (start,))


def test_training_moves_gates_and_weights() -> None:
    graph, x = graph_of("mobile")
    module = gate(graph).module(train=True)
    gates = torch.full((len(x), gate(graph).inputs[-1].shape[1]), 0.9, dtype=x.dtype, requires_grad=True)
    module(x, gates).square().sum().backward()
    assert gates.grad is not None
    assert float((gates.grad != 0).double().mean()) > 0.8, "a unit that ReLU has closed has no gradient"
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("name", PICO)
def test_a_value_is_multiplied_once_however_many_read_it(name: str) -> None:
    graph, _ = graph_of(name)
    gated = gate(graph)
    reads = {
        (graph.node(c.node).args[c.arg], c.axis)
        for group in graph.analysis.sliceable
        for c in group.consumptions
    }
    products = [node for node in gated.nodes if "_gated" in node.name]
    assert len(products) == len(reads)


def test_gates_stand_behind_the_depthwise_batch_norm() -> None:
    """Gating what the expansion makes would leave the constant of the later batch norm."""
    graph, _ = graph_of("mobile")
    gated = gate(graph, ["expand"])
    multiplied = {node.args["self"].name for node in gated.nodes if node.name.endswith("_gated")}  # type: ignore[union-attr]
    assert len(multiplied) == 2, "what the squeeze reads and what the projection reads"
    assert not any(name.startswith("relu6") or name.startswith("hardtanh") for name in multiplied)


def test_ungated_groups_stay_sliceable() -> None:
    for name, gates in (
        ("dense", ["one"]),
        ("plain", ["fc1"]),
        ("residual", ["a1", "b1"]),
        ("text", ["wide"]),
    ):
        graph, x = graph_of(name)
        layout = gate_layout(graph, gates)
        gated = gate(graph, gates)
        rest = [group for group in gated.analysis.sliceable if group.id in graph.analysis.groups]
        assert {g.id for g in rest} == {g.id for g in graph.analysis.sliceable} - set(layout)
        other = Selection({group.id: tuple(range(0, group.size, 2)) for group in rest})
        row = patterns(layout, 1, x.dtype, seed=5)
        both = Selection({**other.kept, **selected(layout, row[0]).kept})
        have = slice(gated, other)(x, row.expand(len(x), -1))
        assert relative_difference((have,), (slice(graph, both)(x),)) <= EXACT[x.dtype]


def test_gates_of_slices_chains_blocks_and_gates() -> None:
    graph, x = graph_of("residual")
    kept = Selection({"a1.weight:0": (0, 2, 3), "shortcut.weight:0": (1, 4, 5, 7)})
    small = slice(graph, kept)
    layout = gate_layout(small)
    row = patterns(layout, 1, x.dtype, seed=6)
    have = gate(small)(x, row.expand(len(x), -1))
    want = slice(graph, kept.then(selected(layout, row[0])))(x)
    assert relative_difference((have,), (want,)) <= EXACT[x.dtype]

    cuts = [cut.value for cut in cut_points(graph)]
    again = chain(dissect(graph, cuts))
    rows = patterns(gate_layout(graph), len(x), x.dtype)
    assert torch.equal(gate(again)(x, rows), gate(graph)(x, rows))

    head = block(graph, start=cuts[2])
    value = block(graph, end=cuts[2])(x)
    assert isinstance(value, Tensor)
    units = gate(head).inputs[-1].shape[1]
    opened = torch.ones(len(x), units, dtype=x.dtype)
    assert relative_difference((gate(head)(value, opened),), (graph(x),)) <= EXACT[x.dtype]

    twice = gate(gate(graph, ["a1"]), ["b1"])
    assert [entry.name for entry in twice.inputs] == ["x", "gates", "gates_1"]
    a, b = patterns({"a": (0, 5)}, len(x), x.dtype), patterns({"b": (0, 7)}, len(x), x.dtype)
    once = gate(graph, ["a1", "b1"])
    layout = gate_layout(graph, ["a1", "b1"])
    joined = torch.cat([a, b] if layout["a1.weight:0"][0] == 0 else [b, a], 1)
    assert relative_difference((twice(x, a, b),), (once(x, joined),)) <= EXACT[x.dtype]


@pytest.mark.parametrize("name", EVERY)
def test_a_gated_graph_is_stored_and_read_back(name: str, tmp_path: Path) -> None:
    graph, x = graph_of(name)
    gated = gate(graph)
    write_graph(gated, tmp_path / "gated")
    rows = patterns(gate_layout(graph), len(x), x.dtype)
    assert torch.equal(read_graph(tmp_path / "gated")(x, rows), gated(x, rows))


def test_shapes_alone_are_enough() -> None:
    for name in ("dense", "grouped"):
        graph, _ = graph_of(name)
        one = [group.id for group in graph.analysis.sliceable][:1]
        assert gate(graph.sketch(), one).nodes == gate(graph, one).nodes


def test_a_gated_graph_is_exported_again() -> None:
    graph, x = graph_of("mobile")
    gated = gate(graph)
    rows = patterns(gate_layout(graph), len(x), x.dtype)
    again = capture(gated.module(), (x, rows), prove=False)
    assert torch.equal(again(x[:2], rows[:2]), gated(x[:2], rows[:2]))


def test_half_precision_values_get_their_own_cast() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (
                nn.Linear(4, 6),
                nn.Linear(6, 5).double(),
                nn.Linear(5, 3).double(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.three(F.relu(self.two(F.relu(self.one(x)).double())))

    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(3, 4)
    model.two(torch.zeros(1, 6).double())
    graph = capture(model, x, prove=False)
    gated, layout = gate(graph), gate_layout(graph)
    assert gated.inputs[-1].dtype == "float32"
    rows = patterns(layout, 3, torch.float32)
    have = gated(x, rows)
    for place, row in enumerate(rows):
        want = slice(graph, selected(layout, row))(x[place : place + 1])
        assert relative_difference((have[place : place + 1],), (want,)) <= EXACT[torch.float32]


def test_what_can_not_be_gated_is_refused_by_name() -> None:
    graph, _ = graph_of("pinned")
    pinned = next(group for group in graph.analysis.groups.values() if group.pinned)
    assert "can't be sliced" in str(gateable(graph, pinned))
    with pytest.raises(GraphError, match="can't be gated: it can't be sliced"):
        gate(graph, [pinned.id])
    with pytest.raises(GraphError, match=r"no channel group 'conv9'"):
        gate(graph, ["conv9"])
    with pytest.raises(GraphError, match="nothing to gate"):
        gate(graph, [])


def test_recurrent_units_are_refused_and_what_lies_around_them_is_gated() -> None:
    torch.manual_seed(0)
    graph, x = (
        capture(Recurrent().double().eval(), torch.randn(3, 4, 5).double()),
        torch.randn(3, 4, 5).double(),
    )
    with pytest.raises(
        GraphError, match=r"aten\.lstm\.input at lstm reads its units through the stored tensor"
    ):
        gate(graph, ["lstm.weight_ih_l0:0.1"])
    layout = gate_layout(graph)
    assert set(layout) == {"up.weight:0", "mid.weight:0"}
    rows = patterns(layout, 3, x.dtype)
    have = gate(graph)(x, rows)
    for place, row in enumerate(rows):
        want = slice(graph, selected(layout, row))(x[place : place + 1])
        assert relative_difference((have[place : place + 1],), (want,)) <= EXACT[x.dtype]


def test_units_of_a_value_without_samples_are_refused() -> None:
    class Table(nn.Module):
        """A learned table passes a linear layer: no sample is in sight where the second layer reads."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(2, 4))
            self.up, self.down, self.fc = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            bias = self.down(torch.tanh(self.up(self.table)))
            return self.fc(x.unsqueeze(1) * bias).sum(1)

    graph = capture(Table().double().eval(), torch.randn(3, 5).double())
    with pytest.raises(
        GraphError, match=r"aten.linear.default at linear_1 reads .* does not depend on the sample"
    ):
        gate(graph, ["up"])
