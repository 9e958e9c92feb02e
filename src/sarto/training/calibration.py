"""Probabilities that mean what they say: a temperature from scores on left-out samples."""

from __future__ import annotations

import math

import torch
from scipy import optimize
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.training._inputs import label_problems

_LEAST_FOR_TEMPERATURE = 10
_LEAST_FOR_ERROR = 30
_WIDEST = 100.0


def fit_temperature(scores: Tensor, labels: Tensor) -> float | None:
    """Temperature T that makes softmax(scores / T) most likely; None when there are too few samples to say.

    One imaginary sample without preference is mixed in, so a set without mistakes gives a finite answer. The
    search is bounded to 1/100 .. 100 times the spread of the scores.

    Args:
        scores: of samples that the fit did not see (LOTO), shape (n, q); rows with NaN are left out.
        labels: shape (n,).

    Returns:
        T, or None with fewer than 10 samples, with one class, or with scores that are all equal.

    Raises:
        ShapeError: scores are not (n, q) with one label each.
        RequestError: labels out of range.

    Reference:
        Guo et al., "On calibration of modern neural networks", ICML 2017.
        Differs: targets are smoothed by 1 / (n + 1), as in Platt 1999, and n is small.
    """
    scores, labels = _known_rows(scores, labels)
    n, q = scores.shape
    if n < _LEAST_FOR_TEMPERATURE or q < 2:
        return None
    centred = scores - scores.mean(1, keepdim=True)
    spread = float(centred.square().mean().sqrt())
    if spread == 0:
        return None
    share = 1 / (n + 1)
    targets = (1 - share) * torch.nn.functional.one_hot(labels, q).to(torch.float64) + share / q

    def loss(log_temperature: float) -> float:
        logs = torch.log_softmax(centred / (spread * math.exp(log_temperature)), 1)
        return -float((targets * logs).sum()) / n

    reach = math.log(_WIDEST)
    found = optimize.minimize_scalar(loss, bounds=(-reach, reach), method="bounded", options={"xatol": 1e-6})
    return spread * math.exp(float(found.x))


def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> float | None:
    """Mean distance between confidence and share right over equal-width bins of confidence, 0..1.

    Biased upwards with few samples; None with fewer than 30.

    Args:
        probabilities: shape (n, q), rows summing to 1; rows with NaN are left out.
        labels: shape (n,).
        bins: number of bins.

    Raises:
        ShapeError: probabilities are not (n, q) with one label each.
        RequestError: labels out of range or bins < 1.
    """
    probabilities, labels = _known_rows(probabilities, labels)
    if bins < 1:
        raise RequestError(f"bins must be at least 1, got {bins}")
    n = probabilities.shape[0]
    if n < _LEAST_FOR_ERROR:
        return None
    confidence, predicted = probabilities.max(1)
    right = (predicted == labels).to(torch.float64)
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(gaps.abs().sum()) / n


def _known_rows(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ShapeError(
            f"scores (n, q) and labels (n,) were asked for; "
            f"got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    problems = label_problems(labels, scores.shape[1], every_class=False)
    if problems:
        raise RequestError(problems[0], problems=problems)
    known = ~scores.isnan().any(1)
    return scores[known].to(torch.float64), labels[known].to(torch.int64)
