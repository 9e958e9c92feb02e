"""How much an error in what a group's readers give counts in the end: a branch counts as it moves its stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.engines.slicepack.readings import Readings
from sarto.engines.slicepack.settings import CHUNK
from sarto.graph import ModelGraph, evaluate
from sarto.graph.expressions import units_in
from sarto.graph.model import Node, Ref, leaves

#: The operator that adds two values.
ADD = "aten.add.Tensor"
#: Samples that run at once: whole values are looked at.
BATCH = 8


def importance(readings: Readings) -> dict[str, float]:
    """How much an unexplained share of each group's energy counts: the sum over its readers of what each counts.

    A reader of inner channels whose branch is added to a stream counts as large a share as the branch varies of what
    the sum does; any other counts 1. So the channels of a stream count once for each layer that reads them, and the
    inner channels of a residual branch as little as the branch moves the stream. Without branches that are added every
    group with one reader counts 1.

    Reference:
        Ours (decision 21).
    """
    graph, groups = readings.graph, readings.graph.analysis.groups
    readers: dict[str, set[str]] = {}
    for name, _, group in readings.grams:
        readers.setdefault(group, set()).add(readings.reader[name].node)
    inner = {node for group, nodes in readers.items() if groups[group].kind != "stream" for node in nodes}
    sums = {node: _sum_of(graph, node) for node in inner}
    found = _variances(readings, {value for one in sums.values() if one for value in (one.branch, one.total)})
    shares = {node: 1.0 if one is None else one.share(found) for node, one in sums.items()}
    return {
        group: sum(shares[node] if groups[group].kind != "stream" else 1.0 for node in nodes)
        for group, nodes in readers.items()
    }


@dataclass(frozen=True)
class _Sum:
    """A value that is added to another one.

    Attributes:
        factor: that it is multiplied by there.
    """

    branch: str
    total: str
    factor: float

    def share(self, variances: Mapping[str, float]) -> float:
        """How much of the sum's variance the branch brings, at most 1."""
        whole = variances[self.total]
        return min(1.0, self.factor**2 * variances[self.branch] / whole) if whole > 0 else 1.0


def _sum_of(graph: ModelGraph, reader: str) -> _Sum | None:
    """Where what a reader gives is added to something, other layers of its branch between; None where it is read twice
    before, or never added.
    """
    value, users = reader, graph.readers.get(reader, ())
    while len(users) == 1:
        node = graph.node(users[0])
        if node.op == ADD and sum(isinstance(arg, Ref) for arg in leaves(node.args)) == 2:
            return _Sum(value, node.name, _factor(node, value))
        value, users = node.name, graph.readers.get(node.name, ())
    return None


def _factor(node: Node, value: str) -> float:
    """What an addition multiplies a value by."""
    other, alpha = node.args.get("other"), node.args.get("alpha", 1)
    if isinstance(other, Ref) and other.name == value and isinstance(alpha, int | float):
        return float(alpha)
    return 1.0


def _variances(readings: Readings, values: Iterable[str]) -> dict[str, float]:
    """Variance of values over some of the samples, and their positions, about the mean of each channel."""
    watched = set(values)
    if not watched:
        return {}
    some = readings.inputs[:: -(-len(readings.inputs) // CHUNK)]
    sums: dict[str, list[Tensor]] = {}
    for start in range(0, len(some), BATCH):
        _, kept = evaluate(readings.graph, some[start : start + BATCH], watch=watched)
        for name, value in kept.items():
            rows = value.movedim(_channels(readings.graph, name, value), -1).flatten(0, -2).double()
            part = [torch.full((1,), float(len(rows))), rows.sum(0), rows.square().sum(0)]
            sums[name] = [a + b for a, b in zip(sums[name], part, strict=True)] if name in sums else part
    return {
        name: float((squares / n - (total / n).square()).clamp_min(0).mean())
        for name, (n, total, squares) in sums.items()
    }


def _channels(graph: ModelGraph, name: str, value: Tensor) -> int:
    """The axis of a value that units lie on; the last one where none does."""
    axes = graph.analysis.value_axes[name][0]
    found = [place for place, expr in enumerate(axes) if place > 0 and units_in(expr)]
    return found[0] if found else value.ndim - 1
