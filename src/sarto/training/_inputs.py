"""Checks that every fit starts with: shapes, labels and numbers, all problems in one message."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError


def check_samples(features: Tensor, labels: Tensor, n_classes: int, *, every_class: bool = True) -> Tensor:
    """Labels as int64 (n,), after features (n, d) and labels (n,) were found to belong together.

    Raises:
        ShapeError: features are not (n, d) with n >= 1, or there is not one label for each row.
        RequestError: labels outside 0..n_classes-1, a class without samples, or non-finite features.
    """
    if features.ndim != 2 or features.shape[0] < 1 or features.shape[1] < 1:
        raise ShapeError(
            f"features must have shape (n_samples, n_features), both >= 1; got {tuple(features.shape)}; "
            "flatten or pool them first"
        )
    if labels.shape != features.shape[:1]:
        raise ShapeError(
            f"one label for each of the {features.shape[0]} samples was asked for; got labels of shape "
            f"{tuple(labels.shape)}"
        )
    problems = label_problems(labels, n_classes, every_class=every_class)
    broken = int((~torch.isfinite(features)).sum())
    if broken:
        problems.append(
            f"{broken} of {features.numel()} features are not finite; remove those samples or clip them"
        )
    if problems:
        raise RequestError(problems[0], problems=problems)
    return labels.to(torch.int64)


def label_problems(labels: Tensor, n_classes: int, *, every_class: bool = True) -> list[str]:
    """What is wrong with labels (n,) that should name classes 0..n_classes-1; empty when all is well."""
    if n_classes < 1:
        return [f"n_classes must be at least 1, got {n_classes}"]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return [f"labels must be integers, got {labels.dtype}; convert class names to their positions"]
    labels = labels.to(torch.int64)
    outside = labels[(labels < 0) | (labels >= n_classes)]
    if outside.numel():
        return [f"labels must lie in 0..{n_classes - 1}, got {sorted(set(outside.tolist()))[:5]}"]
    if not every_class:
        return []
    empty = [
        cls for cls, count in enumerate(torch.bincount(labels, minlength=n_classes).tolist()) if count == 0
    ]
    if empty:
        return [f"classes {empty[:10]} have no samples; add at least one of each or leave the class out"]
    return []


def check_positive(name: str, value: float) -> float:
    """The value as a float, found finite and above zero.

    Raises:
        RequestError: it is not.
    """
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{name} must be finite and > 0, got {value}")
    return float(value)


def check_square(name: str, matrix: Tensor) -> int:
    """Size of the last two, equal axes of a matrix or a batch of matrices with finite entries.

    Raises:
        ShapeError: not square.
        RequestError: non-finite entries.
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] < 1:
        raise ShapeError(f"{name} must be square in its last two axes, got shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise RequestError(f"{name} has non-finite entries; check the activations that it was summed from")
    return int(matrix.shape[-1])
