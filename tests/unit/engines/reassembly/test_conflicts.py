"""Constraints that are told to conflict do so by enumeration, and without any one of them some chain keeps the rest."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from sarto.engines.reassembly.conflicts import conflict
from sarto.engines.reassembly.problem import Joint, Problem, Sides, Stage

NAMES = ("ada", "bob", "cyd", "dan")


def _problem(sides: Sides, budget: tuple[float, ...] = (math.inf,), peak: float = math.inf) -> Problem:
    """Model i costs 10 (i + 1) in each of two stages; stitches cost 1; bob leads nowhere but to himself."""
    stages = tuple(
        Stage(np.arange(4), np.ones(4), 10.0 * np.arange(1, 5)[:, None], np.full(4, 5.0)) for _ in range(2)
    )
    loss = np.full((4, 4), 0.1)
    loss[1, [0, 2, 3]] = math.inf
    return Problem(stages, (Joint(loss, np.ones((4, 4, 1))),), ("params",), budget, peak, sides)


def _none_keeps(problem: Problem) -> bool:
    return not any(problem.keeps(path) for path in itertools.product(range(4), repeat=2))


@pytest.mark.parametrize(
    ("sides", "budget", "want"),
    [
        (Sides(must=frozenset({2, 3}), most_donors=1), math.inf, {"with cyd", "with dan", "at most 1 donor"}),
        (Sides(must=frozenset({0, 3}), avoid=frozenset({2})), 50.0, {"with dan", "params <= 50"}),
        (Sides(least_donors=2, avoid=frozenset({2})), 22.0, {"at least 2 donors", "params <= 22"}),
        (Sides(must=frozenset({0}), avoid=frozenset({0, 1})), math.inf, {"with ada", "without ada"}),
        (
            Sides(least_donors=2, avoid=frozenset({0, 2, 3}), most_donors=3),
            99.0,
            {"at least 2 donors", "without ada", "without cyd", "without dan"},
        ),
    ],
)
def test_a_conflict_is_smallest(sides: Sides, budget: float, want: set[str]) -> None:
    problem = _problem(sides, (budget,))
    assert _none_keeps(problem)
    assert set(conflict(problem, NAMES)) == want


def test_a_conflict_may_lie_in_memory_alone() -> None:
    problem = _problem(Sides(least_donors=2), peak=4.0)
    assert conflict(problem, NAMES) == ("memory_bytes <= 4",)


def test_nothing_conflicts_where_a_chain_keeps_all_or_none_can_be_joined() -> None:
    problem = _problem(Sides(must=frozenset({0, 3}), most_donors=2), (51.0,))
    assert not _none_keeps(problem)
    assert conflict(problem, NAMES) == ()
    apart = replace(problem, joints=(replace(problem.joints[0], loss=np.full((4, 4), math.inf)),))
    assert _none_keeps(apart)
    assert conflict(apart, NAMES) == ()
