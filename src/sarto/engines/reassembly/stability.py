"""How many blocks: the number whose dissection changes least when other probe images are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sarto.engines.reassembly.partition import Cuts, Limits, Partition, dissect_zoo, set_means, value_of
from sarto.errors import InfeasibleError, RequestError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Steadiness:
    """How a number of blocks did.

    Attributes:
        k: number of blocks.
        value_per_block: J / (models x k): mean functional similarity of a block to its set, between -2 and 2.
        agreement: mean adjusted Rand index between dissections on random halves of the probe batches; None where no
            model could be parted so often.
    """

    k: int
    value_per_block: float
    agreement: float | None


def adjusted_rand(one: Sequence[int], two: Sequence[int]) -> float:
    """How alike two labellings of the same things are: 1 the same, 0 by chance.

    Reference:
        Hubert, Arabie, Comparing partitions, 1985, equation (5).
    """
    a, b = np.asarray(one), np.asarray(two)
    if a.shape != b.shape or a.ndim != 1:
        raise RequestError(f"two labellings of the same things are compared, got {a.shape} and {b.shape}")
    _, first = np.unique(a, return_inverse=True)
    _, second = np.unique(b, return_inverse=True)
    table = np.zeros((first.max(initial=0) + 1, second.max(initial=0) + 1), dtype=np.int64)
    np.add.at(table, (first, second), 1)

    def pairs(counts: NDArray[np.int64]) -> float:
        return float((counts * (counts - 1) // 2).sum())

    together, rows, columns = pairs(table.ravel()), pairs(table.sum(1)), pairs(table.sum(0))
    every = len(a) * (len(a) - 1) / 2
    if every == 0:
        return 1.0
    expected = rows * columns / every
    most = (rows + columns) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def on_batches(
    signatures: NDArray[np.floating], size: int, batches: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float32]:
    """Signatures of some of the probe batches alone, each of length 1 again.

    Args:
        size: numbers of a signature that one batch gives.
    """
    chosen = np.concatenate([np.arange(b * size, (b + 1) * size) for b in batches])
    part = np.asarray(signatures[:, chosen], dtype=np.float32)
    return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), np.float32(1e-20))


def choose_k(
    cuts: Cuts,
    limits: Limits,
    ks: Sequence[int],
    *,
    size: int,
    draws: int = 3,
    restarts: int = 2,
    seed: int = 0,
) -> tuple[int, tuple[Steadiness, ...]]:
    """The number of blocks with the steadiest dissection, and how each did; ties within one error: the larger.

    Args:
        cuts: with whole signatures, not sketches.
        limits: their `k` is replaced by each of `ks`.
        size: numbers of a signature that one probe batch gives.
        draws: pairs of disjoint halves of the probe batches.

    Raises:
        RequestError: fewer than two probe batches.
        InfeasibleError: no model can be parted as often as the smallest k asks.
    """
    n_batches = cuts.vectors.shape[1] // size
    if n_batches < 2:
        raise RequestError(
            "the number of blocks is chosen by comparing halves of the probe images, at least two batches of them: "
            f"{n_batches} {'is' if n_batches == 1 else 'are'} there; index more images under another name (--n-probes, "
            "--batch), or say a number (--blocks)"
        )
    generator = np.random.default_rng(seed)
    halves = []
    for _ in range(draws):
        order = generator.permutation(n_batches)
        halves.append((order[: n_batches // 2], order[n_batches // 2 : 2 * (n_batches // 2)]))
    found: list[Steadiness] = []
    for k in ks:
        wanted = replace(limits, k=k)
        try:
            whole = dissect_zoo(cuts, wanted, restarts=restarts, seed=seed)
        except InfeasibleError:
            found.append(Steadiness(k, 0.0, None))
            continue
        scores = []
        for pair in halves:
            parts = [
                dissect_zoo(
                    replace(cuts, vectors=on_batches(cuts.vectors, size, batches)),
                    wanted,
                    restarts=restarts,
                    seed=seed,
                )
                for batches in pair
            ]
            scores.append(adjusted_rand(*(piece_labels(cuts, part) for part in parts)))
        found.append(Steadiness(k, whole.value / (cuts.n_models * k), float(np.mean(scores))))
    known = [item for item in found if item.agreement is not None]
    if not known:
        raise InfeasibleError(f"no model can be parted into any of {list(ks)} blocks", floor={"k": 1})
    best = max(item.agreement or 0.0 for item in known)
    return max(item.k for item in known if (item.agreement or 0.0) >= best - 0.01), tuple(found)


def similarity_error(cuts: Cuts, found: Partition, *, size: int) -> float | None:
    """Standard error of the mean functional similarity of a dissection's blocks to their sets; None with one batch.

    By the jack-knife: each probe batch is left out once, the dissection stays as it is.

    Args:
        cuts: with whole signatures, not sketches.
        size: numbers of a signature that one probe batch gives.
    """
    n_batches = cuts.vectors.shape[1] // size
    if n_batches < 2:
        return None
    left = []
    for gone in range(n_batches):
        kept = [batch for batch in range(n_batches) if batch != gone]
        part = replace(cuts, vectors=on_batches(cuts.vectors, size, kept))
        empty = np.zeros((found.k, 2 * part.vectors.shape[1]), np.float32)
        means = set_means(part, found.bounds, found.labels, found.k, empty)
        value = value_of(part, found.bounds, found.labels, means, Limits(found.k))
        left.append(value / int((found.labels >= 0).sum()))
    return float(np.sqrt((n_batches - 1) * np.var(left)))


def piece_labels(cuts: Cuts, found: Partition) -> list[int]:
    """Set of every piece between neighbouring cut points, model after model."""
    return [
        int(label)
        for model, length in enumerate(cuts.length.tolist())
        for label in found.pieces(model, int(length))
    ]
