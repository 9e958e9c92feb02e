"""What one unit of a channel group carries: what a model saves when it goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sarto.devices.flops import RULES
from sarto.errors import GraphError
from sarto.graph import ModelGraph, Node, Ref, TensorRef
from sarto.graph.expressions import AxisExpr, is_batch, kept_size, units_in
from sarto.graph.model import Arg, BatchDim, leaves
from sarto.graph.rules._context import BATCH


@dataclass(frozen=True)
class UnitCost:
    """Parameters and FLOPs (one sample, 2 per multiply-add) that go with one unit, everything else kept."""

    params: int
    flops: int


def unit_costs(graph: ModelGraph) -> Mapping[str, UnitCost]:
    """Sliceable group -> what one of its units carries; from shapes alone, no weights are read.

    Exact: the difference between the graph and the graph without that unit. Every unit of a group carries the same.
    Costs of units of different groups do not add up where the groups meet in one layer.
    """
    analysis = graph.analysis
    params = {group.id: 0 for group in analysis.sliceable}
    flops = dict(params)
    sizes = {group.id: group.size for group in analysis.sliceable}
    for name in graph.parameters:
        axes = analysis.tensor_axes[name]
        for group in _groups(axes):
            fewer = {group: sizes[group] - 1}
            params[group] += _elements(axes, {}) - _elements(axes, fewer)
    for node in graph.nodes:
        rule = RULES.get(node.op)
        if rule is None:
            continue
        axes_of = {
            leaf: _axes(graph, leaf) for leaf in leaves(node.args) if isinstance(leaf, Ref | TensorRef)
        }
        touched = _groups(axis for axes in axes_of.values() for axis in axes)
        for axes in analysis.value_axes[node.name]:
            touched |= _groups(axes)
        full = _flops(graph, node, {}) if touched else 0
        for group in touched:
            flops[group] += full - _flops(graph, node, {group: sizes[group] - 1})
    return {name: UnitCost(params[name], flops[name]) for name in params}


def _groups(axes: Iterable[AxisExpr]) -> set[str]:
    return set().union(*(units_in(axis) for axis in axes))


def _elements(axes: tuple[AxisExpr, ...], counts: Mapping[str, int]) -> int:
    return math.prod(kept_size(axis, counts) for axis in axes)


def _axes(graph: ModelGraph, arg: Ref | TensorRef) -> tuple[AxisExpr, ...]:
    if isinstance(arg, TensorRef):
        return graph.analysis.tensor_axes[arg.name]
    return graph.analysis.value_axes[arg.name][0]


def _flops(graph: ModelGraph, node: Node, counts: Mapping[str, int]) -> int:
    """FLOPs of a node when each group keeps that many units."""

    def sizes(arg: Arg) -> tuple[int, ...]:
        if not isinstance(arg, Ref | TensorRef):
            raise GraphError(f"an argument of a matrix product is no tensor: {arg!r}", where=node.name)
        return tuple(_per_sample(kept_size(axis, counts)) for axis in _axes(graph, arg))

    shapes = tuple(
        tuple(_dim(kept_size(axis, counts)) for axis in axes) for axes in graph.analysis.value_axes[node.name]
    )
    return RULES[node.op](replace(node, shapes=shapes), sizes, 1)


def _per_sample(size: int) -> int:
    return size // BATCH if is_batch(size) else size


def _dim(size: int) -> int | BatchDim:
    return BatchDim(size // BATCH) if is_batch(size) else size
