"""Bounds: the share that is promised is kept, for few rows and many, whatever the noise looks like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from sarto.devices.profiling.conformal import interval, rank_of
from sarto.devices.profiling.fit import cross_fit, parts_of
from sarto.errors import RequestError


@pytest.mark.parametrize("n", [10, 45, 64, 200])
def test_the_rank_is_that_of_a_tolerance_bound(n: int) -> None:
    rank, stretch = rank_of(n, 0.95, 0.9)
    if 1 - 0.95**n >= 0.9:
        assert stretch == 1
        assert binom.cdf(rank - 1, n, 0.95) >= 0.9
        assert rank == 1 or binom.cdf(rank - 2, n, 0.95) < 0.9
    else:
        assert rank == n and stretch > 1


@pytest.mark.parametrize("noise", ["normal", "uniform", "skewed"])
def test_95_percent_of_what_is_measured_later_lies_under_the_bound(noise: str) -> None:
    rng = np.random.default_rng(7)
    kept, above = [], []

    def disturbed(times: np.ndarray) -> np.ndarray:
        drawn = {
            "normal": lambda: rng.standard_normal(len(times)),
            "uniform": lambda: rng.uniform(-1.7, 1.7, len(times)),
            "skewed": lambda: rng.exponential(1.0, len(times)),
        }[noise]()
        return times * (1 + 0.02 * drawn)

    for _ in range(30):
        values = rng.random((64, 6))
        cost = rng.random(6) + 0.2
        part = parts_of(range(64))
        fit = cross_fit(values, disturbed(values @ cost), part, pull=1e-4, family=np.zeros(6, np.int64))
        later = rng.random((200, 6))
        low, high = interval(later @ fit.folds.T, part, fit.residuals)
        times = disturbed(later @ cost)
        kept.append(np.mean(times <= high))
        above.append(np.mean(times >= low))
        assert (low < high).all()
    assert np.mean(np.array(kept) >= 0.95) >= 0.85 and np.mean(kept) > 0.96
    assert np.mean(above) > 0.95


def test_few_rows_give_wider_bounds_and_still_keep_them() -> None:
    rng = np.random.default_rng(3)
    kept = []
    for _ in range(200):
        residuals = 0.03 * rng.standard_normal(12)
        _, high = interval(np.ones((1, 4)), np.arange(12) % 4, residuals)
        kept.append(np.mean(1 + 0.03 * rng.standard_normal(50) <= high[0]))
    assert np.mean(kept) > 0.95


def test_nonsense_is_refused() -> None:
    with pytest.raises(RequestError, match=r"got 0 rows, level 0\.95"):
        interval(np.ones((1, 1)), np.array([], np.int64), np.array([]))
    with pytest.raises(RequestError, match="level 1, confidence"):
        interval(np.ones((1, 1)), np.array([0]), np.array([0.1]), level=1.0)
