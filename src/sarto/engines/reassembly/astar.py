"""The exact list of the best chains within budgets: A* on the layered graph with completion bounds.

The bound of a partial chain is the smallest of several, each an upper bound of what it can still become: the best
completion without budgets, and for each of a few price vectors the best completion when what is left of the budget is
sold at these prices (the Lagrangian). Chains leave the queue in the order of their bounds, so the list is exact with
nothing cut away.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sarto.engines.reassembly.problem import (
    Choice,
    Floats,
    Found,
    Problem,
    choice_of,
    least_costs,
    tolerance,
    usable_blocks,
)
from sarto.errors import InfeasibleError

#: Partial chains that are looked at before the search gives what it has, with a bound.
MOST_EXPANDED = 2_000_000
#: Of so many chains at most, those of the best value are compared, and the cheapest counts.
TIES = 8
#: Steps of the search for good prices.
_PRICE_STEPS = 16


@dataclass(frozen=True)
class Sweep:
    """The chains that nobody beats in value at no more of one cost.

    Attributes:
        choices: dearest first.
        cut_off: partial chains that were looked at when a search was given up, so that cheaper chains may be missing;
            None: none was.
    """

    choices: tuple[Choice, ...]
    cut_off: int | None = None


@dataclass(frozen=True, eq=False)
class _Bounds:
    """Completions from each block, itself left out: best price-adjusted value per price vector, least costs.

    `worth` is the value of each block, minus infinite for those that a limit of their own rules out.
    """

    prices: Floats
    value: list[Floats]
    least: list[Floats]
    worth: list[Floats]


def best_chains(problem: Problem, n: int = 1, *, most_expanded: int = MOST_EXPANDED) -> Found:
    """The n best chains that keep every limit, best first, exact.

    Raises:
        InfeasibleError: no chain keeps the limits; names the floor of each cost and the smallest budget that works.
    """
    bounds = _bounds(problem)
    found, expanded, bound, ended = _search(problem, bounds, n, most_expanded)
    if not found and ended:
        raise infeasible(problem)
    return Found(tuple(found), ended or len(found) == n, bound, expanded)


def _search(
    problem: Problem, bounds: _Bounds, n: int, most_expanded: int
) -> tuple[list[Choice], int, float, bool]:
    """Choices, partial chains looked at, bound of the rest, and whether nothing is left."""
    last, ticket = len(problem.stages) - 1, itertools.count()
    queue: list[tuple[float, int, _Siblings]] = []

    def push(siblings: _Siblings) -> None:
        if siblings.head is not None:
            heapq.heappush(queue, (-siblings.head, next(ticket), siblings))

    start = _Siblings.first(problem, bounds)
    push(start)
    chosen: list[Choice] = []
    expanded = 0
    while queue and len(chosen) < n and expanded < most_expanded:
        _, _, siblings = heapq.heappop(queue)
        expanded += 1
        path, value, costs = siblings.take()
        push(siblings)
        if len(path) - 1 == last:
            if problem.keeps(path):
                chosen.append(choice_of(problem, path))
        else:
            push(_Siblings.after(problem, bounds, path, value, costs))
    return chosen, expanded, -queue[0][0] if queue else -math.inf, not queue


class _Siblings:
    """All continuations of a partial chain by one block, in the order of bounds; only the next is in the queue."""

    __slots__ = ("at", "bound", "costs", "order", "path", "value")

    def __init__(
        self,
        path: tuple[int, ...],
        bound: Floats,
        value: Floats,
        costs: Floats,
        order: NDArray[np.int64],
    ) -> None:
        self.path, self.bound, self.value, self.costs, self.order, self.at = (
            path,
            bound,
            value,
            costs,
            order,
            0,
        )

    @property
    def head(self) -> float | None:
        """Bound of the next continuation; None where none is left."""
        return float(self.bound[self.order[self.at]]) if self.at < len(self.order) else None

    def take(self) -> tuple[tuple[int, ...], float, Floats]:
        """The next continuation: its chain, value and costs."""
        v = int(self.order[self.at])
        self.at += 1
        return (*self.path, v), float(self.value[v]), self.costs[v]

    @classmethod
    def first(cls, problem: Problem, bounds: _Bounds) -> _Siblings:
        stage = problem.stages[0]
        return cls._ordered(problem, bounds, (), bounds.worth[0], stage.costs)

    @classmethod
    def after(
        cls, problem: Problem, bounds: _Bounds, path: tuple[int, ...], value: float, costs: Floats
    ) -> _Siblings:
        i, u = len(path), path[-1]
        joint, stage = problem.joints[i - 1], problem.stages[i]
        values = value - joint.loss[u] + bounds.worth[i]
        if problem.sides.most_donors is not None:
            have = sorted(set(problem.donors(path)))
            if len(have) >= problem.sides.most_donors:
                values = np.where(np.isin(stage.donors, have), values, -math.inf)
        return cls._ordered(problem, bounds, path, values, costs + joint.costs[u] + stage.costs)

    @classmethod
    def _ordered(
        cls, problem: Problem, bounds: _Bounds, path: tuple[int, ...], values: Floats, costs: Floats
    ) -> _Siblings:
        i = len(path)
        left = np.asarray(problem.budget) - costs
        bound = bounds.value[i][0]
        if len(bounds.prices):
            sold = np.where(np.isfinite(left), left, 0.0) @ bounds.prices.T
            bound = np.minimum(bound, (bounds.value[i][1:] + sold.T).min(0))
        bound = values + bound
        alive = np.isfinite(bound)
        for r, limit in enumerate(problem.budget):
            alive &= bounds.least[i][:, r] <= left[:, r] + tolerance(limit)
        alive = np.flatnonzero(alive)
        order = alive[np.argsort(-bound[alive], kind="stable")]
        return cls(path, bound, values, costs, order)


def _bounds(problem: Problem) -> _Bounds:
    prices = _prices(problem)
    n_stages, n_costs = len(problem.stages), len(problem.resources)
    usable = [usable_blocks(problem, i) for i in range(n_stages)]
    every = np.concatenate([np.zeros((1, n_costs)), prices])
    value: list[Floats] = [np.zeros((0, 0))] * n_stages
    least: list[Floats] = [np.zeros((0, 0))] * n_stages
    value[-1] = np.zeros((len(every), len(usable[-1])))
    least[-1] = np.zeros((len(usable[-1]), n_costs))
    for i in reversed(range(n_stages - 1)):
        joint, after = problem.joints[i], problem.stages[i + 1]
        here = []
        for p, price in enumerate(every):
            worth = np.where(usable[i + 1], after.value - after.costs @ price + value[i + 1][p], -math.inf)
            here.append((worth[None, :] - joint.loss - joint.costs @ price).max(1))
        value[i] = np.stack(here)
        rest = np.empty((len(usable[i]), n_costs))
        for r in range(n_costs):
            ahead = np.where(usable[i + 1], after.costs[:, r] + least[i + 1][:, r], math.inf)
            step = np.where(np.isfinite(joint.loss), joint.costs[:, :, r], math.inf)
            rest[:, r] = (step + ahead[None, :]).min(1)
        least[i] = rest
    own = [np.where(good, stage.value, -math.inf) for good, stage in zip(usable, problem.stages, strict=True)]
    return _Bounds(prices, value, least, own)


def _prices(problem: Problem) -> Floats:
    """Price vectors that make the Lagrangian bound tight: the best by subgradient steps, and half and twice it."""
    limits = np.array([limit if math.isfinite(limit) else 0.0 for limit in problem.budget])
    bound = np.isfinite(np.asarray(problem.budget, dtype=float)) & (limits > 0)
    if not bound.any():
        return np.zeros((0, len(limits)))
    path, value = _best_at(problem, np.zeros(len(limits)))
    if path is None:
        return np.zeros((0, len(limits)))
    scale = np.where(bound, 1.0 / np.maximum(limits, 1e-30), 0.0)
    spread = max(_spread(problem), 1e-12)
    prices, best, best_value = np.zeros(len(limits)), np.zeros(len(limits)), value
    for step in range(1, _PRICE_STEPS + 1):
        excess = (np.asarray(problem.costs(path)) - limits) * scale
        if step > 1 and bool((np.abs(excess[bound]) < 0.01).all()):
            break
        prices = np.maximum(0.0, prices + spread / step * excess * scale) * bound
        path, value = _best_at(problem, prices)
        if path is None:
            break
        total = value + float(prices @ limits)
        if total < best_value:
            best, best_value = prices.copy(), total
    return np.stack([best, 0.5 * best, 2.0 * best]) if best.any() else np.zeros((0, len(limits)))


def _spread(problem: Problem) -> float:
    """How much values of chains can differ, roughly."""
    total = 0.0
    for stage in problem.stages:
        total += float(np.ptp(stage.value))
    for joint in problem.joints:
        finite = joint.loss[np.isfinite(joint.loss)]
        total += float(np.ptp(finite)) if finite.size else 0.0
    return total


def _best_at(problem: Problem, prices: Floats) -> tuple[tuple[int, ...] | None, float]:
    """The best chain without budgets when costs are paid at these prices, and its value then."""
    ahead = [np.zeros(0)] * len(problem.stages)
    step: list[NDArray[np.int64]] = []
    for i in reversed(range(len(problem.stages))):
        stage = problem.stages[i]
        own = np.where(usable_blocks(problem, i), stage.value - stage.costs @ prices, -math.inf)
        if i < len(problem.joints):
            joint = problem.joints[i]
            total = ahead[i + 1][None, :] - joint.loss - joint.costs @ prices
            step.append(total.argmax(1))
            own = own + total.max(1)
        ahead[i] = own
    first = int(ahead[0].argmax())
    if not math.isfinite(ahead[0][first]):
        return None, -math.inf
    path = [first]
    for following in reversed(step):
        path.append(int(following[path[-1]]))
    return tuple(path), float(ahead[0][first])


def infeasible(problem: Problem) -> InfeasibleError:
    """The error for limits that no chain keeps: the floor of each cost, and the smallest scaled budget that works."""
    floor = least_costs(problem)
    asked = ", ".join(
        f"{name} <= {limit:.6g}" for name, limit in zip(problem.resources, problem.budget, strict=True)
    )
    told = ", ".join(f"{name} {value:.6g}" for name, value in floor.items())
    if not all(math.isfinite(value) for value in floor.values()):
        return InfeasibleError(
            "no blocks of these donors can be joined within the memory and the donors allowed", floor={}
        )
    nearest = smallest_budget(problem)
    if nearest is None:
        return InfeasibleError(
            f"no chain of blocks keeps the side constraints with {asked or 'any budget'}", floor=floor
        )
    needs = ", ".join(f"{name} {value:.6g}" for name, value in nearest.costs.items())
    return InfeasibleError(
        f"no chain of blocks keeps {asked}. Floor of each alone: {told}. The smallest that works together: {needs}.",
        floor=floor,
        nearest=dict(nearest.costs),
        where="budget",
    )


def smallest_budget(problem: Problem) -> Choice | None:
    """The chain whose largest ratio of cost to limit is smallest; None where the side constraints allow no chain."""
    finite = [i for i, limit in enumerate(problem.budget) if math.isfinite(limit) and limit > 0]
    if not finite:
        return None
    low, high, best = 1.0, 2.0, None
    for _ in range(60):
        found = _at_scale(problem, finite, high)
        if found is not None:
            best = found
            break
        low, high = high, high * 2.0
    for _ in range(30):
        if best is None or high / low < 1.0 + 1e-3:
            break
        middle = math.sqrt(low * high)
        found = _at_scale(problem, finite, middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _at_scale(problem: Problem, finite: list[int], scale: float) -> Choice | None:
    budget = tuple(limit * scale if i in finite else limit for i, limit in enumerate(problem.budget))
    wider = replace(problem, budget=budget)
    chosen, *_ = _search(wider, _bounds(wider), 1, MOST_EXPANDED // 10)
    return chosen[0] if chosen else None


def pareto(problem: Problem, resource: str, *, most: int = 20) -> Sweep:
    """Chains that nobody beats in value at no more of one cost, dearest first; each limit is below the last cost."""
    place = problem.resources.index(resource)
    chosen: list[Choice] = []
    cut_off: int | None = None
    for _ in range(most):
        try:
            found = best_chains(problem)
        except InfeasibleError:
            break
        if not found.choices:
            cut_off = found.n_expanded
            break
        ties = best_chains(problem, TIES)
        same = _of_equal_value(found.choices[0], ties.choices)
        if not ties.exact and len(same) == len(ties.choices):
            cut_off = ties.n_expanded
        best = min(same, key=lambda choice: choice.costs[resource])
        chosen.append(best)
        below = best.costs[resource] - max(1e-9 * best.costs[resource], 0.5)
        if below < 0:
            break
        problem = replace(
            problem, budget=tuple(below if i == place else b for i, b in enumerate(problem.budget))
        )
    return Sweep(tuple(chosen), cut_off)


def _of_equal_value(best: Choice, listed: Sequence[Choice]) -> list[Choice]:
    """The chains of a list that are worth as much as the best one; that one where the list has none."""
    same = [c for c in listed if c.value >= best.value - 1e-12 * max(1.0, abs(best.value))]
    return same or [best]
