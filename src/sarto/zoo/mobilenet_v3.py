"""MobileNetV3 small and large: inverted residuals with squeeze-and-excitation and hard-swish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from sarto.zoo._checks import divisible, no_share, refuse, too_small, unknown


class Row(NamedTuple):
    """One block: side of the depthwise kernel, hidden and output channels, excitation, activation, stride."""

    kernel: int
    hidden: int
    made: int
    excite: bool
    hard_swish: bool
    stride: int


LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)
#: Blocks of each size and the units of the linear layer before the last.
SIZES = {"small": (SMALL, 1024), "large": (LARGE, 1280)}


class Excitation(nn.Module):
    """Scales each channel by a number in [0, 1] that is made from the means of all channels."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) -> the same shape."""
        means = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(means))))


class Block(nn.Module):
    """1x1 expand, depthwise, excitation, 1x1 project without activation; a shortcut where shapes allow it.

    Reference:
        Howard et al., Searching for MobileNetV3, ICCV 2019, figure 4.
    """

    def __init__(self, given: int, row: Row) -> None:
        super().__init__()
        self.residual = row.stride == 1 and given == row.made
        parts: list[nn.Module] = []
        if row.hidden != given:
            parts += _conv(given, row.hidden, 1, hard_swish=row.hard_swish)
        parts += _conv(row.hidden, row.hidden, row.kernel, row.stride, row.hidden, row.hard_swish)
        if row.excite:
            parts.append(Excitation(row.hidden, divisible(row.hidden // 4)))
        self.body = nn.Sequential(*parts, *_conv(row.hidden, row.made, 1)[:2])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV3(nn.Module):
    """Stem, blocks, 1x1 convolution, global average pool, two linear layers.

    `mobilenet_v3` and those that call it build it and check what they are given.

    Reference:
        Howard et al., Searching for MobileNetV3, ICCV 2019, tables 1 and 2.
    """

    def __init__(
        self,
        n_classes: int,
        stem: int,
        rows: Sequence[Row],
        hidden: int,
        in_channels: int,
        stride: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(in_channels, stem, 3, stride, hard_swish=True))
        blocks: list[nn.Module] = []
        given = stem
        for row in rows:
            blocks.append(Block(given, row))
            given = row.made
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*_conv(given, 6 * given, 1, hard_swish=True))
        self.hidden = nn.Linear(6 * given, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        x = F.adaptive_avg_pool2d(self.last(self.blocks(self.stem(x))), 1).flatten(1)
        return self.classifier(self.dropout(F.hardswish(self.hidden(x))))


def _conv(
    given: int, made: int, kernel: int, stride: int = 1, groups: int = 1, hard_swish: bool = False
) -> list[nn.Module]:
    conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, groups=groups, bias=False)
    act = nn.Hardswish(inplace=True) if hard_swish else nn.ReLU(inplace=True)
    return [conv, nn.BatchNorm2d(made, eps=0.001, momentum=0.01), act]


def mobilenet_v3(
    n_classes: int = 1000,
    in_channels: int = 3,
    size: str = "large",
    width_ratio: float = 1.0,
    stem: str = "imagenet",
    dropout: float = 0.2,
) -> MobileNetV3:
    """A MobileNetV3 of either size.

    Args:
        size: `small` or `large`.
        width_ratio: channels over those of the paper, rounded to multiples of 8.
        stem: `imagenet`, or `cifar`: the stem and the first block of stride 2 keep the side.
        dropout: share of hidden units dropped in training.

    Raises:
        ValueError: a number is not positive, the share is not in [0, 1), or the size or the stem is unknown.
    """
    problems = too_small({"n_classes": n_classes, "in_channels": in_channels})
    problems += unknown("size", size, tuple(SIZES)) + unknown("stem", stem, ("imagenet", "cifar"))
    problems += no_share({"dropout": dropout})
    if width_ratio <= 0:
        problems.append(f"width_ratio is {width_ratio}: give more than 0")
    refuse(problems)
    paper, hidden = SIZES[size]
    rows = [
        row._replace(hidden=divisible(row.hidden * width_ratio), made=divisible(row.made * width_ratio))
        for row in paper
    ]
    if stem == "cifar":
        first = next(place for place, row in enumerate(rows) if row.stride == 2)
        rows[first] = rows[first]._replace(stride=1)
    units = divisible(hidden * width_ratio)
    stride = 2 if stem == "imagenet" else 1
    return MobileNetV3(n_classes, divisible(16 * width_ratio), rows, units, in_channels, stride, dropout)


def mobilenet_v3_small(n_classes: int = 1000, in_channels: int = 3) -> MobileNetV3:
    """MobileNetV3-small for 224x224 images: 2.5 M parameters.

    Raises:
        ValueError: a number is not positive.
    """
    return mobilenet_v3(n_classes, in_channels, "small")


def mobilenet_v3_large(n_classes: int = 1000, in_channels: int = 3) -> MobileNetV3:
    """MobileNetV3-large for 224x224 images: 5.5 M parameters.

    Raises:
        ValueError: a number is not positive.
    """
    return mobilenet_v3(n_classes, in_channels)


def mobilenet_v3_cifar(n_classes: int = 10, in_channels: int = 3, width_ratio: float = 1.0) -> MobileNetV3:
    """MobileNetV3-small for 32x32 images: 1.5 M parameters as it stands; the last map has a side of 4.

    Raises:
        ValueError: a number is not positive.
    """
    return mobilenet_v3(n_classes, in_channels, "small", width_ratio, "cifar")
