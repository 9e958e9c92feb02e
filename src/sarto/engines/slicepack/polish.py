"""Small steps of distillation after the closed form, taken only where samples that were left out say that they help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sarto.engines.slicepack.readings import Readings, part_of
from sarto.engines.slicepack.repair import sequential_samples
from sarto.engines.slicepack.settings import POLISH_BATCH, POLISH_FOLDS, POLISH_RATE, POLISH_STEPS, RIVALS
from sarto.engines.slicepack.units import class_shares
from sarto.graph import ModelGraph, Selection, block, features
from sarto.graph.expressions import kept_positions

#: Closed form on some samples.
Build = Callable[[Readings], tuple[ModelGraph, Selection]]


@dataclass(frozen=True)
class Evidence:
    """What leaving out one sample of each class says of polishing.

    Attributes:
        before: error of the features on the samples left out, as a share of the donor's energy there: closed form.
        after: the same after the steps.
        taken: whether the fragment was polished.
    """

    before: float
    after: float
    taken: bool


def polish(
    readings: Readings, classes: Sequence[int], build: Build, *, wpos: float, folds: int = POLISH_FOLDS
) -> tuple[ModelGraph, Selection, Evidence]:
    """The fragment in closed form, distilled further where that helps on samples left out.

    Fold j leaves out the sample j of each class; closed form and steps are done anew without them, and compared on
    them. With one sample of a class there is no evidence, and no polishing.

    Args:
        build: makes the fragment in closed form.
        wpos: weight of the fragment's classes in the loss.
        folds: how many samples of each class are left out, one at a time.

    Reference:
        Slice-and-Pack, equation (9). Differs: starts from the closed form, trains the layers together, and may be
        left out.
    """
    graph, selection = build(readings)
    counts = torch.bincount(readings.labels, minlength=readings.n_classes)
    before = after = 0.0
    tries = min(folds, int(counts.min())) if int(counts.min()) > 1 else 0
    for fold in range(tries):
        out = _nth_of_each(readings.labels, fold)
        kept = torch.ones(len(readings.labels), dtype=torch.bool)
        kept[out] = False
        part = part_of(readings, torch.nonzero(kept).flatten())
        small, units = build(part)
        before += _error(readings, out, small, units, classes, wpos)
        after += _error(readings, out, _distilled(part, small, units, classes, wpos), units, classes, wpos)
    if tries == 0 or not after < before:
        return graph, selection, Evidence(before / max(tries, 1), after / max(tries, 1), False)
    polished = _distilled(readings, graph, selection, classes, wpos)
    return polished, selection, Evidence(before / tries, after / tries, True)


def _nth_of_each(labels: Tensor, place: int) -> Tensor:
    return torch.tensor([int(torch.nonzero(labels == label)[place]) for label in labels.unique()])


def _wanted(readings: Readings, selection: Selection) -> Tensor:
    """The donor's features, those that the fragment has too, shape (n, kept)."""
    found = features(readings.graph)
    reader = readings.reader[found.classifier]
    rows = kept_positions(reader.consumption.expr, selection.kept)
    return readings.rows[reader.name][:, torch.from_numpy(rows)].flatten(1)


def _weights(readings: Readings, chosen: Tensor, classes: Sequence[int], wpos: float) -> Tensor:
    labels = readings.labels[chosen]
    counts = torch.bincount(labels, minlength=readings.n_classes).clamp_min(1)
    found = (class_shares(readings.n_classes, classes, wpos) / counts)[labels]
    return found / found.sum()


def _error(
    readings: Readings,
    chosen: Tensor,
    fragment: ModelGraph,
    selection: Selection,
    classes: Sequence[int],
    wpos: float,
) -> float:
    given = block(fragment, end=features(fragment).value)(readings.inputs[chosen])
    wanted = _wanted(readings, selection)[chosen]
    weights = _weights(readings, chosen, classes, wpos).to(wanted.dtype)
    if not isinstance(given, Tensor):
        return 0.0
    missed = (given.flatten(1) - wanted).square().sum(1)
    return float((weights * missed).sum() / (weights * wanted.square().sum(1)).sum().clamp_min(1e-30))


def _distilled(
    readings: Readings, fragment: ModelGraph, selection: Selection, classes: Sequence[int], wpos: float
) -> ModelGraph:
    """The fragment after `POLISH_STEPS` steps of Adam; norms keep their statistics."""
    chosen = sequential_samples(readings.labels, classes, RIVALS)
    wanted = _wanted(readings, selection)[chosen]
    weights = _weights(readings, chosen, classes, wpos).to(wanted.dtype)
    inputs = readings.inputs[chosen]
    scale = (weights * wanted.square().sum(1)).sum().clamp_min(1e-30)
    module = block(fragment, end=features(fragment).value).module(train=True).eval()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=POLISH_RATE)
    generator = torch.Generator().manual_seed(0)
    size = min(POLISH_BATCH, len(inputs))
    for _ in range(POLISH_STEPS):
        part = torch.randperm(len(inputs), generator=generator)[:size]
        missed = (module(inputs[part]).flatten(1) - wanted[part]).square().sum(1)
        loss = (weights[part] * missed).sum() * (len(inputs) / size) / scale
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return replace(fragment, tensors={**dict(fragment.tensors.items()), **found})
