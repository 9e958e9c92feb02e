"""Residual networks: the thin ones for 32x32 images, and ResNet-18, 34 and 50 for 224x224 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sarto.zoo._checks import refuse, too_small, unknown

#: What a network starts with: `imagenet` quarters the side, `cifar` keeps it.
STEMS = ("imagenet", "cifar")


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels of zeros before and after the given ones; no parameters."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.before = (made - given) // 2
        self.after = made - given - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / 2, w / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut of either option."""

    def __init__(self, given: int, made: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or given != made:
            if shortcut == "pad":
                self.shortcut = PadShortcut(given, made)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made)
                )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images.

    Reference:
        He et al., Deep Residual Learning, CVPR 2016, section 4.2.
        Differs: `width` may widen all stages; the shortcut may be a 1x1 convolution (option B).
    """

    def __init__(self, n_classes: int, depth: int, width: int, shortcut: str, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        n = (depth - 2) // 6
        self.layer1 = _stage(width, width, n, 1, shortcut)
        self.layer2 = _stage(width, 2 * width, n, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, n, 2, shortcut)
        self.linear = nn.Linear(4 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(given: int, made: int, n: int, stride: int, shortcut: str) -> nn.Sequential:
    blocks = [BasicBlock(given, made, stride, shortcut)]
    blocks += [BasicBlock(made, made, 1, shortcut) for _ in range(n - 1)]
    return nn.Sequential(*blocks)


def cifar_resnet(
    n_classes: int, depth: int = 20, width: int = 16, shortcut: str = "conv", in_channels: int = 3
) -> CifarResNet:
    """A CIFAR ResNet; depth 20, 32, 44, 56, 110 are the paper's.

    Args:
        width: channels of the first stage (16 in the paper).
        shortcut: `conv` (1x1 convolution, option B) or `pad` (strided with zero channels, option A).

    Raises:
        ValueError: depth is not 6n + 2, a number is not positive, or the shortcut is unknown.
    """
    problems = too_small({"n_classes": n_classes})
    if depth < 8 or (depth - 2) % 6:
        problems.append(f"depth is {depth}: give 6n + 2, such as 8, 20, 32, 44, 56 or 110")
    problems += too_small({"width": width, "in_channels": in_channels})
    problems += unknown("shortcut", shortcut, ("conv", "pad"))
    refuse(problems)
    return CifarResNet(n_classes, depth, width, shortcut, in_channels)


class PlainBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a 1x1 convolution in the shortcut where shapes differ."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        self.downsample = _downsample(given, made, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (in groups, if wanted) and 1x1 convolutions around a shortcut.

    Reference:
        He et al., Deep Residual Learning, CVPR 2016, figure 5; Xie et al., Aggregated Residual Transformations, CVPR
        2017, figure 3c.
        Differs: the 3x3 convolution has the stride, as in the published weights.
    """

    def __init__(self, given: int, inner: int, made: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, made, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(made)
        self.downsample = _downsample(given, made, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(x))


def _downsample(given: int, made: int, stride: int) -> nn.Module:
    if stride == 1 and given == made:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))


class ResNet(nn.Module):
    """Stem, stages of residual blocks that double the channels and halve the side, global pool, one linear layer.

    `resnet` and those that call it build it and check what they are given. Tensors are named as in the published
    weights for ImageNet.

    Args:
        inner: channels of the 3x3 convolutions of the first stage's bottlenecks; None for blocks without bottleneck.
        made: channels that come out of the first stage.

    Reference:
        He et al., Deep Residual Learning, CVPR 2016, table 1.
    """

    def __init__(
        self,
        n_classes: int,
        depths: Sequence[int],
        stem: str,
        first: int,
        made: int,
        inner: int | None,
        groups: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, first, 7, 2, 3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = nn.Conv2d(in_channels, first, 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(first)
        self.stages = [f"layer{index + 1}" for index in range(len(depths))]
        given = first
        for index, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            wide = made << index
            blocks: list[nn.Module] = []
            for place in range(depth):
                stride = 2 if index and not place else 1
                if inner is None:
                    blocks.append(PlainBlock(given, wide, stride))
                else:
                    blocks.append(Bottleneck(given, inner << index, wide, stride, groups))
                given = wide
            self.add_module(name, nn.Sequential(*blocks))
        self.fc = nn.Linear(given, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet(
    n_classes: int = 1000,
    in_channels: int = 3,
    depths: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    bottleneck: bool = False,
    stem: str = "imagenet",
) -> ResNet:
    """A residual network of any size.

    Args:
        depths: blocks of each stage.
        width: channels of the stem and of the first stage's 3x3 convolutions; 64 in the paper.
        bottleneck: blocks of three convolutions, whose output has four times the channels of the 3x3 convolution.
        stem: `imagenet` (7x7 convolution of stride 2, max pool) or `cifar` (3x3 convolution, side kept).

    Raises:
        ValueError: a number is not positive, or the stem is unknown.
    """
    sizes: dict[str, int | Sequence[int]] = {
        "n_classes": n_classes,
        "in_channels": in_channels,
        "depths": depths,
        "width": width,
    }
    refuse(too_small(sizes) + unknown("stem", stem, STEMS))
    made, inner = (4 * width, width) if bottleneck else (width, None)
    return ResNet(n_classes, depths, stem, width, made, inner, 1, in_channels)


def resnet18(n_classes: int = 1000, in_channels: int = 3, width: int = 64, stem: str = "imagenet") -> ResNet:
    """ResNet-18: 11.7 M parameters as it stands, for 224x224 images; for 32x32 images with the stem `cifar`.

    Raises:
        ValueError: `resnet` refuses what it is given.
    """
    return resnet(n_classes, in_channels, (2, 2, 2, 2), width, False, stem)


def resnet34(n_classes: int = 1000, in_channels: int = 3, width: int = 64, stem: str = "imagenet") -> ResNet:
    """ResNet-34: 21.8 M parameters as it stands, for 224x224 images; for 32x32 images with the stem `cifar`.

    Raises:
        ValueError: `resnet` refuses what it is given.
    """
    return resnet(n_classes, in_channels, (3, 4, 6, 3), width, False, stem)


def resnet50(n_classes: int = 1000, in_channels: int = 3, width: int = 64, stem: str = "imagenet") -> ResNet:
    """ResNet-50: 25.6 M parameters as it stands, for 224x224 images; for 32x32 images with the stem `cifar`.

    Raises:
        ValueError: `resnet` refuses what it is given.
    """
    return resnet(n_classes, in_channels, (3, 4, 6, 3), width, True, stem)
