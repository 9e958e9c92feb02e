"""DenseNets: each layer reads what all layers before it in its block made; 121 layers for ImageNet, 100 for CIFAR."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.zoo._checks import refuse, too_small, unknown

STEMS = ("imagenet", "cifar")


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution; gives its input and what it made, side by side."""

    def __init__(self, given: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        inner = bottleneck * growth
        self.norm1 = nn.BatchNorm2d(given)
        self.conv1 = nn.Conv2d(given, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, given + growth, h, w)."""
        inner = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(inner)))], dim=1)


def _transition(given: int) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["norm"] = nn.BatchNorm2d(given)
    parts["relu"] = nn.ReLU(inplace=True)
    parts["conv"] = nn.Conv2d(given, given // 2, 1, bias=False)
    parts["pool"] = nn.AvgPool2d(2)
    return nn.Sequential(parts)


class DenseNet(nn.Module):
    """Stem, dense blocks with a transition between that halves channels and side, norm, global pool, linear layer.

    `densenet`, `densenet121` and `densenet_cifar` build it and check what they are given. Tensors are named as in the
    published weights for ImageNet.

    Reference:
        Huang et al., Densely Connected Convolutional Networks, CVPR 2017, section 3, the form DenseNet-BC.
    """

    def __init__(
        self,
        n_classes: int,
        depths: Sequence[int],
        growth: int,
        first: int,
        bottleneck: int,
        stem: str,
        in_channels: int,
    ) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if stem == "imagenet":
            parts["conv0"] = nn.Conv2d(in_channels, first, 7, 2, 3, bias=False)
            parts["norm0"] = nn.BatchNorm2d(first)
            parts["relu0"] = nn.ReLU(inplace=True)
            parts["pool0"] = nn.MaxPool2d(3, 2, 1)
        else:
            parts["conv0"] = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        given = first
        for index, depth in enumerate(depths, start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for place in range(1, depth + 1):
                layers[f"denselayer{place}"] = DenseLayer(given, growth, bottleneck)
                given += growth
            parts[f"denseblock{index}"] = nn.Sequential(layers)
            if index < len(depths):
                parts[f"transition{index}"] = _transition(given)
                given //= 2
        parts[f"norm{len(depths) + 1}"] = nn.BatchNorm2d(given)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(given, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        return self.classifier(F.adaptive_avg_pool2d(F.relu(self.features(x)), 1).flatten(1))


def densenet(
    n_classes: int = 1000,
    in_channels: int = 3,
    depths: Sequence[int] = (6, 12, 24, 16),
    growth: int = 32,
    first: int = 64,
    bottleneck: int = 4,
    stem: str = "imagenet",
) -> DenseNet:
    """A DenseNet-BC of any size.

    Args:
        depths: layers of each dense block.
        growth: channels that a layer adds.
        first: channels of the stem.
        bottleneck: channels of a layer's 1x1 convolution, over the growth.
        stem: `imagenet` (7x7 convolution of stride 2, max pool) or `cifar` (3x3 convolution, side kept).

    Raises:
        ValueError: a number is not positive, or the stem is unknown.
    """
    sizes: dict[str, int | Sequence[int]] = {
        "n_classes": n_classes,
        "in_channels": in_channels,
        "depths": depths,
        "growth": growth,
        "first": first,
        "bottleneck": bottleneck,
    }
    refuse(too_small(sizes) + unknown("stem", stem, STEMS))
    return DenseNet(n_classes, depths, growth, first, bottleneck, stem, in_channels)


def densenet121(n_classes: int = 1000, in_channels: int = 3) -> DenseNet:
    """DenseNet-121 for 224x224 images: 8.0 M parameters, named as in the published weights.

    Raises:
        ValueError: a number is refused by `densenet`.
    """
    return densenet(n_classes, in_channels)


def densenet_cifar(n_classes: int = 10, in_channels: int = 3, depth: int = 100, growth: int = 12) -> DenseNet:
    """DenseNet-BC for 32x32 images: 0.77 M parameters as it stands (100 layers that add 12 channels each).

    Args:
        depth: layers with weights, 6n + 4; three blocks of n dense layers.

    Raises:
        ValueError: depth is not 6n + 4, or a number is not positive.

    Reference:
        Huang et al., CVPR 2017, section 4.
    """
    n, rest = divmod(depth - 4, 6)
    if rest or n < 1:
        first = too_small({"n_classes": n_classes, "in_channels": in_channels, "growth": growth})
        refuse([*first, f"depth is {depth}: give 6n + 4, such as 10, 40 or 100"])
    return densenet(n_classes, in_channels, (n, n, n), growth, 2 * growth, 4, "cifar")
