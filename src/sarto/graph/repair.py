"""`repair` and `fold`: give a reader back the dropped units as a linear map of the kept ones, then make it free.

A map stands exactly where the next linear operator reads: after the activation and after any pooling. It has no bias:
with zero padding an affine map does not fold (it is wrong at the border), a linear one does.

Reference:
    Slice-and-Pack, AAAI 2025, equation (6) and "fusion"; the placement rules are our reading of it.
    Differs: one map per reader, so that the readers of a residual stream may each have their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sarto.errors import GraphError, ShapeError
from sarto.graph.analysis import Consumption
from sarto.graph.expressions import AxisExpr, Fixed, Sum, Unit, full_size, kept_positions, kept_size, units_in
from sarto.graph.model import BatchDim, ModelGraph, Node, Ref, Shape, TensorRef
from sarto.graph.operators import default_args
from sarto.graph.selection import Selection, settled
from sarto.graph.slice import slice

#: Readers that a map folds into, and the operator that applies the map to what they read.
_READERS: Mapping[str, str] = {
    "aten.linear.default": "aten.linear.default",
    "aten.conv1d.default": "aten.conv1d.default",
    "aten.conv1d.padding": "aten.conv1d.default",
    "aten.conv2d.default": "aten.conv2d.default",
    "aten.conv2d.padding": "aten.conv2d.default",
}
_SUFFIX = ".repair"


def repairable(graph: ModelGraph, consumption: Consumption) -> str | None:
    """Why a map can't be folded into this reader; None where it can."""
    node = graph.node(consumption.node)
    if node.op not in _READERS:
        return f"{node.op} at {node.name} is no convolution or linear layer"
    if node.args.get("groups", 1) != 1:
        return f"the grouped convolution {node.name} reads each group apart, a map would mix them"
    weight = node.args["weight"]
    users = [other.name for other in graph.nodes if any(arg == weight for arg in other.args.values())]
    if len(users) > 1:
        return f"the weight of {node.name} is shared with {', '.join(u for u in users if u != node.name)}"
    return None


def repair(graph: ModelGraph, selection: Selection, maps: Mapping[str, Tensor]) -> ModelGraph:
    """The sliced graph in which mapped readers still read all units: the kept ones through an explicit linear map.

    Args:
        selection: what is kept of each group.
        maps: reader node -> matrix of shape (positions it reads in `graph`, positions it reads after slicing);
            readers without a map read the kept units alone.

    Raises:
        GraphError: a reader does not exist, reads nothing that is sliced, or can't take a map.
        ShapeError: a matrix does not have the shape of its reader.
    """
    selection = settled(graph, selection)
    sliced = slice(graph, selection)
    reads = {c.node: c for c in graph.analysis.consumptions}
    counts = selection.counts
    tensors = dict(sliced.tensors.items())
    added: dict[str, Node] = {}
    for name, matrix in maps.items():
        consumption = reads.get(name)
        if consumption is None or not units_in(consumption.expr) & counts.keys():
            raise GraphError(
                f"node {name!r} reads no sliced units, so it can't take a map",
                where=name,
            )
        why = repairable(graph, consumption)
        if why is not None:
            raise GraphError(f"no map can be folded there: {why}", where=name)
        want = (full_size(consumption.expr), kept_size(consumption.expr, counts))
        if tuple(matrix.shape) != want:
            raise ShapeError(
                f"the map of {name!r} must have shape {want}, got {tuple(matrix.shape)}",
                where=name,
            )
        node = sliced.node(name)
        weight, source = node.args["weight"], node.args["input"]
        if not isinstance(weight, TensorRef) or not isinstance(source, Ref):
            raise GraphError(f"node {name!r} has no stored weight or no computed input", where=name)
        rows = graph.analysis.tensor_axes[weight.name][0]
        tensors[weight.name] = _rows(graph.tensors[weight.name], rows, selection)
        stem = f"{name}{_SUFFIX}"
        rank = len(node.shape) - 2 if node.op != "aten.linear.default" else 0
        tensors[stem] = matrix.to(tensors[weight.name].dtype).reshape(*matrix.shape, *[1] * rank)
        op = _READERS[node.op]
        args = {**default_args(op), "input": source, "weight": TensorRef(stem)}
        shape = _read_shape(graph, node.name, selection)
        added[name] = Node(f"{name}_repair", op, args, (shape,), node.dtypes)
    nodes: list[Node] = []
    for node in sliced.nodes:
        if node.name in added:
            nodes.append(added[node.name])
            node = node.with_args(input=Ref(added[node.name].name))
        nodes.append(node)
    parameters = frozenset(sliced.parameters | {f"{name}{_SUFFIX}" for name in added})
    return replace(sliced, nodes=tuple(nodes), tensors=tensors, parameters=parameters)


def fold(graph: ModelGraph) -> ModelGraph:
    """The graph with every repair map multiplied into the weight of its reader: same outputs, no extra operator."""
    tensors = dict(graph.tensors.items())
    folded: dict[str, Ref] = {}
    for node in graph.nodes:
        weight = node.args.get("weight")
        if isinstance(weight, TensorRef) and weight.name.endswith(_SUFFIX):
            source = node.args["input"]
            if isinstance(source, Ref):
                folded[node.name] = source
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in folded:
            del tensors[f"{node.name.removesuffix('_repair')}{_SUFFIX}"]
            continue
        source = node.args.get("input")
        if isinstance(source, Ref) and source.name in folded:
            weight = node.args["weight"]
            if not isinstance(weight, TensorRef):
                raise GraphError(
                    f"node {node.name!r} has no stored weight to fold into",
                    where=node.name,
                )
            matrix = graph.tensors[f"{source.name.removesuffix('_repair')}{_SUFFIX}"]
            tensors[weight.name] = fold_weight(tensors[weight.name], matrix)
            node = node.with_args(input=folded[source.name])
        nodes.append(node)
    return replace(
        graph,
        nodes=tuple(nodes),
        tensors=tensors,
        parameters=frozenset(graph.parameters & tensors.keys()),
    )


def fold_weight(weight: Tensor, matrix: Tensor) -> Tensor:
    """The weight (out, in, kernel...) of a reader that reads `matrix` (in, kept) times what it is now given."""
    flat = matrix.reshape(matrix.shape[0], matrix.shape[1]).to(torch.float64)
    return torch.einsum("ou...,us->os...", weight.to(torch.float64), flat).to(weight.dtype).contiguous()


def expand_map(expr: AxisExpr, group_maps: Mapping[str, Tensor], selection: Selection) -> Tensor:
    """The matrix over a whole axis, shape (positions, kept positions), from the maps of the groups that lie on it.

    Groups without a map give back zero for their dropped units. A flattened axis (channels x space) repeats a map at
    every position; a concatenated one lays the maps out as blocks.

    Args:
        group_maps: group id -> matrix of shape (units, kept units).
    """
    if isinstance(expr, Fixed):
        return torch.eye(expr.size, dtype=torch.float64)
    if isinstance(expr, Unit):
        found = group_maps.get(expr.group)
        if found is not None:
            return found.to(torch.float64)
        kept = kept_positions(expr, selection.kept)
        matrix = torch.zeros(expr.size, len(kept), dtype=torch.float64)
        matrix[torch.from_numpy(kept), torch.arange(len(kept))] = 1.0
        return matrix
    parts = [expand_map(part, group_maps, selection) for part in expr.parts]
    if isinstance(expr, Sum):
        joined: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
        return joined
    whole = parts[0]
    for part in parts[1:]:
        whole = torch.kron(whole, part)
    return whole


def _rows(weight: Tensor, expr: AxisExpr, selection: Selection) -> Tensor:
    positions = kept_positions(expr, selection.kept)
    if len(positions) == weight.shape[0]:
        return weight
    return weight.index_select(0, torch.from_numpy(np.ascontiguousarray(positions)).to(weight.device))


def _read_shape(graph: ModelGraph, name: str, selection: Selection) -> Shape:
    """Shape of what a reader reads in the graph, other axes sliced as usual: here, all its channels."""
    source = graph.node(name).args["input"]
    if not isinstance(source, Ref):
        return (BatchDim(1),)
    for entry in graph.inputs:
        if entry.name == source.name:
            return entry.shape
    return graph.node(source.name).shape
