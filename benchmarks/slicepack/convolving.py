"""Convolutions of small maps as one matrix product: on CPUs, trains maps of 4 x 4 and less several times as fast.

oneDNN reorders the weights of a convolution in every call, which takes longer than the sums themselves where 512 x 512
filters meet maps of 4 x 4. Values are those of ``conv2d`` but for rounding (tests/unit/benchmarks/test_convolving.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Largest height and width of maps convolved this way.
SMALL = 4


class SmallMaps(torch.autograd.Function):
    """A 3 x 3 convolution of stride 1, padding 1, in half precision."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        """Maps (n, c, h, w) and weight (out, c, 3, 3) to (n, out, h, w); sums in float32, all else bfloat16."""
        patches = unfold(maps.bfloat16())
        filters = weight.bfloat16().permute(0, 2, 3, 1)
        ctx.save_for_backward(patches, filters)
        ctx.shape = maps.shape
        n, _, height, width = maps.shape
        rows = patches @ filters.reshape(len(weight), -1).t()
        return rows.view(n, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of maps (bfloat16) and weight (float32)."""
        (gradient,) = gradients
        patches, filters = ctx.saved_tensors
        n, channels, height, width = ctx.shape
        rows = gradient.bfloat16().permute(0, 2, 3, 1).reshape(n * height * width, -1)
        of_filters = (rows.t() @ patches).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
        of_patches = (rows @ filters.reshape(len(filters), -1)).view(n, height, width, 3, 3, channels)
        return fold(of_patches).permute(0, 3, 1, 2), of_filters.float()


def unfold(maps: Tensor) -> Tensor:
    """The 3 x 3 surroundings (n * h * w, 9 * c) of every position of maps (n, c, h, w), zeros beyond the border."""
    n, channels, height, width = maps.shape
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.cat(shifted, -1).view(n * height * width, 9 * channels)


def fold(patches: Tensor) -> Tensor:
    """What ``unfold`` took apart, summed: (n, h, w, 3, 3, c) to (n, h, w, c); sums in float32."""
    n, height, width, _, _, channels = patches.shape
    padded = patches.new_zeros(n, height + 2, width + 2, channels, dtype=torch.float32)
    for i in range(3):
        for j in range(3):
            padded[:, i : i + height, j : j + width] += patches[:, :, :, i, j]
    return padded[:, 1:-1, 1:-1].to(patches.dtype)


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution that takes small maps as a matrix product while it is trained in half precision."""

    def forward(self, maps: Tensor) -> Tensor:
        """See ``torch.nn.Conv2d``."""
        if self.training and torch.is_autocast_enabled("cpu") and max(maps.shape[2:]) <= SMALL:
            out: Tensor = SmallMaps.apply(maps, self.weight)
            return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)
        return super().forward(maps)


def quicken(model: nn.Module) -> nn.Module:
    """The model itself, its 3 x 3 convolutions of stride 1 now ``Convolution``s; the same parameters and names."""
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (3, 3)
            and module.stride == (1, 1)
            and module.padding == (1, 1)
            and module.dilation == (1, 1)
            and module.groups == 1
            and module.padding_mode == "zeros"
        ):
            module.__class__ = Convolution
    return model
