"""A latency budget kept and filled by measurement: what a plan takes says how wide its layers may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sarto.pipeline.choose import refilled, reopened
from sarto.pipeline.filling import MARGIN
from sarto.pipeline.order import Order
from sarto.types import Budget, Cost, Plan

T = TypeVar("T")

#: Plans that are measured at most for one kind of pack: the one that was predicted, and those solved again.
ROUNDS = 4
#: Share of the budget that may be left unused.
UNUSED = 0.05
#: Share of it that a measured plan should leave, where it can: another measurement is off by about so much.
GUARD = 0.02
#: Two measured plans say how latency follows the prediction where their predictions lie this share apart.
APART = 0.02
#: At most so many times more or less than measured over predicted latency does it follow it then.
STEEP = 2.0


@dataclass(frozen=True)
class Round:
    """A plan that was measured.

    Attributes:
        broken: limits that its measured cost breaks.
    """

    plan: Plan
    cost: Cost
    broken: tuple[str, ...]

    @property
    def said(self) -> float | None:
        """Milliseconds that were predicted."""
        return None if self.plan.predicted is None else self.plan.predicted.latency_ms

    @property
    def took(self) -> float | None:
        """Milliseconds that were measured."""
        return self.cost.latency_ms

    @property
    def ratio(self) -> float | None:
        """Measured over predicted latency."""
        return None if not self.said or self.took is None else self.took / self.said


def closed(order: Order, plan: Plan, measured: Callable[[Plan], Cost]) -> tuple[Round, ...]:
    """Plans, each solved from what those before took, until one keeps the latency budget and fills it.

    The first is the plan itself, further ones are of its kind, at most `ROUNDS` in all. Where they leave room that
    no pack of the kind takes, and the bound had refused another kind that should keep the budget after all, that is
    measured and solved again in the same way. Only the first where the order limits no latency, its device has no
    profile, another limit is broken, or a plan that keeps the budget was not meant to fill it.

    Args:
        measured: the cost of a plan's built model on the device.
    """
    rounds = _of_a_kind(order, plan, measured)
    limit, last = order.request.budget.latency_ms, rounds[-1]
    if limit is None or last.ratio is None or not _meant(rounds, limit):
        return rounds
    kept = [one.cost.latency_ms or 0.0 for one in rounds if not one.broken]
    if not kept or max(kept) >= (1 - UNUSED) * limit:
        return rounds
    other = reopened(order, last.plan, last.ratio)
    return rounds if other is None else (*rounds, *_of_a_kind(order, other, measured))


def _of_a_kind(order: Order, plan: Plan, measured: Callable[[Plan], Cost]) -> tuple[Round, ...]:
    limit = order.request.budget.latency_ms
    rounds: list[Round] = []
    following: Plan | None = plan
    while following is not None and len(rounds) < ROUNDS:
        cost = measured(following)
        rounds.append(Round(following, cost, cost.over(order.request.budget)))
        if limit is None or cost.latency_ms is None or set(rounds[-1].broken) - {"latency_ms"}:
            break
        if fills(cost.latency_ms, limit) or (cost.latency_ms <= limit and not _meant(rounds, limit)):
            break
        ratio = _ratio(rounds, (1 - MARGIN) * limit)
        following = None if ratio is None else refilled(order, following, ratio)
        known = {one.plan.key() for one in rounds}
        following = following if following is not None and following.key() not in known else None
    return tuple(rounds)


def fills(taken_ms: float, limit_ms: float) -> bool:
    """Whether a measured latency uses a budget up, but for what another measurement may be off by."""
    return (1 - UNUSED) * limit_ms <= taken_ms <= (1 - GUARD) * limit_ms


def roomy(found: Sequence[T], cost: Callable[[T], Cost], budget: Budget) -> list[T]:
    """Of what keeps a budget as measured that which leaves `GUARD` of its latency; all of it where nothing does."""
    limit = budget.latency_ms
    kept = [one for one in found if not cost(one).over(budget)]
    if limit is None:
        return kept
    return [one for one in kept if (cost(one).latency_ms or 0.0) <= (1 - GUARD) * limit] or kept


def fullest(found: Sequence[T], cost: Callable[[T], Cost], right: Callable[[T], float], limit_ms: float) -> T:
    """Of packs of one kind, which differ by their widths, the slowest of the wider ones that is as good as the first.

    More units are worth more than samples can tell: one of them less that is named right does not count.

    Args:
        found: the first choice first; all of them keep the budget.
        right: how many of the order's samples are named right.
        limit_ms: of latency; what does not leave `GUARD` of it does not go before the first.
    """
    first = found[0]
    wider = [one for one in found[1:] if cost(one).params >= cost(first).params]
    good = [one for one in wider if right(one) >= right(first) - 1 - 1e-6]
    sure = [one for one in good if (cost(one).latency_ms or 0.0) <= (1 - GUARD) * limit_ms]
    return max([first, *sure], key=lambda one: cost(one).latency_ms or 0.0)


def _ratio(rounds: Sequence[Round], target_ms: float) -> float | None:
    """Measured over predicted latency to be expected of a plan that takes the target; None where none was predicted.

    That of the last plan. Where the one before lies far enough from it, both say how steeply latency follows the
    prediction: what is wrong by a constant is found in two steps instead of many.
    """
    last = rounds[-1]
    if last.ratio is None or last.said is None or last.took is None:
        return None
    before = rounds[-2] if len(rounds) > 1 else None
    if before is None or before.said is None or before.took is None:
        return last.ratio
    step = last.said - before.said
    if abs(step) < APART * last.said:
        return last.ratio
    steep = min(max((last.took - before.took) / step, last.ratio / STEEP), last.ratio * STEEP)
    wanted = last.said + (target_ms - last.took) / steep
    return target_ms / wanted if wanted > 0 else last.ratio


def _meant(rounds: Sequence[Round], limit: float) -> bool:
    """Whether the first plan was predicted to fill the budget, as far as its bound goes."""
    said = rounds[0].plan.predicted
    return said is not None and (said.latency_high_ms or 0.0) >= (1 - UNUSED) * limit
