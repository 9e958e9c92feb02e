"""Chains of blocks that are trained a little: what samples that were left out say of it, and the student beside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sarto.devices import count
from sarto.engines.baselines import left_out_folds
from sarto.errors import GraphError, RequestError
from sarto.market import Labelled, Samples
from sarto.pipeline.builder import Builder
from sarto.pipeline.chaining import tuning_of
from sarto.pipeline.contest import LEVEL, Role, Score, interval_of
from sarto.pipeline.order import Order
from sarto.pipeline.reassembling import STUDENT
from sarto.training import jeffreys
from sarto.types import (
    BlockNode,
    ChainNode,
    HeadNode,
    Plan,
    PlanNode,
    Request,
    Row,
    SliceNode,
    SourceNode,
    Training,
    TuneNode,
)

#: Steps of the student, and the FLOPs of its trainings that an order spends unasked: some twenty seconds of a core.
STUDENT_STEPS, STUDENT_FLOPS = 200, 1e12
#: A step costs so many times the FLOPs of the model: forward, and twice as much backward.
PER_STEP = 3
#: Parts of a class that are left out in turn.
FOLDS = 3
#: Step sizes where the order names none. On left-out samples of the demo's donors (one chain, one fold, 12 steps)
#: larger ones came less near to the last donor's features: stitches with 1e-3, everything with 1e-4. 1e-3 on everything
#: took a chain from 97 to 75 % right.
RATES = {"stitches": 1e-4, "frozen": 1e-4, "full": 3e-5}
#: Begins the reason, in a row's note, why a chain was not trained.
NOT_TRAINED = "not trained: "


def tuned_plan(plan: Plan, how: Training, samples_digest: str, *, seed: int, own_samples: bool) -> Plan:
    """A plan of a chain with a training in it.

    Args:
        samples_digest: of the order's samples; towards features the chain's probe images are trained on too.
        own_samples: whether the order brought these samples, so that their labels are trained on unless it says else.
    """
    towards = how.towards or ("labels" if own_samples else "features")
    rate = RATES[how.scope] if how.rate is None else how.rate
    said = how.model_dump(exclude={"towards", "rate"}) | {"rate": rate}
    if towards == "labels":
        node = TuneNode(of=plan.out, towards="labels", samples=(samples_digest,), seed=seed, **said)
        return plan.replace(nodes={**plan.nodes, "tuned": node}, out="tuned", note=f"{plan.note}, trained")
    images = tuple(dict.fromkeys((chain_of(plan).samples, samples_digest)))
    node = TuneNode(of=_top(plan), samples=images, seed=seed, **said)
    return _with_training(plan, node, f"{plan.note}, trained")


def student_plan(plan: Plan, samples_digest: str, n_images: int, *, seed: int) -> Plan:
    """The plan of a student: the shape of a chain, new weights, distilled from the chain's last model.

    It learns what the last model's classifier reads, from the chain's probe images and the order's samples, labels
    unread, and has the same head.

    Reference:
        Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022.
        Differs: the student has as many features as its teacher, so nothing projects them.
    """
    images = tuple(dict.fromkeys((chain_of(plan).samples, samples_digest)))
    node = TuneNode(of=_top(plan), samples=images, scope="full", start="fresh", seed=seed)
    epochs = math.ceil(STUDENT_STEPS / math.ceil(n_images / node.batch))
    return _with_training(plan, node.replace(epochs=epochs), f"distilled student of the shape of {plan.note}")


def chain_of(plan: Plan) -> ChainNode:
    """The chain of a plan.

    Raises:
        RequestError: it has none.
    """
    found = next((node for node in plan.nodes.values() if isinstance(node, ChainNode)), None)
    if found is None:
        raise RequestError("the plan has no chain of blocks; only these are trained")
    return found


def training_of(plan: Plan | None) -> TuneNode | None:
    """The training of a plan; None where it has none."""
    nodes = plan.nodes.values() if plan is not None else ()
    return next((node for node in nodes if isinstance(node, TuneNode)), None)


def untrained(plan: Plan) -> Plan:
    """The plan without its training."""
    below = {name: node.of for name, node in plan.nodes.items() if isinstance(node, TuneNode)}
    nodes: dict[str, PlanNode] = {}
    for name, node in plan.nodes.items():
        if isinstance(node, BlockNode | HeadNode | SliceNode) and node.of in below:
            nodes[name] = node.replace(of=below[node.of])
        elif not isinstance(node, TuneNode):
            nodes[name] = node
    return plan.replace(
        nodes=nodes, out=below.get(plan.out, plan.out), note=plan.note.removesuffix(", trained")
    )


def left_out(builder: Builder, plan: Plan, samples: Samples) -> Tensor:
    """Classes (n,) said of samples that were left out of all training and of the head, a third of each class at a time.

    -1 where a sample never was. Images equal to one that is left out are taken out of the unlabelled ones too.
    """
    labels = torch.from_numpy(samples.labels.copy())
    said = torch.full_like(labels, -1)
    for rest, fold in left_out_folds(labels, FOLDS):
        part = _without(builder, plan, samples, rest.numpy(), fold.numpy())
        asked = Samples(samples.images[fold.numpy()], np.zeros(len(fold), np.int64), ("left out",))
        said[fold] = builder.logits(part, asked).argmax(1)
    return said


def score_tuned(
    builder: Builder, plan: Plan, samples: Labelled, role: Role, name: str, *, folds: bool = True
) -> Score:
    """A plan with a training, scored on samples that were left out of it; the note says what was right before too.

    Args:
        folds: whether to train on folds; without, the row has no accuracy on the order's samples.

    Raises:
        RequestError, GraphError: the chain can't be trained.
    """
    node = training_of(plan)
    if node is None or not isinstance(samples, Samples):
        raise RequestError("only chains of blocks that read images are trained")
    labels = torch.from_numpy(samples.labels.copy())
    said = left_out(builder, plan, samples) if folds else torch.full_like(labels, -1)
    counted = said >= 0
    n, right = int(counted.sum()), int((said == labels)[counted].sum())
    note = _how(builder, plan, node)
    if node.start == "given" and n:
        before = left_out(builder, untrained(plan), samples)
        note += f"; of {n} samples, left out, {float((before == labels)[counted].sum()) / n:.1%} right before"
        note += f", {right / n:.1%} after"
    elif node.start == "given":
        note += "; too few samples to leave any out"
    elif not folds:
        note += "; scored on the held-out samples alone"
    row = Row(
        name=name,
        role=role,
        plan_key=plan.key(),
        accuracy_loto=right / n if n else None,
        interval=interval_of(
            jeffreys(float(right), n, level=LEVEL) if n else None,
            "jeffreys, a third left out of all training",
        ),
        cost=count(builder.build(untrained(plan)).graph),
        samples_used=len(samples),
        note=note,
    )
    correct = torch.where(counted, (said == labels).double(), torch.nan)
    return Score(row, plan, correct, said)


def train_best(builder: Builder, order: Order, scores: Sequence[Score]) -> list[Score]:
    """The scores with the best chain trained as the order asks.

    Where more left-out samples are named right than before, the trained chain is a plan and the untrained one stands
    beside it; else the other way round. A chain that can't be trained says why in its note.
    """
    how = order.request.train
    chains = [s for s in scores if s.row.role == "plan" and s.plan is not None and _chained(s.plan)]
    if how is None or not chains:
        return list(scores)
    best = max(
        chains,
        key=lambda s: (s.row.accuracy_loto or 0.0, -(s.row.cost.params if s.row.cost is not None else 0)),
    )
    if best.plan is None or not isinstance(order.samples, Samples):
        return list(scores)
    # What donors decide is no label to learn: their features say more.
    own = order.request.samples is not None and order.requirement.labelled_by == "order"
    plan = tuned_plan(best.plan, how, order.samples.digest, seed=order.request.seed, own_samples=own)
    name = best.row.name
    try:
        after = score_tuned(builder, plan, order.samples, "plan", f"{name}, trained")
        before = left_out(builder, best.plan, order.samples)
    except (GraphError, RequestError) as error:
        row = best.row.replace(note=f"{best.row.note}; {NOT_TRAINED}{error.detail}")
        return [replace(best, row=row) if score is best else score for score in scores]
    labels = torch.from_numpy(order.samples.labels.copy())
    kept = int((after.predictions == labels).sum()) > int((before == labels).sum())
    told = f"{after.row.note}: {'kept' if kept else 'not kept'}"
    after = replace(after, row=after.row.replace(note=told, role="plan" if kept else "baseline"))
    if kept:
        before_row = best.row.replace(name=f"{name}, before training", role="baseline")
        scores = [replace(score, row=before_row) if score is best else score for score in scores]
    place = next(i for i, score in enumerate(scores) if score.plan is best.plan)
    return [*scores[: place + 1], after, *scores[place + 1 :]]


def score_student(builder: Builder, order: Order, rows: Sequence[Score], *, heldout: bool) -> list[Score]:
    """The distilled student beside the delivered chain, or beside the best; none where no chain was built.

    One that the order does not ask for by name is left out where its trainings cost more than `STUDENT_FLOPS`.

    Args:
        heldout: with held-out samples it is trained once and scored on them; else three times, on folds.
    """
    chain = student_of(rows)
    if chain is None or not isinstance(order.samples, Samples):
        return []
    if STUDENT not in order.request.baselines and student_flops(chain, heldout=heldout) > STUDENT_FLOPS:
        return []
    plan = untrained(chain)
    images = builder.images(chain_of(plan).samples)
    student = student_plan(
        plan, order.samples.digest, len(images) + len(order.samples), seed=order.request.seed
    )
    builder.progress("to compare with: a distilled student", 0, 1)
    name = "distilled student, the chain's shape with new weights"
    try:
        return [score_tuned(builder, student, order.samples, "baseline", name, folds=not heldout)]
    except (GraphError, RequestError) as error:
        builder.progress(f"the distilled student is left out: {error.detail}", 0, 1)
        return []


def student_of(rows: Sequence[Score]) -> Plan | None:
    """The chain that a student stands beside: the delivered model, else the best chain; None where there is none."""
    chains = [s for s in rows if s.row.role in ("pick", "plan") and s.plan is not None and _chained(s.plan)]
    chains.sort(key=lambda s: (s.row.role != "pick", -(s.row.accuracy_loto or 0.0)))
    return chains[0].plan if chains else None


def student_flops(plan: Plan, *, heldout: bool) -> float:
    """What training a student of a chain costs, in FLOPs; on folds it is trained three times."""
    flops = plan.predicted.flops if plan.predicted is not None else 0
    return float(
        PER_STEP * flops * TuneNode.model_fields["batch"].default * STUDENT_STEPS * (1 if heldout else FOLDS)
    )


def not_made(request: Request, rows: Sequence[Score], *, heldout: bool) -> Iterator[str]:
    """Why no chain was trained, and why none has a student beside it; nothing where both were done, or none is there.

    Args:
        heldout: whether there are held-out samples.
    """
    starts = {node.start for score in rows if (node := training_of(score.plan)) is not None}
    if request.train is not None and "given" not in starts:
        notes = [score.row.note for score in rows if NOT_TRAINED in score.row.note]
        why = (
            notes[0].partition(NOT_TRAINED)[2]
            if notes
            else "no chain of blocks was built, or the plan was given"
        )
        yield f"training: {why}"
    chain = student_of(rows)
    if chain is None or "fresh" in starts:
        return
    cost = student_flops(chain, heldout=heldout)
    if STUDENT not in request.baselines and cost > STUDENT_FLOPS:
        why = f"its training costs about {cost:.1g} FLOPs; ask for it with baselines: {STUDENT}"
    else:
        why = "not made where the plan is given, or this chain does not allow it"
    yield f"a distilled student of the chain's shape: {why}"


def _chained(plan: Plan) -> bool:
    return any(isinstance(node, ChainNode) for node in plan.nodes.values())


def _top(plan: Plan) -> str:
    """The model that the plan's head, or the block below it, reads."""
    node = plan.nodes[plan.out]
    while isinstance(node, HeadNode | BlockNode):
        name, node = node.of, plan.nodes[node.of]
    return name


def _with_training(plan: Plan, training: TuneNode, note: str) -> Plan:
    nodes: dict[str, PlanNode] = {
        name: node.replace(of="tuned")
        if isinstance(node, BlockNode | HeadNode) and node.of == training.of
        else node
        for name, node in plan.nodes.items()
    }
    return plan.replace(nodes={**nodes, "tuned": training}, note=note)


def _how(builder: Builder, plan: Plan, node: TuneNode) -> str:
    n = sum(len(builder.images(digest)) for digest in node.samples)
    steps = tuning_of(node, n).steps
    if node.towards == "labels":
        return f"trained {steps} steps on the labels of {n} images, {node.scope}"
    tail = plan.nodes[chain_of(plan).of[-1]]
    of = builder.store.get(tail.of).name if isinstance(tail, SourceNode) else "its last model"
    return f"trained {steps} steps towards the features of {of} on {n} images, labels unread, {node.scope}"


def _without(builder: Builder, plan: Plan, samples: Samples, rest: np.ndarray, fold: np.ndarray) -> Plan:
    """The plan, fitted and trained on the rest alone."""
    kept = Samples(samples.images[rest], samples.labels[rest], samples.classes)
    builder.hold(kept)
    gone = {image.tobytes() for image in samples.images[fold]}
    other: dict[str, str | None] = {samples.digest: kept.digest}
    nodes: Mapping[str, PlanNode] = plan.nodes
    for digest in (d for node in nodes.values() if isinstance(node, TuneNode) for d in node.samples):
        if digest not in other:
            other[digest] = _purged(builder, digest, gone)
    changed: dict[str, PlanNode] = {}
    for name, node in nodes.items():
        if isinstance(node, HeadNode) and node.samples == samples.digest:
            changed[name] = node.replace(samples=kept.digest)
        elif isinstance(node, TuneNode):
            left = [found for d in node.samples if (found := other.get(d, d)) is not None]
            changed[name] = node.replace(samples=tuple(left))
        else:
            changed[name] = node
    return plan.replace(nodes=changed)


def _purged(builder: Builder, digest: str, gone: set[bytes]) -> str | None:
    """Hash of unlabelled images without those that are left out; None where nothing remains."""
    held = builder.images(digest)
    if not isinstance(held, Samples):
        return digest
    places = np.array([i for i, image in enumerate(held.images) if image.tobytes() not in gone], np.intp)
    if len(places) == len(held):
        return digest
    if not len(places):
        return None
    left = Samples(held.images[places], np.zeros(len(places), np.int64), ("probe",))
    builder.hold(left)
    return left.digest
