"""Plans that fill a latency budget: widths between the stocked ones, counts rounded up to what a device runs best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sarto.devices.profiling.steps import step_counts
from sarto.engines import slicepack
from sarto.pipeline.order import Order
from sarto.pipeline.predicting import Part, PlanPredictor
from sarto.pipeline.stock import width_cost
from sarto.types import Learnware, Plan, Requirement, WidthCost
from sarto.types.cost import Objective

#: Halvings of the span between two stocked sizes.
HALVINGS = 12
#: Share of the budget from which a bound is close enough to it.
FULL = 0.985
#: The widths of a learnware by donor and group.
Keeps = Mapping[str, Mapping[str, int]]


def filled_plans(
    order: Order, predictor: PlanPredictor, kind: Callable[[Plan], object], kept: Callable[[Plan], bool]
) -> list[Plan]:
    """For each kind of pack the largest one whose predicted bound keeps the latency budget, its widths solved for it.

    Widths go straight from one stocked size to the next larger one, then group by group as far as the budget goes.
    Counts are rounded up to the device's step where that costs no predicted time and breaks no other limit. Without a
    limit of latency, the largest stocked pack that fits is rounded up alone.

    Args:
        kind: what packs of one kind have in common.
        kept: whether a predicted cost keeps the budget.

    Raises:
        StoreError: a donor is missing or damaged.
    """
    found = []
    solver = _Solver(order, predictor, kind)
    for sizes in solver.by_kind().values():
        made = solver.filled(sizes, kept)
        if made is not None:
            found.append(made)
    return sorted(found, key=lambda plan: -plan.predicted.params if plan.predicted is not None else 0)


@dataclass(frozen=True)
class _Sized:
    """A pack at one stocked size, with the widths of its donors."""

    share: float
    plan: Plan
    keeps: Keeps


class _Solver:
    def __init__(self, order: Order, predictor: PlanPredictor, kind: Callable[[Plan], object]) -> None:
        self.order, self.predictor, self.kind = order, predictor, kind
        requirement = order.requirement
        # Who else may give a class is left to the stocked sizes: samples decide between donors at any size.
        self.requirement: Requirement = requirement.replace(others=())
        ids = dict.fromkeys(offer.learnware for offer in requirement.offers)
        self.donors = [order.learnwares[id_] for id_ in ids]
        self.samples = {id_: order.donor_samples[id_].digest for id_ in ids}
        self.objective: Objective = (
            "flops" if order.request.budget.limits().keys() & {"latency_ms", "flops"} else "params"
        )
        self.limit = order.request.budget.latency_ms

    def by_kind(self) -> dict[object, list[_Sized]]:
        """The packs of each kind, smallest first."""
        found: dict[object, list[_Sized]] = {}
        shares = set.intersection(*({w.ratio for w in self._widths(donor)} for donor in self.donors))
        for share in sorted(share for share in shares if share < 1.0):
            widths = {d.id: next(w for w in self._widths(d) if w.ratio == share) for d in self.donors}
            for plan in self._proposed(widths):
                sized = _Sized(share, plan, {id_: width.keep for id_, width in widths.items()})
                found.setdefault(self.kind(plan), []).append(sized)
        return found

    def filled(self, sizes: Sequence[_Sized], kept: Callable[[Plan], bool]) -> Plan | None:
        """The largest pack of a kind with its widths solved and its counts rounded up, as far as the budget goes.

        None where no stocked size fits, or nothing is gained on the largest that does.
        """
        fitting = [sized for sized in sizes if kept(self.predictor.predicted(sized.plan))]
        if not fitting:
            return None
        start = fitting[-1]
        keeps, step = start.keeps, self.predictor.profile.unit_step
        if self.limit is not None:
            above = next((sized for sized in sizes if sized.share > start.share), None)
            keeps = self._solved(start, above, self.limit)
        rounded = {id_: step_counts(keep, self._sizes(id_), step) for id_, keep in keeps.items()}
        odd = [
            (id_, name) for id_, keep in keeps.items() for name in keep if keep[name] != rounded[id_][name]
        ]

        def made(n: int) -> Plan | None:
            """With so many of the groups rounded up."""
            chosen = {id_: dict(keep) for id_, keep in keeps.items()}
            for id_, name in odd[:n]:
                chosen[id_][name] = rounded[id_][name]
            plan = self._made(start, chosen) if chosen != start.keeps else start.plan
            return plan if plan is not None and kept(plan) else None

        best, low, high = made(len(odd)), 0, len(odd)
        if best is None:
            best = made(0)
            while high - low > 1:
                middle = (low + high) // 2
                plan = made(middle)
                low, high, best = (middle, high, plan) if plan is not None else (low, middle, best)
        return best if best is not None and best.key() != start.plan.key() else None

    def _solved(self, start: _Sized, above: _Sized | None, limit: float) -> Keeps:
        """The widest counts between two sizes whose predicted bound keeps the budget."""
        parts = self.predictor.parts(start.plan)
        lower = start.keeps
        upper = {id_: self._sizes(id_) for id_ in lower} if above is None else above.keeps
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self._high(parts, _between(lower, upper, middle)) <= limit:
                low = middle
            else:
                high = middle
        found = {id_: dict(keep) for id_, keep in _between(lower, upper, low).items()}
        step = self.predictor.profile.unit_step
        for id_, keep in found.items():
            for group, most in upper[id_].items():
                while (before := keep.get(group, most)) < most:
                    keep[group] = min(most, before - before % step + step)
                    reached = self._high(parts, found)
                    if reached > limit:
                        keep[group] = before
                        break
                    if reached > FULL * limit:
                        return found
        return found

    def _high(self, parts: Sequence[Part], keeps: Keeps) -> float:
        """The upper bound of latency of parts at other widths."""
        moved = [
            replace(
                part, counts={name: keeps[part.learnware].get(name, n) for name, n in part.counts.items()}
            )
            for part in parts
        ]
        return self.predictor.latency(moved, len(self.order.classes)).high

    def _made(self, start: _Sized, keeps: Keeps) -> Plan | None:
        """The pack of the same kind at other widths, with its exact predicted cost."""
        widths = {
            id_: width_cost(self.predictor.donor(id_).whole, start.share, keep, self.objective)
            for id_, keep in keeps.items()
        }
        shares = [self._cost(widths[donor.id]) / self._cost(_whole(donor)) for donor in self.donors]
        share = min(0.999, sum(shares) / len(shares))
        sized = {id_: width.replace(ratio=share) for id_, width in widths.items()}
        told = "widths rounded up" if self.limit is None else "widths solved for the time"
        return next(
            (
                self.predictor.predicted(plan.replace(note=f"{plan.note}, {told}"))
                for plan in self._proposed(sized)
                if self.kind(plan) == self.kind(start.plan)
            ),
            None,
        )

    def _cost(self, width: WidthCost) -> int:
        return width.flops if self.objective == "flops" else width.params

    def _proposed(self, widths: Mapping[str, WidthCost]) -> list[Plan]:
        donors = {d.id: d.replace(widths=(widths[d.id], _whole(d))) for d in self.donors}
        return slicepack.propose(self.requirement, donors, self.samples)

    def _widths(self, donor: Learnware) -> tuple[WidthCost, ...]:
        return tuple(w for w in donor.widths if w.objective == self.objective and w.ratio < 1.0)

    def _sizes(self, id_: str) -> dict[str, int]:
        return {group.id: group.size for group in self.predictor.donor(id_).whole.analysis.sliceable}


def _whole(donor: Learnware) -> WidthCost:
    return next(width for width in donor.widths if width.ratio == 1.0)


def _between(lower: Keeps, upper: Keeps, share: float) -> dict[str, dict[str, int]]:
    return {
        id_: {
            group: round(count + share * max(0, upper[id_].get(group, count) - count))
            for group, count in keep.items()
        }
        for id_, keep in lower.items()
    }
