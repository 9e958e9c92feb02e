"""`slice`: the model with some units of some channel groups left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sarto.graph.analysis import Analysis
from sarto.graph.expressions import kept_positions, kept_size
from sarto.graph.hollow import drop_empty
from sarto.graph.model import BatchDim, ModelGraph, Node
from sarto.graph.places import NodePlaces, Places
from sarto.graph.rules._context import BATCH
from sarto.graph.selection import Selection, settled

Size = int | BatchDim


def slice(graph: ModelGraph, selection: Selection, *, analysis: Analysis | None = None) -> ModelGraph:
    """The graph that keeps only the selected units; the source does not change.

    It computes what the source computes when every linear operator that reads a dropped unit reads zero instead.
    Stored tensors shrink by `index_select`; integer arguments that follow a size are rewritten. A layer that is left
    with nothing to read is replaced by its exact constant.

    Args:
        selection: units kept, of groups named by id or by layer; a `Selection`, no plain dict.
        analysis: another reading of the graph than its own, for operations that are not exact and say so.

    Raises:
        GraphError: the selection is no `Selection`, a group is unknown or pinned, an index is out of range, or an
            operator that is no convolution or linear layer would read nothing.
    """
    analysis = analysis or graph.analysis
    selection = settled(graph, selection, analysis)
    places = analysis.places
    sizes = _sizes(places, selection)
    positions: dict[int, _Positions] = {}
    for entry, size in enumerate(sizes):
        if size is not None:
            kept = kept_positions(places.exprs[entry], selection.kept)
            positions[entry] = _Positions(torch.from_numpy(kept))
    tensors: dict[str, Tensor] = {}
    for name in graph.tensors:
        cuts = [
            (axis, positions[entry]) for axis, entry in places.tensors.get(name, ()) if entry in positions
        ]
        tensors[name] = _cut(graph.tensors, name, cuts) if cuts else graph.tensors[name]
    nodes = tuple(
        _resized(node, found, sizes) if (found := places.nodes.get(node.name)) is not None else node
        for node in graph.nodes
    )
    sliced = replace(graph, nodes=nodes, tensors=tensors)
    return sliced if all(selection.kept.values()) else drop_empty(sliced)


def _sizes(places: Places, selection: Selection) -> list[Size | None]:
    """New size of each expression; None where nothing on it is selected."""
    counts = selection.counts
    named = counts.keys()
    return [
        _dim(kept_size(expr, counts)) if units & named else None
        for expr, units in zip(places.exprs, places.units, strict=True)
    ]


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


def _cut(tensors: Mapping[str, Tensor], name: str, cuts: Sequence[tuple[int, _Positions]]) -> Tensor:
    """A copy of a stored tensor without the dropped positions."""
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
    if max(kernel) == 1 or not tensor.is_contiguous():
        return tensor.index_select(0, rows.to(tensor.device)).index_select(1, columns.to(tensor.device))
    index = (rows[:, None] * width + columns).reshape(-1).to(tensor.device)
    flat = tensor.reshape(height * width, *kernel).index_select(0, index)
    return flat.reshape(len(rows), len(columns), *kernel)


def _resized(node: Node, found: NodePlaces, sizes: Sequence[Size | None]) -> Node:
    """The node with its recorded shapes and integer arguments as the selection leaves them."""
    shapes = [list(shape) for shape in node.shapes]
    for output, axis, entry in found.shapes:
        size = sizes[entry]
        if size is not None:
            shapes[output][axis] = size
    args = dict(node.args) if found.args else node.args
    for name, index, entry in found.args:
        size = sizes[entry]
        if size is None:
            continue
        if index is None:
            args[name] = size  # type: ignore[index]
        else:
            entries = list(args[name])  # type: ignore[arg-type]
            entries[index] = size
            args[name] = tuple(entries)  # type: ignore[index]
    return Node(node.name, node.op, args, tuple(tuple(shape) for shape in shapes), node.dtypes)


def _dim(size: int) -> Size:
    return BatchDim(size // BATCH) if size % BATCH == 0 else size
