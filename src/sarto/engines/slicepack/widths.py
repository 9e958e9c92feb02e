"""How wide each layer of a donor should be at a given size: the same total, spent where it is missed most."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from sarto.engines.slicepack.readings import Readings
from sarto.engines.slicepack.units import group_moment
from sarto.graph import INSIDE_HEADS, ModelGraph, features
from sarto.graph.expressions import AxisExpr, kept_size, units_in
from sarto.graph.model import TensorRef
from sarto.training import column_subset

#: No group keeps a smaller share of its units than this; below it a layer's error curve says little.
LEAST = 0.3
#: A step of the search drops this share of a group.
STEP = 1 / 32


def allocate(readings: Readings, shares: tuple[float, ...]) -> dict[float, dict[str, int]]:
    """Units kept per channel group for each share of the extractor's parameters.

    Greedy from the whole donor down: the next units to go are those whose group's unexplained energy (of the column
    subset over all classes) grows least per parameter saved. Smaller sizes are therefore nested in larger ones.

    Args:
        shares: of the feature extractor's parameters, each in (0, 1].

    Returns:
        share -> channel group -> units; a share below what `LEAST` allows gives the smallest there is.
    """
    graph = readings.graph
    read = {group for _, group in readings.grams}
    groups = {
        group.id: group
        for group in graph.analysis.sliceable
        if group.id in read and group.kind not in INSIDE_HEADS
    }
    curves = {name: _left(readings, name) for name in groups}
    tensors = _extractor_tensors(graph)
    touched = {
        name: [exprs for exprs in tensors if any(name in units_in(e) for e in exprs)] for name in groups
    }
    counts = {name: group.size for name, group in groups.items()}
    full = _params(tensors, counts)
    now, found = full, {}
    for share in sorted(shares, reverse=True):
        while now > share * full:
            best: tuple[float, str, int, int] | None = None
            for name, group in groups.items():
                fewer = counts[name] - max(1, round(STEP * group.size))
                if fewer < max(1, LEAST * group.size):
                    continue
                saved = _params(touched[name], counts) - _params(touched[name], {**counts, name: fewer})
                price = (curves[name][fewer] - curves[name][counts[name]]) / max(saved, 1)
                if best is None or price < best[0]:
                    best = (price, name, fewer, saved)
            if best is None:
                break
            counts[best[1]] = best[2]
            now -= best[3]
        found[share] = dict(counts)
    return found


def _left(readings: Readings, group: str) -> list[float]:
    """Share of the weighted energy left unexplained by the best k units, for k = 0 .. size."""
    gram, weights = group_moment(readings, group, range(readings.n_classes), 1.0)
    curve = column_subset(gram, weights, gram.shape[0]).left
    return [1.0, *torch.cummin(curve, 0).values.clamp_min(0).tolist()]


def _extractor_tensors(graph: ModelGraph) -> list[tuple[AxisExpr, ...]]:
    classifier = graph.node(features(graph).classifier)
    head = {arg.name for arg in classifier.args.values() if isinstance(arg, TensorRef)}
    return [graph.analysis.tensor_axes[name] for name in sorted(graph.parameters - head)]


def _params(tensors: list[tuple[AxisExpr, ...]], counts: Mapping[str, int]) -> int:
    return sum(math.prod(kept_size(expr, counts) for expr in exprs) for exprs in tensors)
