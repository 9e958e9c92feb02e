"""Fine-tuning one donor: a probe as start, then small steps on everything, batch norm kept as it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.engines.baselines.given import CHUNK, Given, Trained, count_params, run
from sarto.engines.baselines.probing import best_probe
from sarto.engines.baselines.settings import FINE_TUNE, FineTuneSettings
from sarto.graph import ModelGraph, with_state
from sarto.training import FineTuned, finetune, has_bfloat16


@dataclass(frozen=True, eq=False)
class FineTunedScore:
    """A fine-tuned donor and its accuracy on left-out samples.

    Attributes:
        predict: inputs as the graph reads them, (n, ...), to predicted classes (n,).
        left_out: predictions (n,) when a third of each class was left out; -1 where it never was.
    """

    predict: Callable[[Tensor], Tensor]
    left_out: Tensor


def finetune_donor(
    graph: ModelGraph,
    inputs: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    estimate: bool = True,
    settings: FineTuneSettings = FINE_TUNE,
) -> FineTunedScore:
    """Train a probed donor on all samples, and on folds that leave a third of each class out.

    Args:
        graph: the donor under a linear head for the wanted classes, already fitted (a probe).
        inputs: samples as the graph reads them, shape (n, ...); labels: (n,).
        estimate: whether to train on the folds too (three more runs).
    """
    left_out = torch.full_like(labels, -1)
    if estimate:
        for rest, fold in left_out_folds(labels, settings.folds):
            tuned = _predictor(_train(graph, inputs[rest], labels[rest], seed, settings))
            left_out[fold] = tuned(inputs[fold])
    return FineTunedScore(_predictor(_train(graph, inputs, labels, seed, settings)), left_out)


def fine_tune(given: Given, settings: FineTuneSettings = FINE_TUNE) -> Trained:
    """The donor whose probe does best on left-out samples, fine-tuned from that probe.

    Reference: Slice-and-Pack, Table 2, "Finetune". Differs: which donor is chosen, on the order's samples alone.
    """
    begun = time.perf_counter()
    found = best_probe(given)
    steps = given.budget.steps or settings.steps
    tuned = _train(found.graph(), given.inputs, given.labels, given.seed, settings, given, steps)
    graph = with_state(found.graph(), tuned.module)
    note = f"fine-tuned {found.donor.name}: {len(tuned.history)} Adam steps of {settings.batch} samples from the probe"
    note += f"; {tuned.stopped}" if tuned.stopped else ""
    seconds = time.perf_counter() - begun
    return Trained(lambda x: run(graph, x), count_params(graph), seconds, len(tuned.history), note, graph)


def left_out_folds(labels: Tensor, folds: int = FINE_TUNE.folds) -> list[tuple[Tensor, Tensor]]:
    """Indices of the samples trained on and of those left out, for each fold that leaves every class some samples.

    The samples of a class are dealt out one after the other.
    """
    place = torch.zeros_like(labels)
    for label in labels.unique():
        mine = labels == label
        place[mine] = torch.arange(int(mine.sum())) % folds
    found = []
    for fold in range(folds):
        inside, outside = torch.nonzero(place == fold).flatten(), torch.nonzero(place != fold).flatten()
        if len(inside) and len(labels[outside].unique()) == len(labels.unique()):
            found.append((outside, inside))
    return found


def _train(
    graph: ModelGraph,
    inputs: Tensor,
    labels: Tensor,
    seed: int,
    settings: FineTuneSettings,
    given: Given | None = None,
    steps: int | None = None,
) -> FineTuned:
    module, images = graph.module(), inputs.ndim == 4 and inputs.is_floating_point()
    half = has_bfloat16()
    if images and half:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return finetune(
        module,
        inputs,
        labels,
        steps=steps or settings.steps,
        lr=settings.rate,
        seed=seed,
        batch_size=settings.batch,
        flip=images,
        autocast=half,
        progress=(lambda done, total, _: given.progress("fine-tuning", done, total))
        if given is not None
        else None,
    )


def _predictor(tuned: FineTuned) -> Callable[[Tensor], Tensor]:
    module = tuned.module.eval()

    @torch.no_grad()
    def predict(inputs: Tensor) -> Tensor:
        return torch.cat([module(part).argmax(1) for part in inputs.split(CHUNK)])

    return predict
