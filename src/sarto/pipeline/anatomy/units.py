"""What one unit of each channel group carries, and how much of an axis can be sliced, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from sarto.devices.flops import RULES
from sarto.errors import GraphError
from sarto.graph import ModelGraph, Node, Ref, TensorRef
from sarto.graph.analysis import AxisExpr, Fixed, Product, Unit, full_size, is_batch, kept_size, units_in
from sarto.graph.model import Arg, BatchDim, leaves
from sarto.graph.rules._context import BATCH


def unit_costs(graph: ModelGraph) -> dict[str, tuple[int, int]]:
    """Sliceable group -> (parameters, FLOPs of one sample) that the model loses with one of its units."""
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
    return {name: (params[name], flops[name]) for name in params}


def sliceable_elements(axes: tuple[AxisExpr, ...]) -> int:
    """Elements of a tensor that lie on at least one sliceable unit."""
    return math.prod(full_size(axis) for axis in axes) - math.prod(pinned_size(axis) for axis in axes)


def pinned_size(expr: AxisExpr) -> int:
    """Positions of an axis that lie on no sliceable unit."""
    if isinstance(expr, Fixed):
        return expr.size
    if isinstance(expr, Unit):
        return 0
    sizes = [pinned_size(part) for part in expr.parts]
    return math.prod(sizes) if isinstance(expr, Product) else sum(sizes)


def positions_per_unit(expr: AxisExpr, group: str) -> int:
    """Positions of an axis that one unit of a group takes, all its places there together."""
    size = _size(expr, group)
    return full_size(expr) - kept_size(expr, {group: size - 1}) if size else 0


def _size(expr: AxisExpr, group: str) -> int:
    if isinstance(expr, Unit):
        return expr.size if expr.group == group else 0
    return max((_size(part, group) for part in getattr(expr, "parts", ())), default=0)


def _groups(axes: object) -> set[str]:
    return set().union(*(units_in(axis) for axis in axes))  # type: ignore[attr-defined]


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
