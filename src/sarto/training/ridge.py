"""Linear maps that give back all units from the kept ones, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.training._inputs import check_square

_CHOLESKY_FROM = 1e-6
"""Weaker ridges are solved by eigenvalues: slower, but sound for singular moments."""


def selection_matrix(kept: Tensor, size: int) -> Tensor:
    """Matrix (size, s) that writes s kept units to their places among `size`, zeros elsewhere.

    Raises:
        RequestError: an index outside 0..size-1, or one that appears twice.
    """
    indices = kept.to(torch.int64)
    if indices.ndim != 1 or indices.numel() < 1 or int(indices.min()) < 0 or int(indices.max()) >= size:
        raise RequestError(
            f"kept units must be indices in 0..{size - 1}, at least one; got {indices.tolist()[:8]}"
        )
    if indices.unique().numel() != indices.numel():
        raise RequestError(f"kept units must differ from each other, got {indices.tolist()[:8]}")
    matrix = torch.zeros(size, indices.numel(), dtype=torch.float64)
    matrix[indices, torch.arange(indices.numel())] = 1.0
    return matrix


def reconstruction_map(gram_kept: Tensor, cross: Tensor, *, lam: float, towards: Tensor) -> Tensor:
    """Linear map R (..., u, s) that gives all u units z from the s kept ones f: z ~ R f, without bias.

    R = argmin sum_w ||z - R f||^2 + lam * mean_diag(gram_kept) * ||R - towards||^2. Solved in float64 as
    R = towards + (cross - towards gram_kept)(gram_kept + mu I)^-1, so lam = inf gives `towards` exactly
    (plain pruning) and lam = 0 the solution nearest to `towards`, also when gram_kept is singular.
    Leading axes are a batch, for instance one entry a class.

    Args:
        gram_kept: sum_w f f^T, shape (..., s, s).
        cross: sum_w z f^T with the same sample weights, shape (..., u, s).
        lam: strength >= 0 in units of the mean diagonal of gram_kept; 1e-3..1e-1 are much the same.
        towards: what R is drawn to, shape (u, s) or (..., u, s): the selection matrix.

    Raises:
        ShapeError: shapes don't belong together.
        RequestError: lam is negative or NaN, or entries are not finite.

    Reference:
        Slice-and-Pack, the linear layer l_i.
        Differs: closed-form ridge regression drawn towards plain pruning instead of gradient steps from zero.
    """
    size = check_square("gram_kept", gram_kept)
    if cross.ndim != gram_kept.ndim or cross.shape[:-2] != gram_kept.shape[:-2] or cross.shape[-1] != size:
        raise ShapeError(
            f"cross must have shape (..., units, {size}) like gram_kept {tuple(gram_kept.shape)}; "
            f"got {tuple(cross.shape)}"
        )
    if towards.shape not in (cross.shape, cross.shape[-2:]):
        raise ShapeError(
            f"towards must have the shape of cross {tuple(cross.shape)}, got {tuple(towards.shape)}"
        )
    if math.isnan(lam) or lam < 0:
        raise RequestError(f"lam must be >= 0, got {lam}")
    if not bool(torch.isfinite(cross).all()):
        raise RequestError("cross has non-finite entries; check the activations that it was summed from")
    goal = towards.to(torch.float64).expand(cross.shape)
    if math.isinf(lam):
        return goal.to(cross.dtype).clone()
    gram = gram_kept.to(torch.float64)
    gram = (gram + gram.mT) / 2
    missing = cross.to(torch.float64) - goal @ gram
    return (goal + _solve_damped(gram, missing, lam)).to(cross.dtype)


def _solve_damped(gram: Tensor, missing: Tensor, lam: float) -> Tensor:
    """missing (gram + lam mean_diag I)^-1 on the range of gram; zero on directions without energy."""
    mean_diagonal = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    if lam >= _CHOLESKY_FROM:
        damping = torch.where(mean_diagonal > 0, lam * mean_diagonal, 1.0)
        identity = torch.eye(gram.shape[-1], dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(gram + damping[..., None, None] * identity)
        if not bool(failed.any()):
            return torch.cholesky_solve(missing.mT, factor).mT
    values, vectors = torch.linalg.eigh(gram)
    noise = values[..., -1:].clamp(min=0) * gram.shape[-1] * torch.finfo(torch.float64).eps * 8
    alive = values > noise
    inverse = torch.where(
        alive, 1.0 / torch.where(alive, values + lam * mean_diagonal.unsqueeze(-1), 1.0), 0.0
    )
    return ((missing @ vectors) * inverse.unsqueeze(-2)) @ vectors.mT
