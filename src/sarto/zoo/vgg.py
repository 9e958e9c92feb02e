"""VGG-like networks: convolutions, batch norm and max pools in one row; VGG-16 for 224x224 and for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sarto.zoo._checks import no_share, refuse, too_small

#: Output channels of each 3x3 convolution; "M" is a 2x2 max pool. About 1.1 M parameters.
SMALL = (48, 48, "M", 96, 96, "M", 160, 160, "M", 192, 192)
#: Configuration D of the paper, 13 convolutions.
VGG16 = (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M")


class VGG(nn.Module):
    """Convolutions with batch norm and ReLU, average pool, one linear layer or several with dropout between.

    `vgg`, `vgg16_bn` and `vgg16_bn_cifar` build it and check what they are given.

    Reference:
        Simonyan, Zisserman, Very Deep Convolutional Networks, ICLR 2015, table 1.
        Differs: batch norm after each convolution; without `hidden`, one linear layer on pooled features instead of
        three.
    """

    def __init__(
        self,
        n_classes: int,
        widths: Sequence[int | str] = SMALL,
        in_channels: int = 3,
        hidden: Sequence[int] = (),
        pooled: int = 1,
        bias: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = in_channels
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(given, width, 3, padding=1, bias=bias)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            given = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(pooled)
        given *= pooled**2
        head: list[nn.Module] = []
        for units in hidden:
            head += [nn.Linear(given, units), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            given = units
        last = nn.Linear(given, n_classes)
        self.classifier: nn.Module = nn.Sequential(*head, last) if head else last

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        return self.classifier(self.pool(self.features(x)).flatten(1))


def vgg(
    n_classes: int,
    widths: Sequence[int | str] = SMALL,
    in_channels: int = 3,
    hidden: Sequence[int] = (),
    pooled: int = 1,
    bias: bool = False,
    dropout: float = 0.5,
) -> VGG:
    """A VGG-like classifier; images need a side of at least 2 ** (number of max pools) pixels.

    Args:
        widths: output channels of each 3x3 convolution in turn, "M" for a 2x2 max pool.
        hidden: units of each linear layer before the last.
        pooled: side of the map after the average pool.
        bias: convolutions have a bias, which batch norm makes superfluous; the published weights hold one.
        dropout: share of hidden units dropped in training.

    Raises:
        ValueError: a number is not positive, no convolution, a width that is neither positive nor "M", or the share
            is not in [0, 1).
    """
    problems = too_small({"n_classes": n_classes, "in_channels": in_channels, "pooled": pooled})
    problems += too_small({"hidden": hidden} if hidden else {}) + no_share({"dropout": dropout})
    wrong = [width for width in widths if width != "M" and not (isinstance(width, int) and width >= 1)]
    if wrong:
        problems.append(f"widths holds {wrong}: give positive channel numbers, or 'M' for a max pool")
    if all(width == "M" for width in widths):
        problems.append("widths holds no convolution: give at least one channel number")
    refuse(problems)
    return VGG(n_classes, widths, in_channels, hidden, pooled, bias, dropout)


def vgg16_bn(n_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> VGG:
    """VGG-16 with batch norm for 224x224 images: 138.4 M parameters, named as in the published weights.

    Raises:
        ValueError: a number is refused by `vgg`.
    """
    return vgg(n_classes, VGG16, in_channels, (4096, 4096), 7, True, dropout)


def vgg16_bn_cifar(n_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16 with batch norm and one linear layer for 32x32 images: 14.7 M parameters.

    Raises:
        ValueError: a number is refused by `vgg`.
    """
    return vgg(n_classes, VGG16, in_channels)
