"""Timing calls fairly: warm-up, many runs, median and quartiles; several calls take turns."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sarto.errors import RequestError

#: Seconds of warm-up, and of measuring, for one call.
WARM_SECONDS, SECONDS = 0.15, 0.7
#: Runs of the warm-up and measured ones, at least; a call so slow that these take `PATIENCE` times the measuring time
#: is measured `FEWEST` times.
MIN_WARMUP, MIN_RUNS, FEWEST, PATIENCE = 3, 15, 5, 5
MAX_RUNS = 2_000


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
) -> tuple[Timing, ...]:
    """Time of each call, in order; the calls take turns, so that what slows the machine down slows all of them.

    Args:
        seconds: how long to measure, for each call on average.
        runs: measured runs of each call; None takes as many as fit in the seconds, from 15 (5 for slow calls) to 2000.
        warmup: runs of each call before; None takes 0.15 seconds' worth.

    Raises:
        RequestError: there is no call, or a number is not positive; all problems at once.
    """
    check_positive(seconds=seconds, runs=runs, warmup=warmup)
    if not calls:
        raise RequestError("nothing to measure: give at least one call")
    times: list[list[float]] = [[] for _ in calls]
    with _without_collection():
        warmed, begun = 0, time.perf_counter()
        while not _warm(warmed, (time.perf_counter() - begun) / len(calls), warmup):
            for call in calls:
                call()
            warmed += 1
        begun = time.perf_counter()
        while not _enough(len(times[0]), (time.perf_counter() - begun) / len(calls), seconds, runs):
            for call, taken in zip(calls, times, strict=True):
                start = time.perf_counter()
                call()
                taken.append(1e3 * (time.perf_counter() - start))
    return tuple(_summary(taken, warmed) for taken in times)


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


def _warm(done: int, elapsed: float, wanted: int | None) -> bool:
    if wanted is not None:
        return done >= wanted
    return done >= MIN_WARMUP and (elapsed >= WARM_SECONDS or done >= MAX_RUNS)


def _enough(done: int, elapsed: float, seconds: float, wanted: int | None) -> bool:
    if wanted is not None:
        return done >= wanted
    least = FEWEST if elapsed >= PATIENCE * seconds else MIN_RUNS
    return done >= MAX_RUNS or (done >= least and elapsed >= seconds)


def _summary(taken: Sequence[float], warmup: int) -> Timing:
    low, middle, high = (
        statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else 3 * [taken[0]]
    )
    return Timing(middle, low, high, len(taken), warmup)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Garbage collection would hit some runs and not others."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
