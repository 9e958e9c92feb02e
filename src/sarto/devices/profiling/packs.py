"""Packs: subnets of a backbone side by side under one head, which take longer than all of them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from sarto.devices.profiling.design import random_counts
from sarto.devices.profiling.features import Terms
from sarto.devices.profiling.heads import HeadRates
from sarto.devices.profiling.sizes import Counts, Floats
from sarto.errors import GraphError, RequestError, ShapeError
from sarto.graph import ModelGraph, block, branch, features, leading, slice, with_head
from sarto.graph.expressions import kept_size
from sarto.types.profile import BackboneModel, KindModel, PackModel

#: Subnets in the measured packs, in turn.
PARTS = (2, 3, 4)
#: Packs that are measured for each subnet that is.
SHARE = 3 / 8
#: Outputs of their heads.
CLASSES = 3
#: Relative difference of the weights of two parts: equal ones would be stored and run once.
APART = 1e-3


def pack_counts(terms: Terms, n: int, *, seed: int = 0, step: int = 1) -> tuple[tuple[Counts, ...], ...]:
    """Unit counts of each part of so many packs; in every second pack all parts have the same ones.

    From the first layer to the last the counts rise or fall, as those do that are solved for a budget.

    Args:
        step: counts are multiples of it, or whole groups.
    """
    rng = np.random.default_rng(seed)
    found = []
    for place in range(n):
        parts = PARTS[place % len(PARTS)]
        drawn = random_counts(terms.groups, 2 * parts, rng, step=step, sloped=True)
        rows = np.repeat(drawn[1:2], parts, axis=0) if place % 2 else drawn[1::2]
        found.append(tuple(dict(zip(terms.groups, map(int, row), strict=True)) for row in rows))
    return tuple(found)


def pack_graph(graph: ModelGraph, parts: Sequence[Counts]) -> ModelGraph:
    """Subnets of a graph up to their features, side by side under one linear head, as orders pack fragments.

    Raises:
        GraphError: the graph does not end in a linear layer on features.
        ShapeError: the features are no vectors.
    """
    extractors = []
    for place, counts in enumerate(parts):
        whole = slice(graph, leading(counts))
        tensors = {
            name: tensor * (1 + APART * place) if tensor.is_floating_point() else tensor
            for name, tensor in whole.tensors.items()
        }
        own = replace(whole, tensors=tensors)
        extractors.append(block(own, end=features(own).value))
    joined = branch(extractors)
    width = joined.node(joined.outputs[0]).shape[-1]
    if not isinstance(width, int):
        raise ShapeError("the features of a pack have no fixed width")
    return with_head(joined, torch.full((CLASSES, width), 1e-3), torch.full((CLASSES,), 1e-3))


def can_be_packed(graph: ModelGraph) -> bool:
    """Whether a graph has features that can stand beside others."""
    try:
        pack_graph(graph.sketch(), ({}, {}))
    except (GraphError, ShapeError, RequestError):
        return False
    return True


def predicted_ms(
    graph: ModelGraph,
    terms: Terms,
    model: BackboneModel,
    kinds: KindModel,
    packs: Sequence[Sequence[Counts]],
    *,
    batch: int = 1,
    step: int = 1,
) -> Floats:
    """Milliseconds of the parts of each pack one by one, and of a head; shape (packs,)."""
    end = features(graph).value
    kept = {node.name for node in block(graph, end=end).nodes}
    here = np.array([term.node in kept for term in terms.terms])
    rates = np.array(model.base_ms) * np.array(model.weights)[np.array(model.column, np.int64)]
    last = graph.analysis.value_axes[end][0][-1]
    heads = HeadRates(kinds, batch)
    found = []
    for parts in packs:
        values = terms.at(list(parts), width=model.vector_width, step=step)
        width = sum(kept_size(last, counts) for counts in parts)
        found.append(float((values[:, here] @ rates[here]).sum() + heads.head(width, CLASSES, len(parts))[0]))
    return np.array(found)


def fit_packs(predicted: Floats, n_parts: Sequence[int], times: Floats) -> PackModel | None:
    """What each further part adds, as a share of all parts one by one; None for fewer than two packs.

    Args:
        predicted: milliseconds of the parts one by one, shape (packs,).
        times: measured milliseconds, shape (packs,).
    """
    if len(times) < 2:
        return None
    further = np.array(n_parts, float) - 1
    every = np.arange(len(times))
    left_out = np.array([_share(predicted, further, times, every != place) for place in every])
    residuals = times / (predicted * (1 + left_out * further)) - 1
    return PackModel(
        share_per_part=float(f"{_share(predicted, further, times, every >= 0):.7g}"),
        shares=tuple(float(f"{value:.7g}") for value in residuals),
    )


def _share(predicted: Floats, further: Floats, times: Floats, used: np.ndarray) -> float:
    """Least squares of relative errors, never below zero."""
    base = (predicted / times)[used]
    slope = base * further[used]
    return max(0.0, float(slope @ (1 - base) / (slope @ slope)))
