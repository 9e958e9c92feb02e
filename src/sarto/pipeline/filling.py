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
FULL = 0.995
#: Share of the budget that is left for noise where a measured latency says how far to go.
MARGIN = 0.04
#: The widths of a learnware by donor and group.
Keeps = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Filling:
    """Packs of an order whose widths are solved for its latency budget.

    Widths go straight from one stocked size to the next larger one, then group by group as far as the budget goes.
    Counts are rounded up to the device's step, which costs no predicted time; where that breaks another limit, some are
    rounded down, for a device may take twice as long at other counts.

    Every method raises `StoreError` where a donor is missing or damaged.

    Attributes:
        kind: what packs of one kind have in common.
        kept: whether a predicted cost keeps the budget.
    """

    order: Order
    predictor: PlanPredictor
    kind: Callable[[Plan], object]
    kept: Callable[[Plan], bool]

    def filled(self) -> list[Plan]:
        """For each kind of pack the largest one whose predicted bound keeps the latency budget.

        Without a limit of latency, the largest stocked pack that fits is rounded up alone, as far as the limits go.
        """
        solver = self._solver(self.order.request.budget.latency_ms)
        found = []
        for sizes in solver.by_kind().values():
            made = solver.filled(sizes, self.kept)
            if made is not None and all(made.key() != sized.plan.key() for sized in sizes):
                found.append(made)
        return sorted(found, key=lambda plan: -plan.predicted.params if plan.predicted is not None else 0)

    def refilled(self, plan: Plan, ratio: float) -> Plan | None:
        """The pack of a plan's kind that fills the budget, now that something of its kind was measured.

        `MARGIN` of the budget is left for the noise of the next measurement, where a width allows that. None where
        there is no limit of latency, or no width fits.

        Args:
            ratio: measured over predicted latency that every width is taken to have.
        """
        limit = self.order.request.budget.latency_ms
        if limit is None:
            return None
        for margin in (MARGIN, 0.0):
            solver = self._solver((1 - margin) * limit, ratio)
            sizes = solver.by_kind().get(self.kind(plan), [])
            made = solver.filled(sizes, self._kept_at(ratio, margin))
            if made is not None:
                return made
        return None

    def reopened(self, plan: Plan, ratio: float) -> Plan | None:
        """Of the kinds that the upper bound alone refused the slowest pack that should keep the budget after all.

        A bound holds for nearly every pack, so it is far above most. Once a plan was measured, what others take is
        better known; but none is taken to be quicker than predicted, because another kind may be off by another ratio.
        None where there is no limit of latency, the bound refused no other kind, or none should keep the budget.

        Args:
            plan: what was measured; its own kind is left out.
            ratio: its measured latency over the predicted one.
        """
        limit = self.order.request.budget.latency_ms
        if limit is None:
            return None
        bounded, ratio = self._solver(limit), max(1.0, ratio)
        solver, kept = self._solver((1 - MARGIN) * limit, ratio), self._kept_at(ratio, MARGIN)
        found = [
            made
            for name, sizes in bounded.by_kind().items()
            if name != self.kind(plan) and not any(bounded.fits(sized, self.kept) for sized in sizes)
            if (made := solver.filled(sizes, kept)) is not None
        ]
        return max(
            found, key=lambda made: (made.predicted and made.predicted.latency_ms) or 0.0, default=None
        )

    def _solver(self, limit: float | None, ratio: float | None = None) -> _Solver:
        return _Solver(self.order, self.predictor, self.kind, limit, ratio)

    def _kept_at(self, ratio: float, margin: float) -> Callable[[Plan], bool]:
        """Whether a plan keeps the budget with the margin left, by what it should take in place of its bound."""

        def kept(plan: Plan) -> bool:
            cost = plan.predicted
            if cost is None or cost.latency_ms is None:
                return False
            latency = ratio * cost.latency_ms / (1 - margin)
            timed = {"latency_low_ms": latency, "latency_ms": latency, "latency_high_ms": latency}
            return self.kept(plan.replace(predicted=cost.replace(**timed)))

        return kept


@dataclass(frozen=True)
class _Sized:
    """A pack at one stocked size, with the widths of its donors."""

    share: float
    plan: Plan
    keeps: Keeps


class _Solver:
    def __init__(
        self,
        order: Order,
        predictor: PlanPredictor,
        kind: Callable[[Plan], object],
        limit: float | None,
        ratio: float | None = None,
    ) -> None:
        """
        Args:
            limit: milliseconds to fill; None leaves the latency free.
            ratio: measured over predicted latency, where one was measured; None fills with the upper bound.
        """
        self.order, self.predictor, self.kind = order, predictor, kind
        self.limit, self.ratio = limit, ratio
        requirement = order.requirement
        # Who else may give a class is left to the stocked sizes: samples decide between donors at any size.
        self.requirement: Requirement = requirement.replace(others=())
        ids = dict.fromkeys(offer.learnware for offer in requirement.offers)
        self.donors = [order.learnwares[id_] for id_ in ids]
        self.samples = {id_: order.donor_samples[id_].digest for id_ in ids}
        self.objective: Objective = (
            "flops" if order.request.budget.limits().keys() & {"latency_ms", "flops"} else "params"
        )

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

        None where no stocked size fits.
        """
        start = next((sized for sized in reversed(sizes) if self.fits(sized, kept)), None)
        if start is None:
            return None
        if self.limit is None:
            return self._rounded(start, start.keeps, kept)
        above = next((sized for sized in sizes if sized.share > start.share), None)
        solved = self._solved(start, above, self.limit)
        # Where the budget has room for whole donors, no pack of this kind is as wide as that.
        return self._rounded(start, solved, kept) or self._rounded(start, start.keeps, kept)

    def _rounded(self, start: _Sized, keeps: Keeps, kept: Callable[[Plan], bool]) -> Plan | None:
        """The pack at these widths, with as many counts rounded up to the device's step as the budget allows."""
        step = self.predictor.profile.unit_step
        rounded = {id_: step_counts(keep, self.predictor.sizes(id_), step) for id_, keep in keeps.items()}
        odd = [
            (id_, name) for id_, keep in keeps.items() for name in keep if keep[name] != rounded[id_][name]
        ]
        if self.limit is not None:
            keeps = {
                id_: {
                    name: min(max(step, n - n % step), rounded[id_][name]) if n % step else n
                    for name, n in keep.items()
                }
                for id_, keep in keeps.items()
            }

        def made(n: int) -> Plan | None:
            """With so many of the groups rounded up."""
            chosen = {id_: dict(keep) for id_, keep in keeps.items()}
            for id_, name in odd[:n]:
                chosen[id_][name] = rounded[id_][name]
            plan = (
                self._made(start, chosen) if chosen != start.keeps else self.predictor.predicted(start.plan)
            )
            return plan if plan is not None and kept(plan) else None

        best, low, high = made(len(odd)), 0, len(odd)
        if best is None:
            best = made(0)
            while high - low > 1:
                middle = (low + high) // 2
                plan = made(middle)
                low, high, best = (middle, high, plan) if plan is not None else (low, middle, best)
        return best

    def fits(self, sized: _Sized, kept: Callable[[Plan], bool]) -> bool:
        """Whether a stocked size keeps the budget, its counts rounded to the device's step where time is limited."""
        plan = self.predictor.predicted(sized.plan)
        parts = self.predictor.parts(plan)
        if self.limit is None or plan.predicted is None or not self.predictor.is_off_step(parts):
            return kept(plan)
        bound = self._bound(parts, sized.keeps)
        if self.ratio is None:
            plan = plan.replace(predicted=plan.predicted.replace(latency_high_ms=bound))
        return bound <= self.limit and kept(plan)

    def _solved(self, start: _Sized, above: _Sized | None, limit: float) -> Keeps:
        """The widest counts between two sizes whose predicted bound keeps the budget."""
        parts = self.predictor.parts(start.plan)
        lower = start.keeps
        # What a size does not name is whole in it.
        upper = {
            id_: {**self.predictor.sizes(id_), **({} if above is None else above.keeps[id_])} for id_ in lower
        }
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if self._bound(parts, _between(lower, upper, middle)) <= limit:
                low = middle
            else:
                high = middle
        found = {id_: dict(keep) for id_, keep in _between(lower, upper, low).items()}
        step = self.predictor.profile.unit_step
        for id_, keep in found.items():
            for group, most in upper[id_].items():
                while (before := keep.get(group, most)) < most:
                    keep[group] = min(most, before - before % step + step)
                    reached = self._bound(parts, found)
                    if reached > limit:
                        keep[group] = before
                        break
                    if reached > FULL * limit:
                        return found
        return found

    def _bound(self, parts: Sequence[Part], keeps: Keeps) -> float:
        """What parts take at other widths, rounded up to the step: the upper bound, or what is expected by now."""
        moved = [
            replace(
                part, counts={name: keeps[part.learnware].get(name, n) for name, n in part.counts.items()}
            )
            for part in parts
        ]
        latency = self.predictor.latency(moved, len(self.order.classes))
        return latency.high if self.ratio is None else self.ratio * latency.middle

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
        if self.ratio is not None:
            told = f"widths solved again at {self.ratio:.3g} times the predicted time"
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
