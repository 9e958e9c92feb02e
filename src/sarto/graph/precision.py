"""Conversions of a normalised graph, and fractions that are made of whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from sarto.graph.model import Arg, Constant, Node, Ref, Shape
from sarto.graph.operators import default_args, signature

_CONVERSION = "aten.to.dtype"


def conversion(name: str, source: Arg, shapes: tuple[Shape, ...], dtype: str) -> Node:
    """The node that gives a value in a type: `float32`, `int64`."""
    given: dict[str, Arg] = {
        **default_args(_CONVERSION), "self": source, "dtype": Constant("dtype", dtype)
    }  # fmt: skip
    names = signature(_CONVERSION)
    args = {arg: given[arg] for arg in (*names.positional, *names.keyword)}
    return Node(name, _CONVERSION, args, shapes, (dtype,))


def makes_fractions(node: torch.fx.Node) -> bool:
    """Whether an exported call turns whole numbers into fractions and names no type: torch then takes its default."""
    made = node.meta["val"]
    read = [each.meta["val"] for each in node.all_input_nodes if isinstance(each.meta["val"], Tensor)]
    if not isinstance(made, Tensor) or not made.is_floating_point() or node.kwargs.get("dtype") is not None:
        return False
    return bool(read) and not any(value.is_floating_point() for value in read)


def in_own_precision(node: Node) -> list[Node]:
    """A node that makes fractions, and the conversion of them: its type follows the precision the graph runs in."""
    raw = Node(f"{node.name}_raw", node.op, node.args, node.shapes, node.dtypes)
    return [raw, conversion(node.name, Ref(raw.name), node.shapes, node.dtypes[0])]
