"""Timing: how often calls run and in which order. No timing is asserted."""

from __future__ import annotations

import gc
import statistics

import pytest

from sarto.devices import interleaved
from sarto.devices import turns as room
from sarto.errors import RequestError


class Clock:
    """A clock that only the calls move on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(room.time, "perf_counter", lambda: self.now)

    def call(self, seconds: list[float], log: list[str], name: str) -> None:
        log.append(name)
        self.now += seconds[log.count(name) % len(seconds)]


def test_calls_take_turns_and_each_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), list[str]()
    taken = {"a": [0.001, 0.002, 0.005], "b": [0.010]}
    a, b = interleaved(
        [lambda: clock.call(taken["a"], log, "a"), lambda: clock.call(taken["b"], log, "b")], runs=6, warmup=3
    )
    assert log == ["a", "b"] * 9
    assert (a.runs, a.warmup, b.runs, b.warmup) == (6, 3, 6, 3)
    low, middle, high = statistics.quantiles([1, 2, 5, 1, 2, 5], n=4, method="inclusive")
    assert (a.low_ms, a.median_ms, a.high_ms) == pytest.approx((low, middle, high))
    assert (b.low_ms, b.median_ms, b.high_ms) == pytest.approx((10, 10, 10))


@pytest.mark.parametrize(
    ("each", "seconds", "runs"),
    [
        (0.001, 0.1, 100),  # as many as fit
        (0.01, 0.1, 15),  # 15 at least
        (0.3, 0.1, 5),  # but 5 where 15 would take far too long
        (0.00001, 1.0, 2000),  # and 2000 at most
    ],
)
def test_runs_fill_the_time_within_bounds(
    monkeypatch: pytest.MonkeyPatch, each: float, seconds: float, runs: int
) -> None:
    clock = Clock(monkeypatch)
    (found,) = interleaved([lambda: clock.call([each], [], "a")], seconds=seconds)
    assert abs(found.runs - runs) <= 1
    assert found.warmup == pytest.approx(min(2000, max(3, room.WARM_SECONDS / each)), abs=1)


def test_one_run_is_its_own_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    (found,) = interleaved([lambda: clock.call([0.25], [], "a")], runs=1, warmup=1)
    assert (found.low_ms, found.median_ms, found.high_ms) == (250, 250, 250)


@pytest.mark.parametrize("on", [True, False])
def test_garbage_is_not_collected_while_a_call_is_measured(on: bool) -> None:
    before, seen = gc.isenabled(), list[bool]()
    try:
        gc.enable() if on else gc.disable()
        interleaved([lambda: seen.append(gc.isenabled())], runs=2, warmup=1)
        assert seen == [False] * 3 and gc.isenabled() is on
        with pytest.raises(ZeroDivisionError):
            interleaved([lambda: 1 / 0])
        assert gc.isenabled() is on
    finally:
        gc.enable() if before else gc.disable()


def test_nothing_to_measure_and_nonsense_are_refused() -> None:
    with pytest.raises(RequestError, match="at least one call"):
        interleaved([])
    with pytest.raises(
        RequestError, match="2 problems: seconds must be above 0, got -1; runs must be above 0, got 0"
    ):
        interleaved([lambda: None], seconds=-1, runs=0)
