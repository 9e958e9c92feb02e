"""Plans on the order's samples: each is built, scored by leaving one of each class out, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sarto.devices import count
from sarto.market import Intake, Labelled
from sarto.pipeline.builder import Builder
from sarto.pipeline.intakes import conform
from sarto.pipeline.plain import PLAIN, plain_features
from sarto.training import (
    jeffreys,
    majority,
    nearest_mean_head,
    nearest_mean_loto,
    ridge_head,
    ridge_loto,
    wilson,
)
from sarto.types import ChainNode, Cost, Interval, Plan, Row, SliceNode, SubnetNode

#: Level of every interval in a report.
LEVEL = 0.9
Role = Literal["pick", "donor", "ensemble", "probe", "finetune", "baseline", "trivial", "control", "plan"]
MEANS = "nearest class mean"


@dataclass(frozen=True, eq=False)
class Score:
    """One row of the comparison, with what the paired tests and tables need.

    Attributes:
        correct: (n,) share right of each sample of the order when it was left out; NaN where never.
        predictions: (n,) class said of each sample when it was left out; -1 where never.
        heldout: (m,) class said of each held-out sample; None where there are none.
    """

    row: Row
    plan: Plan | None
    correct: Tensor
    predictions: Tensor
    heldout: Tensor | None = None

    def to_plain(self) -> dict[str, Any]:
        """The score as plain JSON values."""
        return {
            "row": self.row.model_dump(mode="json"),
            "plan": self.plan.model_dump(mode="json") if self.plan is not None else None,
            "correct": [None if value != value else value for value in self.correct.tolist()],
            "predictions": self.predictions.tolist(),
            "heldout": self.heldout.tolist() if self.heldout is not None else None,
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Score:
        """The score that `to_plain` wrote."""
        correct = [float("nan") if value is None else value for value in data["correct"]]
        return cls(
            Row.parse(data["row"]),
            Plan.parse(data["plan"]) if data["plan"] is not None else None,
            torch.tensor(correct, dtype=torch.float64),
            torch.tensor(data["predictions"], dtype=torch.int64),
            torch.tensor(data["heldout"], dtype=torch.int64) if data["heldout"] is not None else None,
        )

    def as_pick(self, cost: Cost) -> Score:
        """The row of the delivered model, with its measured cost."""
        return replace(self, row=self.row.replace(role="pick", cost=cost))


def score_plan(builder: Builder, plan: Plan, samples: Labelled, role: Role, name: str) -> Score:
    """Build a plan and score it on the order's samples.

    A head that was fitted on them is scored by leaving one of each class out; a donor's own head was not fitted on
    them and is scored on all. Slices are chosen and repaired once, on all samples; where that may have learnt them by
    heart, for want of a second sample of each class, nothing is said of an own head either. Stitches of chains read no
    labels; of how many of the samples they were fitted on, the interval's method speaks.
    """
    assembly = builder.build(plan)
    labels = torch.from_numpy(samples.labels.copy())
    note = plan.note
    stitched = [*_stitched_on(builder, plan, samples), *_normalised_on(plan, samples)]
    if assembly.head is not None:
        loto = assembly.head.loto
        accuracy, interval = loto.accuracy, loto.interval(LEVEL)
        correct, predictions = loto.correct, loto.predictions
        note = "; ".join([note, *assembly.head.notes])
        seen = _made_from(builder, plan, samples)
        sliced = ["of the head, not of the slices, which were made from these samples"] if seen else []
        method = f"jeffreys, {'; '.join([' '.join(['one of each class left out', *sliced]), *stitched])}"
    else:
        predictions = builder.logits(plan, samples).argmax(1)
        correct = (predictions == labels).to(torch.float64)
        accuracy = float(correct.mean())
        interval = jeffreys(float(correct.sum()), len(labels), level=LEVEL)
        seen = _made_from(builder, plan, samples)
        sliced = ["slices made from these samples under the donor's own classifier"] if seen else []
        method = f"jeffreys, {'; '.join([*sliced, *stitched]) or 'nothing was fitted'}"
        if seen and min(samples.counts.values()) < 2:
            note = (
                f"{note}; made from these samples, of which no second one of each class is left to try it on"
            )
            accuracy, interval = None, None
            correct, predictions = torch.full_like(correct, torch.nan), torch.full_like(predictions, -1)
    row = Row(
        name=name,
        role=role,
        plan_key=plan.key(),
        accuracy_loto=accuracy,
        interval=interval_of(interval, method),
        cost=count(assembly.graph),
        samples_used=_samples_used(builder, plan, samples if assembly.head is not None else None),
        note=note,
    )
    return Score(row, plan, correct, predictions)


def _made_from(builder: Builder, plan: Plan, samples: Labelled) -> bool:
    """Whether slices of the plan were chosen or repaired on some of these samples."""
    read = {node.samples for node in plan.nodes.values() if isinstance(node, SliceNode)}
    own = set(samples.contents())
    held = [part for digest, part in builder.samples.items() if digest in read]
    return any(not own.isdisjoint(part.contents()) for part in held)


def _samples_used(builder: Builder, plan: Plan, fitted: Labelled | None) -> int:
    """Samples that the slices of a plan, and its head where one was fitted, were made from."""
    read = {node.samples for node in plan.nodes.values() if isinstance(node, SliceNode)}
    parts = [part for digest, part in builder.samples.items() if digest in read]
    return n_together([*parts, *([fitted] if fitted is not None else [])], builder.intake(plan))


def n_together(parts: Iterable[Labelled], intake: Intake) -> int:
    """How many samples there are in several sets together, as a model reads them; equal ones are counted once."""
    return len({content for part in parts for content in conform(part, intake).contents()})


def _normalised_on(plan: Plan, samples: Labelled) -> list[str]:
    """That batch norm statistics of a subnet are those of these samples, in words; nothing where they are not."""
    taken = any(isinstance(n, SubnetNode) and n.samples == samples.digest for n in plan.nodes.values())
    return ["batch norm statistics taken from these samples, labels unread"] if taken else []


def _stitched_on(builder: Builder, plan: Plan, samples: Labelled) -> list[str]:
    """On how many of these samples the stitches of a plan were fitted, in words; none where on none."""
    chains = [node for node in plan.nodes.values() if isinstance(node, ChainNode)]
    read = dict.fromkeys(node.samples for node in chains if node.stitch.random is None)
    held = {content for digest in read for content in builder.images(digest).contents()}
    n = sum(content in held for content in samples.contents())
    return [f"stitches fitted on {n} of these {samples.noun}s, labels unread"] if n else []


def score_trivial(samples: Labelled, features: Tensor) -> list[Score]:
    """Chance, a ridge on pixels or words, and nearest class mean: what any method has to beat.

    Args:
        features: of the order's samples under the whole donors, shape (n, width); for the nearest class mean.
    """
    labels = torch.from_numpy(samples.labels.copy())
    n_classes = len(samples.classes)
    plain, note = PLAIN[samples.noun]
    _, share = majority(labels, n_classes)
    chance = Row(
        name="majority class", role="trivial", accuracy_loto=share, note="says one class for everything"
    )
    nothing = torch.full((len(labels),), float("nan"), dtype=torch.float64)
    scores = [Score(chance, None, nothing, torch.full_like(labels, -1))]
    for name, loto in (
        (plain, ridge_loto(plain_features(samples, samples), labels, n_classes)),
        (MEANS, nearest_mean_loto(features, labels, n_classes)),
    ):
        row = Row(
            name=name,
            role="trivial",
            accuracy_loto=loto.accuracy,
            interval=interval_of(loto.interval(LEVEL), "jeffreys, one of each class left out"),
            samples_used=len(samples),
            note="on the features of the whole donors" if name == MEANS else note,
        )
        scores.append(Score(row, None, loto.correct, loto.predictions))
    return scores


def read_heldout(
    builder: Builder, scores: Sequence[Score], samples: Labelled, heldout: Labelled, whole: Plan
) -> list[Score]:
    """The same scores with their accuracy on held-out samples; called once, after every choice is made.

    Args:
        whole: plan of the whole donors' features, for the nearest class mean.
    """
    labels = torch.from_numpy(heldout.labels.copy())
    return [_on_heldout(builder, score, samples, heldout, labels, whole) for score in scores]


def _on_heldout(
    builder: Builder, score: Score, samples: Labelled, heldout: Labelled, labels: Tensor, whole: Plan
) -> Score:
    own = torch.from_numpy(samples.labels.copy())
    n_classes = len(samples.classes)
    said = score.heldout
    if said is None and score.plan is not None:
        said = builder.logits(score.plan, heldout).argmax(1)
    elif said is None and score.row.name == PLAIN[samples.noun][0]:
        head = ridge_head(plain_features(samples, samples), own, n_classes)
        said = head.predict(plain_features(heldout, samples))
    elif said is None and score.row.name == MEANS:
        features = [builder.features(whole, whole.out, part) for part in (samples, heldout)]
        said = nearest_mean_head(features[0], own, n_classes).predict(features[1])
    elif said is None:
        said = torch.full_like(labels, majority(own, n_classes)[0])
    right = float((said == labels).sum())
    row = score.row.replace(
        accuracy_heldout=right / len(labels),
        heldout_interval=interval_of(wilson(right, len(labels), level=LEVEL), "wilson"),
    )
    return replace(score, row=row, heldout=said)


def interval_of(found: tuple[float, float] | None, method: str) -> Interval | None:
    """An interval at the report's level, as the report holds it."""
    if found is None:
        return None
    low, high = found
    return Interval(low=low, high=high, level=LEVEL, method=method)
