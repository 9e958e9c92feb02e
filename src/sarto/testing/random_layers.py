"""Small layers that random networks are made of: one for each structure that the rules know.

Each takes and gives a map (batch, channels, height, width) of unchanged space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


class Apply(nn.Module):
    """A function of the map, as a layer; further layers that it uses are its own."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(given: int, made: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the space."""
    return nn.Conv2d(given, made, kernel, padding=kernel // 2, groups=groups)


def even(width: int) -> int:
    """2 where the width can be halved, else 1."""
    return 2 if width % 2 == 0 else 1


def convolve(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Apply(lambda m, x: act(m.one(x)), one=conv(width, 6)), 6


def transposed(width: int, act: Activation) -> tuple[nn.Module, int]:
    layer = nn.ConvTranspose2d(width, 4 * even(width), 3, padding=1, groups=even(width))
    return Apply(lambda m, x: act(m.one(x)), one=layer), 4 * even(width)


def depthwise(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Apply(lambda m, x: act(m.one(x)), one=conv(width, width, groups=width)), width


def grouped(width: int, act: Activation) -> tuple[nn.Module, int]:
    groups = even(width)
    return Apply(lambda m, x: act(m.one(x)), one=conv(width, 4 * groups, groups=groups)), 4 * groups


def residual(width: int, act: Activation) -> tuple[nn.Module, int]:
    layers = {"one": conv(width, 5), "two": conv(5, width)}
    return Apply(lambda m, x: act(x + m.two(act(m.one(x)))), **layers), width


def dense(width: int, act: Activation) -> tuple[nn.Module, int]:
    layers = {"one": conv(width, 5), "two": conv(5, 4)}
    return Apply(lambda m, x: torch.cat([x, m.two(act(m.one(x)))], 1), **layers), width + 4


def project(width: int, act: Activation) -> tuple[nn.Module, int]:
    layers = {"one": conv(width, 8, 1), "two": conv(width, 8)}
    return Apply(lambda m, x: act(m.one(x) + m.two(x)), **layers), 8


def excite(width: int, act: Activation) -> tuple[nn.Module, int]:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(m.two(F.relu(m.one(x.mean((2, 3), keepdim=True)))))

    return Apply(forward, one=conv(width, 3, 1), two=conv(3, width, 1)), width


def batch_norm(width: int, act: Activation) -> tuple[nn.Module, int]:
    return nn.BatchNorm2d(width), width


def group_norm(width: int, act: Activation) -> tuple[nn.Module, int]:
    return nn.GroupNorm(even(width), width), width


def instance_norm(width: int, act: Activation) -> tuple[nn.Module, int]:
    return nn.InstanceNorm2d(width, affine=True), width


def layer_norm(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Apply(
        lambda m, x: m.one(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), one=nn.LayerNorm(width)
    ), width


def pooled(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Apply(lambda m, x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0)), width


def split(width: int, act: Activation) -> tuple[nn.Module, int]:
    def forward(m: Any, x: Tensor) -> Tensor:
        one, two = m.one(x).chunk(2, 1)
        return one * torch.sigmoid(two)

    return Apply(forward, one=conv(width, 8)), 4


def shuffle(width: int, act: Activation) -> tuple[nn.Module, int]:
    def forward(m: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, even(c), c // even(c), h, w).transpose(1, 2).reshape(n, c, h, w)

    return Apply(forward), width


def pixels(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Apply(lambda m, x: F.avg_pool2d(F.pixel_shuffle(m.one(x), 2), 2), one=conv(width, 12)), 3


def doubled(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Apply(lambda m, x: act(m.one(x.repeat(1, 2, 1, 1))), one=conv(2 * width, 5)), 5


def padded(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Apply(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2))), width + 3


def folded(width: int, act: Activation) -> tuple[nn.Module, int]:
    def forward(m: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h * w).permute(0, 2, 1).permute(0, 2, 1).view(n, c, h, w)

    return Apply(forward), width


class Attention(nn.Module):
    """Two heads of three over the positions of a map, fused or written out, or with one key head; with a residual."""

    def __init__(self, width: int, form: str) -> None:
        super().__init__()
        self.form = form
        self.q, self.k, self.v = nn.Linear(width, 6), nn.Linear(width, 6), nn.Linear(width, 6)
        if form == "gqa":
            self.k, self.v = nn.Linear(width, 3), nn.Linear(width, 3)
        self.out = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (f(tokens).view(n, h * w, -1, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.form == "gqa":
            k, v = (t.expand(n, 2, h * w, 3) for t in (k, v))
        if self.form == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            mixed = torch.einsum("bhij,bhjd->bhid", scores, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        made = self.out(mixed.transpose(1, 2).reshape(n, h * w, 6))
        return x + made.transpose(1, 2).view(n, c, h, w)


class Recurrence(nn.Module):
    """A bidirectional or plain recurrent layer over the positions of a map."""

    def __init__(self, width: int, kind: type[nn.GRU] | type[nn.LSTM], *, both: bool) -> None:
        super().__init__()
        self.core = kind(width, 3, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        made = self.core(x.flatten(2).transpose(1, 2))[0]
        return made.transpose(1, 2).reshape(n, -1, h, w)


class GatedUnits(nn.Module):
    """A gated feed-forward layer over channels, with a residual."""

    def __init__(self, width: int, act: Activation) -> None:
        super().__init__()
        self.act = act
        self.up, self.gate, self.down = nn.Linear(width, 7), nn.Linear(width, 7), nn.Linear(7, width)

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        return x + self.down(self.act(self.gate(last)) * self.up(last)).permute(0, 3, 1, 2)


def attention(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Attention(width, "fused"), width


def written_attention(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Attention(width, "einsum"), width


def grouped_queries(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Attention(width, "gqa"), width


def gated_units(width: int, act: Activation) -> tuple[nn.Module, int]:
    return GatedUnits(width, act), width


def gru(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Recurrence(width, nn.GRU, both=False), 3


def both_ways(width: int, act: Activation) -> tuple[nn.Module, int]:
    return Recurrence(width, nn.LSTM, both=True), 6
