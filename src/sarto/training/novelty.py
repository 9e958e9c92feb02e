"""None of the above: how far a sample lies from every class, and beyond which distance it is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.training._inputs import check_samples
from sarto.training.scaling import fit_scaling

#: Share of the wanted classes' samples that the threshold may refuse.
FALSE_REJECT = 0.05
_LEAST = 3


@dataclass(frozen=True, eq=False)
class Novelty:
    """How unlike every class a sample is: its distance to the nearest class mean, in radii of that class.

    Attributes:
        centres: (q, d), mean of each class.
        scale: (d,), what features are divided by.
        radii: (q,), root mean squared distance of a class's samples to its mean.
        threshold: novelty above which a sample is none of the classes.
        false_reject: share of new samples of the classes that the threshold refuses, estimated from samples that were
            left out: (refused + 1) / (n + 1).
        n_samples: how many were left out.
    """

    centres: Tensor
    scale: Tensor
    radii: Tensor
    threshold: float
    false_reject: float
    n_samples: int

    def scores(self, features: Tensor) -> Tensor:
        """Novelty (n,) of features (n, d), float64; 1 is usual."""
        values = features.to(torch.float64) / self.scale
        return (torch.cdist(values, self.centres / self.scale) / self.radii).min(1).values

    def known(self, features: Tensor) -> Tensor:
        """Bool (n,): False where a sample is none of the classes."""
        return self.scores(features) <= self.threshold


def fit_novelty(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    blocks: tuple[int, ...] | None = None,
    false_reject: float = FALSE_REJECT,
) -> Novelty | None:
    """Novelty with a threshold that refuses about this share of the classes' own samples; None with too few samples.

    Each sample is left out of its class's mean and radius (exactly, without refits); the threshold is the
    ceil((n + 1)(1 - false_reject))-th smallest of these novelties, so that a new sample exceeds it with at most that
    probability where samples are exchangeable. With fewer samples than that needs, the largest one is the threshold.

    Args:
        features: raw features, shape (n, d).
        labels: 0..n_classes-1, shape (n,), each class at least once.
        n_classes: q.
        blocks: widths of the fragments side by side; each gets one scale.
        false_reject: wanted share of wrong refusals, between 0 and 1.

    Returns:
        None where a class has fewer than 3 samples.

    Raises:
        ShapeError: features, labels or blocks don't fit together.
        RequestError: labels out of range, a class without samples, non-finite features, or a share outside (0, 1).

    Reference:
        Vovk, Gammerman, Shafer, "Algorithmic learning in a random world", 2005 (conformal quantile).
        Differs: distances in class radii, left out one at a time instead of on a calibration set.
    """
    labels = check_samples(features, labels, n_classes)
    if not 0 < false_reject < 1:
        raise RequestError(f"false_reject is a share between 0 and 1, got {false_reject}")
    counts = torch.bincount(labels, minlength=n_classes)
    if int(counts.min()) < _LEAST:
        return None
    scale = fit_scaling(features, blocks=blocks).scale
    x = features.detach().to(torch.float64) / scale
    sums = torch.zeros(n_classes, x.shape[1], dtype=torch.float64).index_add_(0, labels, x)
    centres = sums / counts.unsqueeze(1)
    squared = torch.cdist(x, centres).square()
    own = squared.gather(1, labels.unsqueeze(1)).squeeze(1)
    within = torch.zeros(n_classes, dtype=torch.float64).index_add_(0, labels, own)
    radii = _radii(within, counts)
    # Without sample i its class has the mean m - (x - m) / (k - 1), and loses k / (k - 1) ||x - m||^2 of its spread.
    k = counts[labels].double()
    left_distance = own.sqrt() * k / (k - 1)
    left_radius = _radii((within[labels] - own * k / (k - 1)).clamp_min(0), counts[labels] - 1)
    novelties = squared.sqrt() / radii
    novelties.scatter_(1, labels.unsqueeze(1), (left_distance / left_radius).unsqueeze(1))
    ordered = novelties.min(1).values.sort().values
    place = min(len(ordered), math.ceil((len(ordered) + 1) * (1 - false_reject)))
    threshold = float(ordered[place - 1])
    return Novelty(
        centres=centres * scale,
        scale=scale,
        radii=radii,
        threshold=threshold,
        false_reject=(int((ordered > threshold).sum()) + 1) / (len(ordered) + 1),
        n_samples=len(ordered),
    )


def _radii(within: Tensor, counts: Tensor) -> Tensor:
    """Root mean squared distance to a mean that was estimated from the same samples; 1 where all are equal."""
    squared = within / (counts - 1)
    return torch.where(squared > 0, squared.clamp_min(torch.finfo(torch.float64).tiny).sqrt(), 1.0)
