"""Plans on the order's samples: each is built, scored by leaving one of each class out, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sarto.devices import count
from sarto.engines.baselines import finetune_donor
from sarto.market import Samples, to_tensor
from sarto.pipeline.builder import Builder, pack_preprocessing
from sarto.training import (
    jeffreys,
    majority,
    nearest_mean_head,
    nearest_mean_loto,
    pixel_features,
    pixel_ridge_loto,
    ridge_head,
    wilson,
)
from sarto.types import Cost, Interval, Plan, Row

#: Level of every interval in a report.
LEVEL = 0.9
Role = Literal["pick", "donor", "ensemble", "probe", "finetune", "trivial", "control", "plan"]
PIXELS, MEANS = "pixel ridge", "nearest class mean"


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


def score_plan(builder: Builder, plan: Plan, samples: Samples, role: Role, name: str) -> Score:
    """Build a plan and score it on the order's samples.

    A head that was fitted on them is scored by leaving one of each class out; a donor's own head was not fitted on
    them and is scored on all.
    """
    assembly = builder.build(plan)
    labels = torch.from_numpy(samples.labels.copy())
    note = plan.note
    if assembly.head is not None:
        loto = assembly.head.loto
        accuracy, interval = loto.accuracy, loto.interval(LEVEL)
        correct, predictions = loto.correct, loto.predictions
        note = "; ".join([note, *assembly.head.notes])
        method = "jeffreys, one of each class left out"
    else:
        predictions = builder.logits(plan, samples).argmax(1)
        correct = (predictions == labels).to(torch.float64)
        accuracy = float(correct.mean())
        interval = jeffreys(float(correct.sum()), len(labels), level=LEVEL)
        method = "jeffreys, nothing was fitted"
    row = Row(
        name=name,
        role=role,
        plan_key=plan.key(),
        accuracy_loto=accuracy,
        interval=_interval(interval, method),
        cost=count(assembly.graph),
        samples_used=len(samples) if assembly.head is not None else 0,
        note=note,
    )
    return Score(row, plan, correct, predictions)


def score_trivial(samples: Samples, features: Tensor) -> list[Score]:
    """Chance, pixel ridge and nearest class mean: what any method has to beat.

    Args:
        features: of the order's samples under the whole donors, shape (n, width); for the nearest class mean.
    """
    labels = torch.from_numpy(samples.labels.copy())
    n_classes = len(samples.classes)
    pixels = _pixels(samples)
    _, share = majority(labels, n_classes)
    chance = Row(
        name="majority class", role="trivial", accuracy_loto=share, note="says one class for everything"
    )
    nothing = torch.full((len(labels),), float("nan"), dtype=torch.float64)
    scores = [Score(chance, None, nothing, torch.full_like(labels, -1))]
    for name, loto in (
        (PIXELS, pixel_ridge_loto(pixels, labels, n_classes)),
        (MEANS, nearest_mean_loto(features, labels, n_classes)),
    ):
        row = Row(
            name=name,
            role="trivial",
            accuracy_loto=loto.accuracy,
            interval=_interval(loto.interval(LEVEL), "jeffreys, one of each class left out"),
            samples_used=len(samples),
            note="8x8 mean colours" if name == PIXELS else "on the features of the whole donors",
        )
        scores.append(Score(row, None, loto.correct, loto.predictions))
    return scores


def score_finetuned(
    builder: Builder, probe: Score, samples: Samples, heldout: Samples | None, seed: int
) -> Score:
    """The probed donor, fine-tuned on the order's samples.

    Scored on held-out samples where there are any, otherwise (three more runs) on folds that leave a third of each
    class out. Called after the pick is chosen; its predictions on held-out samples choose nothing.
    """
    if probe.plan is None:
        raise TypeError("a probe has a plan")
    preprocessing = pack_preprocessing(builder.store, probe.plan)
    labels = torch.from_numpy(samples.labels.copy())
    graph = builder.build(probe.plan).graph
    inputs = to_tensor(samples.images, preprocessing)
    tuned = finetune_donor(graph, inputs, labels, seed=seed, estimate=heldout is None)
    counted = tuned.left_out >= 0
    correct = torch.where(counted, (tuned.left_out == labels).double(), torch.nan)
    n, right = int(counted.sum()), float((tuned.left_out == labels)[counted].sum())
    row = Row(
        name=probe.row.name.replace("probe on", "fine-tuned"),
        role="finetune",
        accuracy_loto=right / n if n else None,
        interval=_interval(jeffreys(right, n, level=LEVEL) if n else None, "jeffreys, a third left out"),
        cost=probe.row.cost,
        samples_used=len(samples),
        note="40 Adam steps of 16 samples from the probe"
        + (
            "; scored on the held-out images alone"
            if heldout is not None
            else "; accuracy from three folds that leave a third of each class out"
        ),
    )
    said = tuned.predict(to_tensor(heldout.images, preprocessing)) if heldout is not None else None
    return Score(row, None, correct, tuned.left_out, said)


def read_heldout(
    builder: Builder, scores: Sequence[Score], samples: Samples, heldout: Samples, whole: Plan
) -> list[Score]:
    """The same scores with their accuracy on held-out samples; called once, after every choice is made.

    Args:
        whole: plan of the whole donors' features, for the nearest class mean.
    """
    labels = torch.from_numpy(heldout.labels.copy())
    return [_on_heldout(builder, score, samples, heldout, labels, whole) for score in scores]


def _on_heldout(
    builder: Builder, score: Score, samples: Samples, heldout: Samples, labels: Tensor, whole: Plan
) -> Score:
    own = torch.from_numpy(samples.labels.copy())
    n_classes = len(samples.classes)
    said = score.heldout
    if said is None and score.plan is not None:
        said = builder.logits(score.plan, heldout).argmax(1)
    elif said is None and score.row.name == PIXELS:
        said = ridge_head(pixel_features(_pixels(samples)), own, n_classes).predict(
            pixel_features(_pixels(heldout))
        )
    elif said is None and score.row.name == MEANS:
        features = [builder.features(whole, whole.out, part) for part in (samples, heldout)]
        said = nearest_mean_head(features[0], own, n_classes).predict(features[1])
    elif said is None:
        said = torch.full_like(labels, majority(own, n_classes)[0])
    right = float((said == labels).sum())
    row = score.row.replace(
        accuracy_heldout=right / len(labels),
        heldout_interval=_interval(wilson(right, len(labels), level=LEVEL), "wilson"),
    )
    return replace(score, row=row, heldout=said)


def _pixels(samples: Samples) -> Tensor:
    return torch.from_numpy(samples.images.copy()).permute(0, 3, 1, 2)


def _interval(found: tuple[float, float] | None, method: str) -> Interval | None:
    if found is None:
        return None
    low, high = found
    return Interval(low=low, high=high, level=LEVEL, method=method)
