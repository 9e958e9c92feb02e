"""Which subnets to measure: corners, and of many random ones those that tell most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sarto.devices.profiling.features import Terms
from sarto.devices.profiling.fit import columns_of, gathered
from sarto.devices.profiling.sizes import Floats
from sarto.errors import RequestError

#: Random subnets that the design chooses from.
POOL = 1000
#: Ratios of the corners: every group alike.
CORNERS = (1.0, 0.05, 0.5, 0.25, 0.75)
#: Share of the subnets that are drawn and not chosen, so that errors on them are those of any subnet.
DRAWN = 0.5
#: Vectors that the design has in mind.
WIDTH = 8


def random_counts(
    groups: Mapping[str, int], n: int, rng: np.random.Generator, *, step: int = 1, sloped: bool = False
) -> npt.NDArray[np.int64]:
    """Random unit counts, shape (n, groups): every layer's ratio is uniform, and so is every second subnet's level.

    Ratios drawn for each layer alone nearly average out in a deep model, which would leave small and large subnets
    unmeasured; so every second subnet draws its layers from a window around a level of its own.

    Args:
        step: counts are multiples of it, or whole groups.
        sloped: these levels go evenly from one at the first group to another at the last, as widths do that were solved
            for a budget.
    """
    sizes = np.array(list(groups.values()), float)
    ratios = rng.random((n, len(sizes)))
    level = rng.random((n, 1))
    if sloped:
        level = level + (rng.random((n, 1)) - level) * np.linspace(0, 1, len(sizes))
    window = rng.random((n, 1)) * 0.5
    near = np.clip(level + window * (2 * rng.random((n, len(sizes))) - 1), 0, 1)
    ratios[1::2] = near[1::2]
    return _stepped(np.maximum(1, np.ceil(ratios * sizes)), sizes, step)


def design(
    terms: Terms, n: int, *, base: Floats | None = None, seed: int = 0, pool: int = POOL, step: int = 1
) -> npt.NDArray[np.int64]:
    """Unit counts of the subnets to measure, shape (n, groups): corners, drawn ones, and a D-optimal choice.

    The choice maximises the determinant of the information matrix of a fit with a pull: greedily, then by exchanges as
    long as they help.

    Args:
        terms: of the backbone.
        base: milliseconds for one of each term, as far as known; None weighs all terms alike.
        pool: random subnets to choose from.
        step: counts are multiples of it, or whole groups.

    Raises:
        RequestError: n is not positive, or the graph has nothing to slice.
    """
    if n < 1 or not terms.groups:
        what = f"{n} subnets" if terms.groups else "subnets of a graph that has no sliceable group"
        raise RequestError(f"can't design {what}: give at least one, of a model that can be sliced")
    rng = np.random.default_rng(seed)
    sizes = np.array(list(terms.groups.values()), float)
    corners = np.stack([np.maximum(1, np.round(ratio * sizes)) for ratio in CORNERS])[:n]
    corners = _stepped(corners, sizes, step)
    # Small groups are rounded up to equal corners; each stands once, in the order above.
    corners = corners[np.sort(np.unique(corners, axis=0, return_index=True)[1])]
    drawn = random_counts(terms.groups, int(DRAWN * (n - len(corners))), rng, step=step)
    known = np.concatenate([corners, drawn])
    candidates = random_counts(terms.groups, pool, rng, step=step)
    column, _ = columns_of(terms)

    def values(rows: npt.NDArray[np.int64]) -> Floats:
        found = terms.at(rows.astype(float), width=WIDTH)
        weight = base if base is not None else 1 / np.maximum(terms.at([{}], width=WIDTH)[0], 1e-12)
        summed = gathered(found * weight, column)
        scaled: Floats = summed / summed.sum(axis=1, keepdims=True)
        return scaled

    chosen = _exchange(values(known), values(candidates), n - len(known))
    return np.concatenate([known, candidates[chosen]])


def _stepped(counts: Floats, sizes: Floats, step: int) -> npt.NDArray[np.int64]:
    return np.minimum(np.ceil(counts / step) * step, sizes).astype(np.int64)


def _exchange(known: Floats, values: Floats, n: int, *, passes: int = 2) -> list[int]:
    """Rows of `values` that add most to the information of `known`."""
    width = values.shape[1]
    level = np.mean(values**2) * width * 1e-2
    inverse = np.linalg.inv(level * np.eye(width) + known.T @ known)
    chosen: list[int] = []

    def add(row: Floats, sign: float) -> None:
        nonlocal inverse
        moved = inverse @ row
        inverse = inverse - sign * np.outer(moved, moved) / (1 + sign * row @ moved)

    def best() -> int:
        gain = np.einsum("ij,jk,ik->i", values, inverse, values, optimize=True)
        gain[chosen] = -1
        return int(gain.argmax())

    for _ in range(min(n, len(values))):
        chosen.append(best())
        add(values[chosen[-1]], 1.0)
    for _ in range(passes):
        before = list(chosen)
        for _ in range(len(chosen)):
            out = chosen.pop(0)
            add(values[out], -1.0)
            chosen.append(best())
            add(values[chosen[-1]], 1.0)
        if set(chosen) == set(before):
            break
    return chosen
