"""Unbiased linear CKA as a cosine between fixed vectors, one a cut point, gathered in one streaming pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sarto.errors import RequestError, ShapeError

#: Images in one Gram matrix; fewer than four have no unbiased estimate.
BATCH = 64
LEAST_BATCH = 4
#: Length of a sketch: cosines of sketches are off by about 1 / sqrt of it.
SKETCH = 1024


def u_centred(gram: Tensor) -> Tensor:
    """A Gram matrix (..., b, b) centred without bias: zero diagonal, rows that sum to zero.

    Reference:
        Song, Smola, Gretton, Bedo, Borgwardt, Feature selection via dependence maximization, JMLR 13, 2012 (HSIC_1);
        Szekely, Rizzo, Partial distance correlation, 2014 (U-centring).
    """
    size = gram.shape[-1]
    if size < LEAST_BATCH or gram.shape[-2] != size:
        raise ShapeError(f"a Gram matrix to centre has at least {LEAST_BATCH} rows, got {tuple(gram.shape)}")
    off = gram.clone()
    off.diagonal(dim1=-2, dim2=-1).zero_()
    rows = off.sum(-1) / (size - 2)
    total = off.sum((-2, -1)) / ((size - 1) * (size - 2))
    centred = off - rows.unsqueeze(-1) - rows.unsqueeze(-2) + total[..., None, None]
    centred.diagonal(dim1=-2, dim2=-1).zero_()
    return centred


def signature(features: Tensor, *, batch: int = BATCH) -> Tensor:
    """Unit vector of a cut's features, shape (n_batches * batch * (batch - 1) / 2,), float64.

    The dot product of two signatures on the same images is the minibatch unbiased linear CKA: the sum of HSIC_1 over
    the batches, divided by the root of both sums with themselves. A remainder of the images is left out.

    Args:
        features: shape (n, width), n at least `batch`.

    Raises:
        RequestError: fewer images than one batch, values that are not finite, or features that do not vary.
    """
    whole = (features.shape[0] // batch) * batch
    if whole < batch or batch < LEAST_BATCH:
        raise RequestError(
            f"similarities need at least {max(batch, LEAST_BATCH)} probe images, got {features.shape[0]}: give more"
        )
    x = features[:whole].to(torch.float64)
    if not bool(torch.isfinite(x).all()):
        raise RequestError("activations hold NaN or infinity")
    x = x.reshape(-1, batch, x.shape[1])
    x = x - x.mean(1, keepdim=True)
    scale = x.square().mean().sqrt()
    if float(scale) == 0.0:
        raise RequestError("activations are the same for every probe image, so nothing can be compared")
    x = x / scale
    rows, columns = torch.triu_indices(batch, batch, 1)
    parts = u_centred(x @ x.mT)[:, rows, columns].flatten()
    norm = parts.norm()
    if float(norm) == 0.0:
        raise RequestError("activations are the same for every probe image, so nothing can be compared")
    return parts / norm


def signature_length(n: int, batch: int = BATCH) -> int:
    """Numbers in a signature of n probe images."""
    return (n // batch) * (batch * (batch - 1) // 2)


def cka(one: NDArray[np.floating], two: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unbiased CKA between the rows of two sets of signatures, shape (rows of one, rows of two)."""
    found: NDArray[np.float64] = np.asarray(one @ two.T, dtype=np.float64)
    return found


@dataclass(frozen=True)
class Similarity:
    """A CKA with the standard error that the jack-knife over the probe batches gives; None with a single batch."""

    value: float
    error: float | None


def similarity(one: NDArray[np.floating], two: NDArray[np.floating], *, batch: int = BATCH) -> Similarity:
    """CKA of two signatures with its jack-knife error: each batch is left out once, from partial dot products."""
    size = batch * (batch - 1) // 2
    a = np.asarray(one, dtype=np.float64).reshape(-1, size)
    b = np.asarray(two, dtype=np.float64).reshape(-1, size)
    cross, own, other = (a * b).sum(1), (a * a).sum(1), (b * b).sum(1)
    value = float(cross.sum() / math.sqrt(own.sum() * other.sum()))
    n = len(cross)
    if n < 2:
        return Similarity(value, None)
    left = (cross.sum() - cross) / np.sqrt((own.sum() - own) * (other.sum() - other))
    return Similarity(value, float(np.sqrt((n - 1) / n * np.square(left - left.mean()).sum())))


def cka_errors(signatures: NDArray[np.floating], *, batch: int = BATCH) -> NDArray[np.float64] | None:
    """The jack-knife errors of the CKA between all rows of signatures, those of `similarity`; None with a single batch.

    Args:
        signatures: whole ones, no sketches, shape (rows, length).

    Returns:
        Shape (rows, rows).
    """
    size = batch * (batch - 1) // 2
    parts = [signatures[:, start : start + size] for start in range(0, signatures.shape[1], size)]
    n = len(parts)
    if n < 2:
        return None
    whole = np.zeros((len(signatures), len(signatures)))
    for part in parts:
        whole += _gram(part)
    total, squares = np.zeros_like(whole), np.zeros_like(whole)
    for part in parts:
        left = whole - _gram(part)
        lengths = np.sqrt(np.maximum(left.diagonal(), np.finfo(np.float64).tiny))
        left /= np.outer(lengths, lengths)
        total += left
        squares += np.square(left)
    spread = np.maximum(squares - np.square(total) / n, 0.0)
    found: NDArray[np.float64] = np.sqrt((n - 1) / n * spread)
    return found


def _gram(part: NDArray[np.floating]) -> NDArray[np.float64]:
    rows = np.asarray(part, dtype=np.float64)
    found: NDArray[np.float64] = rows @ rows.T
    return found


class Sketcher:
    """Shortens signatures: signs and places from a seed, balanced buckets; dot products are kept without bias."""

    def __init__(self, length: int, size: int = SKETCH, seed: int = 0) -> None:
        """Args:
        length: of a signature.
        size: of a sketch; signatures that are no longer stay as they are.
        """
        self.length, self.size = length, min(size, length)
        generator = np.random.default_rng([seed, length, size])
        self._order = generator.permutation(length)
        self._signs = generator.choice(np.array([-1.0, 1.0], dtype=np.float32), length)

    def __call__(self, signatures: NDArray[np.floating]) -> NDArray[np.float32]:
        """Sketches (rows, size) of signatures (rows, length), scaled to length 1."""
        rows = np.asarray(signatures, dtype=np.float32)
        if self.size >= self.length:
            return rows
        mixed = (rows * self._signs)[:, self._order]
        spare = -self.length % self.size
        if spare:
            mixed = np.concatenate([mixed, np.zeros((len(rows), spare), np.float32)], 1)
        short = mixed.reshape(len(rows), -1, self.size).sum(1)
        norms = np.linalg.norm(short, axis=1, keepdims=True)
        return (short / np.maximum(norms, np.float32(1e-20))).astype(np.float32)


def loo_source(features: Tensor, lam: float) -> Tensor:
    """The matrix (n, n) that gives the leave-one-out error of every ridge regression from these features.

    Args:
        features: shape (n, width).
        lam: ridge in units of the mean eigenvalue of the centred Gram matrix.

    Returns:
        M = (I - H) D^2 (I - H) with the hat matrix H (intercept in it) and D = diag(1 / (1 - h_ii)).
    """
    x = features.to(torch.float64)
    n = x.shape[0]
    x = x - x.mean(0)
    gram = x @ x.T
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0.0)
    rank = min(n - 1, x.shape[1])
    mu = lam * float(values.sum()) / max(rank, 1)
    if mu <= 0:
        raise RequestError("a leave-one-out stitch error needs lam > 0 and features that vary")
    hat = (vectors * (values / (values + mu))) @ vectors.T + 1.0 / n
    rest = torch.eye(n, dtype=torch.float64) - hat
    # (I - H) D^2 (I - H) with H symmetric: rows of (D (I - H)) against each other.
    weighted = rest / rest.diagonal().unsqueeze(1)
    return weighted.T @ weighted


def loo_target(features: Tensor) -> Tensor:
    """The centred Gram matrix (n, n) of what is predicted, with trace 1."""
    y = features.to(torch.float64)
    y = y - y.mean(0)
    gram = y @ y.T
    return gram / gram.trace()


def loo_r2(source: Tensor, target: Tensor) -> float:
    """Share of the target's variance that a ridge regression from the source predicts on images left out."""
    return 1.0 - float((source * target).sum())


#: Ridges that a source tries; the one with the best error against its receiver counts.
LAMS = (1e-3, 1e-2, 1e-1, 1.0)
