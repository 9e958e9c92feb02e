"""Sizes of an exported program: constants and multiples of the batch, and where another one came from."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from sarto.errors import GraphError
from sarto.graph.export_words import place_of
from sarto.graph.model import BatchDim, Shape


class OtherSize(Exception):
    """A size that is no constant and no multiple of the batch; `refused` says where it comes from."""

    def __init__(self, expression: str, *, of_data: bool) -> None:
        super().__init__(expression)
        self.expression = expression
        self.of_data = of_data


def dim(value: int | torch.SymInt) -> int | BatchDim:
    """A size as a constant or as a multiple of the batch.

    Raises:
        OtherSize: the size depends on the batch in another way, or on something else.
    """
    if isinstance(value, int):
        return value
    expression = value.node.expr
    if expression.is_Integer:
        return int(expression)
    # Symbols named u0, u1, ... stand for sizes that depend on data.
    of_data = any(str(symbol).startswith(("u", "zuf")) for symbol in expression.free_symbols)
    factor, rest = expression.as_coeff_Mul()
    if factor.is_Integer and rest.is_Symbol and not of_data:
        return BatchDim(int(factor))
    raise OtherSize(re.sub(r"\bs\d+\b", "batch", str(expression)), of_data=of_data)


def shape(value: Tensor) -> Shape:
    """The shape of an exported value."""
    return tuple(dim(size) for size in value.shape)


def dtype(value: Tensor) -> str:
    """The name of a value's dtype: `float32`."""
    return str(value.dtype).removeprefix("torch.")


def specs(value: Any) -> tuple[tuple[Shape, ...], tuple[str, ...]]:
    """Shapes and dtypes of what an exported call gives."""
    values = [
        v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, torch.Tensor)
    ]
    return tuple(shape(v) for v in values), tuple(dtype(v) for v in values)


def refused(size: OtherSize, node: torch.fx.Node) -> GraphError:
    """The error for a size that a graph can't hold, met at a node: operator, line of the model, what to do."""
    named = str(node.target).split(".")
    op = named[1] if len(named) > 1 else node.name
    place = place_of(str(node.meta.get("stack_trace") or ""))
    where = f" ({place})" if place else ""
    if size.of_data:
        return GraphError(
            f"how much {op} gives{where} depends on the numbers in its input, not on their shape; a graph has sizes "
            "that are constants or multiples of the batch. Leave this step out of the model that is captured, or give "
            "it a fixed size (a mask, the best k).",
            where=node.name,
        )
    return GraphError(
        f"a size that {op} makes{where} is {size.expression}: only constants and multiples of the batch size are "
        "supported. Let every step keep the samples of a batch apart.",
        where=node.name,
    )
