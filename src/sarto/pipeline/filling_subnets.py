"""A latency budget filled by measurement, with subnets: what one takes says how many units the next may open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    followed by smaller ones, which are meant to fill it.

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
        if fills(taken, limit) or (taken <= limit and not meant and not any(turn.over for turn in rounds)):
            break
        following = _next(one, rounds, tasks, budget, classes, samples)
    return tuple(rounds)


def _next(
    one: ReadySupernet,
    rounds: Sequence[Round[T]],
    tasks: Tasks,
    budget: Budget,
    classes: Sequence[str],
    samples: str | None,
) -> tuple[Plan, Found] | None:
    """The subnet that fills the budget if every subnet is as far below its bound as the last one was.

    Where that lies beyond what was measured already, one between the two that are nearest to the limit.

    Of a small network a unit may be more than the margin: where that leaves what was measured, and it kept the budget,
    as little as `GUARD` is left. None where nothing else comes of it.
    """
    limit, measured_ms = budget.latency_ms, rounds[-1].cost.latency_ms
    if limit is None or measured_ms is None:
        return None
    known = {turn.plan.key() for turn in rounds}
    # What is over the budget may have to do with less room, where the smallest subnet is nearly as slow.
    margins = (MARGIN, GUARD) if measured_ms <= limit else (MARGIN, 0.0)
    for margin in margins:
        found = _at_margin(one, rounds[-1].plan, tasks, budget, measured_ms, margin)
        found = _between(one, rounds, tasks, found, (1 - margin) * limit)
        following = None if found is None else one.plan(tasks, found, classes, samples)
        if found is not None and following is not None and following.key() not in known:
            return following, found
        if found is not None and measured_ms > limit:
            return None
    return None


def _between(
    one: ReadySupernet, rounds: Sequence[Round[T]], tasks: Tasks, found: Found | None, target_ms: float
) -> Found | None:
    """What was found, where it has more units than all that kept the budget and fewer than all that took too long.

    Else the subnet that lies between these as the target lies between their times; as it is where one of them is
    missing, or none lies between them, or the order of units is not nested.
    """
    timed = [(_n_open(one, turn.plan), turn.cost.latency_ms or 0.0, bool(turn.over)) for turn in rounds]
    low = max(((n, ms) for n, ms, over in timed if not over), default=None)
    high = min(((n, ms) for n, ms, over in timed if over), default=None)
    if low is None or high is None or one.supernet.assembler.settings.order != "nested":
        return found
    if high[0] - low[0] < 2 or (found is not None and low[0] < float(found.gates.sum()) < high[0]):
        return found
    share = (target_ms - low[1]) / (high[1] - low[1])
    n_units = round(low[0] + share * (high[0] - low[0]))
    return fewer(one.supernet, tasks, int(min(max(n_units, low[0] + 1), high[0] - 1)), orders=one.orders)


def _at_margin(
    one: ReadySupernet, plan: Plan, tasks: Tasks, budget: Budget, measured_ms: float, margin: float
) -> Found | None:
    """The subnet that should take the budget less a margin, by what a plan took; None where none is so quick."""
    limit = budget.latency_ms or 0.0
    bound = plan.predicted.latency_high_ms if plan.predicted is not None else None
    if bound is None:
        if one.supernet.assembler.settings.order != "nested":
            return None
        n_units = int((1 - margin) * limit / measured_ms * _n_open(one, plan))
        return fewer(one.supernet, tasks, n_units, orders=one.orders)
    asked = max((1 - margin) * limit * bound / measured_ms, 1e-9)
    try:
        return one.find(tasks, budget.replace(latency_ms=asked))
    except InfeasibleError:
        return None


def _n_open(one: ReadySupernet, plan: Plan) -> float:
    """Units that are open in a plan's subnet."""
    return sum(float(one.gates(node).sum()) for node in plan.nodes.values() if isinstance(node, SubnetNode))
