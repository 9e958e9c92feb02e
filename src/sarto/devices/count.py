"""Exact parameters, FLOPs, memory and size of a graph, from its recorded shapes alone; no weights are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sarto.devices.memory import peak_bytes
from sarto.errors import GraphError
from sarto.graph.model import Arg, Input, ModelGraph, Node, Ref, TensorRef, elements, shapes_of, size_at
from sarto.types import Cost

Shapes = Callable[[Arg], tuple[int, ...]]


def count(graph: ModelGraph) -> Cost:
    """Cost of a graph for one sample: trainable parameters, FLOPs, peak activation bytes, and bytes of all tensors."""
    shapes = shapes_of(graph.tensors)
    return Cost(
        params=sum(math.prod(shapes[name][0]) for name in graph.parameters),
        flops=sum(flops_by_node(graph).values()),
        memory_bytes=peak_bytes(graph),
        size_bytes=sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values()),
        basis="measured",
    )


def flops_by_node(graph: ModelGraph, *, batch: int = 1) -> dict[str, int]:
    """Node -> FLOPs, 2 per multiply-add; operators that do no matrix products count 0, as PyTorch's counter has it."""
    stored = shapes_of(graph.tensors)
    makers: dict[str, Node | Input] = {entry.name: entry for entry in graph.inputs}
    makers.update(graph.index)

    def shape(arg: Arg) -> tuple[int, ...]:
        if isinstance(arg, TensorRef):
            return stored[arg.name][0]
        if isinstance(arg, Ref):
            return size_at(makers[arg.name].shape, batch)
        raise GraphError(f"an argument of a matrix product is no tensor: {arg!r}")

    return {node.name: _RULES[node.op](node, shape, batch) for node in graph.nodes if node.op in _RULES}


def params_by_tensor(graph: ModelGraph) -> dict[str, int]:
    """Trainable tensor -> number of its elements."""
    shapes = shapes_of(graph.tensors)
    return {name: math.prod(shapes[name][0]) for name in sorted(graph.parameters)}


def _convolution(node: Node, shape: Shapes, batch: int) -> int:
    return 2 * elements(node.shape, batch) * math.prod(shape(node.args["weight"])[1:])


def _transposed(node: Node, shape: Shapes, batch: int) -> int:
    return 2 * math.prod(shape(node.args["input"])) * math.prod(shape(node.args["weight"])[1:])


def _linear(node: Node, shape: Shapes, batch: int) -> int:
    return 2 * elements(node.shape, batch) * shape(node.args["weight"])[-1]


def _product(first: str) -> Callable[[Node, Shapes, int], int]:
    def rule(node: Node, shape: Shapes, batch: int) -> int:
        return 2 * elements(node.shape, batch) * shape(node.args[first])[-1]

    return rule


def _attention(node: Node, shape: Shapes, batch: int) -> int:
    *outer, queries, width = shape(node.args["query"])
    keys, values = shape(node.args["key"])[-2], shape(node.args["value"])[-1]
    return 2 * math.prod(outer) * queries * keys * (width + values)


_RULES: Mapping[str, Callable[[Node, Shapes, int], int]] = {
    **{
        f"aten.{name}": _convolution
        for name in ("conv1d.default", "conv1d.padding", "conv2d.default", "conv2d.padding", "conv3d.default")
    },
    "aten.conv_transpose1d.default": _transposed,
    "aten.conv_transpose2d.input": _transposed,
    "aten.linear.default": _linear,
    "aten.matmul.default": _product("self"),
    "aten.mm.default": _product("self"),
    "aten.bmm.default": _product("self"),
    "aten.addmm.default": _product("mat1"),
    "aten.baddbmm.default": _product("batch1"),
    "aten.scaled_dot_product_attention.default": _attention,
}
