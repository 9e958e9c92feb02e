"""A latency budget filled by measurement, with subnets: what one takes says how many units the next may open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sarto.engines.factory.search import Found, fewer
from sarto.errors import InfeasibleError
from sarto.pipeline.closing import ROUNDS, UNUSED, fills
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
        following = _next(one, following[0], tasks, budget, taken, classes, samples)
        known = {other.plan.key() for other in rounds}
        following = following if following is not None and following[0].key() not in known else None
    return tuple(rounds)


def _next(
    one: ReadySupernet,
    plan: Plan,
    tasks: Tasks,
    budget: Budget,
    measured_ms: float,
    classes: Sequence[str],
    samples: str | None,
) -> tuple[Plan, Found] | None:
    """The subnet that fills the budget if every subnet is as far below its bound as the measured one was."""
    limit = budget.latency_ms
    bound = plan.predicted.latency_high_ms if plan.predicted is not None else None
    if limit is None:
        return None
    if bound is None:
        open_units = sum(float(one.gates(n).sum()) for n in plan.nodes.values() if isinstance(n, SubnetNode))
        n_units = int((1 - MARGIN) * limit / measured_ms * open_units)
        found = fewer(one.supernet, tasks, n_units, orders=one.orders)
        return one.plan(tasks, found, classes, samples), found
    for margin in (MARGIN, 0.0):
        asked = max((1 - margin) * limit * bound / measured_ms, 1e-9)
        try:
            found = one.find(tasks, budget.replace(latency_ms=asked))
        except InfeasibleError:
            continue
        return one.plan(tasks, found, classes, samples), found
    return None
