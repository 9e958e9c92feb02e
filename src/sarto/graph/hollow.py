"""`hollow`: channel groups left with no unit at all; a layer that then reads nothing becomes its exact constant.

A convolution or linear layer over zeros gives its bias at every position, whatever its padding. So a layer whose whole
input is gone is its bias, repeated; a layer that also reads other units loses some columns; and what only fed the
removed units goes too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from sarto.errors import GraphError
from sarto.graph.model import (
    Arg,
    BatchDim,
    ModelGraph,
    Node,
    Ref,
    Shape,
    TensorRef,
    leaves,
    prune,
    shapes_of,
)
from sarto.graph.operators import default_args
from sarto.graph.selection import Selection

#: Operators that give their bias where they read nothing.
_AFFINE = frozenset(
    f"aten.{name}"
    for name in (
        "linear.default",
        "conv1d.default",
        "conv1d.padding",
        "conv2d.default",
        "conv2d.padding",
        "conv3d.default",
        "conv_transpose1d.default",
        "conv_transpose2d.input",
    )
)
_CAT = "aten.cat.default"


def hollow(graph: ModelGraph, groups: Iterable[str]) -> ModelGraph:
    """The graph without any unit of these groups; exactly the source whose readers all read zero for them.

    Args:
        groups: ids (or module names) of the groups to remove.

    Raises:
        GraphError: a group is unknown or pinned, or an operator other than a convolution or linear layer would be
            left with nothing to read.
    """
    from sarto.graph.slice import slice

    return slice(graph, Selection({graph.analysis.group(name).id: () for name in groups}))


def drop_empty(graph: ModelGraph) -> ModelGraph:
    """The graph without its values of size zero: layers that read nothing are replaced by their exact constant.

    Args:
        graph: a sliced graph in which some axes have no position left; such a graph is not valid by itself.

    Raises:
        GraphError: an operator other than a convolution or linear layer reads nothing; all such are named.
    """
    return _Filler(graph).graph()


class _Filler:
    """Walks a graph from its outputs to its inputs and writes what is needed without empty values."""

    def __init__(self, graph: ModelGraph) -> None:
        self.source = graph
        self.empty = {node.name for node in graph.nodes if all(_is_empty(shape) for shape in node.shapes)}
        self.hollow = {name for name, (shape, _) in shapes_of(graph.tensors).items() if _is_empty(shape)}
        self.tensors: dict[str, Tensor] = {}
        self.problems: list[str] = []

    def graph(self) -> ModelGraph:
        needed = set(self.source.outputs)
        nodes: list[Node] = []
        for node in reversed(self.source.nodes):
            if node.name not in needed:
                continue
            made = self._filled(node)
            nodes.extend(reversed(made))
            needed.update(arg.name for one in made for arg in leaves(one.args) if isinstance(arg, Ref))
        if self.problems:
            self.problems.reverse()
            raise GraphError(self.problems[0], problems=self.problems)
        given = self.source.tensors
        return prune(
            replace(
                self.source,
                nodes=tuple(reversed(nodes)),
                tensors={**given, **self.tensors} if self.tensors else given,
            )
        )

    def _filled(self, node: Node) -> tuple[Node, ...]:
        """What stands in place of a node: itself, without its empty parts, or its constant."""
        args = {name: _plain(arg) for name, arg in node.args.items()}
        node = replace(node, args=args)
        missing = [name for name in map(self._nothing, leaves(args)) if name is not None]
        if not missing:
            return (node,)
        if node.op == _CAT and isinstance(args["tensors"], tuple):
            parts = tuple(arg for arg in args["tensors"] if self._nothing(arg) is None)
            return (node.with_args(tensors=parts),)
        if node.op in _AFFINE and self._nothing(args["input"]) is not None:
            return self._constant(node)
        self.problems.append(
            f"{node.op} at {node.name} would read nothing: no unit is left of {missing[0]!r}, and only a convolution "
            "or a linear layer is a constant then. Keep at least one unit."
        )
        return ()

    def _nothing(self, arg: Arg) -> str | None:
        """The name of the value or stored tensor that an argument names, where no unit of it is left."""
        if isinstance(arg, Ref) and arg.name in self.empty:
            return arg.name
        return arg.name if isinstance(arg, TensorRef) and arg.name in self.hollow else None

    def _constant(self, node: Node) -> tuple[Node, ...]:
        """The bias of a layer (zero where it has none), repeated over the layer's output."""
        after = 0 if node.op == "aten.linear.default" else len(node.shape) - 2
        width = node.shape[len(node.shape) - 1 - after]
        column: Shape = (width, *[1] * after)
        bias, weight = node.args["bias"], node.args["weight"]
        made: list[Node] = []
        if bias is None:
            bias = self._zeros(column, node, weight)
        elif after:
            name = f"{node.name}_bias"
            while name in self.source.index:
                name += "_"
            args: dict[str, Arg] = {"self": bias, "shape": column}
            made.append(Node(name, "aten.reshape.default", args, (column,), node.dtypes))
            bias = Ref(name)
        op = "aten.expand.default"
        made.append(replace(node, op=op, args={**default_args(op), "self": bias, "size": node.shape}))
        return tuple(made)

    def _zeros(self, shape: Shape, node: Node, weight: Arg) -> TensorRef:
        stored = self.source.tensors[weight.name] if isinstance(weight, TensorRef) else None
        name = f"{node.name}.zeros"
        while name in self.source.tensors:
            name += "_"
        sizes = [size for size in shape if isinstance(size, int)]
        dtype = getattr(torch, node.dtypes[0])
        self.tensors[name] = torch.zeros(sizes, dtype=dtype, device=None if stored is None else stored.device)
        return TensorRef(name)


def _is_empty(shape: Shape) -> bool:
    return any(dim in (0, BatchDim(0)) for dim in shape)


def _plain(arg: Arg) -> Arg:
    """The argument with no multiple of the batch that is nothing."""
    if isinstance(arg, tuple):
        return tuple(_plain(inner) for inner in arg)
    return 0 if arg == BatchDim(0) else arg


__all__ = ["drop_empty", "hollow"]
