"""Counts of right and wrong answers."""

from __future__ import annotations

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.training._inputs import label_problems


def accuracy(predictions: Tensor, labels: Tensor) -> float | None:
    """Share right, 0..1; predictions below 0 (not counted) are left out; None when nothing is left."""
    _check_pair(predictions, labels)
    counted = predictions >= 0
    if not bool(counted.any()):
        return None
    return float((predictions[counted] == labels[counted]).to(torch.float64).mean())


def balanced_accuracy(predictions: Tensor, labels: Tensor, n_classes: int) -> float | None:
    """Mean of the recalls of the classes that were counted, 0..1; None when none was."""
    known = [recall for recall in per_class_recall(predictions, labels, n_classes) if recall is not None]
    return sum(known) / len(known) if known else None


def per_class_recall(predictions: Tensor, labels: Tensor, n_classes: int) -> tuple[float | None, ...]:
    """For each class the share of its samples named right; None for a class without counted samples."""
    table = confusion(predictions, labels, n_classes)
    pairs = zip(table.diagonal().tolist(), table.sum(1).tolist(), strict=True)
    return tuple(right / total if total else None for right, total in pairs)


def confusion(predictions: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Counts (q, q), int64: row = true class, column = predicted class; predictions below 0 are left out.

    Raises:
        ShapeError: not one prediction for each label.
        RequestError: labels or predictions out of range.
    """
    _check_pair(predictions, labels)
    problems = label_problems(labels, n_classes, every_class=False)
    if int(predictions.max() if predictions.numel() else 0) >= n_classes:
        problems.append(f"predictions must be below {n_classes}, got {int(predictions.max())}")
    if problems:
        raise RequestError(problems[0], problems=problems)
    counted = predictions >= 0
    cells = labels[counted].to(torch.int64) * n_classes + predictions[counted].to(torch.int64)
    return torch.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def _check_pair(predictions: Tensor, labels: Tensor) -> None:
    if predictions.ndim != 1 or predictions.shape != labels.shape:
        raise ShapeError(
            f"one prediction for each label was asked for; "
            f"got {tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
