"""Many multinomial logistic regressions on the same samples, solved side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MEMORY = 10
_MAX_STEPS = 500
_ARMIJO = 1e-4


@dataclass(frozen=True, eq=False)
class LogisticFits:
    """Solutions of P problems in the coordinates that were passed in.

    weight: (P, d, q), bias: (P, q), converged: bool (P,), steps taken.
    """

    weight: Tensor
    bias: Tensor
    converged: Tensor
    steps: int


def solve_logistic(
    x: Tensor,
    targets: Tensor,
    sample_weights: Tensor,
    penalty: Tensor,
    *,
    start: LogisticFits | None = None,
    tolerance: float = 1e-7,
) -> LogisticFits:
    """Minimise sum_i w_i CE(softmax(x_i W + b), y_i) + penalty/2 ||W||^2 for P settings of w and penalty.

    L-BFGS from zero (or from `start`), preconditioned by the Hessian at equal probabilities, which is nearly
    diagonal when the columns of x are orthogonal; deterministic. The intercept is not penalised.

    Args:
        x: scaled features, shape (n, d), float64; rotate them onto principal axes first (`principal_axes`).
        targets: one-hot or soft labels, shape (n, q).
        sample_weights: shape (P, n); 0 leaves a sample out of a problem.
        penalty: shape (P,), > 0.
        start: fits to start from, with P = 1 or P problems.
        tolerance: largest preconditioned gradient at which a problem counts as solved.

    Returns:
        The fits; `converged` is False for problems that reached the bound of 500 steps first.
    """
    count, (n, d), q = penalty.shape[0], x.shape, targets.shape[1]
    curvature = sample_weights @ x.square() / q + penalty.unsqueeze(1)
    mass = sample_weights.sum(1, keepdim=True) / q
    # Parameters are (P, d + 1, q): rows are features, the last one the intercept, in units of `stretch`.
    stretch = torch.cat([curvature, mass.clamp(min=1e-12)], dim=1).rsqrt().unsqueeze(2)
    design = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], dim=1)
    ridge = torch.cat(
        [penalty.unsqueeze(1).expand(count, d), torch.zeros(count, 1, dtype=x.dtype)], dim=1
    ).unsqueeze(2)
    by_sample = sample_weights.T.unsqueeze(2)

    def value_and_slope(point: Tensor) -> tuple[Tensor, Tensor]:
        beta = stretch * point
        scores = (design @ beta.permute(1, 0, 2).reshape(d + 1, count * q)).reshape(n, count, q)
        logs = torch.log_softmax(scores, dim=2)
        loss = -(by_sample * targets.unsqueeze(1) * logs).sum((0, 2)) + 0.5 * (ridge * beta.square()).sum(
            (1, 2)
        )
        residual = by_sample * (logs.exp() * targets.sum(1).reshape(n, 1, 1) - targets.unsqueeze(1))
        slope = (design.T @ residual.reshape(n, count * q)).reshape(d + 1, count, q).permute(1, 0, 2)
        return loss, stretch * (slope + ridge * beta)

    point = torch.zeros(count, d + 1, q, dtype=x.dtype)
    if start is not None:
        begin = torch.cat([start.weight, start.bias.unsqueeze(1)], dim=1)
        point = (begin / stretch).expand(count, d + 1, q).contiguous()
    point, converged, steps = _minimise(value_and_slope, point, tolerance, first_step=min(1.0, 2.0 / q))
    beta = stretch * point
    return LogisticFits(beta[:, :d], beta[:, d], converged, steps)


def _minimise(
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]],
    point: Tensor,
    tolerance: float,
    first_step: float,
) -> tuple[Tensor, Tensor, int]:
    """Batched L-BFGS with backtracking; points have shape (P, ...), every problem has its own step length.

    Reference:
        Nocedal, Wright, Numerical Optimization, 2nd edition, algorithms 3.1 and 7.4.
    """
    shape = point.shape
    loss, slope = value_and_slope(point)
    point, slope = point.flatten(1), slope.flatten(1)
    moves: list[Tensor] = []
    turns: list[Tensor] = []
    curves: list[Tensor] = []
    active = slope.abs().amax(1) > tolerance
    steps = 0
    while bool(active.any()) and steps < _MAX_STEPS:
        steps += 1
        direction = _two_loop(slope, moves, turns, curves, first_step)
        direction = torch.where(active.unsqueeze(1), direction, 0.0)
        descent = (direction * slope).sum(1)
        length = torch.ones_like(loss)
        slack = 1e-14 * (1 + loss.abs())
        for _ in range(30):
            trial = point + length.unsqueeze(1) * direction
            new_loss, new_slope = value_and_slope(trial.reshape(shape))
            short = active & ~(new_loss <= loss + _ARMIJO * length * descent + slack)
            if not bool(short.any()):
                break
            length = torch.where(short, length / 2, length)
        new_slope = new_slope.flatten(1)
        move, turn = trial - point, new_slope - slope
        curve = (move * turn).sum(1)
        good = curve > 1e-12 * turn.square().sum(1).clamp(min=1e-300)
        moves.append(torch.where(good.unsqueeze(1), move, 0.0))
        turns.append(torch.where(good.unsqueeze(1), turn, 0.0))
        curves.append(torch.where(good, 1.0 / torch.where(good, curve, 1.0), 0.0))
        del moves[:-_MEMORY], turns[:-_MEMORY], curves[:-_MEMORY]
        point, loss, slope = trial, new_loss, new_slope
        active = active & (slope.abs().amax(1) > tolerance)
    return point.reshape(shape), ~active, steps


def _two_loop(
    slope: Tensor, moves: list[Tensor], turns: list[Tensor], curves: list[Tensor], first_step: float
) -> Tensor:
    direction = -slope
    shares = []
    for move, turn, curve in zip(reversed(moves), reversed(turns), reversed(curves), strict=True):
        share = curve * (move * direction).sum(1)
        direction = direction - share.unsqueeze(1) * turn
        shares.append(share)
    scale = torch.full((slope.shape[0],), first_step, dtype=slope.dtype)
    if turns:
        squared = turns[-1].square().sum(1)
        scale = torch.where(curves[-1] > 0, 1.0 / (curves[-1] * squared).clamp(min=1e-300), scale)
    direction = scale.unsqueeze(1) * direction
    for move, turn, curve, share in zip(moves, turns, curves, reversed(shares), strict=True):
        direction = direction + (share - curve * (turn * direction).sum(1)).unsqueeze(1) * move
    return direction


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (n, r) of the rows of x (n, d) on orthonormal axes (d, r) of their span, r <= min(n, d).

    A ridge penalty doesn't change under this rotation, so n samples never cost more than n coordinates.
    """
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    alive = values > values[:1] * max(x.shape) * torch.finfo(x.dtype).eps
    alive[:1] = True
    return left[:, alive] * values[alive], right[alive].T
