"""MobileNetV2 for small images: inverted residuals with depthwise middles and linear bottlenecks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

#: (expansion, channels, blocks, stride of the first block) of each stage. About 0.5 M parameters.
SMALL = ((4, 32, 2, 2), (4, 64, 3, 2), (4, 128, 2, 1))


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project without activation; a shortcut where shapes allow it."""

    def __init__(self, given: int, made: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = given * expansion
        self.residual = stride == 1 and given == made
        self.body = nn.Sequential(
            *_conv(given, hidden, 1), *_conv(hidden, hidden, 3, stride, groups=hidden), *_conv(hidden, made, 1)[:2]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h / stride, w / stride)."""
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Stem, stages of inverted residuals, 1x1 convolution, global average pool, one linear layer.

    Reference:
        Sandler et al., MobileNetV2, CVPR 2018, table 2.
        Differs: stride 1 in the stem and fewer stages, for 32x32 images.
    """

    def __init__(self, n_classes: int, stem: int, stages: Sequence[tuple[int, int, int, int]], last: int) -> None:
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
        stages: (expansion, channels, blocks, stride of the first block) of each stage.

    Raises:
        ValueError: a stage does not have four numbers, or a number is not positive.
    """
    rows = [tuple(stage) for stage in stages]
    if any(len(row) != 4 for row in rows) or min([n_classes, stem, last, *(n for row in rows for n in row)]) < 1:
        raise ValueError(f"stages need four positive numbers each, got {rows}; other numbers must be positive")
    return MobileNetV2(n_classes, stem, [(e, c, n, s) for e, c, n, s in rows], last)
