"""The report of a delivered model: the comparison, the checks, the lineage, and the costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from sarto.devices import count
from sarto.engines.factory.search import Found
from sarto.graph import branch, prove
from sarto.graph.encoding import encode
from sarto.graph.file import read_graph
from sarto.pipeline.artifact import GRAPH, delivered_hashes
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import trunks
from sarto.pipeline.contest import LEVEL, Score
from sarto.pipeline.delivered import Delivered
from sarto.pipeline.environment import environment
from sarto.pipeline.intakes import sources
from sarto.pipeline.on_device import device_checks
from sarto.pipeline.order import Order
from sarto.pipeline.sentences import new_head, not_tried, sentences
from sarto.pipeline.subnets import certificate_sentences
from sarto.training import compare, confusion, logistic_loto, per_class_recall, ridge_loto
from sarto.types import (
    Budget,
    Certificate,
    ChainNode,
    Check,
    ClassScore,
    Comparison,
    Confusion,
    Cost,
    DeviceFile,
    Donor,
    HeadNode,
    Interval,
    Part,
    Plan,
    Report,
    SliceNode,
    StockedSupernet,
    SubnetNode,
    licences_of,
)

#: Largest relative difference that counts as equal in single and in double precision (design promise 1).
SINGLE, DOUBLE = 1e-5, 1e-12
SHUFFLES = 10


def make_report(
    builder: Builder, order: Order, delivered: Delivered, out: Path, seconds: Mapping[str, float]
) -> Report:
    """The report of a model whose graph and ONNX file are in `out` already."""
    comparisons = _comparisons(order, delivered)
    lineage = tuple(_lineage(order, delivered))
    certificate = _certificate(builder, order, delivered)
    checks = tuple(_checks(builder, order, delivered, out))
    predicted = delivered.plan.predicted or count(delivered.assembly.graph)
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
        hashes=delivered_hashes(out, delivered.verified.file),
        environment=environment(order.request.device.threads),
        seconds=dict(seconds),
        sentences=(
            *sentences(order, delivered, comparisons, checks),
            f"Licences of what it is made of: {', '.join(licences_of(lineage))}.",
            *(certificate_sentences(certificate).values() if certificate is not None else ()),
        ),
        not_tried=tuple(not_tried(order, delivered)),
        certificate=certificate,
        device_file=delivered.verified.file,
        latency_raw_ms=delivered.verified.raw_ms,
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
    yield from budget_checks(verified.cost, order.request.budget, verified.file, raw_ms=verified.raw_ms)
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
    yield from device_checks(verified.file, order.request.device)
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


def budget_checks(
    cost: Cost, budget: Budget, file: DeviceFile | None, *, raw_ms: float | None = None
) -> Iterator[Check]:
    """That a built model keeps each limit.

    Latency and the memory of a process are measured, and the size of the device's file where that is another one; the
    others are counted.

    Args:
        raw_ms: milliseconds as they were, where the cost has them at the speed of the device's profile.
    """
    told = {"latency_ms": "measured", "process_bytes": "measured: what a fresh process grew by"}
    if raw_ms is not None:
        told["latency_ms"] = f"measured, at the profile's speed; {raw_ms:.3g} ms as it was"
    if file is not None:
        told["size_bytes"] = f"measured: the bytes of {file.name} and what belongs to it"
    for name, limit in budget.limits().items():
        value = float(getattr(cost, name))
        yield Check(
            name=f"budget: {name}",
            value=value,
            limit=float(limit),
            ok=value <= limit,
            detail=told.get(name, "counted"),
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
    givers, offers = _givers(order, delivered.plan), {o.cls: o for o in order.requirement.offers}
    head = new_head(order, delivered.plan) if order.requirement.new else None
    for place, cls in enumerate(order.classes):
        # A new head for all classes takes none of them from a donor that knows it.
        ids = givers[cls] if head is None else []
        yield ClassScore(
            cls=cls,
            learnware=ids[0] if ids else None,
            donor=head or " and ".join(order.learnwares[id_].name for id_ in ids),
            n_samples=order.samples.counts[cls],
            recall_loto=own[place],
            n_heldout=delivered.heldout.counts[cls] if delivered.heldout is not None else None,
            recall_heldout=held[place],
            donor_skill=offers[cls].skill if ids else None,
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
    gates, solved = held.gates(nodes[0]), delivered.verified.solved
    if solved is not None:
        found: Found | None = Found(gates, float(gates.mean()), *solved)
    else:
        found = held.found_again(gates, held.tasks(nodes[0].tasks), order.request.budget)
    rows = list(range(len(held.supernet.space.answers)))
    return held.certificate(
        nodes[0],
        gates,
        held.compared(gates, held.cut(gates, (), rows), rows),
        found=found,
        budget=order.request.budget,
        measured=delivered.verified.cost,
        predicted=delivered.plan.predicted,
        samples=len(builder.images(nodes[0].samples)) if nodes[0].samples is not None else 0,
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
