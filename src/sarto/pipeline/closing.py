"""A latency budget kept and filled by measurement: what a plan takes says how wide its layers may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sarto.pipeline.choose import refilled
from sarto.pipeline.order import Order
from sarto.types import Cost, Plan

#: Plans that are measured at most for one kind of pack: the one that was predicted, and those solved again.
ROUNDS = 4
#: Share of the budget that may be left unused.
UNUSED = 0.05


@dataclass(frozen=True)
class Round:
    """A plan that was measured.

    Attributes:
        broken: limits that its measured cost breaks.
    """

    plan: Plan
    cost: Cost
    broken: tuple[str, ...]


def closed(order: Order, plan: Plan, measured: Callable[[Plan], Cost]) -> tuple[Round, ...]:
    """Plans of one kind, each solved from what the one before took, until one keeps the latency budget and fills it.

    The first is the plan itself; at most `ROUNDS` are measured. Only the first where the order limits no latency, its
    device has no profile, another limit is broken, or a plan that keeps the budget was not meant to fill it.

    Args:
        measured: the cost of a plan's built model on the device.
    """
    limit = order.request.budget.latency_ms
    rounds: list[Round] = []
    following: Plan | None = plan
    while following is not None and len(rounds) < ROUNDS:
        cost = measured(following)
        rounds.append(Round(following, cost, cost.over(order.request.budget)))
        if limit is None or cost.latency_ms is None or set(rounds[-1].broken) - {"latency_ms"}:
            break
        if cost.latency_ms <= limit and (
            cost.latency_ms >= (1 - UNUSED) * limit or not _meant(rounds, limit)
        ):
            break
        following = refilled(order, following, cost.latency_ms)
        known = {one.plan.key() for one in rounds}
        following = following if following is not None and following.key() not in known else None
    return tuple(rounds)


def _meant(rounds: list[Round], limit: float) -> bool:
    """Whether the first plan was predicted to fill the budget, as far as its bound goes."""
    said = rounds[0].plan.predicted
    return said is not None and (said.latency_high_ms or 0.0) >= (1 - UNUSED) * limit
