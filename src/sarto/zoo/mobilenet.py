"""MobileNetV2: inverted residuals with depthwise middles and linear bottlenecks; for 32x32 and for 224x224 images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sarto.zoo._checks import divisible, no_share, refuse, too_small

#: (expansion, channels, blocks, stride of the first block) of each stage. About 0.37 M parameters.
SMALL = ((4, 32, 2, 2), (4, 64, 3, 2), (4, 128, 2, 1))
#: The stages of the paper's table 2.
IMAGENET = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project without activation; a shortcut where shapes allow it."""

    def __init__(self, given: int, made: int, stride: int, expansion: int, expand: bool = True) -> None:
        super().__init__()
        hidden = given * expansion
        self.residual = stride == 1 and given == made
        first = _conv(given, hidden, 1) if expand else []
        depthwise = _conv(hidden, hidden, 3, stride, groups=hidden)
        self.body = nn.Sequential(*first, *depthwise, *_conv(hidden, made, 1)[:2])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Stem, stages of inverted residuals, 1x1 convolution, global average pool, one linear layer.

    `mobilenet_v2` and `mobilenet_v2_imagenet` build it and check what they are given.

    Args:
        stride: that of the stem.
        always: blocks whose expansion is 1 have the first 1x1 convolution too.

    Reference:
        Sandler et al., MobileNetV2, CVPR 2018, table 2.
        Differs: for 32x32 images, stride 1 in the stem, fewer stages, and no dropout.
    """

    def __init__(
        self,
        n_classes: int,
        stem: int,
        stages: Sequence[tuple[int, int, int, int]],
        last: int,
        in_channels: int = 3,
        stride: int = 1,
        always: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(in_channels, stem, 3, stride))
        blocks: list[nn.Module] = []
        given = stem
        for expansion, width, count, step in stages:
            for place in range(count):
                expand = always or expansion != 1
                blocks.append(InvertedResidual(given, width, 1 if place else step, expansion, expand))
                given = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*_conv(given, last, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(last, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        x = self.pool(self.last(self.blocks(self.stem(x))))
        return self.classifier(self.dropout(x.flatten(1)))


def _conv(given: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(made), nn.ReLU6(inplace=True)]


def mobilenet_v2(
    n_classes: int,
    stem: int = 32,
    stages: Sequence[Sequence[int]] = SMALL,
    last: int = 512,
    in_channels: int = 3,
) -> MobileNetV2:
    """A MobileNetV2 for small images.

    Args:
        stem: channels of the first convolution, which has stride 1.
        stages: (expansion, channels, blocks, stride of the first block) of each stage.
        last: channels of the 1x1 convolution before the pool.

    Raises:
        ValueError: no stage, one without four numbers, or a number that is not positive.
    """
    rows = [tuple(stage) for stage in stages]
    problems = too_small({"n_classes": n_classes, "stem": stem, "last": last, "in_channels": in_channels})
    wrong = [row for row in rows if len(row) != 4 or min(row) < 1]
    if wrong or not rows:
        told = "is empty" if not rows else f"holds {wrong}"
        problems.append(f"stages {told}: give (expansion, channels, blocks, stride), four positive numbers")
    refuse(problems)
    return MobileNetV2(n_classes, stem, [(e, c, n, s) for e, c, n, s in rows], last, in_channels)


def mobilenet_v2_imagenet(
    n_classes: int = 1000, in_channels: int = 3, width_ratio: float = 1.0, dropout: float = 0.2
) -> MobileNetV2:
    """The paper's MobileNetV2 for 224x224 images: 3.5 M parameters as it stands.

    Args:
        width_ratio: channels over those of the paper's table 2, rounded to multiples of 8; the last 1x1 convolution
            has at least 1280.
        dropout: share of pooled features dropped in training.

    Raises:
        ValueError: a number is not positive, or the share is not in [0, 1).
    """
    problems = too_small({"n_classes": n_classes, "in_channels": in_channels}) + no_share(
        {"dropout": dropout}
    )
    if width_ratio <= 0:
        problems.append(f"width_ratio is {width_ratio}: give more than 0")
    refuse(problems)
    stages = [(e, divisible(c * width_ratio), n, s) for e, c, n, s in IMAGENET]
    stem, last = divisible(32 * width_ratio), divisible(1280 * max(1.0, width_ratio))
    return MobileNetV2(n_classes, stem, stages, last, in_channels, 2, False, dropout)
