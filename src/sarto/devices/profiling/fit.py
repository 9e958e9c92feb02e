"""Latency as a sum of terms with coefficients that are never negative, drawn to what similar operators take.

First one coefficient for each kind of operator and feature, from measured blocks: good for any graph. Then one for each
thing that the subnets of a backbone can tell apart, drawn to the first; the strength of the pull and the width of the
device's vectors are chosen by cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sarto.devices.profiling.features import Terms
from sarto.devices.profiling.sizes import Floats
from sarto.errors import RequestError

#: Widths of vectors that are tried, in numbers.
WIDTHS = (1, 4, 8, 16, 32)
#: Strengths of the pull that are tried, in units of the squared relative error of one measurement.
PULLS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
#: Parts of a cross-validation.
FOLDS = 12
#: What a term takes at least at full width before anything pulls, as a share of an even split of the time.
FLOOR = 0.1
#: Fewest subnets that a backbone is fitted on.
LEAST_SUBNETS = 4
#: A wider vector or a weaker pull must lower the error by this factor: noise decides nothing.
BETTER = 0.98

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """Coefficients for columns of values, fitted on all rows and on all but each part.

    Attributes:
        weights: shape (columns,).
        folds: shape (parts, columns).
        part: of each row, the part that leaves it out.
        residuals: of each row, measured over predicted without it, minus 1.
    """

    weights: Floats
    folds: Floats
    part: Ints
    residuals: Floats

    @property
    def error(self) -> float:
        """Mean relative error on rows left out, relative to what was measured."""
        return float(np.mean(np.abs(1 - 1 / (1 + self.residuals))))


@dataclass(frozen=True)
class BackboneFit:
    """Coefficients for the terms of one backbone.

    Attributes:
        base: milliseconds for one of each term before the fit, shape (terms,).
        column: of each term, the column that it belongs to, shape (terms,).
        width: of the device's vectors.
        pull: how strongly the weights are drawn together.
        fitted: weights of the columns; a term takes weight times base.
    """

    base: Floats
    column: Ints
    width: int
    pull: float
    fitted: Fitted


def solve(values: Floats, times: Floats, *, pull: float, family: Ints) -> Floats:
    """Non-negative weights whose sums come nearest to the times, relative to them; shape (columns,).

    Args:
        values: shape (rows, columns), in milliseconds at weight 1.
        times: measured milliseconds, shape (rows,).
        pull: penalty of a squared difference between a weight and the level of its family.
        family: of each column, shape (columns,); -1 is drawn nowhere. Levels are fitted with the weights.
    """
    from scipy.optimize import nnls

    n_columns, levels = values.shape[1], int(family.max(initial=-1)) + 1
    rows = np.zeros((len(times) + n_columns, n_columns + levels))
    rows[: len(times), :n_columns] = values / times[:, None]
    drawn = np.flatnonzero(family >= 0)
    rows[len(times) + drawn, drawn] = np.sqrt(pull)
    rows[len(times) + drawn, n_columns + family[drawn]] = -np.sqrt(pull)
    target = np.concatenate([np.ones(len(times)), np.zeros(n_columns)])
    # Normal equations halve the work and lose nothing that a measurement could tell.
    gram, right = rows.T @ rows, rows.T @ target
    gram[np.diag_indices_from(gram)] += 1e-12 * np.trace(gram) / len(gram)
    factor = np.linalg.cholesky(gram).T
    found, _ = nnls(factor, np.linalg.solve(factor.T, right), maxiter=30 * len(gram))
    return np.asarray(found[:n_columns], float)


def cross_fit(values: Floats, times: Floats, part: Ints, *, pull: float, family: Ints) -> Fitted:
    """Weights from all rows, from all but each part, and how far each row lies from what the others say."""
    weights = solve(values, times, pull=pull, family=family)
    folds = np.stack(
        [
            solve(values[part != out], times[part != out], pull=pull, family=family)
            for out in range(part.max() + 1)
        ]
    )
    guess = np.maximum((values * folds[part]).sum(axis=1), 1e-3 * times)
    return Fitted(weights, folds, part, times / guess - 1)


def parts_of(names: Sequence[object], most: int = FOLDS) -> Ints:
    """A part for each row, the same for rows of one name: what was measured twice is left out together."""
    place = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] % min(most, len(place)) for name in names], np.int64)


def fit_backbone(
    terms: Terms,
    rows: Floats,
    times: Floats,
    base: Floats,
    *,
    step: int = 1,
    widths: Sequence[int] = WIDTHS,
    pulls: Sequence[float] = PULLS,
) -> BackboneFit:
    """Coefficients for a backbone from measured subnets.

    Args:
        terms: of the backbone.
        rows: unit counts of the subnets, shape (subnets, groups).
        times: milliseconds of the subnets, shape (subnets,).
        base: milliseconds for one of each term, as far as is known without the subnets, shape (terms,).
        step: unit counts are rounded up to multiples of it.

    Raises:
        RequestError: fewer than four subnets, or a time that is not positive.
    """
    if len(times) < LEAST_SUBNETS or not (np.isfinite(times).all() and (times > 0).all()):
        raise RequestError(
            f"a backbone is fitted on at least {LEAST_SUBNETS} subnets, each with a time above 0 ms; got {len(times)}, "
            f"{int((times > 0).sum())} of them above 0 ms"
        )
    column, family = columns_of(terms)
    part = parts_of([row.tobytes() for row in rows])
    best: BackboneFit | None = None
    for width in widths:
        values = terms.at(rows, width=width, step=step)
        full = terms.at([{}], width=width)[0]
        floored = np.maximum(base, FLOOR * times.max() / len(base) / np.maximum(full, 1e-12))
        summed = gathered(values * floored, column)
        tried = [
            BackboneFit(
                floored, column, width, pull, cross_fit(summed, times, part, pull=pull, family=family)
            )
            for pull in sorted(pulls, reverse=True)
        ]
        for found in tried:
            if best is None or found.fitted.error < BETTER * best.fitted.error:
                best = found
    if best is None:
        raise RequestError("give at least one width of vectors and one strength of the pull")
    return best


def columns_of(terms: Terms) -> tuple[Ints, Ints]:
    """Of each term its column, shape (terms,); of each column its family, shape (columns,).

    Families: what grows with two unit counts or more, what grows with one, and what stays (drawn nowhere).
    """
    known = {key: place for place, key in enumerate(dict.fromkeys(terms.columns))}
    family = [min(len(key), 2) - 1 for key in known]
    return np.array([known[key] for key in terms.columns], np.int64), np.array(family, np.int64)


def gathered(values: Floats, column: Ints) -> Floats:
    """Values of terms added up by column: (rows, terms) -> (rows, columns)."""
    summed = np.zeros((values.shape[0], int(column.max()) + 1))
    np.add.at(summed.T, column, values.T)
    return summed
