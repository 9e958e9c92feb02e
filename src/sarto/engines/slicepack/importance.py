"""How much an error in what a group's readers give counts in the end: a branch counts as it moves its stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from sarto.engines.slicepack.readings import Readings
from sarto.engines.slicepack.settings import CHUNK
from sarto.graph import ModelGraph, evaluate
from sarto.graph.model import Node, Ref, leaves

#: Sums of two values.
ADDS = ("aten.add.Tensor", "aten.add_.Tensor")


def importance(readings: Readings) -> dict[str, float]:
    """How much an unexplained share of each group's energy counts: the sum over its readers of what each counts.

    A reader whose output is added to a stream counts as large a share as its output varies of what the sum does; any
    other counts 1. So the channels of a stream count once for each layer that reads them, and the inner channels of a
    residual branch as little as the branch moves the stream. Without branches that are added every group with one
    reader counts 1.

    Reference:
        Ours (decision 21).
    """
    readers: dict[str, set[str]] = {}
    for name, _, group in readings.grams:
        readers.setdefault(group, set()).add(readings.reader[name].node)
    weighted = {reader.node for reader in readings.readers if reader.weight is not None}
    users = _users(readings.graph)
    sums = {node: _sum_of(node, users, weighted) for nodes in readers.values() for node in nodes}
    watched = {value for pair in sums.values() if pair is not None for value in pair}
    spread = _spread(readings, watched)
    shares = {
        node: 1.0 if pair is None else min(1.0, spread[pair[0]] / max(spread[pair[1]], 1e-12))
        for node, pair in sums.items()
    }
    return {group: sum(shares[node] for node in nodes) for group, nodes in readers.items()}


def _users(graph: ModelGraph) -> Mapping[str, list[Node]]:
    """Value -> the nodes that read it."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(arg.name for arg in leaves(node.args) if isinstance(arg, Ref)):
            found.setdefault(name, []).append(node)
    return found


def _sum_of(reader: str, users: Mapping[str, list[Node]], weighted: set[str]) -> tuple[str, str] | None:
    """What a reader's output has become where it is added to something, and the sum.

    None where another layer with weights reads it first, or several nodes do.
    """
    for before, node in _following(reader, users):
        if node.op in ADDS and sum(isinstance(arg, Ref) for arg in leaves(node.args)) == 2:
            return before, node.name
        if node.name in weighted and reader in weighted:
            return None
    return None


def _following(value: str, users: Mapping[str, list[Node]]) -> Iterator[tuple[str, Node]]:
    """A value and its only reader, what that gives and its only reader, and so on."""
    while len(read_by := users.get(value, [])) == 1:
        yield value, read_by[0]
        value = read_by[0].name


def _spread(readings: Readings, values: set[str]) -> dict[str, float]:
    """Variance of values over some of the samples, and their positions, about the mean of each channel."""
    if not values:
        return {}
    some = readings.inputs[:: -(-len(readings.inputs) // CHUNK)]
    _, kept = evaluate(readings.graph, some, watch=values)
    return {value: _variance(found) for value, found in kept.items()}


def _variance(found: Tensor) -> float:
    """Mean over channels of the variance about each channel's mean; of images the second axis holds the channels."""
    channels = 1 if found.ndim == 4 else found.ndim - 1
    others = [axis for axis in range(found.ndim) if axis != channels]
    return float(found.var(dim=others, correction=0).mean())
