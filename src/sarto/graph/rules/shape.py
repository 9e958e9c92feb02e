"""Shape operators: reshape, permute, cat, slice, expand. They move, factor, join or part axes; nothing is computed.

Why it is right: the value at an output position is the value at one input position, and the axis expression says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph import axes
from sarto.graph.axes import Atom, Axis
from sarto.graph.model import BatchDim, Node
from sarto.graph.rules._context import (
    Axes,
    Context,
    Rule,
    because,
    dim_size,
    fresh_axes,
)


def reshape(context: Context, node: Node) -> Sequence[Axes]:
    """All input atoms in one row, carved into the output sizes one after the other."""
    given = context.axes(node.args["self"]) or ()
    queue: list[Atom] = [atom for axis in given for atom in axes.resolve(axis)]
    result: list[Axis] = []
    for dim in node.shape:
        taken, rest = axes.carve(queue, dim_size(dim), because(node))
        if taken is None:
            for axis in given:
                context.pin(axis, node)
            return (fresh_axes(node.shape, because(node)),)
        result.append(taken)
        queue = list(rest)
    for place, (dim, axis) in enumerate(zip(node.shape, result, strict=True)):
        if axis and not (isinstance(dim, BatchDim) and dim.times == 1):
            context.rewrite(node, "shape", axis, place)
    return (tuple(result),)


def permute(context: Context, node: Node) -> Sequence[Axes]:
    """Axes change places."""
    given = context.axes(node.args["self"]) or ()
    dims = node.args["dims"]
    if not isinstance(dims, tuple):
        raise TypeError(f"dims of {node.name} is not a list")
    return (tuple(given[_int(dim) % len(given)] for dim in dims),)


def transpose(context: Context, node: Node) -> Sequence[Axes]:
    """Two axes change places."""
    given = list(context.axes(node.args["self"]) or ())
    one, two = _int(node.args["dim0"]), _int(node.args["dim1"])
    given[one], given[two] = given[two], given[one]
    return (tuple(given),)


def transpose_matrix(context: Context, node: Node) -> Sequence[Axes]:
    """The axes of a matrix change places."""
    return (tuple(reversed(context.axes(node.args["self"]) or ())),)


def cat(context: Context, node: Node) -> Sequence[Axes]:
    """The joined axis is the sum of the parts; the others are the same axes."""
    tensors = node.args["tensors"]
    if not isinstance(tensors, tuple):
        raise TypeError(f"tensors of {node.name} is not a list")
    parts = [context.axes(arg) or () for arg in tensors]
    dim = _int(node.args["dim"]) % len(parts[0])
    result: list[Axis] = []
    for place in range(len(parts[0])):
        if place == dim:
            result.append(axes.add([part[place] for part in parts]))
            continue
        for part in parts[1:]:
            context.unify(parts[0][place], part[place], node)
        result.append(parts[0][place])
    return (tuple(result),)


def narrow(context: Context, node: Node) -> Sequence[Axes]:
    """A unit-step slice takes a part of a sum; with another step the axis is pinned."""
    given = list(context.axes(node.args["self"]) or ())
    dim = _int(node.args["dim"]) % len(given)
    axis = given[dim]
    if isinstance(node.shape[dim], BatchDim) or not axis:
        return (tuple(given),)
    total = axes.size(axis)
    start = _bound(node.args["start"], 0, total)
    end = _bound(node.args["end"], total, total)
    if node.args["step"] != 1:
        context.pin(axis, node)
        given[dim] = fresh_axes((node.shape[dim],), because(node))[0]
        return (tuple(given),)
    if (start, end) == (0, total):
        context.rewrite(node, "end", axis)
        return (tuple(given),)
    first = axes.cut(axis, start, because(node))
    second = axes.cut(first[1], end - start, because(node)) if first is not None else None
    if first is None or second is None:
        given[dim] = fresh_axes((node.shape[dim],), because(node))[0]
        return (tuple(given),)
    before, (taken, _) = first[0], second
    if before:
        context.rewrite(node, "start", before)
    context.rewrite(node, "end", axes.add([before, taken]) if before else taken)
    given[dim] = taken if axes.size(taken) > 1 else ()
    return (tuple(given),)


def expand(context: Context, node: Node) -> Sequence[Axes]:
    """New or size-1 axes become new pinned axes; the others pass and their size is rewritten."""
    given = context.axes(node.args["self"]) or ()
    shift = len(node.shape) - len(given)
    result: list[Axis] = []
    for place, dim in enumerate(node.shape):
        axis = given[place - shift] if place >= shift else ()
        if axis:
            if not isinstance(dim, BatchDim):
                context.rewrite(node, "size", axis, place)
            result.append(axis)
        else:
            result.append(fresh_axes((dim,), because(node))[0])
    return (tuple(result),)


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected an integer argument, found {value!r}")
    return value


def _bound(value: object, default: int, total: int) -> int:
    if value is None:
        return default
    bound = _int(value)
    return min(max(bound + total if bound < 0 else bound, 0), total)


RULES: Mapping[str, Rule] = {
    "aten.reshape.default": reshape,
    "aten.permute.default": permute,
    "aten.transpose.int": transpose,
    "aten.t.default": transpose_matrix,
    "aten.cat.default": cat,
    "aten.slice.Tensor": narrow,
    "aten.expand.default": expand,
}
