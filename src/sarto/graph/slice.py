"""`slice`: the model with some units of some channel groups left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sarto.graph.analysis import Analysis, AxisExpr, kept_positions, kept_size, units_in
from sarto.graph.hollow import drop_empty
from sarto.graph.model import Arg, BatchDim, ModelGraph, Node
from sarto.graph.rules._context import BATCH
from sarto.graph.selection import Selection, check_selection


def slice(graph: ModelGraph, selection: Selection, *, analysis: Analysis | None = None) -> ModelGraph:
    """The graph that keeps only the selected units; the source does not change.

    It computes what the source computes when every linear operator that reads a dropped unit reads zero instead.
    Stored tensors shrink by `index_select`; integer arguments that follow a size are rewritten. A layer that is left
    with nothing to read is replaced by its exact constant.

    Args:
        analysis: another reading of the graph than its own, for operations that are not exact and say so.

    Raises:
        GraphError: a group is unknown or pinned, an index is out of range, or an operator that is no convolution or
            linear layer would read nothing.
    """
    analysis = analysis or graph.analysis
    check_selection(analysis, selection)
    kept = _Kept(selection)
    tensors = {name: _cut(graph.tensors, name, exprs, kept) for name, exprs in analysis.tensor_axes.items()}
    rewrites: dict[str, list[tuple[str, int | None, Arg]]] = {}
    for rewrite in analysis.rewrites:
        size = kept.size(rewrite.expr)
        if size is not None:
            rewrites.setdefault(rewrite.node, []).append((rewrite.arg, rewrite.index, size))
    nodes = tuple(
        _resized(node, rewrites.get(node.name, ()), analysis.value_axes[node.name], kept)
        for node in graph.nodes
    )
    sliced = replace(graph, nodes=nodes, tensors=tensors)
    return sliced if all(selection.kept.values()) else drop_empty(sliced)


class _Kept:
    """Positions and sizes that a selection leaves, each computed once: many places hold the same units."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.counts = selection.counts
        self._sizes: dict[AxisExpr, int | BatchDim | None] = {}
        self._positions: dict[AxisExpr, _Positions] = {}

    def size(self, expr: AxisExpr) -> int | BatchDim | None:
        """New size of an axis; None where nothing on it is selected."""
        if expr not in self._sizes:
            touched = units_in(expr) & self.counts.keys()
            self._sizes[expr] = _dim(kept_size(expr, self.counts)) if touched else None
        return self._sizes[expr]

    def positions(self, expr: AxisExpr) -> _Positions | None:
        """Kept positions of an axis; None where nothing on it is selected."""
        if self.size(expr) is None:
            return None
        if expr not in self._positions:
            self._positions[expr] = _Positions(torch.from_numpy(kept_positions(expr, self.selection.kept)))
        return self._positions[expr]


class _Positions:
    """Sorted positions of an axis, and whether they are one run."""

    def __init__(self, index: Tensor) -> None:
        self.index = index
        self.count = len(index)
        self.first = int(index[0]) if self.count else 0
        self.is_run = bool(self.count) and int(index[-1]) - self.first == self.count - 1

    def take(self, tensor: Tensor, axis: int) -> Tensor:
        """These positions of an axis; a view where they are one run."""
        if self.is_run:
            return tensor.narrow(axis, self.first, self.count)
        return tensor.index_select(axis, self.index.to(tensor.device))


def _cut(tensors: Mapping[str, Tensor], name: str, exprs: tuple[AxisExpr, ...], kept: _Kept) -> Tensor:
    """A stored tensor without the dropped positions: the source's own where nothing is dropped, else a copy."""
    found = [(axis, kept.positions(expr)) for axis, expr in enumerate(exprs)]
    cuts = [(axis, positions) for axis, positions in found if positions is not None]
    if not cuts:
        return tensors[name]
    # Tensors that lie on disk are read row by row where their layout allows it.
    select = getattr(tensors, "select", None)
    tensor: Tensor
    if select is not None and cuts[0][0] == 0:
        tensor = select(name, 0, cuts[0][1].index)
        cuts = cuts[1:]
    else:
        tensor = tensors[name]
    if [axis for axis, _ in cuts] == [0, 1] and tensor.ndim > 2 and not any(cut.is_run for _, cut in cuts):
        return _both(tensor, cuts[0][1].index, cuts[1][1].index)
    for axis, positions in cuts:
        tensor = positions.take(tensor, axis)
    return tensor.clone(memory_format=torch.contiguous_format) if tensor._is_view() else tensor


def _both(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows and columns of a convolution's weight at once, so that no dropped number is copied on the way."""
    height, width, *kernel = tensor.shape
    if min(kernel) == max(kernel) == 1 or not tensor.is_contiguous():
        return tensor.index_select(0, rows.to(tensor.device)).index_select(1, columns.to(tensor.device))
    index = (rows[:, None] * width + columns).reshape(-1).to(tensor.device)
    flat = tensor.reshape(height * width, *kernel).index_select(0, index)
    return flat.reshape(len(rows), len(columns), *kernel)


def _resized(
    node: Node,
    changes: Sequence[tuple[str, int | None, Arg]],
    axes: tuple[tuple[AxisExpr, ...], ...],
    kept: _Kept,
) -> Node:
    """The node with its integer arguments and recorded shapes as the selection leaves them."""
    shapes = tuple(
        tuple(
            dim if (size := kept.size(expr)) is None else size for dim, expr in zip(shape, exprs, strict=True)
        )
        for shape, exprs in zip(node.shapes, axes, strict=True)
    )
    if not changes and shapes == node.shapes:
        return node
    args = dict(node.args)
    for name, index, value in changes:
        if index is None:
            args[name] = value
        else:
            entries = list(args[name])  # type: ignore[arg-type]
            entries[index] = value
            args[name] = tuple(entries)
    return replace(node, args=args, shapes=shapes)


def _dim(size: int) -> int | BatchDim:
    return BatchDim(size // BATCH) if size % BATCH == 0 else size
