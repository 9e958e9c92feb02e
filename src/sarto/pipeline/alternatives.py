"""Baselines that are trained or built on demand: scored after the pick is chosen, for the report alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sarto.devices import count
from sarto.engines.baselines import (
    BASELINES,
    NAMES,
    Given,
    Original,
    Trained,
    finetune_donor,
    grail_plan,
    left_out_folds,
)
from sarto.errors import GraphError
from sarto.graph import ModelGraph
from sarto.market import Labelled
from sarto.pipeline.adapting import adapt
from sarto.pipeline.builder import Builder, ready
from sarto.pipeline.contest import LEVEL, Score, interval_of, n_together, score_plan
from sarto.pipeline.intakes import conform
from sarto.pipeline.order import Order
from sarto.training import jeffreys
from sarto.types import Plan, Row

#: Names of a request's baselines as the report shows them.
TITLES = {"finetune": "fine-tuned donor", "camkd": "CA-MKD", "netgraft": "NetGraft", "grail": "GRAIL"}
#: Those that also read all samples of the donors' own, without labels.
UNLABELLED = ("netgraft",)


def score_alternatives(
    builder: Builder, order: Order, probes: Sequence[Score], heldout: Labelled | None
) -> list[Score]:
    """The baselines that the request names, each on the same samples.

    One that the donors don't allow gives no row; progress says why.

    Args:
        probes: scores of the donors under new heads; fine-tuning starts at the best.
        heldout: what their predictions on it are; nothing is chosen by it.
    """
    found = []
    for name in (name for name in NAMES if name in order.request.baselines):
        builder.progress(f"to compare with: {TITLES[name]}", 0, 1)
        try:
            if name == "finetune":
                if probes:
                    best = max(probes, key=lambda score: score.row.accuracy_loto or 0.0)
                    found.append(score_finetuned(builder, best, order.samples, heldout, order.request.seed))
            elif name == "grail":
                plan = _grail(builder, order)
                found.append(score_plan(builder, plan, order.samples, "baseline", TITLES[name]))
            else:
                found.append(_score_trained(builder, order, name, heldout))
        except GraphError as error:
            builder.progress(f"{TITLES[name]} is left out: {error.detail}", 0, 1)
    return found


def score_finetuned(
    builder: Builder, probe: Score, samples: Labelled, heldout: Labelled | None, seed: int
) -> Score:
    """The probed donor, fine-tuned on the order's samples.

    Scored on held-out samples where there are any, otherwise (three more runs) on folds that leave a third of each
    class out. Called after the pick is chosen; its predictions on held-out samples choose nothing.
    """
    if probe.plan is None:
        raise TypeError("a probe has a plan")
    intake = builder.intake(probe.plan)
    labels = torch.from_numpy(samples.labels.copy())
    graph = builder.build(probe.plan).graph
    inputs = intake.tensor(samples)
    tuned = finetune_donor(graph, inputs, labels, seed=seed, estimate=heldout is None)
    row = Row(
        name=probe.row.name.replace("probe on", "fine-tuned"),
        role="finetune",
        cost=probe.row.cost,
        samples_used=len(samples),
        note="40 Adam steps of 16 samples from the probe",
    )
    said = tuned.predict(intake.tensor(heldout)) if heldout is not None else None
    return _scored(row, tuned.left_out, labels, said)


def _score_trained(builder: Builder, order: Order, name: str, heldout: Labelled | None) -> Score:
    """A baseline of the one interface; without held-out samples it is trained three more times, on folds."""
    intake = order.intake
    labels = torch.from_numpy(order.samples.labels.copy())
    donors = []
    for donor in order.donors:
        own = intake.tensor(conform(order.donor_samples[donor.id], intake))
        teacher = adapt(_graph(builder, donor.id), order.intakes[donor.id], intake)
        donors.append(Original(donor.name, teacher, donor.classes, own))
    given = Given(
        tuple(donors),
        order.classes,
        intake.tensor(order.samples),
        labels,
        seed=order.request.seed,
        progress=builder.progress,
    )
    found = BASELINES[name](given)
    left_out = found.left_out
    if left_out is None:
        left_out = torch.full_like(labels, -1) if heldout is not None else _on_folds(name, given)
    beside = order.donor_samples.values() if name in UNLABELLED else ()
    row = Row(
        name=TITLES[name],
        role="baseline",
        cost=count(found.graph),
        samples_used=n_together([order.samples, *beside], intake),
        note=found.note,
    )
    said = found.predict(intake.tensor(heldout)) if heldout is not None else None
    return _scored(row, left_out, labels, said, one_of_each=found.left_out is not None)


def _on_folds(name: str, given: Given) -> Tensor:
    """Predictions (n,) of samples that were left out of everything, a third of each class at a time; else -1."""
    said = torch.full_like(given.labels, -1)
    for rest, fold in left_out_folds(given.labels):
        tried: Trained = BASELINES[name](replace(given, inputs=given.inputs[rest], labels=given.labels[rest]))
        said[fold] = tried.predict(given.inputs[fold])
    return said


def _scored(
    row: Row, left_out: Tensor, labels: Tensor, said: Tensor | None, *, one_of_each: bool = False
) -> Score:
    """A row with its accuracy on left-out samples, and what it says of held-out ones."""
    counted = left_out >= 0
    correct = torch.where(counted, (left_out == labels).double(), torch.nan)
    n, right = int(counted.sum()), float((left_out == labels)[counted].sum())
    if one_of_each:
        how, basis = "one of each class left out", "accuracy with one of each class left out of its head"
    elif n:
        how, basis = "a third left out", "accuracy from three folds that leave a third of each class out"
    else:
        how, basis = "", "scored on the held-out samples alone"
    row = row.replace(
        accuracy_loto=right / n if n else None,
        interval=interval_of(jeffreys(right, n, level=LEVEL) if n else None, f"jeffreys, {how}"),
        note=f"{row.note}; {basis}",
    )
    return Score(row, None, correct, left_out, said)


def _grail(builder: Builder, order: Order) -> Plan:
    graphs = {donor.id: _graph(builder, donor.id) for donor in order.donors}
    digests = {donor.id: order.donor_samples[donor.id].digest for donor in order.donors}
    return grail_plan(graphs, digests, order.classes, order.samples.digest)


def _graph(builder: Builder, id_: str) -> ModelGraph:
    """A whole donor, what it reads to its own logits."""
    return ready(builder.store.graph(id_), builder.store.get(id_).preprocessing)
