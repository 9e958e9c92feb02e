"""Centring and scaling of features, to be folded into the head that was fitted on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Scaling:
    """Features x become (x - mean) / scale; both have shape (d,), float64. Reads no labels."""

    mean: Tensor
    scale: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """Scaled features (n, d), float64."""
        return (features.to(torch.float64) - self.mean) / self.scale

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (q, d) and bias (q,) that do on raw features what the given ones do on scaled features."""
        raw = weight / self.scale
        return raw, bias - raw @ self.mean


def fit_scaling(
    features: Tensor, *, blocks: tuple[int, ...] | None = None, per_feature: bool = False
) -> Scaling:
    """Scaling that centres every feature and gives each block (each fragment) unit variance on average.

    One number a block keeps the shape of a fragment's features, which few samples can't estimate; constant
    blocks and features keep scale 1.

    Args:
        features: shape (n, d).
        blocks: widths of the fragments side by side, summing to d; default one block.
        per_feature: one scale for every feature instead.

    Raises:
        ShapeError: blocks don't sum to d or hold a width below 1.
    """
    values = features.detach().to(torch.float64)
    width = values.shape[1]
    widths = (width,) if blocks is None else tuple(blocks)
    if sum(widths) != width or min(widths, default=0) < 1:
        raise ShapeError(f"blocks must be widths >= 1 that sum to the {width} features, got {widths}")
    mean = values.mean(0)
    variances = (values - mean).square_().mean(0)
    if per_feature:
        spread = variances
    else:
        spread = torch.cat([part.mean().expand(part.shape[0]) for part in variances.split(list(widths))])
    rounding = (torch.finfo(torch.float64).eps * 8 * values.abs().amax(0)).square()
    scale = torch.where(spread > rounding, spread.clamp(min=torch.finfo(torch.float64).tiny).sqrt(), 1.0)
    return Scaling(mean, scale)


def balanced_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Sample weights (n,) with mean 1 that give every class the same total; all 1 for equal classes."""
    counts = torch.bincount(labels, minlength=n_classes).to(torch.float64)
    present = (counts > 0).sum()
    return (labels.shape[0] / (present * counts.clamp(min=1)))[labels]
