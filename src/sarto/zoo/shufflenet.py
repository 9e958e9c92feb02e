"""ShuffleNetV2: blocks that work on every second channel only and so mix the channels; x0.5, x1.0 and small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.zoo._checks import refuse, too_small, unknown

#: (channels of each stage, channels of the last convolution) of each width of the paper.
WIDTHS = {"x0_5": ((48, 96, 192), 1024), "x1_0": ((116, 232, 464), 1024)}
DEPTHS = (4, 8, 4)


class ShuffleBlock(nn.Module):
    """Even channels pass, odd ones go through 1x1, depthwise 3x3 and 1x1 convolutions; both side by side.

    With stride 2 all channels go both through those and through a depthwise and a 1x1 convolution. Splitting into
    even and odd channels is the channel shuffle: each half holds channels of both branches of the block before.

    Reference:
        Ma et al., ShuffleNet V2, ECCV 2018, figure 3 (c) and (d).
        Differs: the shuffle is at the start of the next block and deals channels out one by one, as in the authors'
        published implementation, instead of interleaving both halves.
    """

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = made // 2
        inner = given if stride == 2 else half
        main = [*_pointwise(inner, half), *_depthwise(half, stride), *_pointwise(half, half)]
        self.branch_main = nn.Sequential(*main)
        if stride == 2:
            self.branch_proj = nn.Sequential(*_depthwise(given, stride), *_pointwise(given, half))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        if self.stride == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], dim=1)
        return torch.cat([x[:, ::2], self.branch_main(x[:, 1::2])], dim=1)


def _depthwise(width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width)]


def _pointwise(given: int, made: int) -> list[nn.Module]:
    return [nn.Conv2d(given, made, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU(inplace=True)]


class ShuffleStages(nn.Module):
    """Stem and three stages, each with its map; the backbone of classifiers and of detectors."""

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], first: int, stem: str, in_channels: int
    ) -> None:
        super().__init__()
        stride = 2 if stem == "imagenet" else 1
        conv = nn.Conv2d(in_channels, first, 3, stride, 1, bias=False)
        self.first_conv = nn.Sequential(conv, nn.BatchNorm2d(first), nn.ReLU(inplace=True))
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.stage2, self.stage3, self.stage4 = (
            _stage(given, made, depth)
            for given, made, depth in zip((first, *widths[:2]), widths, depths, strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of an eighth, a sixteenth and a 32nd of the side (with the stem `cifar`: half, quarter, eighth)."""
        first = self.stage2(self.maxpool(self.first_conv(x)))
        second = self.stage3(first)
        return first, second, self.stage4(second)


def _stage(given: int, made: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        ShuffleBlock(given, made, 2), *(ShuffleBlock(made, made, 1) for _ in range(depth - 1))
    )


class ShuffleNetV2(nn.Module):
    """Stem, three stages, 1x1 convolution, global average pool, one linear layer.

    `shufflenet_v2` and those that call it build it and check what they are given.

    Reference:
        Ma et al., ShuffleNet V2, ECCV 2018, table 5.
    """

    def __init__(
        self,
        n_classes: int,
        widths: Sequence[int],
        depths: Sequence[int],
        first: int,
        last: int,
        stem: str,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.backbone = ShuffleStages(widths, depths, first, stem, in_channels)
        self.last = nn.Sequential(*_pointwise(widths[-1], last))
        self.classifier = nn.Linear(last, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        x = self.last(self.backbone(x)[2])
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def wrong_stages(widths: Sequence[int], depths: Sequence[int]) -> list[str]:
    """What is wrong with the three stages of a backbone; one sentence a problem."""
    problems = [
        f"{name} is {list(given)}: give three numbers, one a stage"
        for name, given in (("widths", widths), ("depths", depths))
        if len(given) != 3
    ]
    if odd := [width for width in widths if width % 2]:
        problems.append(f"widths holds {odd}: give even numbers, half of the channels pass each block")
    return problems


def shufflenet_v2(
    n_classes: int = 1000,
    in_channels: int = 3,
    widths: Sequence[int] = (116, 232, 464),
    depths: Sequence[int] = DEPTHS,
    first: int = 24,
    last: int = 1024,
    stem: str = "imagenet",
) -> ShuffleNetV2:
    """A ShuffleNetV2 of any size.

    Args:
        widths: channels of each of the three stages, even numbers.
        depths: blocks of each stage.
        first: channels of the stem.
        last: channels of the 1x1 convolution before the pool.
        stem: `imagenet` (stride 2, max pool) or `cifar` (side kept).

    Raises:
        ValueError: a number is not positive, there are not three stages, a width is odd, or the stem is unknown.
    """
    sizes: dict[str, int | Sequence[int]] = {
        "n_classes": n_classes,
        "in_channels": in_channels,
        "widths": widths,
        "depths": depths,
        "first": first,
        "last": last,
    }
    problems = too_small(sizes) + unknown("stem", stem, ("imagenet", "cifar"))
    refuse(problems + wrong_stages(widths, depths))
    return ShuffleNetV2(n_classes, widths, depths, first, last, stem, in_channels)


def shufflenet_v2_x0_5(n_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x0.5 for 224x224 images: 1.4 M parameters.

    Raises:
        ValueError: a number is not positive.
    """
    widths, last = WIDTHS["x0_5"]
    return shufflenet_v2(n_classes, in_channels, widths, last=last)


def shufflenet_v2_x1_0(n_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x1.0 for 224x224 images: 2.3 M parameters.

    Raises:
        ValueError: a number is not positive.
    """
    widths, last = WIDTHS["x1_0"]
    return shufflenet_v2(n_classes, in_channels, widths, last=last)


def shufflenet_v2_cifar(n_classes: int = 10, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 x0.5 for 32x32 images: 0.35 M parameters; the last map has a side of 4.

    Raises:
        ValueError: a number is not positive.
    """
    widths, last = WIDTHS["x0_5"]
    return shufflenet_v2(n_classes, in_channels, widths, last=last, stem="cifar")
