"""Dissection: blocks of all models at once, so that those of one set do the same; exact for given sets.

A block goes from one cut point of a model to a later one. With psi = (signature at its input, signature at its
output), the functional similarity of two blocks is the dot product of their psi: CKA of outputs plus CKA of inputs.
Sets are given by their means; for fixed means the best parting of a model is found by dynamic programming, and for
fixed partings the best means are the means, so that alternating never loses.

Reference:
    Deep Model Reassembly, NeurIPS 2022, section 3.2, equations (3) to (7).
    Differs: an exact dynamic program instead of moving single nodes; means instead of medoids; sizes in parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sarto.errors import InfeasibleError, RequestError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Value of a parting that is not allowed.
NEVER = -math.inf
#: Relative gain of a round below which the alternation has settled.
SETTLED = 1e-6


@dataclass(frozen=True, eq=False)
class Cuts:
    """Cut points of a zoo, padded to one length.

    Attributes:
        vectors: signatures or sketches of all cut points, one row each, shape (rows, d), each of length 1.
        rows: row of each model's cut points, shape (models, most cuts); -1 where a model has fewer.
        sizes: parameters before each cut point, same shape.
        length: number of cut points of each model.
    """

    vectors: NDArray[np.float32]
    rows: Ints
    sizes: Floats
    length: Ints

    @classmethod
    def of(
        cls, vectors: NDArray[np.floating], models: Sequence[tuple[Sequence[int], Sequence[float]]]
    ) -> Cuts:
        """From the rows of each model's cut points and the parameters before each of them.

        Raises:
            RequestError: no model, or one with fewer than two cut points.
        """
        if not models:
            raise RequestError("there is no model to dissect")
        short = [i for i, (rows, _) in enumerate(models) if len(rows) < 2]
        if short:
            raise RequestError(
                f"model {short[0]} has fewer than two cut points, so it has no block to compare"
            )
        most = max(len(rows) for rows, _ in models)
        table = np.full((len(models), most), -1, dtype=np.int64)
        sizes = np.zeros((len(models), most))
        for i, (rows, before) in enumerate(models):
            table[i, : len(rows)] = rows
            sizes[i, : len(rows)] = before
        return cls(
            np.ascontiguousarray(vectors, dtype=np.float32),
            table,
            sizes,
            np.array([len(rows) for rows, _ in models], dtype=np.int64),
        )

    @property
    def n_models(self) -> int:
        """Number of models."""
        return len(self.length)


@dataclass(frozen=True)
class Limits:
    """What a parting must keep.

    Attributes:
        k: number of sets.
        slack: a block has at most (1 + slack) / k of its model's parameters; None: no limit.
        skip: what a model gains or loses for each set that it has no block in; None: it has one in each.
        labels: "ordered": the sets of a model's blocks rise; "free": each block may belong to any set.
    """

    k: int = 4
    slack: float | None = 0.2
    skip: float | None = None
    labels: Literal["ordered", "free"] = "ordered"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise RequestError(f"a model is parted into at least one block, asked for {self.k}")
        if self.slack is not None and self.slack < 0:
            raise RequestError(f"the slack of block sizes must be at least 0, got {self.slack}")
        if self.skip is not None and self.labels == "free":
            raise RequestError(
                "sets are skipped with ordered labels only: with free ones no set belongs to a stage"
            )


@dataclass(frozen=True, eq=False)
class Partition:
    """A dissection of every model.

    Attributes:
        bounds: number of the cut point at which each block begins and ends, shape (models, k, 2); -1 where a model
            skips.
        labels: set of each block, shape (models, k); -1 where a model skips.
        value: J, the sum over blocks of the mean similarity to their set, less what skips cost.
        history: J after each round; never falls.
        fixed: models whose blocks could not keep the size limit, and the smallest slack that each needs.
    """

    bounds: Ints
    labels: Ints
    value: float
    history: tuple[float, ...]
    fixed: tuple[tuple[int, float], ...] = ()
    means: NDArray[np.float32] = field(repr=False, default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def k(self) -> int:
        """Number of sets."""
        return int(self.bounds.shape[1])

    def pieces(self, model: int, length: int) -> Ints:
        """Set of each piece between neighbouring cut points of a model; -1 outside its blocks."""
        found = np.full(length - 1, -1, dtype=np.int64)
        for (start, end), label in zip(self.bounds[model], self.labels[model], strict=True):
            if start >= 0:
                found[start:end] = label
        return found


def allowed(cuts: Cuts, limits: Limits) -> tuple[NDArray[np.bool_], list[tuple[int, float]]]:
    """Which blocks are allowed: (models, cuts, cuts), from start to end; and models that needed a larger slack.

    A model that can't be parted within the slack is given the least with which it can.
    """
    n, most = cuts.rows.shape
    place = np.arange(most)
    real = place[None, :] < cuts.length[:, None]
    forward = (place[:, None] < place[None, :])[None] & real[:, :, None] & real[:, None, :]
    if limits.slack is None:
        return forward, []
    whole = cuts.sizes[np.arange(n), cuts.length - 1] - cuts.sizes[:, 0]
    cap = (1 + limits.slack) * whole / limits.k
    size = cuts.sizes[:, None, :] - cuts.sizes[:, :, None]
    found = forward & (size <= cap[:, None, None] + 0.5)
    widened: list[tuple[int, float]] = []
    for model in np.flatnonzero(~_possible(found, cuts.length, limits)):
        least = _least_cap(size[model], int(cuts.length[model]), limits)
        if math.isinf(least):
            continue
        found[model] = forward[model] & (size[model] <= least + 0.5)
        widened.append((int(model), float(least * limits.k / whole[model] - 1) if whole[model] > 0 else 0.0))
    return found, widened


def best_parting(
    cuts: Cuts, limits: Limits, means: NDArray[np.floating], fits: NDArray[np.bool_]
) -> tuple[Ints, Ints, Floats]:
    """The best parting of every model for given set means, exact.

    Args:
        means: of psi, shape (k, 2 d): input half, output half.
        fits: which blocks are allowed, see `allowed`.

    Returns:
        bounds (models, k, 2), labels (models, k), and each model's value: the sum over its blocks of psi . mean less
        half the mean's squared length, and of what skips give.
    """
    enters, leaves = _scores(cuts, means)
    half = 0.5 * np.square(means.astype(np.float64)).sum(1)
    return _solve(enters, leaves, half, fits, cuts.length, limits)


def _scores(cuts: Cuts, means: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Dot products of every cut point with the input and output halves of the means: (models, cuts, k) twice."""
    width = cuts.vectors.shape[1]
    both = np.concatenate([means[:, :width], means[:, width:]]).astype(np.float32)
    dots = (cuts.vectors @ both.T).astype(np.float64)
    taken = dots[np.maximum(cuts.rows, 0)]
    k = len(means)
    return taken[:, :, :k], taken[:, :, k:]


def _solve(
    enters: Floats, leaves: Floats, half: Floats, fits: NDArray[np.bool_], length: Ints, limits: Limits
) -> tuple[Ints, Ints, Floats]:
    n, most, k = enters.shape
    last = length - 1
    value = np.full((n, most), NEVER)
    value[:, 0] = 0.0
    came: list[Ints] = []
    chosen: list[Ints] = []
    penalty = np.where(fits, 0.0, NEVER)
    if limits.labels == "free":
        # The best set of each block, the same in every stage.
        block = np.full((n, most, most), NEVER)
        which = np.zeros((n, most, most), dtype=np.int64)
        for j in range(k):
            score = enters[:, :, None, j] + leaves[:, None, :, j] - half[j]
            better = score > block
            block = np.where(better, score, block)
            which = np.where(better, j, which)
        block = block + penalty
    for stage in range(k):
        if limits.labels == "free":
            total = value[:, :, None] + block
        else:
            total = (value + enters[:, :, stage])[:, :, None] + penalty
        start = total.argmax(1)
        best = np.take_along_axis(total, start[:, None, :], 1)[:, 0]
        if limits.labels == "free":
            chosen.append(np.take_along_axis(which, start[:, None, :], 1)[:, 0])
        else:
            best = best + leaves[:, :, stage] - half[stage]
            chosen.append(np.full((n, most), stage, dtype=np.int64))
        if limits.skip is not None:
            stay = value + limits.skip
            keeps = stay > best
            best = np.where(keeps, stay, best)
            start = np.where(keeps, np.arange(most)[None, :], start)
        came.append(start)
        value = best
    final = value[np.arange(n), last]
    bounds = np.full((n, k, 2), -1, dtype=np.int64)
    labels = np.full((n, k), -1, dtype=np.int64)
    end = last.copy()
    every = np.arange(n)
    for stage in reversed(range(k)):
        start = came[stage][every, end]
        moved = start < end
        bounds[moved, stage, 0], bounds[moved, stage, 1] = start[moved], end[moved]
        labels[moved, stage] = chosen[stage][every, end][moved]
        end = start
    return bounds, labels, final


def set_means(
    cuts: Cuts, bounds: Ints, labels: Ints, k: int, before: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Mean psi of the blocks of each set, shape (k, 2 d); an empty set keeps what it had."""
    width = cuts.vectors.shape[1]
    models, places = np.nonzero(labels >= 0)
    label = labels[models, places]
    weights = np.zeros((2 * k, len(cuts.vectors)), dtype=np.float32)
    np.add.at(weights, (label, cuts.rows[models, bounds[models, places, 0]]), 1.0)
    np.add.at(weights, (k + label, cuts.rows[models, bounds[models, places, 1]]), 1.0)
    counts = np.bincount(label, minlength=k)
    # Few rows are used: their share of one product is all that is read.
    used = np.flatnonzero(weights.any(0))
    sums = weights[:, used] @ cuts.vectors[used]
    means = np.array(before, dtype=np.float32, copy=True)
    for j in np.flatnonzero(counts):
        means[j, :width] = sums[j] / counts[j]
        means[j, width:] = sums[k + j] / counts[j]
    return means


def dissect_zoo(
    cuts: Cuts, limits: Limits, *, restarts: int = 2, seed: int = 0, rounds: int = 50
) -> Partition:
    """The best dissection that alternating from several starts finds; the first start cuts by parameter quantiles.

    Raises:
        InfeasibleError: a model has too few cut points for so many blocks.
    """
    fits, widened = allowed(cuts, limits)
    hopeless = np.flatnonzero(~_possible(fits, cuts.length, limits))
    if len(hopeless):
        most = int(cuts.length[hopeless].min()) - 1
        raise InfeasibleError(
            f"{len(hopeless)} of {cuts.n_models} models can't be parted into {limits.k} blocks, for instance "
            f"model {hopeless[0]}: the most for all is {max(most, 1)}; take fewer blocks, or let models skip sets",
            floor={"k": max(most, 1)},
        )
    generator = np.random.default_rng(seed)
    best: Partition | None = None
    for start in range(max(restarts, 1)):
        means = (
            _quantile_means(cuts, limits, fits)
            if start == 0
            else _spread_means(cuts, limits, fits, generator)
        )
        found = _alternate(cuts, limits, fits, means, rounds, tuple(widened))
        if best is None or found.value > best.value:
            best = found
    if best is None:
        raise RequestError("no start was made; ask for at least one")
    return best


def _alternate(
    cuts: Cuts,
    limits: Limits,
    fits: NDArray[np.bool_],
    means: NDArray[np.float32],
    rounds: int,
    widened: tuple[tuple[int, float], ...],
) -> Partition:
    bounds, labels, _ = best_parting(cuts, limits, means, fits)
    means = set_means(cuts, bounds, labels, limits.k, means)
    history = [value_of(cuts, bounds, labels, means, limits)]
    for _ in range(rounds):
        moved, relabelled, _ = best_parting(cuts, limits, means, fits)
        if np.array_equal(moved, bounds) and np.array_equal(relabelled, labels):
            break
        fresh = set_means(cuts, moved, relabelled, limits.k, means)
        value = value_of(cuts, moved, relabelled, fresh, limits)
        if value <= history[-1] + SETTLED * abs(history[-1]):
            break
        bounds, labels, means = moved, relabelled, fresh
        history.append(value)
    return Partition(bounds, labels, history[-1], tuple(history), widened, means)


def value_of(cuts: Cuts, bounds: Ints, labels: Ints, means: NDArray[np.floating], limits: Limits) -> float:
    """J of a dissection whose set means are given: sum over sets of n |mean|^2, and what skips give (doubled)."""
    counts = np.bincount(labels[labels >= 0], minlength=len(means))
    squares = np.square(means.astype(np.float64)).sum(1)
    skipped = int((labels < 0).sum())
    return float((counts * squares).sum()) + 2.0 * (limits.skip or 0.0) * skipped


def _quantile_means(cuts: Cuts, limits: Limits, fits: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Means of the parting into blocks of nearly equal parameters, as far as the limits let it."""
    n, most = cuts.rows.shape
    first = cuts.sizes[:, :1]
    whole = np.maximum(cuts.sizes[np.arange(n), cuts.length - 1][:, None] - first, 1.0)
    share = (cuts.sizes - first) / whole
    target = np.arange(1, limits.k + 1) / limits.k
    leaves = -np.abs(share[:, :, None] - target[None, None, :])
    plain = Limits(limits.k, limits.slack)
    bounds, labels, value = _solve(
        np.zeros((n, most, limits.k)), leaves, np.zeros(limits.k), fits, cuts.length, plain
    )
    usable = np.isfinite(value)
    labels = np.where(usable[:, None], labels, -1)
    return set_means(
        cuts, bounds, labels, limits.k, np.zeros((limits.k, 2 * cuts.vectors.shape[1]), np.float32)
    )


def _spread_means(
    cuts: Cuts, limits: Limits, fits: NDArray[np.bool_], generator: np.random.Generator
) -> NDArray[np.float32]:
    """Blocks of one random model, in order: a start as k-means++ would draw it, kept in the order of the stages."""
    usable = np.flatnonzero(_possible(fits, cuts.length, Limits(limits.k, limits.slack)))
    model = int(generator.choice(usable)) if len(usable) else 0
    n_cuts = int(cuts.length[model])
    noise = generator.random((1, n_cuts, limits.k))
    bounds, labels, value = _solve(
        noise,
        noise[:, :, ::-1].copy(),
        np.zeros(limits.k),
        fits[model : model + 1, :n_cuts, :n_cuts],
        cuts.length[model : model + 1],
        Limits(limits.k, limits.slack),
    )
    alone = Cuts(
        cuts.vectors,
        cuts.rows[model : model + 1],
        cuts.sizes[model : model + 1],
        cuts.length[model : model + 1],
    )
    if not np.isfinite(value[0]):
        labels = np.full_like(labels, -1)
    start = np.zeros((limits.k, 2 * cuts.vectors.shape[1]), np.float32)
    return set_means(alone, bounds, labels, limits.k, start)


def _possible(fits: NDArray[np.bool_], length: Ints, limits: Limits) -> NDArray[np.bool_]:
    """Models that can be parted into as many blocks as asked for (or fewer, where sets may be skipped)."""
    n, most, _ = fits.shape
    reached: NDArray[np.bool_] = np.zeros((n, most), dtype=np.bool_)
    reached[:, 0] = True
    for _ in range(limits.k):
        step: NDArray[np.bool_] = np.any(reached[:, :, None] & fits, axis=1)
        reached = step | reached if limits.skip is not None else step
    return reached[np.arange(n), length - 1]


def _least_cap(size: Floats, length: int, limits: Limits) -> float:
    """Smallest block size with which one model can be parted; infinite where it has too few cut points."""
    size = size[:length, :length]
    steps = np.unique(size[np.triu_indices(length, 1)])
    forward = np.triu(np.ones((length, length), dtype=bool), 1)
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        fits = (forward & (size <= steps[middle] + 0.5))[None]
        if bool(_possible(fits, np.array([length]), limits)[0]):
            high = middle
        else:
            low = middle + 1
    return float(steps[low]) if low < len(steps) else math.inf
