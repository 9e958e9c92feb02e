"""Which units to keep, chosen from second moments of their activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.training._inputs import check_square

_BLOCK = 32
"""Picks between two full updates of the residual: the updates become one matrix product."""
_TIE = 1e-9
"""Scores this close, relative to the best one, count as equal; the lower index wins."""
_EXPLAINED = 1e-10
"""A unit counts as explained by the kept ones when this share of its energy is left."""


@dataclass(frozen=True, eq=False)
class ColumnSubset:
    """Units picked one after the other.

    kept: their indices in rising order, int64 (count,).
    order: the same indices in the order in which they were picked (so a prefix is the smaller subset).
    left: share of the weighted energy that is still unexplained after each pick, float64 (count,), falling.
    """

    kept: Tensor
    order: Tensor
    left: Tensor


def column_subset(gram: Tensor, weights: Tensor, count: int) -> ColumnSubset:
    """Units from which all the others are best predicted linearly, greedily chosen.

    Each step takes the unit j that lowers the weighted reconstruction error most, which is
    sum_m w_m R[m, j]^2 / R[j, j] with R the residual second moment given the units kept so far, and then
    removes from R what j explains. O(u^2) a pick.

    Units that the kept ones already explain (and dead units) are passed over while others are left. When
    none is left, or the weights say nothing about those that are, the largest residual is taken, then the
    largest energy, then the lowest index: `count` units come back in every case.

    Args:
        gram: second moment of the units, shape (u, u), symmetric positive semidefinite.
        weights: how much an error in each unit matters, shape (u,), >= 0: for instance the squared norm of
            the weights that read it. All equal is the plain column subset problem.
        count: units to keep, 1..u.

    Raises:
        ShapeError: gram is not (u, u) or weights not (u,).
        RequestError: count outside 1..u, negative weights, or non-finite numbers.

    Reference:
        Greedy column subset selection: Farahat, Ghodsi, Kamel, "An efficient greedy method for
        unsupervised feature selection", ICDM 2011; pivoted Cholesky factorisation.
        Differs: errors are weighted; the residual is updated in blocks; explained units are passed over.
    """
    size = check_square("gram", gram)
    _check_count(count, size)
    if gram.ndim != 2 or weights.shape != (size,):
        raise ShapeError(
            f"gram (u, u) and weights (u,) were asked for, got {tuple(gram.shape)} and {tuple(weights.shape)}"
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise RequestError("weights of units must be finite and >= 0; pass squared norms")
    residual = gram.detach().to(torch.float64)
    residual = (residual + residual.T) / 2
    weight = weights.detach().to(torch.float64)
    energies = residual.diagonal().clamp(min=0).clone()
    floor = _EXPLAINED * energies + torch.finfo(torch.float64).tiny
    diagonal = energies.clone()
    free = torch.ones(size, dtype=torch.bool)
    total = float((weight * energies).sum())
    factor = torch.zeros(
        size, _BLOCK, dtype=torch.float64
    )  # columns picked since the residual was last updated
    filled = 0
    quadratic = _weighted_squares(residual, weight)  # sum_m w_m R[m, j]^2 for every j
    best_at_update = 0.0
    order: list[int] = []
    left: list[float] = []
    for _ in range(count):
        open_ = free & (diagonal > floor)
        scores = torch.where(open_, quadratic / torch.where(open_, diagonal, 1.0), 0.0)
        best = float(scores.max())
        if filled and (filled == _BLOCK or best < 1e-3 * best_at_update):
            residual = residual - factor[:, :filled] @ factor[:, :filled].T
            filled = 0
            quadratic = _weighted_squares(residual, weight)
            diagonal = torch.where(free, residual.diagonal(), 0.0).clamp(min=0)
            open_ = free & (diagonal > floor)
            scores = torch.where(open_, quadratic / torch.where(open_, diagonal, 1.0), 0.0)
            best = float(scores.max())
        if not filled:
            best_at_update = best
        unit = _first_best(scores) if best > 0 else _fall_back(free, open_, diagonal, energies)
        order.append(unit)
        if bool(open_[unit]):
            column = residual[:, unit] - factor[:, :filled] @ factor[unit, :filled]
            column = torch.where(free, column, 0.0) / diagonal[unit].sqrt()
            weighted = weight * column
            product = residual @ weighted - factor[:, :filled] @ (factor[:, :filled].T @ weighted)
            quadratic = (quadratic - 2 * column * product + column.square() * (weighted @ column)).clamp(
                min=0
            )
            factor[:, filled] = column
            filled += 1
            diagonal = (diagonal - column.square()).clamp(min=0)
        free[unit] = False
        diagonal[unit] = 0.0
        left.append(float((weight * diagonal).sum()) / total if total > 0 else 0.0)
    picked = torch.tensor(order, dtype=torch.int64)
    return ColumnSubset(picked.sort().values, picked, torch.tensor(left, dtype=torch.float64))


def _weighted_squares(residual: Tensor, weight: Tensor) -> Tensor:
    return weight @ residual.square()


def _first_best(scores: Tensor) -> int:
    best = scores.max()
    return int(torch.nonzero(scores >= best - _TIE * best.abs())[0])


def _fall_back(free: Tensor, open_: Tensor, diagonal: Tensor, energies: Tensor) -> int:
    if bool(open_.any()):
        return _first_best(torch.where(open_, diagonal, -1.0))
    return _first_best(torch.where(free, energies, -1.0))


def energy(gram: Tensor) -> Tensor:
    """Root mean square activation of each unit, shape (..., u), from second moments (..., u, u).

    Reference:
        Slice-and-Pack, the unit scores |Z_j| of equations (4) and (5).
        Differs: root of the mean square over samples and positions instead of the mean of the maps' norms.
    """
    check_square("gram", gram)
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def top_rate(scores: Tensor, rate: float) -> Tensor:
    """The max(1, round(rate x u)) units with the largest scores, rising indices; ties by index.

    Raises:
        RequestError: rate outside (0, 1], or scores that are not finite.

    Reference:
        Slice-and-Pack, equation (5).
    """
    _check_scores(scores)
    if not 0 < rate <= 1:
        raise RequestError(f"a rate of kept units must lie in (0, 1], got {rate}")
    return top(scores, max(1, round(rate * scores.shape[0])))


def top(scores: Tensor, count: int) -> Tensor:
    """The `count` units with the largest scores, rising indices; ties by index.

    Raises:
        RequestError: count outside 1..u, or scores that are not finite.
    """
    _check_scores(scores)
    _check_count(count, scores.shape[0])
    ranked = torch.sort(scores, descending=True, stable=True).indices
    return ranked[:count].sort().values


def above_threshold(scores: Tensor, beta: float) -> Tensor:
    """Units whose score is above (1 - beta) times the largest one, rising indices; at least one.

    Raises:
        RequestError: beta outside (0, 1], or scores that are negative or not finite.

    Reference:
        Slice-and-Pack, equation (4).
        Differs: scores are divided by their maximum, which the paper leaves open; never an empty set.
    """
    _check_scores(scores)
    if not 0 < beta <= 1:
        raise RequestError(f"beta must lie in (0, 1], got {beta}")
    largest = scores.max()
    if float(scores.min()) < 0:
        raise RequestError("threshold selection needs scores >= 0; pass norms or energies")
    if float(largest) == 0:
        return torch.zeros(1, dtype=torch.int64)
    return torch.nonzero(scores / largest > 1 - beta).flatten()


def random_units(count: int, size: int, seed: int) -> Tensor:
    """`count` of `size` units drawn without replacement, rising indices; the same for the same seed.

    Raises:
        RequestError: count outside 1..size.
    """
    _check_count(count, size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:count].sort().values


def _check_count(count: int, size: int) -> None:
    if not 1 <= count <= size:
        raise RequestError(f"units to keep must lie in 1..{size}, got {count}")


def _check_scores(scores: Tensor) -> None:
    if scores.ndim != 1 or scores.shape[0] < 1:
        raise ShapeError(f"one score for each unit, shape (u,), was asked for; got {tuple(scores.shape)}")
    if not bool(torch.isfinite(scores).all()):
        raise RequestError("unit scores have non-finite entries; check the activations")
