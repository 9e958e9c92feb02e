"""The paper's losses as pure functions of activations, each after its equation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional


def l21_norm(units: Tensor, *, normalised: bool = False) -> Tensor:
    """The l2,1 norm of a layer's output: norms of the units' maps, summed over units, mean over samples.

    Args:
        units: shape (samples, units, positions).
        normalised: divide by the number of units and by the root of the number of positions.

    Reference:
        Slice-and-Pack, equation (2).
    """
    total = units.flatten(2).norm(dim=2).sum(1).mean()
    if normalised:
        total = total / (units.shape[1] * math.sqrt(units.flatten(2).shape[2]))
    return total


def unit_scores(units: Tensor) -> Tensor:
    """Mean over samples of the norm of each unit's map, shape (units,): the summands of equation (2).

    Reference:
        Slice-and-Pack, |(Z)_j| of equations (4) and (5), which the paper does not define. Our reading: what the
        pooling loss makes sparse is what is compared.
    """
    return units.flatten(2).norm(dim=2).mean(0)


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over samples of the squared distance of the features (n, d).

    Reference:
        Slice-and-Pack, equation (9), and the first term of (3).
    """
    return (student - teacher).square().sum(1).mean()


def pooling_loss(
    student: Tensor, teacher: Tensor, units: Tensor, alpha: float, *, normalised: bool = False
) -> Tensor:
    """Distance to the donor's features on all samples, plus alpha times the norm of the layer on the class's own.

    Args:
        student: features of the changed donor, shape (n, d); teacher: those of the donor.
        units: output of the layer on samples of the class, shape (m, units, positions).

    Reference:
        Slice-and-Pack, equation (3).
    """
    return distillation_loss(student, teacher) + alpha * l21_norm(units, normalised=normalised)


def classification_loss(logits: Tensor, positive: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross entropy of "the class" against "any other class", weighted mean over samples.

    Args:
        logits: shape (n, 2), the second for the class.
        positive: shape (n,), whether a sample is of the class.
        weights: of the two outcomes, shape (2,).

    Reference:
        Slice-and-Pack, equation (8).
    """
    return functional.cross_entropy(logits, positive.to(torch.int64), weight=weights)


def repair_loss(classification: Tensor, distillations: Mapping[str, Tensor], gamma: float) -> Tensor:
    """Classification plus gamma times the distillation; the mean where there are several repairs.

    Args:
        distillations: repair (`dropped`, `linear`) -> its loss (9).

    Reference:
        Slice-and-Pack, equations (7), where one layer is replaced, and (10), where all up to it are.
    """
    return classification + gamma * torch.stack(list(distillations.values())).mean()


def packing_loss(
    logits: Tensor, labels: Tensor, decoded: Mapping[int, Tensor], wanted: Mapping[int, Tensor], delta: float
) -> Tensor:
    """Mean over classes of: cross entropy of the class's samples plus delta times how far decoding misses.

    Args:
        logits: shape (n, classes); labels: (n,).
        decoded: class -> what its decoder gives for its own samples, shape (n of the class, d).
        wanted: class -> what its fragment gives for them, same shape.

    Reference:
        Slice-and-Pack, equation (12).
    """
    each = functional.cross_entropy(logits, labels, reduction="none")
    classes = labels.unique().tolist()
    total = torch.stack([each[labels == cls].mean() for cls in classes]).mean()
    misses = [distillation_loss(decoded[cls], wanted[cls]) for cls in classes]
    return total + delta * torch.stack(misses).mean()
