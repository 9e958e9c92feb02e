"""MobileNetV2 for small images: inverted residuals with depthwise middles and linear bottlenecks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

#: (expansion, channels, blocks, stride of the first block) of each stage. About 0.37 M parameters.
SMALL = ((4, 32, 2, 2), (4, 64, 3, 2), (4, 128, 2, 1))


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project without activation; a shortcut where shapes allow it."""

    def __init__(self, given: int, made: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = given * expansion
        self.residual = stride == 1 and given == made
        depthwise = _conv(hidden, hidden, 3, stride, groups=hidden)
        self.body = nn.Sequential(*_conv(given, hidden, 1), *depthwise, *_conv(hidden, made, 1)[:2])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Stem, stages of inverted residuals, 1x1 convolution, global average pool, one linear layer.

    Reference:
        Sandler et al., MobileNetV2, CVPR 2018, table 2.
        Differs: stride 1 in the stem and fewer stages, for 32x32 images.
    """

    def __init__(
        self, n_classes: int, stem: int, stages: Sequence[tuple[int, int, int, int]], last: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, stem, 3))
        blocks: list[nn.Module] = []
        given = stem
        for expansion, width, count, stride in stages:
            for place in range(count):
                blocks.append(InvertedResidual(given, width, stride if place == 0 else 1, expansion))
                given = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*_conv(given, last, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, 3, h, w)."""
        return self.classifier(self.pool(self.last(self.blocks(self.stem(x)))).flatten(1))


def _conv(given: int, made: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(given, made, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(made), nn.ReLU6(inplace=True)]


def mobilenet_v2(
    n_classes: int,
    stem: int = 32,
    stages: Sequence[Sequence[int]] = SMALL,
    last: int = 512,
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
    sizes = {"n_classes": n_classes, "stem": stem, "last": last}
    problems = [f"{name} is {value}: give at least 1" for name, value in sizes.items() if value < 1]
    wrong = [row for row in rows if len(row) != 4 or min(row) < 1]
    if wrong or not rows:
        told = "is empty" if not rows else f"holds {wrong}"
        problems.append(f"stages {told}: give (expansion, channels, blocks, stride), four positive numbers")
    if problems:
        raise ValueError("; ".join(problems))
    return MobileNetV2(n_classes, stem, [(e, c, n, s) for e, c, n, s in rows], last)
