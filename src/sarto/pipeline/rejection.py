"""None of the above in a delivered model: fitted on the order's samples, stored beside the graph, reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sarto.errors import GraphError
from sarto.graph import ModelGraph, evaluate, features
from sarto.market import Labelled
from sarto.pipeline.builder import BATCH, Builder
from sarto.pipeline.order import Order
from sarto.training import FALSE_REJECT, Novelty, fit_novelty
from sarto.types import HeadNode, Plan, Rejection

#: The file of an artifact that holds it.
NOVELTY = "novelty.safetensors"
#: Samples of each class that was not ordered, on which the share of right refusals is measured.
OUTSIDERS = 20


def fit_rejection(builder: Builder, order: Order, plan: Plan) -> tuple[Novelty, Rejection] | None:
    """When a delivered model says "none of these", and how often it is right; None where that can't be known.

    The threshold is set on the order's own samples alone. The donors' samples of classes that nobody ordered only say
    how many outsiders it finds. A head of the paper, and a class with fewer than three samples, give None.
    """
    read = _what_the_head_reads(builder, plan)
    if read is None:
        return None
    parts = read(order.samples)
    labels = torch.from_numpy(order.samples.labels.copy())
    widths = tuple(part.shape[1] for part in parts)
    found = fit_novelty(torch.cat(parts, 1), labels, len(order.classes), blocks=widths)
    if found is None:
        return None
    refused, total, names = 0, 0, list[str]()
    for samples in _outsiders(order, plan):
        told = found.known(torch.cat(read(samples), 1))
        refused, total = refused + int((~told).sum()), total + len(told)
        names += [name for name in samples.classes if name not in names]
    return found, Rejection(
        threshold=found.threshold,
        target=FALSE_REJECT,
        false_reject=found.false_reject,
        n_samples=found.n_samples,
        detected=refused / total if total else None,
        n_outsiders=total,
        outsiders=tuple(names),
    )


def _what_the_head_reads(builder: Builder, plan: Plan) -> Callable[[Labelled], list[Tensor]] | None:
    """From samples to the features of each member that a plan's classifier reads; None for a head of the paper and for
    what is no linear layer."""
    head = plan.nodes[plan.out]
    if isinstance(head, HeadNode) and head.kind in ("ridge", "logistic"):
        members = builder.members(plan, head)
        return lambda samples: [builder.features(plan, member, samples) for member in members]
    if isinstance(head, HeadNode) and head.kind != "restrict":
        return None
    made = builder.build(plan)
    try:
        features(made.graph)
    except GraphError:
        return None  # a classifier that is no linear layer
    return lambda samples: [run_with_features(made.graph, made.intake.tensor(samples))[1]]


def _outsiders(order: Order, plan: Plan) -> list[Labelled]:
    """The donors' own samples of classes that were not ordered, from anybody.

    With new classes these are the plan's own donors: others may read images that the plan does not.
    """
    new = bool(order.requirement.new)
    found = []
    for id_ in plan.learnwares if new else [donor.id for donor in order.donors]:
        if id_ not in order.donor_samples:
            continue
        samples = order.donor_samples[id_]
        others = [name for name in samples.classes if name not in order.classes]
        if samples is not order.samples and others:
            found.append(samples.only(others).take(OUTSIDERS))
    return found


def write_novelty(novelty: Novelty, folder: Path) -> None:
    """The novelty as a file of an artifact."""
    save_file(
        {
            "centres": novelty.centres.contiguous(),
            "scale": novelty.scale.contiguous(),
            "radii": novelty.radii.contiguous(),
            "threshold": torch.tensor([novelty.threshold], dtype=torch.float64),
            "false_reject": torch.tensor([novelty.false_reject], dtype=torch.float64),
            "n_samples": torch.tensor([novelty.n_samples]),
        },
        folder / NOVELTY,
    )


def read_novelty(folder: Path) -> Novelty | None:
    """The novelty of an artifact; None where it has none."""
    path = folder / NOVELTY
    if not path.is_file():
        return None
    found = load_file(path)
    return Novelty(
        centres=found["centres"],
        scale=found["scale"],
        radii=found["radii"],
        threshold=float(found["threshold"]),
        false_reject=float(found["false_reject"]),
        n_samples=int(found["n_samples"]),
    )


def run_with_features(graph: ModelGraph, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) and what the head reads, (n, width), a batch at a time."""
    name = features(graph).value
    logits, read = [], []
    for start in range(0, len(inputs), BATCH):
        outputs, values = evaluate(graph, inputs[start : start + BATCH], watch=[name])
        logits.append(outputs[0])
        read.append(values[name])
    return torch.cat(logits), torch.cat(read)
