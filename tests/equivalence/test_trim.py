"""Streams behind layer norm: `slice` refuses them, `trim` cuts them, fits the norms and says how far off it is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.errors import GraphError, ShapeError
from sarto.graph import (
    ModelGraph,
    Selection,
    analyse,
    capture,
    read_graph,
    relative_difference,
    slice,
    write_graph,
)
from sarto.graph.approximate import Trimmed, trim
from sarto.graph.validity import check_graph, check_shapes
from sarto.testing.tolerances import EXACT

STREAM = "patch.weight:0"
KEPT = Selection({STREAM: (0, 1, 2, 3, 5, 6, 8, 10, 12, 13, 15)})


class WrittenOut(nn.Module):
    """RMS norm in single operators, with a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)) + self.bias


class Plain(nn.LayerNorm):
    """Layer norm with nothing to fit."""

    def __init__(self, width: int) -> None:
        super().__init__(width, elementwise_affine=False)


NORMS = {"layer norm": nn.LayerNorm, "rms norm": nn.RMSNorm, "written out": WrittenOut}


class Block(nn.Module):
    """Attention and an MLP, each behind a norm, each added to the stream."""

    def __init__(self, norm: type[nn.Module], width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        y = self.norm1(x)
        q, k, v = (
            layer(y).view(batch, tokens, 2, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Vit(nn.Module):
    """Patches, learnt positions, two blocks, a norm, the mean over tokens."""

    def __init__(self, norm: type[nn.Module], width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(Block(norm, width), Block(norm, width))
        self.norm, self.fc = norm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.blocks(x)).mean(1))


@cache
def graph_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[ModelGraph, Tensor]:
    torch.manual_seed(1)
    model, x = Vit(NORMS.get(name, Plain)).to(dtype).eval(), torch.randn(6, 3, 8, 8, dtype=dtype)
    for key, tensor in model.state_dict().items():
        if "norm" in key:
            tensor.add_(0.3 * torch.randn_like(tensor))
    return capture(model, x, prove=False), x


@cache
def trimmed(name: str) -> Trimmed:
    graph, x = graph_of(name)
    return trim(graph, KEPT, x)


def unfitted(graph: ModelGraph, selection: Selection) -> ModelGraph:
    return slice(graph, selection, analysis=analyse(graph, follow_statistics=True))


def gap(have: Tensor, want: Tensor) -> float:
    return float((have - want).norm() / want.norm())


@pytest.mark.parametrize("name", NORMS)
def test_slice_refuses_the_stream_with_the_reason(name: str) -> None:
    graph, _ = graph_of(name)
    op = {"layer norm": "layer_norm", "rms norm": "rms_norm"}.get(name, "mean")
    said = (
        rf"can't be sliced: {op} at 5 nodes \({op}, {op}_1, {op}_2, \.\.\.\); `trim` slices it approximately"
    )
    with pytest.raises(GraphError, match=said):
        slice(graph, KEPT)


@pytest.mark.parametrize("name", NORMS)
def test_fitting_brings_every_norm_and_the_output_nearer(name: str) -> None:
    graph, x = graph_of(name)
    result = trimmed(name)
    assert len(result.norms) == 5
    assert all(0 < fit.distance < fit.distance_before for fit in result.norms)
    assert 0 < result.distance < result.distance_before
    assert result.distance == pytest.approx(gap(result.graph(x), graph(x)))
    assert result.distance_before == pytest.approx(gap(unfitted(graph, KEPT)(x), graph(x)))
    held_out = torch.randn(50, 3, 8, 8, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    want = graph(held_out)
    assert gap(result.graph(held_out), want) < gap(unfitted(graph, KEPT)(held_out), want)


@pytest.mark.parametrize("name", NORMS)
def test_the_trimmed_graph_is_smaller_and_runs_at_any_batch_size(name: str) -> None:
    graph, x = graph_of(name)
    before = {key: tensor.clone() for key, tensor in graph.tensors.items()}
    small = trim(graph, KEPT, x).graph
    assert all(torch.equal(before[key], tensor) for key, tensor in graph.tensors.items())
    check_shapes(small)
    assert small.tensors.keys() == graph.tensors.keys() and small.parameters == graph.parameters
    assert small.tensors["patch.weight"].shape[0] == small.tensors["norm.weight"].shape[0] == 11
    wide = torch.cat([x, x])
    for batch in (1, 2, 7):
        torch.testing.assert_close(small(wide[:batch]), small(wide)[:batch])


def test_the_first_fit_is_the_regression_of_each_channel() -> None:
    graph, x = graph_of("layer norm")
    small = trimmed("layer norm").graph
    stream = graph.tensors["patch.weight"]
    tokens = F.conv2d(x, stream, graph.tensors["patch.bias"], 2).flatten(2).transpose(1, 2)
    tokens = tokens + graph.tensors["positions"]
    kept = torch.tensor(KEPT.kept[STREAM])
    weight, bias = graph.tensors["blocks.0.norm1.weight"], graph.tensors["blocks.0.norm1.bias"]
    want = F.layer_norm(tokens, (16,), weight, bias)[..., kept].reshape(-1, 11)
    have = F.layer_norm(tokens[..., kept], (11,)).reshape(-1, 11)
    for channel in range(11):
        design = torch.stack([have[:, channel], torch.ones(len(have), dtype=x.dtype)], 1)
        slope, constant = torch.linalg.lstsq(design, want[:, channel : channel + 1]).solution[:, 0]
        torch.testing.assert_close(small.tensors["blocks.0.norm1.weight"][channel], slope)
        torch.testing.assert_close(small.tensors["blocks.0.norm1.bias"][channel], constant)


@pytest.mark.parametrize("name", NORMS)
def test_a_trimmed_graph_is_one_that_can_be_stored(name: str, tmp_path: Path) -> None:
    _, x = graph_of(name)
    small = trimmed(name).graph
    check_graph(small)
    write_graph(small, tmp_path)
    again = read_graph(tmp_path)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in small.tensors.items())
    # Where a file's tensors lie in memory may change the last bits of a product.
    assert relative_difference((again(x),), (small(x),)) <= EXACT[x.dtype]


def test_keeping_everything_changes_nothing() -> None:
    graph, x = graph_of("layer norm")
    result = trim(graph, Selection({STREAM: tuple(range(16))}), x)
    assert not result.norms and result.distance == 0
    assert torch.equal(result.graph(x), graph(x))


def test_groups_behind_no_norm_are_sliced_exactly() -> None:
    graph, x = graph_of("layer norm")
    selection = Selection({"blocks.0.up.weight:0": tuple(range(0, 32, 3))})
    result = trim(graph, selection, x)
    assert not result.norms
    assert relative_difference((result.graph(x),), (slice(graph, selection)(x),)) <= EXACT[x.dtype]


def test_a_norm_without_weights_is_cut_and_reported_by_the_output() -> None:
    graph, x = graph_of("plain")
    result = trim(graph, KEPT, x)
    assert not result.norms
    assert 0 < result.distance == result.distance_before


def test_a_weight_that_two_norms_share_is_fitted_for_each() -> None:
    torch.manual_seed(0)
    model = Vit(nn.LayerNorm).double().eval()
    model.blocks[1].norm1 = model.blocks[0].norm1
    x = torch.randn(6, 3, 8, 8).double()
    graph = capture(model, x, prove=False)
    result = trim(graph, KEPT, x)
    check_graph(result.graph)
    assert all(fit.distance < fit.distance_before for fit in result.norms)
    assert any(name.endswith("norm1.weight_1") for name in result.graph.parameters)


def test_group_norm_over_cut_channels_is_fitted() -> None:
    class Groups(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
            self.two, self.fc = nn.Conv2d(12, 6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.two(F.relu(self.norm(self.one(x))))).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Groups().double().eval(), torch.randn(4, 3, 8, 8).double()
    graph = capture(model, x, prove=False)
    inner = next(
        group
        for group in analyse(graph, follow_statistics=True).sliceable
        if group.size == 4 and group.id not in {other.id for other in graph.analysis.sliceable}
    )
    result = trim(graph, Selection({inner.id: (0, 1, 3)}), x)
    (fit,) = result.norms
    assert fit.distance < fit.distance_before
    assert result.graph.tensors["norm.weight"].shape == (9,)


def test_samples_and_groups_are_checked() -> None:
    graph, x = graph_of("layer norm")
    with pytest.raises(ShapeError, match="none were given; give at least two"):
        trim(graph, KEPT, x[:0])
    with pytest.raises(ShapeError, match="must have shape"):
        trim(graph, KEPT, x[:, :2])
    with pytest.raises(GraphError, match="can't be sliced: output"):
        trim(graph, Selection({"fc.weight:0": (0,)}), x)
