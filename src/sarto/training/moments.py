"""Second moments of activations: all that unit selection and repair need to know about the samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.training._inputs import label_problems

_CHUNK_NUMBERS = 1 << 22
"""Activations turned to float64 at a time: 32 MiB."""


def second_moment(x: Tensor, weights: Tensor | None = None, *, axis: int = 1, stride: int = 1) -> Tensor:
    """Weighted second moment of the units of x, float64 (c, c).

    Sum over samples of w times the mean of z z^T over positions: resolution does not change its size.

    Args:
        x: activations, shape (n, c, ...) or with the units on another `axis`; every position is a row.
        weights: one for each sample, shape (n,), >= 0; default 1/n.
        axis: axis of the units (1 for images, 2 for tokens (n, t, c)).
        stride: takes positions 0, stride, 2 stride, ... of the flattened grid, the same in every sample;
            1 takes all. `position_stride` gives one that doesn't fall into step with the rows.

    Raises:
        ShapeError: x has no such axis, or weights don't fit.
        RequestError: stride < 1, or negative or non-finite weights.
    """
    return cross_moment(x, x, weights, axis=axis, stride=stride)


def cross_moment(
    z: Tensor, f: Tensor, weights: Tensor | None = None, *, axis: int = 1, stride: int = 1
) -> Tensor:
    """Weighted cross moment of two activations, float64 (c_z, c_f): as `second_moment`, with z f^T.

    Arguments and errors as in `second_moment`; z and f may differ only in the number of units.
    """
    _check_pair(z, f, axis, stride)
    weight = _check_weights(weights, z.shape[0])
    total = torch.zeros(z.shape[axis], f.shape[axis], dtype=torch.float64)
    for part in _chunks(z, f):
        left = _rows(z[part], axis, stride)
        right = left if z is f else _rows(f[part], axis, stride)
        scaled = left * (weight[part] / left.shape[1]).reshape(-1, 1, 1)
        total += scaled.reshape(-1, left.shape[2]).T @ right.reshape(-1, right.shape[2])
    return total


def class_grams(x: Tensor, labels: Tensor, n_classes: int, *, axis: int = 1, stride: int = 1) -> Tensor:
    """Second moment of each class, float64 (n_classes, c, c), each a mean over its samples; one pass.

    Raises:
        ShapeError: not one label for each sample.
        RequestError: labels outside 0..n_classes-1 or a class without samples.
    """
    return class_cross_moments(x, x, labels, n_classes, axis=axis, stride=stride)


def class_cross_moments(
    z: Tensor, f: Tensor, labels: Tensor, n_classes: int, *, axis: int = 1, stride: int = 1
) -> Tensor:
    """Cross moment of each class, float64 (n_classes, c_z, c_f), each a mean over its samples.

    Errors as in `class_grams`.
    """
    _check_pair(z, f, axis, stride)
    if labels.shape != z.shape[:1]:
        raise ShapeError(
            f"one label for each of the {z.shape[0]} samples was asked for, got {tuple(labels.shape)}"
        )
    problems = label_problems(labels, n_classes)
    if problems:
        raise RequestError(problems[0], problems=problems)
    result = []
    for cls in range(n_classes):
        members = torch.nonzero(labels == cls).flatten()
        part = z[members]
        result.append(cross_moment(part, part if z is f else f[members], axis=axis, stride=stride))
    return torch.stack(result)


def one_against_rest(grams: Tensor, counts: Tensor, *, wpos: float) -> Tensor:
    """For each class c: wpos x its own moment + (1 - wpos) x the mean over all samples of the other classes.

    With it one pass over the samples serves the slices of all classes. A lone class gets its own moment.

    Args:
        grams: moments by class from `class_grams` or `class_cross_moments`, shape (n_classes, ...).
        counts: samples of each class, shape (n_classes,), all >= 1.
        wpos: weight of the class itself, 0..1; .33-.5 are good, 1 drops the negatives and hurts.

    Raises:
        ShapeError: counts don't fit to grams.
        RequestError: wpos outside 0..1 or a count below 1.
    """
    _check_wpos(wpos)
    if counts.shape != grams.shape[:1]:
        raise ShapeError(
            f"one count for each of {grams.shape[0]} classes was asked for, got {tuple(counts.shape)}"
        )
    if int(counts.min()) < 1:
        raise RequestError(f"every class needs at least one sample, got counts {counts.tolist()}")
    if grams.shape[0] == 1:
        return grams.clone()
    number = counts.to(grams.dtype)
    mix = number.expand(grams.shape[0], -1).clone()
    mix.fill_diagonal_(0.0)
    mix = (1 - wpos) * mix / mix.sum(1, keepdim=True)
    mix.fill_diagonal_(wpos)
    return torch.tensordot(mix, grams, dims=1)


def class_weights(labels: Tensor, cls: int, *, wpos: float) -> Tensor:
    """Sample weights (n,), summing to 1: wpos shared by the samples of `cls`, the rest by all others.

    Raises:
        RequestError: wpos outside 0..1, or no sample of `cls`.
    """
    _check_wpos(wpos)
    own = labels == cls
    n_own, n = int(own.sum()), labels.shape[0]
    if n_own == 0:
        raise RequestError(
            f"class {cls} has no samples; classes with samples: {labels.unique().tolist()[:10]}"
        )
    if n_own == n:
        return torch.full((n,), 1 / n, dtype=torch.float64)
    weights = torch.full((n,), (1 - wpos) / (n - n_own), dtype=torch.float64)
    weights[own] = wpos / n_own
    return weights


def position_stride(positions: tuple[int, ...], limit: int) -> int:
    """Smallest stride that leaves at most `limit` positions and shares no divisor with the grid's last side.

    Without common divisor the positions taken run through all columns instead of staying in a few.
    """
    total = math.prod(positions)
    if limit < 1:
        raise RequestError(f"the limit of positions must be at least 1, got {limit}")
    stride = max(1, math.ceil(total / limit))
    while stride > 1 and math.gcd(stride, positions[-1]) != 1:
        stride += 1
    return stride


def _rows(x: Tensor, axis: int, stride: int) -> Tensor:
    """(n, positions, units) in float64."""
    rows = x.detach().movedim(axis, -1).flatten(1, -2) if x.ndim > 2 else x.detach().unsqueeze(1)
    return rows[:, ::stride].to(torch.float64)


def _chunks(z: Tensor, f: Tensor) -> Iterator[slice]:
    a_sample = max(1, math.prod(z.shape[1:]), math.prod(f.shape[1:]))
    step = max(1, _CHUNK_NUMBERS // a_sample)
    for start in range(0, z.shape[0], step):
        yield slice(start, start + step)


def _check_pair(z: Tensor, f: Tensor, axis: int, stride: int) -> None:
    if not 1 <= axis < z.ndim or z.ndim != f.ndim or 0 in z.shape or 0 in f.shape:
        raise ShapeError(
            f"activations (n, units, ...) with units on axis {axis} were asked for, got {tuple(z.shape)} and "
            f"{tuple(f.shape)}"
        )
    if any(a != b for i, (a, b) in enumerate(zip(z.shape, f.shape, strict=True)) if i != axis):
        raise ShapeError(
            f"both activations must agree in all but axis {axis}: {tuple(z.shape)} and {tuple(f.shape)}"
        )
    if stride < 1:
        raise RequestError(f"stride must be at least 1, got {stride}")


def _check_weights(weights: Tensor | None, n: int) -> Tensor:
    if weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64)
    if weights.shape != (n,):
        raise ShapeError(f"one weight for each of {n} samples was asked for, got {tuple(weights.shape)}")
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise RequestError("sample weights must be finite and >= 0")
    return weights.to(torch.float64)


def _check_wpos(wpos: float) -> None:
    if not 0 <= wpos <= 1:
        raise RequestError(f"wpos must lie in 0..1, got {wpos}")
