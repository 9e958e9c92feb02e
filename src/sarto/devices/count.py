"""Exact parameters, FLOPs, memory and size of a graph, from its recorded shapes alone; no weights are read."""

from __future__ import annotations

import math

from sarto.devices.flops import RULES
from sarto.devices.memory import peak_bytes
from sarto.errors import GraphError
from sarto.graph import Input, ModelGraph, Node, Ref, TensorRef
from sarto.graph.model import Arg, shapes_of, size_at
from sarto.types import Cost


def count(graph: ModelGraph) -> Cost:
    """Cost of a graph for one sample: trainable parameters, FLOPs, peak activation bytes, and bytes of all tensors."""
    shapes = shapes_of(graph.tensors)
    return Cost(
        params=sum(params_by_tensor(graph).values()),
        flops=sum(flops_by_node(graph).values()),
        memory_bytes=peak_bytes(graph),
        size_bytes=sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values()),
        basis="measured",
    )


def flops_by_node(graph: ModelGraph, *, batch: int = 1) -> dict[str, int]:
    """Node -> FLOPs, 2 per multiply-add, of the nodes that multiply matrices.

    Convolutions (grouped and transposed too), linear layers, matrix products, einsum, attention and recurrent
    layers count; biases, activations, norms, pools and everything else count 0. These are the numbers of
    `torch.utils.flop_counter`, which however leaves out products of a matrix and a vector, and attention and
    recurrent layers where one fused kernel runs them.

    Raises:
        GraphError: an argument of a product is no tensor, or an einsum does not fit its tensors.
    """
    stored = shapes_of(graph.tensors)
    makers: dict[str, Node | Input] = {entry.name: entry for entry in graph.inputs}
    makers.update(graph.index)

    def sizes(arg: Arg) -> tuple[int, ...]:
        if isinstance(arg, TensorRef):
            return stored[arg.name][0]
        if isinstance(arg, Ref):
            return size_at(makers[arg.name].shape, batch)
        raise GraphError(f"an argument of a matrix product is no tensor: {arg!r}")

    return {node.name: RULES[node.op](node, sizes, batch) for node in graph.nodes if node.op in RULES}


def params_by_tensor(graph: ModelGraph) -> dict[str, int]:
    """Trainable tensor -> number of its elements."""
    shapes = shapes_of(graph.tensors)
    return {name: math.prod(shapes[name][0]) for name in sorted(graph.parameters)}
