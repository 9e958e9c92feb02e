"""Threads: what the user says counts, then what the environment says, then the cores that are free."""

from __future__ import annotations

import os

import pytest

from sarto.types import threads
from sarto.types.threads import VARIABLES, free_cores, limit_threads


@pytest.mark.parametrize(("load", "cores", "left"), [(0.1, 4, 4), (1.4, 4, 3), (3.9, 4, 1), (30.0, 4, 1)])
def test_the_load_of_the_machine_is_left_to_others(
    monkeypatch: pytest.MonkeyPatch, load: float, cores: int, left: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert free_cores() == left


def test_without_a_load_to_read_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> tuple[float, float, float]:
        raise OSError("no load here")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "getloadavg", unknown)
    assert free_cores() == 3


def test_the_option_wins_over_the_environment_and_that_over_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "free_cores", lambda: 7)
    told = {"OMP_NUM_THREADS": "3"}
    assert limit_threads(5, told) == 5 and told == dict.fromkeys(VARIABLES, "5")
    told = {"OMP_NUM_THREADS": "3"}
    assert limit_threads(None, told) == 3 and told["OMP_NUM_THREADS"] == "3"
    told = {}
    assert limit_threads(None, told) == 7 and told == dict.fromkeys(VARIABLES, "7")
