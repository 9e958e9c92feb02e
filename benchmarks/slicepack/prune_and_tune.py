"""Prune-and-tune: one donor pruned by Torch-Pruning to a number of parameters, then fine-tuned on the samples.

The package is an extra of the benchmarks; where it is missing, `available` says so and tables leave the row out.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sarto.engines.baselines import Given, Trained
from sarto.engines.baselines.given import count_params, run
from sarto.engines.baselines.probing import best_probe, order_head, under_head
from sarto.errors import RequestError
from sarto.graph import ModelGraph, block, capture, features, with_state
from sarto.training import finetune, has_bfloat16

PACKAGE = "torch_pruning"


@dataclass(frozen=True)
class PruneAndTuneSettings:
    """Pruning of its own documentation, fine-tuning as the other baselines.

    Attributes:
        importance_p: norm of the weights of a group that ranks its units (`GroupMagnitudeImportance`, 2).
        ratios: pruned shares of every layer that are tried; the smallest that keeps the size is taken (ours).
        global_pruning: units compete within a layer, as in the package's first example.
        steps: of Adam. A pruned donor has more to learn again than a whole one (ours: six times fine-tuning's).
        batch: samples a step.
        rate: of Adam; that of fine-tuning.
    """

    importance_p: int = 2
    ratios: tuple[float, ...] = tuple(place / 40 for place in range(1, 39))
    global_pruning: bool = False
    steps: int = 240
    batch: int = 16
    rate: float = 1e-4


SETTINGS = PruneAndTuneSettings()


def available() -> str | None:
    """Why there is no such row; None where there is one."""
    if importlib.util.find_spec(PACKAGE) is None:
        return "extra not installed: torch-pruning"
    return None


class Scaled(nn.Module):
    """A model behind the normalisation of its images, so that it reads what its graph reads."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


def prune_and_tune(
    given: Given,
    models: Mapping[str, nn.Module],
    max_params: int,
    settings: PruneAndTuneSettings = SETTINGS,
) -> Trained:
    """The donor whose probe does best, pruned without a look at classes and tuned on the order's samples.

    Args:
        models: name of a donor -> its module, which reads what its graph reads; Torch-Pruning knows modules alone.
        max_params: of the extractor and its new head.

    Raises:
        RequestError: the package is missing, or no ratio keeps the size.
    """
    missing = available()
    if missing is not None:
        raise RequestError(f"{missing}; install sarto[bench]")
    begun = time.perf_counter()
    best = best_probe(given)
    pruned = _small_enough(models[best.donor.name], given, max_params, settings)
    if pruned is None:
        raise RequestError(
            f"no pruned {best.donor.name} has {max_params:,} parameters or fewer; allow more, or take another donor"
        )
    start = under_head(pruned, order_head([run(pruned, given.inputs)], given), best.features.dtype)
    steps = given.budget.steps or settings.steps
    tuned = finetune(
        start.module(),
        given.inputs,
        given.labels,
        steps=steps,
        lr=settings.rate,
        seed=given.seed,
        batch_size=settings.batch,
        flip=given.inputs.ndim == 4,
        autocast=has_bfloat16(),
        progress=lambda done, total, _: given.progress("prune-and-tune", done, total),
    )
    graph = with_state(start, tuned.module)
    note = (
        f"{best.donor.name} pruned to {count_params(graph):,} parameters by Torch-Pruning, {steps} Adam steps"
    )
    seconds = time.perf_counter() - begun
    return Trained(lambda x: run(graph, x), count_params(graph), seconds, len(tuned.history), note, graph)


def prune(
    model: nn.Module, example: Tensor, ratio: float, settings: PruneAndTuneSettings = SETTINGS
) -> ModelGraph:
    """The extractor of a model with that share of every layer's units pruned by the size of their weights.

    The model itself stays as it is.
    """
    pruning = importlib.import_module(PACKAGE)
    own = copy.deepcopy(model).eval().requires_grad_(True)
    classifier = [module for module in own.modules() if isinstance(module, nn.Linear)][-1]
    pruner = pruning.pruner.BasePruner(
        own,
        example,
        importance=pruning.importance.GroupMagnitudeImportance(p=settings.importance_p),
        pruning_ratio=ratio,
        global_pruning=settings.global_pruning,
        ignored_layers=[classifier],
    )
    pruner.step()
    graph = capture(own.eval().requires_grad_(False), example)
    return block(graph, end=features(graph).value)


def _small_enough(
    model: nn.Module, given: Given, max_params: int, settings: PruneAndTuneSettings
) -> ModelGraph | None:
    """The least pruned extractor that keeps the size: sizes fall with the ratio, so ratios are halved down."""
    low, high, found = 0, len(settings.ratios) - 1, None
    while low <= high:
        middle = (low + high) // 2
        pruned = prune(model, given.inputs[:2], settings.ratios[middle], settings)
        width = features_width(pruned)
        if count_params(pruned) + (width + 1) * len(given.classes) <= max_params:
            found, high = pruned, middle - 1
        else:
            low = middle + 1
    return found


def features_width(extractor: ModelGraph) -> int:
    """Features that an extractor gives."""
    width = extractor.node(extractor.outputs[0]).shape[1]
    if not isinstance(width, int):
        raise RequestError(f"an extractor gives (batch, features), found {width}")
    return width
