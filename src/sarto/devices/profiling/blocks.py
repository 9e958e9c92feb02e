"""Small models of one kind of operator each: what they take on a device says what any graph takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sarto.graph import ModelGraph, capture


@dataclass(frozen=True)
class Block:
    """A model to measure.

    Attributes:
        family: kind of operator that it is made of.
        name: family and sizes.
        shape: of its input, without the batch.
    """

    family: str
    name: str
    shape: tuple[int, ...]
    make: Callable[[], nn.Module]

    def graph(self) -> ModelGraph:
        """The block as a graph with random weights, the same ones each time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make().eval()
            whole = self.family == "lookup"
            example = torch.zeros(2, *self.shape, dtype=torch.int64) if whole else torch.rand(2, *self.shape)
        return capture(model, example, prove=False)


class _Steps(nn.Module):
    """Plain functions one after the other."""

    def __init__(self, steps: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class _Attention(nn.Module):
    """Queries, keys and values of several heads; fused, or written out as two products and a softmax."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.qkv, self.heads, self.fused = nn.Linear(width, 3 * width), heads, fused

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        if self.fused:
            found = functional.scaled_dot_product_attention(q, k, v)
        else:
            found = (q @ k.transpose(-2, -1) * 0.1).softmax(-1) @ v
        return found.transpose(1, 2).reshape(batch, tokens, width)


class _Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)[0]
        return found


def blocks() -> tuple[Block, ...]:
    """All built-in blocks: every kind of operator at several sizes, deep enough to be measured."""
    found: list[Block] = []

    def add(family: str, sizes: str, shape: tuple[int, ...], make: Callable[[], nn.Module]) -> None:
        found.append(Block(family, f"{family}-{sizes}", shape, make))

    for width, size, depth in (
        (8, 32, 6),
        (16, 32, 6),
        (32, 16, 6),
        (64, 8, 6),
        (128, 8, 3),
        (48, 28, 3),
        (256, 4, 2),
    ):
        add("convolution", f"{width}x{size}x{depth}", (width, size, size), _convolutions(width, depth, 3))
    for width, size, depth in ((32, 16, 6), (64, 8, 4)):
        add("convolution", f"bare-{width}x{size}x{depth}", (width, size, size),
            _convolutions(width, depth, 3, norm=False))  # fmt: skip
    for width, size, depth in ((32, 32, 5), (64, 16, 6), (96, 16, 4), (128, 8, 6), (512, 4, 3)):
        add("pointwise", f"{width}x{size}x{depth}", (width, size, size), _convolutions(width, depth, 1))
    for width, size, depth in ((32, 32, 5), (64, 16, 6), (128, 8, 6), (256, 8, 4), (96, 28, 3)):
        add("depthwise", f"{width}x{size}x{depth}", (width, size, size),
            _convolutions(width, depth, 3, groups=width))  # fmt: skip
    for width, size, depth in ((32, 16, 4), (64, 16, 3), (128, 8, 3)):
        add(
            "grouped",
            f"{width}x{size}x{depth}",
            (width, size, size),
            _convolutions(width, depth, 3, groups=4),
        )
    for width, size in ((16, 8), (32, 8), (64, 4)):
        add("transposed", f"{width}x{size}", (width, size, size), _transposed(width))
    for shape, width, depth in (
        ((64,), 64, 8),
        ((256,), 256, 6),
        ((1024,), 1024, 3),
        ((16, 128), 128, 5),
        ((64, 192), 192, 3),
    ):
        add("linear", f"{'x'.join(map(str, shape))}x{depth}", shape, _linear(width, depth))
    for tokens, width, heads in ((16, 64, 2), (64, 128, 4), (196, 192, 3)):
        add("attention", f"{tokens}x{width}", (tokens, width), _attention(width, heads, fused=True))
    for tokens, width, heads in ((16, 64, 2), (64, 128, 4)):
        add("product", f"{tokens}x{width}", (tokens, width), _attention(width, heads, fused=False))
    for steps, width in ((8, 32), (32, 64), (16, 128), (16, 256)):
        add("recurrent", f"gru-{steps}x{width}", (steps, width), _recurrent(nn.GRU, width))
    for steps, width in ((16, 64), (16, 192)):
        add("recurrent", f"lstm-{steps}x{width}", (steps, width), _recurrent(nn.LSTM, width))
    for width, size in ((16, 32), (64, 16), (64, 32)):
        image = (width, size, size)
        add("norm", f"{width}x{size}", image, _norms(width))
        add("elementwise", f"{width}x{size}", image, _steps(lambda x: torch.relu(x + 0.5) * x, 6))
        add(
            "activation", f"{width}x{size}", image, _steps(lambda x: functional.gelu(x) * torch.sigmoid(x), 3)
        )
        add("pool", f"{width}x{size}", image, _steps(lambda x: functional.max_pool2d(x, 3, 1, 1), 3))
        add("move", f"{width}x{size}", image, _steps(_moved, 3))
    for tokens, width in ((64, 128), (196, 192)):
        add("norm", f"layer-{tokens}x{width}", (tokens, width), _layer_norms(width))
    for size in (8, 32):
        add("view", f"{size}", (size, size), _steps(lambda x: x.transpose(1, 2).reshape(x.shape), 8))
    for tokens, width in ((16, 64), (128, 256)):
        add("lookup", f"{tokens}x{width}", (tokens,), _lookup(width))
    return tuple(found)


def _convolutions(
    width: int, depth: int, kernel: int, *, groups: int = 1, norm: bool = True
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=not norm))
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else []
        return nn.Sequential(*layers)

    return make


def _transposed(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(nn.ConvTranspose2d(width, width, 2, stride=2) for _ in range(2)))


def _linear(width: int, depth: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
        return nn.Sequential(*layers)

    return make


def _attention(width: int, heads: int, *, fused: bool) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(_Attention(width, heads, fused=fused) for _ in range(2)))


def _recurrent(layer: type[nn.GRU] | type[nn.LSTM], width: int) -> Callable[[], nn.Module]:
    return lambda: _Recurrent(layer(width, width, batch_first=True))


def _norms(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer for _ in range(4) for layer in (nn.BatchNorm2d(width), nn.ReLU())))


def _layer_norms(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer for _ in range(4) for layer in (nn.LayerNorm(width), nn.ReLU())))


def _lookup(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Embedding(1000, width)


def _steps(step: Callable[[Tensor], Tensor], depth: int) -> Callable[[], nn.Module]:
    return lambda: _Steps([step] * depth)


def _moved(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return torch.cat([x[:, half:], x[:, :half]], 1)
