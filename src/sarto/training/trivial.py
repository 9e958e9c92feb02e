"""Classifiers that any result has to beat: chance, majority, pixels, words, nearest class mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.training._inputs import check_samples, label_problems
from sarto.training.folds import one_of_each
from sarto.training.heads import RIDGE_LAM
from sarto.training.loto import log_losses, ridge_loto
from sarto.training.score import LotoScore, summarise

_SIDE = 8


def chance(n_classes: int) -> float:
    """Accuracy of guessing, when all classes are equally frequent."""
    if n_classes < 1:
        raise RequestError(f"n_classes must be at least 1, got {n_classes}")
    return 1 / n_classes


def majority(labels: Tensor, n_classes: int) -> tuple[int, float]:
    """The most frequent class (the lowest of equal ones) and its share of the labels (n,)."""
    problems = label_problems(labels, n_classes, every_class=False)
    if not problems and not labels.numel():
        problems = ["at least one label was asked for, got none"]
    if problems:
        raise RequestError(problems[0], problems=problems)
    counts = torch.bincount(labels, minlength=n_classes).tolist()
    best = counts.index(max(counts))
    return best, counts[best] / labels.shape[0]


def pixel_features(images: Tensor) -> Tensor:
    """Mean colours on an 8x8 grid, shape (n, channels * 64), float32.

    Args:
        images: (n, channels, h, w), float in 0..1 or uint8 in 0..255; smaller sides than 8 repeat pixels.

    Raises:
        ShapeError: not four axes.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise ShapeError(f"images (n, channels, h, w) were asked for, got {tuple(images.shape)}")
    pixels = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)
    return torch.nn.functional.adaptive_avg_pool2d(pixels, _SIDE).flatten(1)


def word_features(texts: Sequence[Sequence[str]], known: Sequence[str]) -> Tensor:
    """How often each known word stands in each text, log(1 + count) scaled to length 1, (n, len(known)), float32.

    Args:
        texts: the words of each text; unknown ones count nothing.
        known: unique words, at least one.

    Raises:
        RequestError: no texts, or no known words.
    """
    if not texts or not known:
        raise RequestError(f"texts and known words were asked for, got {len(texts)} and {len(known)}")
    places = {word: place for place, word in enumerate(known)}
    counts = torch.zeros(len(texts), len(known))
    for row, text in enumerate(texts):
        for word in text:
            if word in places:
                counts[row, places[word]] += 1
    logs = counts.log1p()
    return logs / logs.norm(dim=1, keepdim=True).clamp_min(1e-12)


def pixel_ridge_loto(
    images: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    lam: float = RIDGE_LAM,
    pairings: int = 5,
    seed: int = 0,
    groups: Tensor | None = None,
) -> LotoScore:
    """LOTO score of a ridge head on `pixel_features`; arguments and errors as there and in `ridge_loto`."""
    features = pixel_features(images)
    return ridge_loto(features, labels, n_classes, lam=lam, pairings=pairings, seed=seed, groups=groups)


def nearest_mean_loto(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    pairings: int = 5,
    seed: int = 0,
    groups: Tensor | None = None,
) -> LotoScore:
    """LOTO score of `nearest_mean_head`, exact; scores are minus half the squared distances.

    Arguments and errors as in `ridge_loto`.
    """
    labels = check_samples(features, labels, n_classes)
    folds = one_of_each(labels, n_classes, pairings=pairings, seed=seed, groups=groups)
    values = features.detach().to(torch.float64)
    values = values - values.mean(0)
    one_hot = torch.nn.functional.one_hot(labels, n_classes).to(torch.float64)
    kept = folds.training_mask(labels.shape[0]).to(torch.float64)
    counts = kept @ one_hot
    sums = torch.einsum("fn,nq,nd->fqd", kept, one_hot, values)
    means = sums / counts.unsqueeze(2)
    left_out = values[folds.left_out.clamp(min=0)]
    scores = (
        left_out @ means.mT
        - means.square().sum(2).unsqueeze(1) / 2
        - left_out.square().sum(2, keepdim=True) / 2
    )
    losses = log_losses(scores, folds, labels)
    basis = "class means without the samples left out" if folds.count else "no sample could be left out"
    return summarise(scores, losses, folds, labels, n_classes, lam=None, basis=basis)
