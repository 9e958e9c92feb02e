"""Latency of any graph: one coefficient for each kind of operator and feature, from measured blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sarto.devices.profiling.features import FEATURES, Terms
from sarto.devices.profiling.fit import BETTER, WIDTHS, Fitted, cross_fit, parts_of, solve
from sarto.devices.profiling.sizes import Floats
from sarto.errors import RequestError

#: Strengths of the pull of a kind towards what all kinds take.
PULLS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
#: What a feature takes at least, as a share of the time of a block that has it.
FLOOR = 1e-3
FIXED = "fixed"


@dataclass(frozen=True)
class KindFit:
    """Milliseconds for one of each feature of each kind of operator.

    Attributes:
        names: `kind.feature` of each weight, `*.feature` for kinds that were not measured, and `fixed`.
        width: of the device's vectors.
    """

    names: tuple[str, ...]
    width: int
    fitted: Fitted


def fit_kinds(
    blocks: Sequence[Terms], times: Floats, families: Sequence[str], *, widths: Sequence[int] = WIDTHS
) -> KindFit:
    """Coefficients for kinds of operators from measured blocks.

    Args:
        blocks: terms of each measured block.
        times: milliseconds of the blocks, shape (blocks,).
        families: of each block; a family is left out together in the cross-validation.

    Raises:
        RequestError: fewer than two families, their numbers differ, or a time is not positive.
    """
    if not len(blocks) == len(times) == len(families) or len(set(families)) < 2 or not (times > 0).all():
        raise RequestError(
            "kinds are fitted on blocks of at least two families, each with a time above 0 ms; got "
            f"{len(blocks)} blocks, {len(times)} times and {len(set(families))} families"
        )
    shared = tuple(f"*.{feature}" for feature in FEATURES)
    own = tuple(sorted({f"{term.kind}.{term.feature}" for block in blocks for term in block.terms}))
    names, part = (*shared, *own, FIXED), parts_of(families)
    level = np.array([FEATURES.index(name.split(".")[1]) for name in own])
    best: KindFit | None = None
    for width in widths:
        found = np.stack([by_name(block, names, width)[0] for block in blocks])
        measured = found[:, len(shared) : -1]
        together = np.column_stack([measured @ np.eye(len(FEATURES))[level], found[:, -1]])
        common = solve(together, times, pull=0.0, family=np.full(together.shape[1], -1))
        common = np.maximum(common, FLOOR * np.median(times) / np.maximum(together.mean(axis=0), 1e-9))
        scale = np.append(common[level], 1.0)
        values = found[:, len(shared) :] * scale
        for pull in PULLS:
            fitted = cross_fit(values, times, part, pull=pull, family=np.append(level, -1))
            if best is None or fitted.error < BETTER * best.fitted.error:
                stars = common[:-1]
                weights = np.concatenate([stars, fitted.weights * scale])
                folds = np.hstack([np.tile(stars, (len(fitted.folds), 1)), fitted.folds * scale])
                best = KindFit(names, width, replace(fitted, weights=weights, folds=folds))
    if best is None:
        raise RequestError("give at least one width of vectors")
    return best


def by_name(terms: Terms, names: Sequence[str], width: int, rows: Floats | None = None) -> Floats:
    """Values of a graph's terms added up by the names of a fit, shape (subnets, names)."""
    place = {name: index for index, name in enumerate(names)}
    values = terms.at([{}] if rows is None else rows, width=width)
    summed = np.zeros((len(values), len(names)))
    np.add.at(summed.T, places_of(terms, names), values.T)
    summed[:, place[FIXED]] = 1.0
    return summed


def places_of(terms: Terms, names: Sequence[str]) -> np.ndarray:
    """Of each term of a graph, the weight of a fit that it is multiplied with: of its kind, else of all kinds."""
    place = {name: index for index, name in enumerate(names)}
    shared = {feature: place[f"*.{feature}"] for feature in FEATURES}
    return np.array(
        [place.get(f"{term.kind}.{term.feature}", shared[term.feature]) for term in terms.terms], np.int64
    )
