"""A small U-Net: a label for each pixel, from maps that shrink, grow again and are joined level by level."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from sarto.zoo._checks import refuse, too_small


def _double(given: int, made: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for count in (given, made):
        conv = nn.Conv2d(count, made, 3, padding=1, bias=False)
        parts += [conv, nn.BatchNorm2d(made), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts)


class UNet(nn.Module):
    """Double convolutions with a max pool between on the way down, transposed convolutions on the way up.

    `unet` builds it and checks what it is given.

    Reference:
        Ronneberger et al., U-Net, MICCAI 2015, figure 1.
        Differs: narrower; convolutions are padded, so nothing is cropped; batch norm.
    """

    def __init__(self, n_classes: int, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        pairs = list(pairwise(widths))
        self.enter = _double(in_channels, width)
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _double(low, high)) for low, high in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(high, low, 2, 2) for low, high in reversed(pairs))
        self.join = nn.ModuleList(_double(2 * low, low) for low, _ in reversed(pairs))
        self.classifier = nn.Conv2d(width, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes, h, w) of images (batch, in_channels, h, w)."""
        x = self.enter(x)
        skipped = []
        for shrink in self.down:
            skipped.append(x)
            x = shrink(x)
        for grow, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skipped.pop(), grow(x)], dim=1))
        return self.classifier(x)


def unet(n_classes: int = 2, in_channels: int = 3, width: int = 16, depth: int = 3) -> UNet:
    """A U-Net; 0.48 M parameters as it stands, 64 wide and 4 deep are the paper's.

    Args:
        width: channels at full size; doubled each time that the side is halved.
        depth: how often the side is halved; both sides of an image are multiples of 2 ** depth.

    Raises:
        ValueError: a number is not positive.
    """
    sizes = {"n_classes": n_classes, "in_channels": in_channels, "width": width, "depth": depth}
    refuse(too_small(sizes))
    return UNet(n_classes, in_channels, width, depth)
