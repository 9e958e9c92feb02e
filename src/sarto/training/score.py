"""What leaving samples out has shown: the score of a head on its own samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.training.folds import Folds
from sarto.training.intervals import Interval, jeffreys


@dataclass(frozen=True, eq=False)
class LotoScore:
    """How well a head does on its own samples when each is left out with one of each other class.

    accuracy: share right, 0..1, mean over pairings, every counted class with the same weight; None when no
        sample could be left out (one sample a class).
    soft: minus the mean squared residual on targets +-1 (ridge) or the mean log likelihood (others), classes
        equally; larger is better; None like accuracy.
    predictions: int64 (n,), class with the largest mean score over pairings; -1 where not counted. Its share
        right may differ from `accuracy` by a sample or so.
    scores: float64 (n, q), mean over pairings; NaN where not counted.
    correct: float64 (n,), share of the pairings in which the sample was right; NaN where not counted.
    n_counted: samples that were left out at least once.
    skipped_classes: classes with one sample (or one group): always trained on, never counted.
    lam: strength of the head on all samples; None for heads without one.
    basis: how the number came about, in words for the report.
    """

    accuracy: float | None
    soft: float | None
    predictions: Tensor
    scores: Tensor
    correct: Tensor
    n_counted: int
    skipped_classes: tuple[int, ...]
    lam: float | None
    basis: str

    def interval(self, level: float = 0.9) -> Interval | None:
        """Jeffreys interval of the accuracy; None when nothing was counted."""
        if self.accuracy is None:
            return None
        return jeffreys(self.accuracy * self.n_counted, self.n_counted, level=level)


def summarise(
    scores: Tensor,
    losses: Tensor,
    folds: Folds,
    labels: Tensor,
    n_classes: int,
    *,
    lam: float | None,
    basis: str,
) -> LotoScore:
    """LOTO score from the scores (F, m, q) and losses (F, m) of the samples left out in each fold."""
    n = labels.shape[0]
    entries = folds.left_out >= 0
    samples = folds.left_out[entries]
    times = torch.bincount(samples, minlength=n)
    counted = times > 0
    total = torch.zeros(n, n_classes, dtype=torch.float64).index_add_(0, samples, scores[entries])
    right = (scores.argmax(2)[entries] == labels[samples]).to(torch.float64)
    hits = torch.zeros(n, dtype=torch.float64).index_add_(0, samples, right)
    # 0 / 0 where a sample was never left out: NaN, as promised.
    mean_scores = total / times.unsqueeze(1)
    correct = hits / times
    weights = entry_weights(folds, labels, n_classes)
    accuracy = soft = None
    if bool(counted.any()):
        accuracy = min(1.0, float((weights[entries] * right).sum()))
        soft = -float((weights[entries] * losses[entries]).sum())
    if folds.skipped_classes:
        basis = f"{basis}; classes {list(folds.skipped_classes)} have one sample each and are not counted"
    return LotoScore(
        accuracy=accuracy,
        soft=soft,
        predictions=torch.where(counted, mean_scores.nan_to_num().argmax(1), -1),
        scores=mean_scores,
        correct=correct,
        n_counted=int(counted.sum()),
        skipped_classes=folds.skipped_classes,
        lam=lam,
        basis=basis,
    )


def entry_weights(folds: Folds, labels: Tensor, n_classes: int) -> Tensor:
    """Weights (F, m) of what was left out, summing to 1: classes equally, then samples, then folds."""
    entries = folds.left_out >= 0
    samples = folds.left_out[entries]
    times = torch.bincount(samples, minlength=labels.shape[0])
    in_class = torch.bincount(labels[times > 0], minlength=n_classes)
    present = int((in_class > 0).sum())
    weights = torch.zeros(folds.left_out.shape, dtype=torch.float64)
    weights[entries] = (times[samples] * in_class[labels[samples]] * max(1, present)).double().reciprocal()
    return weights
