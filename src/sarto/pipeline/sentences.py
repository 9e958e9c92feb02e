"""What a report says in words about a delivered model, and what it says was not tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sarto.engines.baselines import NAMES
from sarto.pipeline.alternatives import TITLES
from sarto.pipeline.choose import show
from sarto.pipeline.delivered import Delivered
from sarto.pipeline.new_classes import some
from sarto.pipeline.on_device import device_sentences
from sarto.pipeline.order import Order
from sarto.pipeline.schooling import not_made, training_of
from sarto.training import not_counted
from sarto.types import ChainNode, Check, Comparison, Cost, Plan, Rejection, SliceNode

#: Of a text in a table of classes.
_LONGEST = 160


def sentences(
    order: Order, delivered: Delivered, comparisons: Sequence[Comparison], checks: Sequence[Check]
) -> Iterator[str]:
    """What the comparison, the measurements and the checks say, most important first."""
    row, cost = delivered.pick.row, delivered.verified.cost
    n, noun = len(order.samples), order.samples.noun
    if row.accuracy_loto is not None and row.interval is not None:
        fitted = delivered.assembly.head is not None
        how = (
            "measured by leaving one of each class out of the head"
            if fitted
            else "under a donor's own classifier, which none of them fitted"
        )
        head = delivered.assembly.head
        missing = not_counted(head.loto, delivered.assembly.classes) if head is not None else ""
        agreed = order.requirement.labelled_by == "donors"
        yield (
            f"About {row.accuracy_loto:.0%} ({row.interval.low:.0%} to {row.interval.high:.0%}, nine times of ten) "
            f"{'agreement with the donors ' if agreed else ''}on {noun}s like your {n}, {how}"
            f"{f'; {missing}' if missing else ''}."
        )
        if agreed:
            yield (
                "Your images carry no labels, so the donors' decisions stand in for them: what is called accuracy on "
                "your samples is agreement with these, and says nothing of where the donors are wrong"
                f"{'.' if delivered.heldout is not None else '; give labelled held-out images to see that.'}"
            )
        if _sliced_from_these(order, delivered):
            told = f"Its slices were chosen and repaired on all these {noun}s at once: new ones may do a little worse"
            yield told + ("." if delivered.heldout is not None else "; give held-out samples to see.")
    else:
        yield f"Not measured on your {n} samples: with one sample a class nothing can be left out."
    if order.requirement.new:
        yield (
            f"No stocked model knows {some(order.requirement.new)}: all classes are told apart by a "
            f"{new_head(order, delivered.plan)}, fitted on your {n} {noun}s."
        )
    if row.accuracy_heldout is not None and delivered.heldout is not None:
        n_held = len(delivered.heldout)
        yield f"{row.accuracy_heldout:.1%} of {n_held} held-out {noun}s, which chose nothing, are named right."
    each = f"{cost.flops:,} FLOPs {'an image' if noun == 'image' else f'a {noun}'}"
    yield f"{cost.params:,} parameters, {each}, {_latency(cost)}, {cost.size_bytes:,} bytes."
    yield from device_sentences(delivered.verified.file, order.request.device, noun)
    yield from _foretold(order, delivered)
    yield from memory_sentences(cost)
    if delivered.rejection is not None:
        yield _refusals(delivered.rejection, noun)
    deliverable = ("pick", "plan", "probe", "ensemble") if order.requirement.new else ("pick", "plan")
    built = sum(score.row.role in deliverable for score in delivered.rows)
    if built == 1:
        yield "Delivered: the only plan that was built."
    elif row.accuracy_loto is None:
        yield "Delivered: the first of the plans that keep the budget, for nothing could be measured."
    else:
        yield (
            f"Delivered: the plan that {_best_on_own(order)} and keeps the budget; of equals, the smallest."
        )
    for found in comparisons:
        agreed = order.requirement.labelled_by == "donors" and found.basis == "loto"
        gap = f"{100 * found.gap:+.1f} points{' of agreement with the donors' if agreed else ''}"
        if found.verdict == "cannot be told apart":
            more = (
                f" (about {found.samples_needed:,} {'images' if agreed else 'labelled samples'} would)"
                if found.samples_needed
                else ""
            )
            yield f"Against {found.row}: {gap}; your samples cannot tell them apart{more}."
        else:
            yield f"Against {found.row}: {gap}, {found.verdict}."
    yield from _best_donor(order, delivered)
    for score in delivered.rows:
        training = training_of(score.plan)
        if training is not None and training.start == "given":
            yield f"{score.row.name[:1].upper()}{score.row.name[1:]}: {score.row.note}."
    for broken in delivered.verified.failed:
        yield f"Ranked before, and not delivered: {broken}."
    for tried in delivered.verified.tried:
        yield f"Verified before and over the budget: {tried}."
    failed = [check.name for check in checks if not check.ok]
    if failed:
        yield f"Checks that failed: {', '.join(failed)}."


def _best_on_own(order: Order) -> str:
    if order.requirement.labelled_by == "donors":
        return "agrees most with the donors on the order's own images"
    return "is most accurate on the order's own samples"


def new_head(order: Order, plan: Plan) -> str:
    """Where the classes of an order with new ones come from, as a table can hold it."""
    names = [order.sources[id_].name for id_ in (*plan.learnwares, *plan.supernets)]
    told = f"new head on the features of {' and '.join(names)}"
    return told if len(told) <= _LONGEST else f"new head on the features of {len(names)} donors"


def _sliced_from_these(order: Order, delivered: Delivered) -> bool:
    """Whether slices of the delivered plan were made from some of the order's samples."""
    plan = delivered.pick.plan
    nodes = plan.nodes.values() if plan is not None else ()
    read = {node.samples for node in nodes if isinstance(node, SliceNode)}
    own = set(order.samples.contents())
    held = {samples.digest: samples for samples in (order.samples, *order.donor_samples.values())}
    return any(not own.isdisjoint(held[digest].contents()) for digest in read if digest in held)


def _best_donor(order: Order, delivered: Delivered) -> Iterator[str]:
    """Beside chains of blocks: what a single donor within the budget does."""
    plans = [score.plan for score in delivered.rows if score.plan is not None]
    if not any(isinstance(node, ChainNode) for plan in plans for node in plan.nodes.values()):
        return
    budget = order.request.budget
    whole = [
        score.row
        for score in delivered.rows
        if score.row.accuracy_loto is not None
        and score.row.cost is not None
        and score.plan is not None
        and len(score.plan.learnwares) == 1
        and not any(isinstance(node, ChainNode | SliceNode) for node in score.plan.nodes.values())
    ]
    if not whole:
        return
    alone = [row for row in whole if row.cost is not None and not row.cost.over(budget)]
    if not alone:
        yield "No single donor, whole, keeps the budget."
        return
    best = max(alone, key=lambda row: (row.accuracy_loto or 0.0, -(row.cost.params if row.cost else 0)))
    named = "the delivered model itself" if best is delivered.pick.row else best.name
    yield (
        f"The best single donor within the budget, whole: {named}, {best.accuracy_loto or 0.0:.1%} "
        f"{'agreement with the donors ' if order.requirement.labelled_by == 'donors' else ''}on your samples with "
        f"{best.cost.params if best.cost else 0:,} parameters."
    )


def memory_sentences(cost: Cost) -> Iterator[str]:
    """What was measured of a model's memory, where it was."""
    if cost.process_bytes is not None and cost.basis == "measured":
        yield (
            f"A fresh process grew by {cost.process_bytes / 1e6:.3g} MB when it loaded and ran it, which "
            f"`process_bytes` limits; `memory_bytes` limits activations, {cost.memory_bytes / 1e6:.3g} MB a sample."
        )


def _foretold(order: Order, delivered: Delivered) -> Iterator[str]:
    """What the device's profile said before anything was built, beside the measured latency and the budget."""
    said, measured = delivered.plan.predicted, delivered.verified.cost.latency_ms
    if order.predictor is None or said is None or said.latency_ms is None or measured is None:
        return
    limit = order.request.budget.latency_ms
    yield (
        f"Predicted from the profile {order.predictor.profile.name}: {said.latency_ms:.3g} ms, between "
        f"{said.latency_low_ms or 0:.3g} and {said.latency_high_ms or said.latency_ms:.3g}; measured {measured:.3g}"
        + (f", {limit:.3g} allowed." if limit is not None else ".")
    )
    yield from speed_sentences(delivered.verified.raw_ms, measured)
    here, known = delivered.verified.processor, order.predictor.profile.device.processor
    if order.request.device.agent is not None and here and here != known:
        yield (
            f"The profile was measured on {known!r}, the agent runs on {here!r}: its predictions are those of the "
            "other one, what is delivered was measured as it is on the agent's. Measure a profile with that agent."
        )
    if said.process_bytes is not None:
        yield (
            f"A process that runs it should grow by about {said.process_bytes / 1e6:.3g} MB, at most "
            f"{(said.process_high_bytes or said.process_bytes) / 1e6:.3g} MB."
        )


def speed_sentences(raw_ms: float | None, measured_ms: float) -> Iterator[str]:
    """How fast the machine was beside the profile's; nothing where time counts as it was."""
    if raw_ms is not None:
        yield (
            f"It took {raw_ms:.3g} ms as it was measured, while the machine was {_apart(raw_ms, measured_ms)} it was "
            "for the profile; the latency is told, and held against a budget, at the profile's speed."
        )


def _apart(raw: float, measured: float) -> str:
    """How fast the machine was, in words."""
    if abs(raw / measured - 1) < 0.01:
        return "as fast as"
    return f"{max(raw, measured) / min(raw, measured):.2f} times as {'slow' if raw > measured else 'fast'} as"


def _refusals(found: Rejection, noun: str) -> str:
    told = (
        f"It says none of the above beyond a novelty of {found.threshold:.2f}: wrongly for about "
        f"{found.false_reject:.0%} of {noun}s of its classes (from your {found.n_samples}, each left out)"
    )
    if found.detected is None:
        return f"{told}; how often rightly is not known, the donors have no other classes to try."
    return (
        f"{told}, rightly for {found.detected:.0%} of {found.n_outsiders} {noun}s of {len(found.outsiders)} classes of "
        "the donors that were not ordered."
    )


def _latency(cost: Cost) -> str:
    return (
        f"{show('latency_ms', cost.latency_ms)} ms a batch"
        if cost.latency_ms is not None
        else "latency unknown"
    )


def not_tried(order: Order, delivered: Delivered) -> Iterator[str]:
    """What the report does not show, and why."""
    roles = {score.row.role for score in delivered.rows}
    if not delivered.compared:
        yield "donors, baselines and random units beside it: left out, as asked (--quick)"
    elif "donor" not in roles:
        asked_for = "baselines" in order.request.engines
        why = (
            "no single learnware knows all the wanted classes"
            if asked_for
            else "left out with the baselines engine"
        )
        yield f"a donor as it is: {why}"
    asked = order.request.baselines if "baselines" in order.request.engines else ()
    if delivered.compared and "finetune" not in roles:
        yield "fine-tuning a donor: left out with the baselines engine, or not among the request's baselines"
    names = {score.row.name for score in delivered.rows}
    missing = [name for name in NAMES if name != "finetune" and TITLES[name] not in names]
    for name in missing if delivered.compared else ():
        why = "these donors don't allow it" if name in asked else f"ask for it with baselines: {name}"
        yield f"{TITLES[name]}: {why}"
    if order.requirement.new and "slicepack" in order.request.engines:
        yield f"slices by class: no stocked model knows {some(order.requirement.new)}"
    yield from not_made(order.request, delivered.rows, heldout=delivered.heldout is not None)
    if delivered.rejection is None:
        yield "none of the above: needs three samples of every class, and another head than that of the paper's method"
    if delivered.assembly.head is None and not delivered.plan.supernets:
        yield "calibration: probabilities are those of the donor's own classifier; those of fitted heads are calibrated"
    if delivered.heldout is None:
        noun = order.samples.noun
        yield f"held-out {noun}s: none were given, so accuracy is known from the order's own samples alone"
    yield from order.requirement.notes
    yield "pruning with retraining: not built by this version"
