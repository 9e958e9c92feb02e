"""`slice`: the model with some units of some channel groups left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sarto.graph.analysis import Analysis, AxisExpr, kept_positions, kept_size, units_in
from sarto.graph.model import Arg, BatchDim, ModelGraph, Node, Shape
from sarto.graph.rules._context import BATCH
from sarto.graph.selection import Selection, check_selection


def slice(graph: ModelGraph, selection: Selection, *, analysis: Analysis | None = None) -> ModelGraph:
    """The graph that keeps only the selected units; the source does not change.

    It computes what the source computes when every linear operator that reads a dropped unit reads zero instead.
    Stored tensors shrink by `index_select`; integer arguments that follow a size are rewritten.

    Args:
        analysis: another reading of the graph than its own, for operations that are not exact and say so.

    Raises:
        GraphError: a group is unknown or pinned, an index is out of range, or nothing would be kept.
    """
    analysis = analysis or graph.analysis
    check_selection(analysis, selection)
    counts = selection.counts
    tensors = {
        name: _cut(graph.tensors, name, exprs, selection) for name, exprs in analysis.tensor_axes.items()
    }
    rewrites: dict[str, list[tuple[str, int | None, Arg]]] = {}
    for rewrite in analysis.rewrites:
        if units_in(rewrite.expr) & counts.keys():
            value = _dim(kept_size(rewrite.expr, counts))
            rewrites.setdefault(rewrite.node, []).append((rewrite.arg, rewrite.index, value))
    nodes = tuple(
        replace(
            _rewritten(node, rewrites.get(node.name, ())),
            shapes=tuple(
                _shape(shape, exprs, counts)
                for shape, exprs in zip(node.shapes, analysis.value_axes[node.name], strict=True)
            ),
        )
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes, tensors=tensors)


def _cut(
    tensors: Mapping[str, Tensor],
    name: str,
    exprs: tuple[AxisExpr, ...],
    selection: Selection,
) -> Tensor:
    tensor = tensors[name]
    for axis, expr in enumerate(exprs):
        if units_in(expr) & selection.kept.keys():
            positions = torch.from_numpy(kept_positions(expr, selection.kept)).to(tensor.device)
            # Tensors that lie on disk are read row by row where their layout allows it.
            select = getattr(tensors, "select", None) if axis == 0 else None
            tensor = select(name, 0, positions) if select else tensor.index_select(axis, positions)
    return tensor


def _rewritten(node: Node, changes: list[tuple[str, int | None, Arg]] | tuple[()]) -> Node:
    args = dict(node.args)
    for name, index, value in changes:
        if index is None:
            args[name] = value
        else:
            entries = list(args[name])  # type: ignore[arg-type]
            entries[index] = value
            args[name] = tuple(entries)
    return replace(node, args=args) if changes else node


def _shape(shape: Shape, exprs: tuple[AxisExpr, ...], counts: Mapping[str, int]) -> Shape:
    return tuple(
        _dim(kept_size(expr, counts)) if units_in(expr) & counts.keys() else dim
        for dim, expr in zip(shape, exprs, strict=True)
    )


def _dim(size: int) -> int | BatchDim:
    return BatchDim(size // BATCH) if size % BATCH == 0 else size
