"""Which plans are worth building, which one is delivered, and what to say when none fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sarto.devices import peak_flops_per_ms
from sarto.devices.profiling import Predictor
from sarto.engines import baselines, slicepack
from sarto.errors import InfeasibleError
from sarto.pipeline.adapting import adapting_cost
from sarto.pipeline.covering import OfferedSubnets, class_plans
from sarto.pipeline.donor_rules import broken_rules
from sarto.pipeline.filling import Filling
from sarto.pipeline.intakes import joint_intake, sources
from sarto.pipeline.new_classes import some
from sarto.pipeline.order import Order
from sarto.pipeline.reassembling import ENGINE as CHAINS
from sarto.pipeline.reassembling import Offered
from sarto.pipeline.subnets import ENGINE
from sarto.types import (
    BranchNode,
    Budget,
    Cost,
    Parting,
    Plan,
    Preprocessing,
    Request,
    SliceNode,
)

#: Accuracies that are no further apart are equal.
SAME = 1e-9
#: Share of the FLOPs of a kind's largest pack that counts as clearly fewer.
QUICKER = 0.75


class Listed:
    """Plans for an order.

    Attributes:
        feasible: those whose predicted cost keeps the budget, the first choice first.
        refused: the others, each with the limits that it breaks.
    """

    feasible: tuple[Plan, ...]
    refused: tuple[tuple[Plan, tuple[str, ...]], ...]

    @property
    def all(self) -> tuple[Plan, ...]:
        """Feasible and refused ones."""
        return (*self.feasible, *(plan for plan, _ in self.refused))

    def to_plain(self) -> list[dict[str, Any]]:
        """Plain JSON: each plan with its key and the limits that it breaks."""
        listed = [(plan, ()) for plan in self.feasible] + list(self.refused)
        return [
            {"plan": plan.model_dump(mode="json"), "key": plan.key(), "breaks": list(broken)}
            for plan, broken in listed
        ]


@dataclass(frozen=True)
class Plans(Listed):
    """Every plan that the engines propose for an order: the dearest pack that fits first, then the baselines.

    Attributes:
        order: with what the market's indices had to say in its notes, and why supernets were left out.
        drawn: chains of blocks drawn at random within the budget, of which one is a control that is never delivered.
        without: why an engine that was asked, or one of its supernets, has nothing, in words.
    """

    order: Order
    feasible: tuple[Plan, ...]
    refused: tuple[tuple[Plan, tuple[str, ...]], ...]
    drawn: tuple[Plan, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def chains(self) -> tuple[Plan, ...]:
        """The chains of blocks that keep the limits, whole ones and slices, of each index as it lists them."""
        return tuple(plan for plan in self.feasible if plan.engine == CHAINS)


def propose(order: Order) -> Plans:
    """Plans of all engines that the request names, from manifests and shapes alone.

    Where the order's device has a profile, a plan is kept whose upper bound of latency is within the budget, and packs
    are added whose widths are solved for it; where no bound is, those that should just about keep it. Without a
    profile, a plan is refused only where even the least time that its FLOPs can take is over the budget.
    """
    requirement, found = order.requirement, list[Plan]()
    samples = {learnware: held.digest for learnware, held in order.donor_samples.items()}
    if "slicepack" in order.request.engines:
        found += slicepack.propose(requirement, order.learnwares, samples)
    if "baselines" in order.request.engines:
        found += baselines.propose(requirement, order.learnwares)
    subnets = _subnets(order)
    found += subnets.plans
    offered = _chains(order)
    found += offered.plans
    found = [_with_intake(order, plan) for plan in found]
    if order.predictor is None:
        found = _with_latency_floor(order, found)
        return _sorted_out(order, found, over, offered, subnets)
    found = [order.predictor.predicted(plan) for plan in found]
    if "slicepack" in order.request.engines and order.request.method == "closed_form" and not requirement.new:
        filled = Filling(order, order.predictor, kind_of, _kept(order)).filled()
        found = [*(_with_intake(order, plan) for plan in filled), *found]
    plans = _sorted_out(order, found, over_bound, offered, subnets)
    return plans if plans.feasible else _sorted_out(order, found, over_middle, offered, subnets)


def _subnets(order: Order) -> OfferedSubnets:
    """The subnets of the market's supernets for an order that asks for them."""
    request, reads = order.request, order.intake.preprocessing
    asked = ENGINE in request.engines and not order.requirement.new
    if not asked or order.subnets is None or not isinstance(reads, Preprocessing):
        return OfferedSubnets()
    samples = order.samples.digest if request.recalibrate else None
    return class_plans(order.subnets, order.classes, request.budget, reads, request.donors, samples)


def _chains(order: Order) -> Offered:
    """The chains of blocks that the market's indices have for an order that asks for them."""
    request = order.request
    if CHAINS not in request.engines or order.chains is None:
        return Offered()
    if order.intake.kind != "image":
        return Offered(why_not=("chains are of models that read images",), has_index=False)
    shape = order.donors[0].input_shape
    return order.chains.offered(
        order.classes,
        order.samples.digest,
        request.budget,
        shape,
        request.donors,
        request.seed,
        order.predictor,
        {id_: held.digest for id_, held in order.donor_samples.items()},
        only=tuple(order.intakes) if order.requirement.new else None,
        parting=request.parting,
    )


def _sorted_out(
    order: Order,
    found: Sequence[Plan],
    broken_by: Callable[[Cost | None, Budget], tuple[str, ...]],
    offered: Offered,
    subnets: OfferedSubnets,
) -> Plans:
    feasible, refused, seen = list[Plan](), list[tuple[Plan, tuple[str, ...]]](), set[str]()
    for plan in found:
        if plan.key() in seen:
            continue
        seen.add(plan.key())
        broken = (
            *broken_by(plan.predicted, order.request.budget),
            *broken_rules(plan, order.request.donors, order.sources),
        )
        if broken:
            refused.append((plan, broken))
        else:
            feasible.append(plan)
    left_out = [f"{ENGINE}: {reason}" for reason in subnets.why_not]
    chains = [f"{CHAINS}: {reason}" for reason in offered.why_not]
    # Who asks something of chains is told why there are none; a market without an index says nothing to others.
    told_chains = chains if offered.has_index or _asks_of_chains(order.request) else ()
    told = noted(order, (*left_out, *told_chains, *offered.notes, *_pruned_few(order)))
    without = (*_without_new(order), *left_out, *chains)
    return Plans(told, tuple(feasible), tuple(refused), offered.drawn, without)


def _asks_of_chains(request: Request) -> bool:
    return request.train is not None or request.parting != Parting() or request.donors.differ > 1


def _pruned_few(order: Order) -> Iterator[str]:
    """That not all donors are pruned for new classes, in words."""
    readers = len(order.requirement.donors) + len(order.requirement.apart)
    if "slicepack" in order.request.engines and readers > slicepack.PRUNED:
        yield (
            f"of {readers} donors that read the samples {slicepack.PRUNED} are pruned; name others under donors.must"
        )


def _without_new(order: Order) -> Iterator[str]:
    """Why engines or methods that need a model which knows a class have nothing for new classes."""
    new, request = order.requirement.new, order.request
    if new and ENGINE in request.engines:
        yield f"{ENGINE}: has subnets for classes that a supernet knows, and no model knows {some(new)}"
    if new and "slicepack" in request.engines and request.method == "paper":
        yield f"slicepack: the paper's method slices by classes that a model knows, and no model knows {some(new)}"


def noted(order: Order, notes: Iterable[str]) -> Order:
    """The order with further notes, each once; lists of plans and reports show them."""
    told = tuple(dict.fromkeys((*order.requirement.notes, *notes)))
    return replace(order, requirement=order.requirement.replace(notes=told))


def _kept(order: Order) -> Callable[[Plan], bool]:
    return lambda plan: not over_bound(_with_intake(order, plan).predicted, order.request.budget)


def refilled(order: Order, plan: Plan, ratio: float) -> Plan | None:
    """The pack of a plan's kind that fills the latency budget at a ratio of measured to predicted; see `Filling`.

    None where the order has no such limit or no profile, or the plan is no pack whose widths can be solved.

    Raises:
        StoreError: a donor is missing or damaged.
    """
    filling = _filling(order, plan)
    found = None if filling is None else filling.refilled(plan, ratio)
    return None if found is None else _with_intake(order, found)


def reopened(order: Order, plan: Plan, ratio: float) -> Plan | None:
    """The pack of another kind that the bound had refused and should keep the budget after all; see `Filling`.

    None as for `refilled`.

    Raises:
        StoreError: a donor is missing or damaged.
    """
    filling = _filling(order, plan)
    found = None if filling is None else filling.reopened(plan, ratio)
    return None if found is None else _with_intake(order, found)


def _filling(order: Order, plan: Plan) -> Filling | None:
    """What solves widths anew for a plan; None where they can't be."""
    # Donors that are pruned for classes that nobody knows have their stocked sizes alone.
    by_class = plan.engine == "slicepack" and not order.requirement.new
    if order.predictor is None or not by_class or order.request.method != "closed_form":
        return None
    return Filling(order, order.predictor, kind_of, _kept(order))


def _with_intake(order: Order, plan: Plan) -> Plan:
    """With what giving each member its own images or token ids costs, where donors read different ones."""
    cost, ids = plan.predicted, plan.learnwares
    node = next((n for n in plan.nodes.values() if isinstance(n, BranchNode)), None)
    if node is None or cost is None or len(ids) < 2:
        return plan
    joint = joint_intake([(order.learnwares[id_], order.intakes[id_]) for id_ in ids])
    flops = size = held = 0
    for member in node.of:
        (id_,) = dict.fromkeys(sources(plan, member))
        added = adapting_cost(order.intakes[id_], order.learnwares[id_], joint)
        flops, size, held = flops + added[0], size + added[1], max(held, added[2])
    if not size and not held:
        return plan
    changed = {"flops": cost.flops + flops, "size_bytes": cost.size_bytes + size}
    cost = cost.replace(**changed, memory_bytes=cost.memory_bytes + held)
    if cost.process_bytes is not None and order.predictor is not None:
        cost = Predictor(order.predictor.profile).weighed(cost)
    return plan.replace(predicted=cost)


def _with_latency_floor(order: Order, plans: list[Plan]) -> list[Plan]:
    """Where latency is limited: the least time that each plan's FLOPs can take on this machine.

    Nothing is said of another machine, which may be quicker, and of other precisions, whose arithmetic is.
    """
    device = order.request.device
    if order.request.budget.latency_ms is None or device.agent is not None or device.precision != "float32":
        return plans
    speed = peak_flops_per_ms(device.threads)
    return [
        plan.replace(
            predicted=plan.predicted.replace(latency_low_ms=plan.predicted.flops * device.batch / speed)
        )
        if plan.predicted is not None
        else plan
        for plan in plans
    ]


def over(cost: Cost | None, budget: Budget) -> tuple[str, ...]:
    """Limits that a predicted cost breaks for certain: of an interval, the low end counts."""
    if cost is None:
        return ()
    if cost.basis == "predicted":
        cost = _at(cost, cost.latency_low_ms, cost.process_low_bytes)
    return cost.over(budget)


def over_bound(cost: Cost | None, budget: Budget) -> tuple[str, ...]:
    """Limits that a predicted cost may break: of an interval, the high end counts."""
    if cost is None:
        return ()
    # Without a profile nothing bounds latency from above.
    latency = cost.latency_low_ms if cost.latency_high_ms is None else cost.latency_high_ms
    return _at(cost, latency, cost.process_high_bytes).over(budget)


def over_middle(cost: Cost | None, budget: Budget) -> tuple[str, ...]:
    """Limits that a predicted cost should break: of an interval, the middle counts."""
    return () if cost is None else cost.over(budget)


def _at(cost: Cost, latency_ms: float | None, process_bytes: int | None) -> Cost:
    """A cost at one end of its intervals, where these are known."""
    ends = {"latency_ms": latency_ms, "process_bytes": process_bytes}
    return cost.replace(**{name: value for name, value in ends.items() if value is not None})


def infeasible(plans: Plans) -> InfeasibleError:
    """The error for an order that no plan can keep: the floor of every limit, and the nearest budget that works.

    Where rules about donors are broken by every plan, or engines had reasons to propose nothing, these are told.
    """
    limits, rules = plans.order.request.budget.limits(), plans.order.request.donors
    sources = plans.order.sources
    known = [
        (plan, plan.predicted)
        for plan, _ in plans.refused
        if plan.predicted is not None and not broken_rules(plan, rules, sources)
    ]
    asked = ", ".join(f"{name} <= {show(name, value)}" for name, value in limits.items())
    without = "".join(f" {reason.rstrip('.')}." for reason in plans.without)
    if not known and plans.refused:
        return InfeasibleError(
            f"no plan keeps what is asked of donors.{_broken(plans)}{without}", where="donors"
        )
    if not known:
        return InfeasibleError(
            f"no plan for {', '.join(plans.order.classes)}: no engine proposes any"
            + (f".{without}" if without else "; stock samples")
        )
    limits = {name: limit for name, limit in limits.items() if any(least(cost, name) for _, cost in known)}
    floor = {name: min(filter(None, (least(cost, name) for _, cost in known))) for name in limits}
    # What nothing is known of may be over any limit.
    known = [(plan, cost) for plan, cost in known if all(least(cost, name) for name in limits)] or known

    def excess(cost: Cost) -> float:
        return max(least(cost, name) / limit for name, limit in limits.items())

    plan, nearest = min(known, key=lambda pair: excess(pair[1]))
    needs = {name: max(limits[name], least(nearest, name)) for name in limits}
    # Without a profile, latency is known from FLOPs alone: no model is that quick.
    bare = "latency_ms" in limits and any(cost.latency_ms is None for _, cost in known)

    def told(name: str, value: float) -> str:
        return f"{'at least ' if bare and name == 'latency_ms' else ''}{show(name, value)}"

    counted = " (what its FLOPs alone take; the whole is known once it is measured, or with a profile)"
    raised = ", ".join(
        f"{name} to {told(name, value)}{counted if bare and name == 'latency_ms' else ''}"
        for name, value in needs.items()
        if value > limits[name]
    )
    return InfeasibleError(
        f"no plan fits {asked}. Floor: {', '.join(f'{n} {told(n, v)}' for n, v in floor.items())}. "
        f"Nearest: {plan.engine}, {plan.note}. Raise {raised}.{without}",
        floor=floor,
        nearest=needs,
        where="budget",
    )


def _broken(plans: Plans) -> str:
    """How many plans break each rule or limit, those of most plans first."""
    counts = Counter(text for _, broken in plans.refused for text in broken)
    told = ", ".join(f"{text}: {n}" for text, n in counts.most_common())
    return f" Of {len(plans.refused)} plans so many break each: {told}."


def least(cost: Cost, name: str) -> float:
    """The smallest limit that keeps a plan of this predicted cost: what it should be, or the least that it can be."""
    value: float | None = getattr(cost, name)
    if value is None and name == "latency_ms":
        value = cost.latency_low_ms
    return 0.0 if value is None else float(value)


def to_build(plans: Plans) -> tuple[Plan, ...]:
    """The packs that are built: the largest that fits of each kind, and one of about half its size.

    Where time or FLOPs are limited, also the largest of each kind that takes clearly fewer FLOPs than its first. All
    subnets are built, they cost milliseconds.
    """
    packs = [plan for plan in plans.feasible if plan.engine == "slicepack" and plan.predicted is not None]
    subnets = tuple(plan for plan in plans.feasible if plan.supernets)
    if not packs:
        return subnets
    first = packs[0]
    if plans.order.request.method == "paper":
        return (first, *subnets)  # packs are trained for minutes each
    kinds = {kind_of(plan): plan for plan in reversed(packs)}
    chosen = [first, *kinds.values()]
    if limits_time(plans.order.request.budget):
        quicker = [plan for plan in packs if _flops(plan) <= QUICKER * _flops(kinds[kind_of(plan)])]
        largest = {kind_of(plan): plan for plan in sorted(quicker, key=_params)}
        chosen += [largest[kind] for kind in kinds if kind in largest]
    half = [plan for plan in packs if _params(plan) <= slicepack.HALF * _params(first)]
    return tuple({plan.key(): plan for plan in (*chosen, *half[:1], *subnets)}.values())


def limits_time(budget: Budget) -> bool:
    """Whether a budget limits milliseconds or what they follow."""
    return budget.latency_ms is not None or budget.flops is not None


def _params(plan: Plan) -> int:
    return plan.predicted.params if plan.predicted is not None else 0


def _flops(plan: Plan) -> int:
    return plan.predicted.flops if plan.predicted is not None else 0


def kind_of(plan: Plan) -> tuple[int, int, frozenset[tuple[str, tuple[str, ...]]]]:
    """What packs of one kind have in common: how many parts they have, how deep the fronts are, whose fragments."""
    shared = [len(nodes.keep) for nodes in trunks(plan)]
    fragments = {
        (next(sources(plan, name)), node.classes)
        for name, node in plan.nodes.items()
        if isinstance(node, SliceNode)
    }
    return len(plan.nodes), max(shared, default=0), frozenset(fragments)


def trunks(plan: Plan) -> list[SliceNode]:
    """The slices of a plan that other slices are cut from: fronts that fragments share."""
    below = {node.of for node in plan.nodes.values() if isinstance(node, SliceNode)}
    return [node for name, node in plan.nodes.items() if name in below and isinstance(node, SliceNode)]


def titled(order: Order, plan: Plan) -> str:
    """What a plan with slices is called in a report."""
    return plan.note if order.requirement.new else f"pack, {plan.note}"


def show(name: str, value: float) -> str:
    """A cost number for people."""
    if name == "latency_ms":
        return f"{value:.3g}"
    return f"{round(value):,}".replace(",", "_")


def ranked(rows: Sequence[tuple[float | None, Cost, int]]) -> list[int]:
    """Places of rows in the order in which they are delivered: accuracy on the order's samples, then fewer parameters.

    Accuracies that differ by less than `SAME` are equal: they are means over pairings, and differ in the last digit.
    Rows without an accuracy come last, in the order given.
    """
    return sorted(
        range(len(rows)),
        key=lambda i: (
            (1, 0.0, 0, rows[i][2])
            if rows[i][0] is None
            else (0, -round((rows[i][0] or 0.0) / SAME), rows[i][1].params, rows[i][2])
        ),
    )
