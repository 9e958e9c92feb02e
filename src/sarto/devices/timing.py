"""Timing calls fairly: warm-up, many runs, median and quartiles; several calls take turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sarto.devices.turns import take_turns
from sarto.errors import RequestError

#: Seconds of measuring, for one call.
SECONDS = 0.7


@dataclass(frozen=True)
class Timing:
    """Time of one call.

    Attributes:
        median_ms: half of the runs were quicker.
        low_ms: lower quartile, a quarter of the runs were quicker.
        high_ms: upper quartile, a quarter of the runs were slower.
        runs: measured ones; `warmup` others went before.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    warmup: int


def interleaved(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float = SECONDS,
    runs: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
) -> tuple[Timing, ...]:
    """Time of each call, in order; the calls take turns, so that what slows the machine down slows all of them.

    Args:
        seconds: how long to measure, for each call on average.
        runs: measured runs of each call; None takes as many as fit in the seconds, from 15 (5 for slow calls) to 2000.
        warmup: runs of each call before; None takes 0.15 seconds' worth.
        threads: that the calls use; with 1, waits for a processor that others use don't count.

    Raises:
        RequestError: there is no call, or a number is not positive; all problems at once.
    """
    check_positive(seconds=seconds, runs=runs, warmup=warmup)
    if not calls:
        raise RequestError("nothing to measure: give at least one call")
    times, warmed = take_turns(calls, seconds=seconds, runs=runs, warmup=warmup, threads=threads)
    return tuple(summary(taken, warmed) for taken in times)


def summary(taken: Sequence[float], warmup: int) -> Timing:
    """Median and quartiles of measured runs, in milliseconds."""
    low, middle, high = (
        statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else 3 * [taken[0]]
    )
    return Timing(middle, low, high, len(taken), warmup)


def check_positive(**values: float | None) -> None:
    """Refuse numbers that are not positive and finite; None passes.

    Raises:
        RequestError: names every such value.
    """
    problems = [
        f"{name} must be above 0, got {value}"
        for name, value in values.items()
        if value is not None and not (value > 0 and math.isfinite(value))
    ]
    if problems:
        raise RequestError("latency can't be measured", problems=problems)
