"""A head on donors that stay as they are: each donor alone (probe) and all side by side (ensemble)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.engines.baselines.given import Given, Original, Trained, count_params, run
from sarto.graph import ModelGraph, block, branch, features, with_head
from sarto.training import FittedHead, fit_head


@dataclass(frozen=True, eq=False)
class Probed:
    """A donor with a head for the wanted classes.

    Attributes:
        extractor: the donor up to the input of its own classifier.
        features: of the order's samples, shape (n, width).
        head: logistic, its temperature fitted on left-out samples.
    """

    donor: Original
    extractor: ModelGraph
    features: Tensor
    head: FittedHead

    @property
    def accuracy(self) -> float:
        """On the order's samples, one of each class left out; 0 where none could be."""
        return self.head.loto.accuracy or 0.0

    def graph(self, *, calibrated: bool = False) -> ModelGraph:
        """Inputs to scores of the classes; calibrated ones are logits of honest probabilities."""
        scale = self.head.head.temperature if calibrated else 1.0
        return with_head(self.extractor, *_tensors(self.head, self.features.dtype, scale))


def probe_donor(donor: Original, given: Given) -> Probed:
    """A donor with a logistic head, fitted on the order's samples."""
    extractor = block(donor.graph, end=features(donor.graph).value)
    found = run(extractor, given.inputs)
    return Probed(donor, extractor, found, fit_head(found, given.labels, len(given.classes), seed=given.seed))


def best_probe(given: Given) -> Probed:
    """The donor whose head does best on the order's samples, one of each class left out; the first of equals."""
    return max((probe_donor(donor, given) for donor in given.donors), key=lambda probed: probed.accuracy)


def probe(given: Given) -> Trained:
    """The best single donor under a new head."""
    begun = time.perf_counter()
    found = best_probe(given)
    note = f"logistic head on {found.donor.name}, the best of {len(given.donors)} on left-out samples"
    return headed(found.extractor, found.head, found.features.dtype, note, begun)


def ensemble(given: Given) -> Trained:
    """All donors side by side under one head."""
    begun = time.perf_counter()
    return packed(
        [block(d.graph, end=features(d.graph).value) for d in given.donors],
        given,
        "donors side by side",
        begun,
    )


def packed(extractors: list[ModelGraph], given: Given, note: str, begun: float, steps: int = 0) -> Trained:
    """Extractors side by side under one logistic head, each with one scale."""
    found = [run(extractor, given.inputs) for extractor in extractors]
    together = torch.cat(found, 1)
    widths = tuple(part.shape[1] for part in found)
    head = fit_head(together, given.labels, len(given.classes), blocks=widths, seed=given.seed)
    return headed(branch(extractors), head, together.dtype, note, begun, steps)


def headed(
    extractor: ModelGraph, head: FittedHead, dtype: torch.dtype, note: str, begun: float, steps: int = 0
) -> Trained:
    """A head put on an extractor, as what a baseline gives."""
    graph = with_head(extractor, *_tensors(head, dtype, 1.0))
    return Trained(
        lambda inputs: run(graph, inputs),
        count_params(graph),
        time.perf_counter() - begun,
        steps,
        note,
        graph,
        head.loto.predictions,
    )


def _tensors(head: FittedHead, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor]:
    return (head.head.weight / scale).to(dtype), (head.head.bias / scale).to(dtype)
