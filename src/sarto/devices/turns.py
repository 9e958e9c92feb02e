"""Calls that take turns while they are timed. Nothing but the standard library: workers read this file alone."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

#: Seconds of warm-up for one call.
WARM_SECONDS = 0.15
#: Runs of the warm-up and measured ones, at least; a call so slow that these take `PATIENCE` times the measuring time
#: is measured `FEWEST` times.
MIN_WARMUP, MIN_RUNS, FEWEST, PATIENCE = 3, 15, 5, 5
MAX_RUNS = 2_000


def take_turns(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    runs: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
) -> tuple[list[list[float]], int]:
    """Milliseconds of every measured run of each call, and how often each ran before.

    Args:
        seconds: how long to measure, for each call on average.
        runs: measured runs of each call; None takes as many as fit in the seconds, from 15 (5 for slow calls) to 2000.
        warmup: runs of each call before; None takes 0.15 seconds' worth.
        threads: that the calls use, where it is known; see `taken_ms`.
    """
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
                taken.append(taken_ms(call, threads))
    return times, warmed


def taken_ms(call: Callable[[], object], threads: int | None = None) -> float:
    """Milliseconds of a call.

    Of a call that uses one thread, only the time counts in which this process had a processor: a wait for one that
    other programs use is the machine's, not the model's.
    """
    busy, start = time.process_time(), time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return 1e3 * (min(seconds, time.process_time() - busy) if threads == 1 else seconds)


def _warm(done: int, elapsed: float, wanted: int | None) -> bool:
    if wanted is not None:
        return done >= wanted
    return done >= MIN_WARMUP and (elapsed >= WARM_SECONDS or done >= MAX_RUNS)


def _enough(done: int, elapsed: float, seconds: float, wanted: int | None) -> bool:
    if wanted is not None:
        return done >= wanted
    least = FEWEST if elapsed >= PATIENCE * seconds else MIN_RUNS
    return done >= MAX_RUNS or (done >= least and elapsed >= seconds)


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
