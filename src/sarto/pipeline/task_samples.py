"""Labelled samples of an order that a supernet does: nothing is chosen on them, they only say how good the model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sarto.market import Labelled, Store, read_unlabelled
from sarto.pipeline.builder import run
from sarto.pipeline.contest import LEVEL, interval_of
from sarto.pipeline.intakes import intake_of
from sarto.pipeline.order import check_reads_samples
from sarto.pipeline.task_models import Made
from sarto.pipeline.unlabelled import without_labels
from sarto.training import jeffreys, per_class_recall
from sarto.types import ClassScore, Interval, Plan, Request


@dataclass(frozen=True)
class TaskScore:
    """How a delivered subnet does on the order's samples.

    Attributes:
        accuracy: share that it names right; None where none has an answer of the model for its label.
        counts: samples of each answer.
        notes: what of the samples is not used, and why.
    """

    accuracy: float | None = None
    interval: Interval | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    per_class: tuple[ClassScore, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Samples that were scored."""
        return sum(self.counts.values())


def read_own(request: Request) -> Labelled | None:
    """The order's images, the first k of each class where it says so and they have any; None where it has none.

    Raises:
        RequestError: they can't be read.
    """
    if request.samples is None:
        return None
    found = read_unlabelled(Path(request.samples))
    if request.samples_per_class is None or without_labels(request):
        return found
    return found.take(request.samples_per_class)


def check_own(store: Store, plan: Plan, samples: Labelled | None, request: Request) -> None:
    """Refuse samples that the supernet of a plan can't read, before anything is built.

    Raises:
        RequestError, ShapeError: names the path.
    """
    if samples is not None and plan.supernets:
        reads = intake_of(store, store.supernets.get(plan.supernets[0]))
        check_reads_samples("samples", str(request.samples), samples, reads)


def scored(made: Made, samples: Labelled | None, request: Request) -> TaskScore:
    """How the built model does on those of the samples whose class is one of its answers."""
    if samples is None:
        return TaskScore()
    if without_labels(request):
        return TaskScore(notes=(f"the images in {request.samples} carry no labels: none of them is scored",))
    unlabelled = request.recalibrate or request.device.precision == "int8"
    if made.held.supernet.space.kind != "classification":
        told = "this model finds objects, and labels say no places: none of them is scored"
        return TaskScore(notes=() if unlabelled else (f"samples in {request.samples}: {told}",))
    known = [cls for cls in made.classes if cls in samples.classes]
    strange = ", ".join(cls for cls in samples.classes if cls not in made.classes)
    answers = ", ".join(made.classes)
    if not known:
        told = (
            f"samples in {request.samples} are not scored: they are of {strange}, the answers are {answers}"
        )
        return TaskScore(notes=() if unlabelled else (told,))
    notes = (
        [f"samples of {strange} in {request.samples} are left out: the answers are {answers}"]
        if strange
        else []
    )
    held = samples.only(known)
    missing = [cls for cls in made.classes if cls not in known]
    if missing:
        notes.append(f"samples in {request.samples} have none of {', '.join(missing)}")
    labels = torch.tensor([made.classes.index(held.classes[label]) for label in held.labels])
    said = run(made.graph, made.reads.tensor(held)).argmax(1)
    right, recalls = int((said == labels).sum()), per_class_recall(said, labels, len(made.classes))
    method = (
        "batch norm statistics taken from these samples, labels unread"
        if request.recalibrate
        else "nothing was fitted"
    )
    counts = {cls: held.counts.get(cls, 0) for cls in made.classes}
    manifest = made.held.manifest
    return TaskScore(
        accuracy=right / len(held),
        interval=interval_of(jeffreys(right, len(held), level=LEVEL), f"jeffreys, {method}"),
        counts=counts,
        per_class=tuple(
            ClassScore(
                cls=cls,
                learnware=manifest.id,
                donor=manifest.name,
                n_samples=counts[cls],
                recall_loto=recall,
            )
            for cls, recall in zip(made.classes, recalls, strict=True)
        ),
        notes=tuple(notes),
    )
