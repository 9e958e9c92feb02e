"""Bounds that hold: so much of what is measured later lies under them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sarto.devices.profiling.sizes import Floats
from sarto.errors import RequestError

#: Share of later measurements that shall lie under an upper bound, and how sure we want to be of that.
LEVEL, CONFIDENCE = 0.95, 0.9
#: A bound below is never under this share of a prediction.
LEAST = 0.05


def interval(
    folds: Floats,
    part: npt.NDArray[np.int64],
    residuals: Floats,
    *,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
) -> tuple[Floats, Floats]:
    """Lower and upper bounds of latencies, each to be kept by a share `level` of measurements; shape (models,).

    Args:
        folds: predictions by the fits that leave one part out, shape (models, parts).
        part: of each calibration row, the part that leaves it out, shape (rows,).
        residuals: of each row, measured over predicted without it, minus 1, shape (rows,).
        level: share of later measurements on the right side of a bound.
        confidence: that this share is reached, over the draw of the rows.

    Raises:
        RequestError: no rows, or a level or confidence outside (0, 1).

    Reference:
        Barber et al., Predictive inference with the jackknife+, Annals of Statistics 2021, section 3 (CV+).
        Differs: relative residuals with their sign, one bound at a time; the rank is that of a tolerance bound (Wilks
        1941), so that the share itself is reached and not its mean over many calibrations; where the rows are too few
        for that, residuals are stretched as if their tail were exponential.
    """
    if not len(residuals) or not 0 < level < 1 or not 0 < confidence < 1:
        raise RequestError(
            f"a bound needs measured rows and a level and confidence between 0 and 1, got {len(residuals)} rows, level "
            f"{level:g}, confidence {confidence:g}"
        )
    rank, stretch = rank_of(len(residuals), level, confidence)
    guesses = folds[:, part]
    high = np.sort(guesses * (1 + residuals * np.where(residuals > 0, stretch, 1)), axis=1)[:, rank - 1]
    kept = np.maximum(1 + residuals * np.where(residuals < 0, stretch, 1), LEAST)
    low = np.sort(guesses * kept, axis=1)[:, len(residuals) - rank]
    return low, high


@lru_cache(maxsize=256)
def rank_of(n: int, level: float, confidence: float) -> tuple[int, float]:
    """Which of n sorted values is a bound for a share `level`, and by how much its residual is to be stretched."""
    below = 0.0
    for rank in range(1, n + 1):
        below += math.comb(n, rank - 1) * level ** (rank - 1) * (1 - level) ** (n - rank + 1)
        if below >= confidence:
            return rank, 1.0
    return n, math.log(1 - confidence) / (n * math.log(level))
