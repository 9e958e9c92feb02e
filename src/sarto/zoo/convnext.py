"""ConvNeXt: depthwise 7x7 convolutions and MLPs with layer norm; Tiny for 224x224 images, a small one for 32x32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.zoo._checks import refuse, too_small


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) -> the same shape."""
        rows = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return rows.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7 convolution, layer norm, two linear layers around a GELU, a scale; added to the input.

    Reference:
        Liu et al., A ConvNet for the 2020s, CVPR 2022, figure 4.
        Differs: no stochastic depth in training.
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) -> the same shape."""
        inner = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        inner = self.gamma * self.pwconv2(F.gelu(self.pwconv1(inner)))
        return x + inner.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches, stages of blocks with a 2x2 convolution of stride 2 between, global pool, layer norm, linear layer.

    `convnext`, `convnext_tiny` and `convnext_cifar` build it and check what they are given. Tensors are named as in
    the authors' published weights.

    Reference:
        Liu et al., A ConvNet for the 2020s, CVPR 2022, appendix A and table 9.
    """

    def __init__(
        self,
        n_classes: int,
        depths: Sequence[int],
        widths: Sequence[int],
        patch: int,
        scale: float,
        in_channels: int,
    ) -> None:
        super().__init__()
        given = widths[0]
        entry = nn.Sequential(nn.Conv2d(in_channels, given, patch, patch), ChannelNorm(given))
        self.downsample_layers = nn.ModuleList([entry])
        for made in widths[1:]:
            self.downsample_layers.append(nn.Sequential(ChannelNorm(given), nn.Conv2d(given, made, 2, 2)))
            given = made
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, scale) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )
        self.norm = nn.LayerNorm(given, eps=1e-6)
        self.head = nn.Linear(given, n_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, h, w)."""
        for shrink, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(shrink(x))
        return self.head(self.norm(x.mean((2, 3))))


def convnext(
    n_classes: int = 1000,
    in_channels: int = 3,
    depths: Sequence[int] = (3, 3, 9, 3),
    widths: Sequence[int] = (96, 192, 384, 768),
    patch: int = 4,
    scale: float = 1e-6,
) -> ConvNeXt:
    """A ConvNeXt of any size; images need a side of at least patch * 2 ** (stages - 1) pixels.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        patch: pixels along an edge of a patch.
        scale: what each block's output is multiplied by before training, for each channel.

    Raises:
        ValueError: a number is not positive, or depths and widths name different numbers of stages.
    """
    sizes: dict[str, int | Sequence[int]] = {
        "n_classes": n_classes,
        "in_channels": in_channels,
        "depths": depths,
        "widths": widths,
        "patch": patch,
    }
    problems = too_small(sizes)
    if len(depths) != len(widths):
        problems.append(f"depths has {len(depths)} stages and widths has {len(widths)}: give as many")
    refuse(problems)
    return ConvNeXt(n_classes, depths, widths, patch, scale, in_channels)


def convnext_tiny(n_classes: int = 1000, in_channels: int = 3) -> ConvNeXt:
    """ConvNeXt-T for 224x224 images: 28.6 M parameters.

    Raises:
        ValueError: a number is not positive.
    """
    return convnext(n_classes, in_channels)


def convnext_cifar(
    n_classes: int = 10,
    in_channels: int = 3,
    depths: Sequence[int] = (2, 2, 6, 2),
    widths: Sequence[int] = (40, 80, 160, 320),
    scale: float = 1e-6,
) -> ConvNeXt:
    """A ConvNeXt with patches of 2 for 32x32 images: 3.4 M parameters as it stands; the last map has a side of 2.

    Raises:
        ValueError: `convnext` refuses what it is given.
    """
    return convnext(n_classes, in_channels, depths, widths, 2, scale)
