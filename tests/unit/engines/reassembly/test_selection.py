"""A*, the integer program and enumeration give the same lists; limits, ties and floors are what they say."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarto.engines.reassembly import astar
from sarto.engines.reassembly.astar import best_chains, pareto
from sarto.engines.reassembly.drawing import random_chains
from sarto.engines.reassembly.milp import best_by_milp, certified
from sarto.engines.reassembly.problem import Joint, Problem, Sides, Stage, choice_of
from sarto.errors import InfeasibleError, RequestError


def _problem(
    n: int = 5,
    k: int = 3,
    *,
    tight: float = 0.45,
    seed: int = 0,
    sides: Sides | None = None,
    holes: float = 0.1,
) -> Problem:
    """Random values and costs; staying in a model costs nothing; some joints are impossible."""
    generator = np.random.default_rng(seed)
    stages = tuple(
        Stage(
            np.arange(n),
            generator.random(n),
            generator.integers(1, 100, (n, 2)).astype(float),
            generator.integers(1, 100, n).astype(float),
        )
        for _ in range(k)
    )
    joints = []
    for _ in range(k - 1):
        loss = 0.5 * generator.random((n, n))
        costs = generator.integers(1, 20, (n, n, 2)).astype(float)
        loss[generator.random((n, n)) < holes] = math.inf
        loss[np.arange(n), np.arange(n)], costs[np.arange(n), np.arange(n)] = 0.0, 0.0
        joints.append(Joint(loss, costs))
    most = (100.0 * k * tight, 110.0 * k * tight)
    return Problem(stages, tuple(joints), ("params", "flops"), most, 95.0, sides or Sides())


def _enumerated(problem: Problem) -> list[float]:
    paths = itertools.product(*(range(len(stage.donors)) for stage in problem.stages))
    return sorted((problem.value(path) for path in paths if problem.keeps(path)), reverse=True)


@pytest.mark.parametrize("tight", [0.36, 0.5, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_list_is_that_of_enumeration(tight: float, seed: int) -> None:
    problem = _problem(6, 4, tight=tight, seed=seed)
    want = _enumerated(problem)
    found = best_chains(problem, 40)
    assert [choice.value for choice in found.choices] == pytest.approx(want[:40], abs=1e-12)
    assert found.exact
    assert len({choice.path for choice in found.choices}) == len(found.choices)


@pytest.mark.parametrize(
    "sides",
    [
        Sides(most_donors=2),
        Sides(least_donors=3),
        Sides(most_donors=2, least_donors=2, must=frozenset({1})),
        Sides(avoid=frozenset({0, 2})),
        Sides(must=frozenset({3, 4})),
    ],
)
def test_side_constraints_mean_the_same_in_all_three(sides: Sides) -> None:
    problem = _problem(5, 3, tight=0.7, seed=4, sides=sides)
    want = _enumerated(problem)
    assert want
    assert [c.value for c in best_chains(problem, 10).choices] == pytest.approx(want[:10], abs=1e-12)
    assert [c.value for c in best_by_milp(problem, 3).choices] == pytest.approx(want[:3], abs=1e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_integer_program_lists_the_same_and_certifies(seed: int) -> None:
    problem = _problem(6, 4, seed=seed)
    found = best_chains(problem, 5)
    other = best_by_milp(problem, 5)
    assert [c.value for c in other.choices] == pytest.approx([c.value for c in found.choices], abs=1e-7)
    assert other.exact
    assert certified(problem, found)
    worse = replace(found, choices=found.choices[1:])
    assert certified(problem, worse) == (found.choices[0].value - found.choices[1].value < 1e-6)


def test_a_diverse_list_differs_in_as_many_blocks_as_asked_for() -> None:
    problem = _problem(6, 4, tight=2.0)
    found = best_by_milp(problem, 4, differ=3)
    for one, two in itertools.combinations(found.choices, 2):
        assert sum(a != b for a, b in zip(one.path, two.path, strict=True)) >= 3


@given(st.integers(0, 10_000), st.floats(0.2, 1.2))
def test_the_best_chain_of_random_problems_is_the_best(seed: int, tight: float) -> None:
    problem = _problem(4, 3, tight=tight, seed=seed, holes=0.4)
    want = _enumerated(problem)
    if not want:
        with pytest.raises(InfeasibleError):
            best_chains(problem)
        return
    assert best_chains(problem).choices[0].value == pytest.approx(want[0], abs=1e-12)


def test_an_impossible_budget_names_floor_and_smallest_budget_that_works() -> None:
    problem = replace(_problem(5, 3), budget=(5.0, 6.0))
    with pytest.raises(
        InfeasibleError, match=r"Floor of each alone: params .* The smallest that works"
    ) as caught:
        best_chains(problem)
    floor, nearest = caught.value.floor or {}, caught.value.nearest or {}
    unlimited = replace(problem, budget=(math.inf, math.inf))
    paths = [p for p in itertools.product(range(5), repeat=3) if unlimited.keeps(p)]
    assert floor["params"] == min(problem.costs(p)[0] for p in paths)
    assert best_chains(replace(problem, budget=(nearest["params"], nearest["flops"]))).choices
    scale = min(max(a / 5.0, b / 6.0) for a, b in (problem.costs(p) for p in paths))
    assert max(nearest["params"] / 5.0, nearest["flops"] / 6.0) <= scale * 1.01


def test_the_pareto_sweep_is_the_front_of_enumeration() -> None:
    problem = replace(_problem(4, 3, tight=5.0, seed=7))
    paths = [p for p in itertools.product(range(4), repeat=3) if problem.keeps(p)]
    points = [(problem.costs(p)[0], problem.value(p)) for p in paths]
    front = sorted(
        (c, v)
        for c, v in points
        if not any((c2 <= c and v2 > v + 1e-12) or (c2 < c and v2 >= v - 1e-12) for c2, v2 in points)
    )
    found = sorted(
        (choice.costs["params"], choice.value) for choice in pareto(problem, "params", most=100).choices
    )
    assert [c for c, _ in found] == [c for c, _ in front]
    assert [v for _, v in found] == pytest.approx([v for _, v in front], abs=1e-12)


def test_a_sweep_that_is_cut_off_says_so_and_has_the_dear_end_of_the_front(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = _problem(4, 3, tight=5.0, seed=7)
    whole = pareto(problem, "params", most=100)
    assert whole.cut_off is None and len(whole.choices) > 1
    assert pareto(problem, "params", most=1).cut_off is None
    kept = []
    for most in (2, 3, 6):
        monkeypatch.setattr(astar, "best_chains", functools.partial(best_chains, most_expanded=most))
        found = pareto(problem, "params", most=100)
        assert found.cut_off == most
        assert found.choices == whole.choices[: len(found.choices)]
        kept.append(len(found.choices))
    assert kept[0] == 0 < kept[1] < kept[2] < len(whole.choices)


def test_random_draws_keep_the_limits_and_never_beat_the_exact_search() -> None:
    problem = _problem(6, 4)
    drawn = random_chains(problem, 50)
    assert drawn
    assert all(problem.keeps(choice.path) for choice in drawn)
    assert max(choice.value for choice in drawn) <= best_chains(problem).choices[0].value + 1e-12
    assert [c.path for c in drawn] == [c.path for c in random_chains(problem, 50)]


def test_problems_that_do_not_fit_together_are_refused() -> None:
    good = _problem(3, 2)
    with pytest.raises(RequestError, match="2 stages have 1 joints, got 0"):
        replace(good, joints=())
    with pytest.raises(RequestError, match="2 costs have as many limits"):
        replace(good, budget=(1.0,))
    with pytest.raises(RequestError, match="costs must be at least 0"):
        replace(good, stages=(replace(good.stages[0], costs=-good.stages[0].costs), good.stages[1]))
    assert choice_of(good, (0, 0)).costs == dict(zip(("params", "flops"), good.costs((0, 0)), strict=True))
