"""A head on donors that stay as they are: each donor alone (probe) and all side by side (ensemble)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.engines.baselines.given import Given, Original, Trained, count_params, run
from sarto.graph import ModelGraph, block, branch, features, with_head
from sarto.training import FittedHead, PackState


@dataclass(frozen=True, eq=False)
class Probed:
    """A donor with a head for the wanted classes.

    Attributes:
        extractor: the donor up to the input of its own classifier.
        features: of the order's samples, shape (n, width).
        head: ridge, as packs get it; its strength and temperature come from left-out samples.
    """

    donor: Original
    extractor: ModelGraph
    features: Tensor
    head: FittedHead

    @property
    def accuracy(self) -> float:
        """On the order's samples, one of each class left out; 0 where none could be."""
        return self.head.loto.accuracy or 0.0

    def graph(self) -> ModelGraph:
        """Inputs to calibrated logits of the classes: a training that starts here has the right scale."""
        return under_head(self.extractor, self.head, self.features.dtype)


def probe_donor(donor: Original, given: Given) -> Probed:
    """A donor with a ridge head, fitted on the order's samples."""
    extractor = block(donor.graph, end=features(donor.graph).value)
    found = run(extractor, given.inputs)
    return Probed(donor, extractor, found, order_head([found], given))


def order_head(parts: Sequence[Tensor], given: Given) -> FittedHead:
    """The head that every pack of the order gets too: ridge, its strength chosen by leaving one of each class out.

    Args:
        parts: features of the order's samples, (n, width) each; each gets one scale.
    """
    blocks = {str(place): part for place, part in enumerate(parts)}
    return PackState.of(blocks, given.labels, given.classes).head(seed=given.seed)


def under_head(extractor: ModelGraph, head: FittedHead, dtype: torch.dtype) -> ModelGraph:
    """An extractor under a fitted head: inputs to calibrated logits."""
    scale = 1.0 / head.head.temperature
    return with_head(extractor, (head.head.weight * scale).to(dtype), (head.head.bias * scale).to(dtype))


def best_probe(given: Given) -> Probed:
    """The donor whose head does best on the order's samples, one of each class left out; the first of equals."""
    return max((probe_donor(donor, given) for donor in given.donors), key=lambda probed: probed.accuracy)


def probe(given: Given) -> Trained:
    """The best single donor under a new head."""
    begun = time.perf_counter()
    found = best_probe(given)
    note = f"ridge head on {found.donor.name}, the best of {len(given.donors)} on left-out samples"
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
    """Extractors side by side under one ridge head, each with one scale."""
    found = [run(extractor, given.inputs) for extractor in extractors]
    return headed(branch(extractors), order_head(found, given), found[0].dtype, note, begun, steps)


def headed(
    extractor: ModelGraph, head: FittedHead, dtype: torch.dtype, note: str, begun: float, steps: int = 0
) -> Trained:
    """A head put on an extractor, as what a baseline gives."""
    graph = under_head(extractor, head, dtype)
    return Trained(
        lambda inputs: run(graph, inputs),
        count_params(graph),
        time.perf_counter() - begun,
        steps,
        note,
        graph,
        head.loto.predictions,
    )
