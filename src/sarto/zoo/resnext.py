"""ResNeXt: residual networks whose 3x3 convolutions work in groups; 50 layers for ImageNet, 29 for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

from sarto.zoo._checks import refuse, too_small, unknown
from sarto.zoo.resnet import STEMS, ResNet


def resnext(
    n_classes: int = 1000,
    in_channels: int = 3,
    depths: Sequence[int] = (3, 4, 6, 3),
    groups: int = 32,
    group_width: int = 4,
    width: int = 64,
    stem: str = "imagenet",
) -> ResNet:
    """A ResNeXt of any size.

    Args:
        depths: blocks of each stage.
        groups: groups of each 3x3 convolution, the paper's cardinality.
        group_width: channels of a group in the first stage; doubled from stage to stage.
        width: channels of the stem; a quarter of what comes out of the first stage.
        stem: `imagenet` (7x7 convolution of stride 2, max pool) or `cifar` (3x3 convolution, side kept).

    Raises:
        ValueError: a number is not positive, or the stem is unknown.

    Reference:
        Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017, table 1.
    """
    sizes: dict[str, int | Sequence[int]] = {
        "n_classes": n_classes,
        "in_channels": in_channels,
        "depths": depths,
        "groups": groups,
        "group_width": group_width,
        "width": width,
    }
    refuse(too_small(sizes) + unknown("stem", stem, STEMS))
    return ResNet(n_classes, depths, stem, width, 4 * width, groups * group_width, groups, in_channels)


def resnext50_32x4d(n_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNeXt-50 (32x4d) for 224x224 images: 25.0 M parameters, named as in the published weights.

    Raises:
        ValueError: a number is refused by `resnext`.
    """
    return resnext(n_classes, in_channels)


def resnext_cifar(
    n_classes: int = 10, in_channels: int = 3, groups: int = 8, group_width: int = 64, width: int = 64
) -> ResNet:
    """ResNeXt-29 for 32x32 images: 34.4 M parameters as it stands (8x64d).

    Raises:
        ValueError: a number is refused by `resnext`.

    Reference:
        Xie et al., CVPR 2017, section 5.3.
    """
    return resnext(n_classes, in_channels, (3, 3, 3), groups, group_width, width, "cifar")
