"""A latency budget filled by measurement, with subnets: what one takes says how many units the next may open."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

from sarto.engines.factory.search import Found, fewer
from sarto.errors import InfeasibleError
from sarto.pipeline.closing import GUARD, ROUNDS, UNUSED, fills
from sarto.pipeline.filling import MARGIN
from sarto.pipeline.subnets import ReadySupernet, Tasks
from sarto.types import Budget, Cost, Plan, SubnetNode

T = TypeVar("T")


@dataclass(frozen=True)
class Round(Generic[T]):
    """A subnet that was built and measured.

    Attributes:
        found: what the search said of it; None for the first one, whose budget is the order's.
        built: whatever was built.
        over: limits that its measured cost breaks.
    """

    plan: Plan
    found: Found | None
    built: T
    cost: Cost
    over: tuple[str, ...]


def filled_by_measuring(
    one: ReadySupernet,
    plan: Plan,
    tasks: Tasks,
    budget: Budget,
    made: Callable[[Plan, Found | None], tuple[T, Cost]],
    *,
    classes: Sequence[str],
    samples: str | None = None,
) -> tuple[Round[T], ...]:
    """Subnets, each with as many units as the one before says, until one keeps the latency budget and `fills` it.

    The first is the plan itself; it is the only one where the budget limits no latency, another limit is broken, or the
    plan keeps the budget and was not meant to fill it. Where nothing was predicted, a plan that takes too long is
    followed by slightly smaller ones.

    Args:
        made: builds a plan's model and measures it.
    """
    limit = budget.latency_ms
    rounds: list[Round[T]] = []
    following: tuple[Plan, Found | None] | None = (plan, None)
    while following is not None and len(rounds) < ROUNDS:
        built, cost = made(*following)
        rounds.append(Round(*following, built, cost, cost.over(budget)))
        taken = cost.latency_ms
        if limit is None or taken is None or set(rounds[-1].over) - {"latency_ms"}:
            break
        meant = plan.predicted is not None and (plan.predicted.latency_high_ms or 0.0) >= (1 - UNUSED) * limit
        if fills(taken, limit) or (taken <= limit and not meant):
            break
        known = {other.plan.key() for other in rounds}
        following = _next(one, following[0], tasks, budget, taken, classes, samples, known)
    return tuple(rounds)


def _next(
    one: ReadySupernet,
    plan: Plan,
    tasks: Tasks,
    budget: Budget,
    measured_ms: float,
    classes: Sequence[str],
    samples: str | None,
    known: Set[str],
) -> tuple[Plan, Found] | None:
    """The subnet that fills the budget if every subnet is as far below its bound as the measured one was.

    Of a small network a unit may be more than the margin: where that leaves what was measured, and it kept the budget,
    as little as `GUARD` is left. None where nothing else comes of it.

    Args:
        known: keys of the plans that were measured.
    """
    limit = budget.latency_ms
    if limit is None:
        return None
    # What is over the budget may have to do with less room, where the smallest subnet is nearly as slow.
    margins = (MARGIN, GUARD) if measured_ms <= limit else (MARGIN, 0.0)
    for margin in margins:
        found = _at_margin(one, plan, tasks, budget, measured_ms, margin)
        following = None if found is None else one.plan(tasks, found, classes, samples)
        if found is not None and following is not None and following.key() not in known:
            return following, found
        if found is not None and measured_ms > limit:
            return None
    return None


def _at_margin(
    one: ReadySupernet, plan: Plan, tasks: Tasks, budget: Budget, measured_ms: float, margin: float
) -> Found | None:
    """The subnet that should take the budget less a margin, by what a plan took; None where none is so quick."""
    limit = budget.latency_ms or 0.0
    bound = plan.predicted.latency_high_ms if plan.predicted is not None else None
    if bound is None:
        open_units = sum(float(one.gates(n).sum()) for n in plan.nodes.values() if isinstance(n, SubnetNode))
        n_units = int((1 - margin) * limit / measured_ms * open_units)
        return fewer(one.supernet, tasks, n_units, orders=one.orders)
    asked = max((1 - margin) * limit * bound / measured_ms, 1e-9)
    try:
        return one.find(tasks, budget.replace(latency_ms=asked))
    except InfeasibleError:
        return None
