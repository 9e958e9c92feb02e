"""Ridge regression with a free intercept in dual form, for many penalties at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DualRidge:
    """Solutions of L ridge regressions on n samples and q targets.

    inverse: (L, n, n), the inverse of K + lam W^-1 with the intercept projected out; its rows sum to zero.
    alpha: (L, n, q) = inverse @ targets, so predictions are kernel(x, samples) @ alpha + bias.
    bias: (L, q).
    """

    inverse: Tensor
    alpha: Tensor
    bias: Tensor


def solve_dual_ridge(kernel: Tensor, targets: Tensor, sample_weights: Tensor, lams: Tensor) -> DualRidge:
    """Minimise sum_i w_i ||y_i - f(x_i) - b||^2 + lam ||f||^2 for each lam; one eigendecomposition for all.

    Args:
        kernel: (n, n), symmetric positive semidefinite, float64.
        targets: (n, q).
        sample_weights: (n,), > 0.
        lams: (L,), > 0.

    Reference:
        Suykens, Vandewalle, "Least squares support vector machine classifiers", 1999 (dual with intercept).
    """
    root = sample_weights.sqrt()
    values, vectors = torch.linalg.eigh(root.unsqueeze(1) * kernel * root)
    damped = 1.0 / (values.clamp(min=0) + lams.unsqueeze(1))
    axes = root.unsqueeze(1) * vectors
    plain = (axes * damped.unsqueeze(1)) @ axes.T
    sums = plain.sum(2)
    total = sums.sum(1)
    inverse = plain - sums.unsqueeze(2) * sums.unsqueeze(1) / total.reshape(-1, 1, 1)
    bias = (sums @ targets) / total.unsqueeze(1)
    return DualRidge(inverse, inverse @ targets, bias)


def left_out_residuals(inverse: Tensor, alpha: Tensor, sets: Tensor) -> Tensor:
    """y - prediction for sets of samples when each set is left out of the fit, (L, S, m, q); exact, no refit.

    Residual on a set B = (inverse_BB)^-1 alpha_B.

    Args:
        inverse: (L, n, n) of `solve_dual_ridge`.
        alpha: (L, n, q) of the same.
        sets: (S, m) sample indices, padded with -1 (padding gives 0); no index twice in one row, and at
            least one sample outside each set.

    Reference:
        Block form of Cawley, "Leave-one-out cross-validation based model selection criteria for weighted
        LS-SVMs", IJCNN 2006.
    """
    valid = sets >= 0
    index = sets.clamp(min=0)
    both = valid.unsqueeze(2) & valid.unsqueeze(1)
    identity = torch.eye(sets.shape[1], dtype=inverse.dtype)
    blocks = torch.where(both, inverse[:, index.unsqueeze(2), index.unsqueeze(1)], identity)
    right = torch.where(valid.unsqueeze(2), alpha[:, index], 0.0)
    return torch.linalg.solve(blocks, right)
