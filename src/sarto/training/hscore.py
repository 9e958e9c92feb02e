"""How well features separate classes, without fitting a head."""

from __future__ import annotations

import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.training._inputs import check_samples
from sarto.training.logistic import principal_axes


def h_score(features: Tensor, labels: Tensor, n_classes: int, *, shrinkage: float = 0.3) -> float:
    """Between-class variance after whitening: tr(((1-a) S + a tr(S)/d I)^-1 S_between); larger is better.

    Comparable only between features of the same samples. O(n^2 d) for n samples and d features.

    Args:
        features: shape (n, d).
        labels: shape (n,), each class at least once.
        n_classes: q.
        shrinkage: a in (0, 1].

    Raises:
        ShapeError: features and labels don't fit together.
        RequestError: labels out of range, a class without samples, or shrinkage outside (0, 1].

    Reference:
        Bao et al., "An information-theoretic approach to transferability in task transfer learning", ICIP
        2019; shrinkage as in Ibrahim, Ponomareva, Mazumder, "Newer is not always better", 2021.
        Differs: a fixed shrinkage.
    """
    labels = check_samples(features, labels, n_classes)
    if not 0 < shrinkage <= 1:
        raise RequestError(f"shrinkage must lie in (0, 1], got {shrinkage}")
    values = features.detach().to(torch.float64)
    n, d = values.shape
    coordinates, _ = principal_axes(values - values.mean(0))
    variances = coordinates.square().mean(0)
    trace = float(variances.sum())
    if trace == 0:
        return 0.0
    share = torch.nn.functional.one_hot(labels, n_classes).to(torch.float64)
    counts = share.sum(0)
    means = (share / counts).T @ coordinates
    between = (counts.unsqueeze(1) / n * means.square()).sum(0)
    return float((between / ((1 - shrinkage) * variances + shrinkage * trace / d)).sum())
