"""VGG-like networks for small images: convolutions, batch norm and max pools in one row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

#: Output channels of each 3x3 convolution; "M" is a 2x2 max pool. About 1.1 M parameters.
SMALL = (48, 48, "M", 96, 96, "M", 160, 160, "M", 192, 192)


class VGG(nn.Module):
    """Convolutions with batch norm and ReLU, global average pool, one linear layer.

    `vgg` builds it and checks what it is given.

    Reference:
        Simonyan, Zisserman, Very Deep Convolutional Networks, ICLR 2015, table 1.
        Differs: batch norm, narrower, and one linear layer on pooled features instead of three.
    """

    def __init__(self, n_classes: int, widths: Sequence[int | str] = SMALL) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = 3
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(given, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            given = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(given, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, 3, h, w)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def vgg(n_classes: int, widths: Sequence[int | str] = SMALL) -> VGG:
    """A VGG-like classifier; images need a side of at least 2 ** (number of max pools) pixels.

    Args:
        widths: output channels of each 3x3 convolution in turn, "M" for a 2x2 max pool.

    Raises:
        ValueError: fewer than one class, no convolution, or a width that is neither positive nor "M".
    """
    problems = [] if n_classes >= 1 else [f"n_classes is {n_classes}: give at least 1"]
    wrong = [width for width in widths if width != "M" and not (isinstance(width, int) and width >= 1)]
    if wrong:
        problems.append(f"widths holds {wrong}: give positive channel numbers, or 'M' for a max pool")
    if all(width == "M" for width in widths):
        problems.append("widths holds no convolution: give at least one channel number")
    if problems:
        raise ValueError("; ".join(problems))
    return VGG(n_classes, widths)
