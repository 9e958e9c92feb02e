"""The report of a delivered model: the comparison, the checks, the lineage, and what it all says in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from sarto.devices import count
from sarto.engines.baselines import NAMES
from sarto.graph import branch, prove
from sarto.graph.encoding import encode
from sarto.graph.file import read_graph
from sarto.market import Labelled
from sarto.pipeline.alternatives import TITLES
from sarto.pipeline.artifact import GRAPH, file_hash
from sarto.pipeline.builder import Assembly, Builder
from sarto.pipeline.choose import show, trunks
from sarto.pipeline.contest import LEVEL, Score
from sarto.pipeline.environment import environment
from sarto.pipeline.intakes import sources
from sarto.pipeline.order import Order
from sarto.pipeline.schooling import not_made, training_of
from sarto.pipeline.subnets import certificate_sentences
from sarto.pipeline.verify import Verified
from sarto.training import compare, confusion, logistic_loto, per_class_recall, ridge_loto
from sarto.types import (
    Certificate,
    ChainNode,
    Check,
    ClassScore,
    Comparison,
    Confusion,
    Cost,
    Donor,
    HeadNode,
    Interval,
    Part,
    Plan,
    Rejection,
    Report,
    SliceNode,
    StockedSupernet,
    SubnetNode,
    licences_of,
)

#: Largest relative difference that counts as equal in single and in double precision (design promise 1).
SINGLE, DOUBLE = 1e-5, 1e-12
SHUFFLES = 10


@dataclass(frozen=True, eq=False)
class Delivered:
    """What came out of an order; the pick is the first of the rows."""

    assembly: Assembly
    verified: Verified
    rows: tuple[Score, ...]
    heldout: Labelled | None
    rejection: Rejection | None = None

    @property
    def pick(self) -> Score:
        return self.rows[0]

    @property
    def plan(self) -> Plan:
        return self.assembly.plan


def make_report(
    builder: Builder, order: Order, delivered: Delivered, out: Path, seconds: Mapping[str, float]
) -> Report:
    """The report of a model whose graph and ONNX file are in `out` already."""
    comparisons = _comparisons(order, delivered)
    lineage = tuple(_lineage(order, delivered))
    certificate = _certificate(builder, order, delivered)
    checks = tuple(_checks(builder, order, delivered, out))
    predicted = delivered.plan.predicted or delivered.verified.cost.replace(
        basis="predicted", latency_ms=None, latency_low_ms=None, latency_high_ms=None
    )
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        reads="text" if order.samples.noun == "text" else "image",
        request=order.request,
        requirement=order.requirement,
        plan=delivered.plan,
        predicted=predicted,
        measured=delivered.verified.cost,
        rows=tuple(score.row for score in delivered.rows),
        comparisons=comparisons,
        per_class=tuple(_per_class(order, delivered)),
        confusion=_confusion(order, delivered),
        rejection=delivered.rejection,
        where_params=tuple(_where(builder, delivered)),
        checks=checks,
        lineage=lineage,
        licences=licences_of(lineage),
        hashes={
            name: file_hash(out / name)
            for name in (f"{GRAPH}/graph.json", f"{GRAPH}/weights.safetensors", "model.onnx")
        },
        environment=environment(order.request.device.threads),
        seconds=dict(seconds),
        sentences=(
            *_sentences(order, delivered, comparisons, checks),
            f"Licences of what it is made of: {', '.join(licences_of(lineage))}.",
            *(certificate_sentences(certificate).values() if certificate is not None else ()),
        ),
        not_tried=tuple(_not_tried(order, delivered)),
        certificate=certificate,
    )


def _comparisons(order: Order, delivered: Delivered) -> tuple[Comparison, ...]:
    """The pick against the claims fixed beforehand: donor as it is, best probe, ensemble, random units (Holm)."""
    labels = torch.from_numpy(order.samples.labels.copy())
    pick = delivered.pick
    found: list[tuple[Score, float, tuple[float, float], float, float, int | None]] = []
    for role in ("donor", "probe", "ensemble", "control"):
        rivals = [s for s in delivered.rows[1:] if s.row.role == role and s.row.accuracy_loto is not None]
        if not rivals or pick.row.accuracy_loto is None:
            continue
        rival = max(rivals, key=lambda score: score.row.accuracy_loto or 0.0)
        both = ~(pick.correct.isnan() | rival.correct.isnan())
        result = compare(pick.correct[both], rival.correct[both], labels[both], level=LEVEL)
        found.append(
            (
                rival,
                result.difference,
                result.interval,
                result.mcnemar_p,
                result.p_better,
                result.samples_needed,
            )
        )
    ordered = sorted(range(len(found)), key=lambda i: found[i][3])
    adjusted, worst = dict[int, float](), 0.0
    for place, i in enumerate(ordered):
        worst = max(worst, min(1.0, found[i][3] * (len(found) - place)))
        adjusted[i] = worst
    return tuple(
        Comparison(
            row=rival.row.name,
            basis="loto",
            gap=gap,
            interval=Interval(
                low=low, high=high, level=LEVEL, method="bootstrap over samples within each class"
            ),
            p_value=adjusted[i],
            verdict=_verdict(gap, better, adjusted[i]),
            samples_needed=needed
            if _verdict(gap, better, adjusted[i]) == "cannot be told apart" and needed
            else None,
        )
        for i, (rival, gap, (low, high), _, better, needed) in enumerate(found)
    )


def _verdict(gap: float, better: float, p_value: float) -> Literal["better", "worse", "cannot be told apart"]:
    """Better or worse only where the draws agree, the test does, and the gap is more than a point."""
    if abs(gap) <= 0.01 or p_value > 0.05:
        return "cannot be told apart"
    if gap > 0:
        return "better" if better > 0.95 else "cannot be told apart"
    return "worse" if better < 0.05 else "cannot be told apart"


def _checks(builder: Builder, order: Order, delivered: Delivered, out: Path) -> Iterator[Check]:
    verified, assembly = delivered.verified, delivered.assembly
    for name, limit in order.request.budget.limits().items():
        value = float(getattr(verified.cost, name))
        yield Check(
            name=f"budget: {name}", value=value, limit=float(limit), ok=value <= limit, detail="measured"
        )
    if delivered.plan.predicted is not None:
        # What fragments are planned to share is predicted; what they happen to share is not.
        planned = bool(trunks(delivered.plan))
        for name in ("params", "flops"):
            want, have = getattr(delivered.plan.predicted, name), getattr(verified.cost, name)
            saved = _shared(builder, delivered, name)
            yield Check(
                name=f"predicted {name} equal counted",
                value=float(have if planned else have + saved),
                limit=float(want),
                ok=have + saved == want if not planned else have <= want <= have + saved,
                detail="predicted from manifests"
                + (f"; {saved:,} are counted once, shared by parts" if saved else ""),
            )
    yield Check(
        name="ONNX Runtime equals eager",
        value=verified.difference,
        limit=SINGLE,
        ok=verified.difference <= SINGLE,
        detail=f"largest relative difference; decisions agree on {verified.agreement:.1%} of the samples",
    )
    stored = read_graph(out / GRAPH)
    same = encode(stored) == encode(assembly.graph) and all(
        torch.equal(tensor, stored.tensors[name]) for name, tensor in assembly.graph.tensors.items()
    )
    yield Check(
        name="graph file equals the model in memory", ok=same, detail="operators and tensors, bit for bit"
    )
    proof = prove(assembly.graph)
    yield Check(
        name="slicing equals zeroing its readers",
        value=proof.difference,
        limit=DOUBLE,
        ok=not proof.refused and proof.difference <= DOUBLE,
        detail=f"{proof.groups} channel groups of a random twin in float64; slicing moved it by {proof.moved:.2g}",
    )
    shuffled = _shuffled(builder, order, delivered.plan)
    if shuffled is not None:
        value, limit = shuffled
        yield Check(
            name="shuffled labels score at chance",
            value=value,
            limit=limit,
            ok=value <= limit,
            detail=f"mean over {SHUFFLES} shuffles, same features, {_shuffled_head(delivered.plan)}; "
            "more would be a leak",
        )


def _shuffled_head(plan: Plan) -> str:
    head = plan.nodes[plan.out]
    trained = isinstance(head, HeadNode) and head.kind == "paper"
    return "a logistic head in place of the trained one" if trained else "same head"


def _shared(builder: Builder, delivered: Delivered, name: str) -> int:
    """Parameters or FLOPs that parts have in common, so that the model has them once."""
    members = builder.members_of(delivered.plan)
    if not members:
        return 0
    return sum(int(getattr(count(part), name)) for part in members) - int(
        getattr(count(branch(members)), name)
    )


def _shuffled(builder: Builder, order: Order, plan: Plan) -> tuple[float, float] | None:
    """Accuracy with labels dealt out anew, and the most that chance explains; None without a fitted head."""
    head = plan.nodes[plan.out]
    if not isinstance(head, HeadNode) or head.kind == "restrict" or min(order.samples.counts.values()) < 2:
        return None
    parts = [builder.features(plan, member, order.samples) for member in builder.members(plan, head)]
    labels = torch.from_numpy(order.samples.labels.copy())
    generator = torch.Generator().manual_seed(order.request.seed)
    n_classes = len(order.classes)
    found = []
    for _ in range(SHUFFLES):
        dealt = labels[torch.randperm(len(labels), generator=generator)]
        widths = tuple(part.shape[1] for part in parts)
        loto = ridge_loto if head.kind == "ridge" else logistic_loto
        score = loto(torch.cat(parts, 1), dealt, n_classes, blocks=widths, pairings=1)
        found.append(score.accuracy or 0.0)
    chance = 1.0 / n_classes
    spread = (chance * (1 - chance) / len(labels)) ** 0.5
    # Shuffles of the same samples are not independent: allow three standard errors of a single one.
    return sum(found) / len(found), chance + 3 * spread


def _per_class(order: Order, delivered: Delivered) -> Iterator[ClassScore]:
    labels = torch.from_numpy(order.samples.labels.copy())
    n_classes = len(order.classes)
    own = per_class_recall(delivered.pick.predictions, labels, n_classes)
    held: tuple[float | None, ...] = (None,) * n_classes
    if delivered.heldout is not None and delivered.pick.heldout is not None:
        truth = torch.from_numpy(delivered.heldout.labels.copy())
        held = per_class_recall(delivered.pick.heldout, truth, n_classes)
    givers = _givers(order, delivered.plan)
    for place, offer in enumerate(order.requirement.offers):
        yield ClassScore(
            cls=offer.cls,
            learnware=givers[offer.cls][0],
            donor=" and ".join(order.learnwares[id_].name for id_ in givers[offer.cls]),
            n_samples=order.samples.counts[offer.cls],
            recall_loto=own[place],
            n_heldout=delivered.heldout.counts[offer.cls] if delivered.heldout is not None else None,
            recall_heldout=held[place],
            donor_skill=offer.skill,
        )


def _givers(order: Order, plan: Plan) -> dict[str, list[str]]:
    """For each class the learnwares whose fragments of it the plan packs; the chosen donor where none is."""
    found: dict[str, list[str]] = {}
    for name, node in plan.nodes.items():
        if isinstance(node, SliceNode):
            for giver in sources(plan, name):
                for cls in node.classes:
                    if giver not in found.setdefault(cls, []):
                        found[cls].append(giver)
    return {offer.cls: found.get(offer.cls) or [offer.learnware] for offer in order.requirement.offers}


def _confusion(order: Order, delivered: Delivered) -> Confusion:
    said, samples, basis = delivered.pick.predictions, order.samples, "loto"
    if delivered.heldout is not None and delivered.pick.heldout is not None:
        said, samples, basis = delivered.pick.heldout, delivered.heldout, "heldout"
    table = confusion(said, torch.from_numpy(samples.labels.copy()), len(order.classes))
    return Confusion.parse({"classes": list(order.classes), "counts": table.tolist(), "basis": basis})


def supernet_donor(manifest: StockedSupernet) -> Donor:
    """A supernet as the report's lineage shows it."""
    return Donor(
        learnware=manifest.id,
        name=manifest.name,
        licence=manifest.licence,
        origin=manifest.backbone,
        graph_hash=manifest.graph_hash,
        weights_hash=manifest.weights_hash,
        classes=manifest.classes,
    )


def _certificate(builder: Builder, order: Order, delivered: Delivered) -> Certificate | None:
    """Of a delivered subnet; its equality with the gated supernet is checked here once more."""
    nodes = [node for node in delivered.plan.nodes.values() if isinstance(node, SubnetNode)]
    if len(nodes) != 1:
        return None
    held = (order.subnets or builder.subnets).get(nodes[0].of)
    gates = held.gates(nodes[0])
    rows = list(range(len(held.supernet.space.answers)))
    return held.certificate(
        nodes[0],
        gates,
        held.compared(gates, held.cut(gates, (), rows), rows),
        found=None,
        budget=order.request.budget,
        measured=delivered.verified.cost,
        predicted=delivered.plan.predicted,
    )


def _where(builder: Builder, delivered: Delivered) -> Iterator[Part]:
    """The parts of the model; blocks of a chain with the part of their donor that they are."""
    spans = iter(builder.spans(delivered.plan))
    blocks = any(isinstance(node, ChainNode) for node in delivered.plan.nodes.values())
    for name, learnware, classes, params in delivered.assembly.parts:
        span = next(spans, None) if blocks and learnware is not None else None
        yield Part(name=name, learnware=learnware, classes=classes, params=params, span=span)


def _lineage(order: Order, delivered: Delivered) -> Iterator[Donor]:
    for id_ in delivered.plan.supernets:
        if order.subnets is not None:
            yield supernet_donor(order.subnets.get(id_).manifest)
    for id_ in delivered.plan.learnwares:
        learnware = order.learnwares[id_]
        yield Donor(
            learnware=id_,
            name=learnware.name,
            licence=learnware.licence,
            origin=learnware.origin,
            graph_hash=learnware.graph_hash,
            weights_hash=learnware.weights_hash,
            samples_hash=learnware.samples_hash,
            classes=learnware.classes,
        )


def _sentences(
    order: Order, delivered: Delivered, comparisons: Sequence[Comparison], checks: Sequence[Check]
) -> Iterator[str]:
    row, cost = delivered.pick.row, delivered.verified.cost
    n, noun = len(order.samples), order.samples.noun
    if row.accuracy_loto is not None and row.interval is not None:
        fitted = delivered.assembly.head is not None
        how = (
            "measured by leaving one of each class out of the head"
            if fitted
            else "under a donor's own classifier, which none of them fitted"
        )
        yield (
            f"About {row.accuracy_loto:.0%} ({row.interval.low:.0%} to {row.interval.high:.0%}, nine times of ten) on "
            f"{noun}s like your {n}, {how}."
        )
        if _sliced_from_these(order, delivered):
            told = f"Its slices were chosen and repaired on all these {noun}s at once: new ones may do a little worse"
            yield told + ("." if delivered.heldout is not None else "; give held-out samples to see.")
    else:
        yield f"Not measured on your {n} samples: with one sample a class nothing can be left out."
    if row.accuracy_heldout is not None and delivered.heldout is not None:
        n_held = len(delivered.heldout)
        yield f"{row.accuracy_heldout:.1%} of {n_held} held-out {noun}s, which chose nothing, are named right."
    each = f"{cost.flops:,} FLOPs {'an image' if noun == 'image' else f'a {noun}'}"
    yield f"{cost.params:,} parameters, {each}, {_latency(cost)}, {cost.size_bytes:,} bytes."
    yield from _foretold(order, delivered)
    if delivered.rejection is not None:
        yield _refusals(delivered.rejection, noun)
    built = sum(score.row.role in ("pick", "plan") for score in delivered.rows)
    if built == 1:
        yield "Delivered: the only plan that was built."
    elif row.accuracy_loto is None:
        yield "Delivered: the first of the plans that keep the budget, for nothing could be measured."
    else:
        yield (
            "Delivered: the most accurate plan on the order's own samples that keeps the budget; of equals, the "
            "smallest."
        )
    for found in comparisons:
        gap = f"{100 * found.gap:+.1f} points"
        if found.verdict == "cannot be told apart":
            more = f" (about {found.samples_needed:,} labelled samples would)" if found.samples_needed else ""
            yield f"Against {found.row}: {gap}; your samples cannot tell them apart{more}."
        else:
            yield f"Against {found.row}: {gap}, {found.verdict}."
    yield from _best_donor(order, delivered)
    for score in delivered.rows:
        training = training_of(score.plan)
        if training is not None and training.start == "given":
            yield f"{score.row.name[:1].upper()}{score.row.name[1:]}: {score.row.note}."
    for tried in delivered.verified.tried:
        yield f"Verified before and over the budget: {tried}."
    failed = [check.name for check in checks if not check.ok]
    if failed:
        yield f"Checks that failed: {', '.join(failed)}."


def _sliced_from_these(order: Order, delivered: Delivered) -> bool:
    """Whether the delivered plan has slices, and some of the order's samples are those that donors were sliced with."""
    plan = delivered.pick.plan
    if plan is None or not any(isinstance(node, SliceNode) for node in plan.nodes.values()):
        return False
    own = set(order.samples.contents())
    return any(not own.isdisjoint(samples.contents()) for samples in order.donor_samples.values())


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
        f"The best single donor within the budget, whole: {named}, {best.accuracy_loto or 0.0:.1%} on your samples "
        f"with {best.cost.params if best.cost else 0:,} parameters."
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
    if said.process_bytes is not None:
        yield (
            f"A process that runs it should grow by about {said.process_bytes / 1e6:.3g} MB, at most "
            f"{(said.process_high_bytes or said.process_bytes) / 1e6:.3g} MB."
        )


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


def _not_tried(order: Order, delivered: Delivered) -> Iterator[str]:
    roles = {score.row.role for score in delivered.rows}
    if "donor" not in roles:
        asked_for = "baselines" in order.request.engines
        why = (
            "no single learnware knows all the wanted classes"
            if asked_for
            else "left out with the baselines engine"
        )
        yield f"a donor as it is: {why}"
    asked = order.request.baselines if "baselines" in order.request.engines else ()
    if "finetune" not in roles:
        yield "fine-tuning a donor: left out with the baselines engine, or not among the request's baselines"
    names = {score.row.name for score in delivered.rows}
    for name in (name for name in NAMES if name != "finetune" and TITLES[name] not in names):
        why = "these donors don't allow it" if name in asked else f"ask for it with baselines: {name}"
        yield f"{TITLES[name]}: {why}"
    yield from not_made(order.request, delivered.rows, heldout=delivered.heldout is not None)
    if delivered.rejection is None:
        yield "none of the above: needs a fitted head and three samples of every class"
    if delivered.heldout is None:
        noun = order.samples.noun
        yield f"held-out {noun}s: none were given, so accuracy is known from the order's own samples alone"
    yield from order.requirement.notes
    yield "int8, pruning with retraining: not built by this version"
