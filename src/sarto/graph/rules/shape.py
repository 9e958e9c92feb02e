"""Shape operators: they move, factor, join, part or repeat axes; nothing is computed.

Why it is right: the value at an output position is the value at one input position, and the axis expression says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sarto.graph import axes
from sarto.graph.axes import Atom, Axis
from sarto.graph.model import BatchDim, Node, Shape
from sarto.graph.rules._context import (
    Axes,
    Context,
    Rule,
    because,
    dim_size,
    fresh_axes,
    integer,
    integers,
    listed,
)
from sarto.graph.rules.pinning import pin_all


def reshape(context: Context, node: Node) -> Sequence[Axes]:
    """Atoms in one row, carved into the output sizes one after the other, stretch by stretch.

    A stretch is the least run of input axes and output axes of one size in all; where it can't be carved, it alone is
    pinned.
    """
    given = context.axes(node.args["self"]) or ()
    result: list[Axis] = []
    for first, last, dims in _stretches([axes.size(axis) for axis in given], node.shape):
        found = _carved(context, node, given[first:last], dims)
        if found is None:
            for axis in given[first:last]:
                context.pin(axis, node)
            found = list(fresh_axes(dims, because(node)))
        result.extend(found)
    for place, (dim, axis) in enumerate(zip(node.shape, result, strict=True)):
        if axis and not (isinstance(dim, BatchDim) and dim.times == 1):
            context.rewrite(node, "shape", axis, place)
    return (tuple(result),)


def _carved(context: Context, node: Node, given: Sequence[Axis], dims: Shape) -> list[Axis] | None:
    queue: list[Atom] = [atom for axis in given for atom in axes.resolve(axis)]
    made: list[Axis] = []
    for dim in dims:
        taken, rest = axes.carve(queue, dim_size(dim), because(node))
        if taken is None:
            return None
        made.append(taken)
        queue = list(rest)
    return made


def _stretches(sizes: Sequence[int], shape: Shape) -> Iterator[tuple[int, int, Shape]]:
    """Least runs of input axes (first, after the last) and of output sizes whose products agree."""
    first = start = 0
    while start < len(shape) or first < len(sizes):
        last, stop = first, start
        left = right = 1
        while (last == first and stop == start) or left != right:
            if left <= right and last < len(sizes):
                left *= sizes[last]
                last += 1
            elif stop < len(shape):
                right *= dim_size(shape[stop])
                stop += 1
            else:
                left *= sizes[last]
                last += 1
        yield first, last, shape[start:stop]
        first, start = last, stop


def permute(context: Context, node: Node) -> Sequence[Axes]:
    """Axes change places."""
    given = context.axes(node.args["self"]) or ()
    return (tuple(given[dim % len(given)] for dim in integers(node, "dims")),)


def transpose(context: Context, node: Node) -> Sequence[Axes]:
    """Two axes change places."""
    given = list(context.axes(node.args["self"]) or ())
    one, two = integer(node, "dim0"), integer(node, "dim1")
    given[one], given[two] = given[two], given[one]
    return (tuple(given),)


def transpose_matrix(context: Context, node: Node) -> Sequence[Axes]:
    """The axes of a matrix change places."""
    return (tuple(reversed(context.axes(node.args["self"]) or ())),)


def cat(context: Context, node: Node) -> Sequence[Axes]:
    """The joined axis is the sum of the parts; the others are the same axes."""
    parts = [context.axes(arg) or () for arg in listed(node, "tensors")]
    dim = integer(node, "dim") % len(node.shape)
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
    dim = integer(node, "dim") % len(given)
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
    """New and size-1 axes become new axes of copies, whose number follows what they are unified with later."""
    given = context.axes(node.args["self"]) or ()
    shift = len(node.shape) - len(given)
    result: list[Axis] = []
    for place, dim in enumerate(node.shape):
        axis = (given[place - shift] if place >= shift else ()) or fresh_axes((dim,))[0]
        if axis and not isinstance(dim, BatchDim):
            context.rewrite(node, "size", axis, place)
        result.append(axis)
    return (tuple(result),)


def stack(context: Context, node: Node) -> Sequence[Axes]:
    """The operands' axes are the same; the new axis, which counts operands, is pinned."""
    parts = [context.axes(arg) or () for arg in listed(node, "tensors")]
    for part in parts[1:]:
        for one, two in zip(parts[0], part, strict=True):
            context.unify(one, two, node)
    place = integer(node, "dim") % len(node.shape)
    new = fresh_axes((node.shape[place],), because(node))
    return ((*parts[0][:place], *new, *parts[0][place:]),)


def repeat(context: Context, node: Node) -> Sequence[Axes]:
    """A repeated axis is (pinned number of repeats) x axis, the repeats outside."""
    given = context.axes(node.args["self"]) or ()
    repeats = listed(node, "repeats")
    shift = len(repeats) - len(given)
    result: list[Axis] = []
    for place, times in enumerate(repeats):
        axis = given[place - shift] if place >= shift else ()
        if times == 1:
            result.append(axis)
        elif isinstance(times, int | BatchDim):
            result.append((*fresh_axes((times,), because(node))[0], *axis))
    return (tuple(result),)


def repeat_interleave(context: Context, node: Node) -> Sequence[Axes]:
    """A repeated axis is axis x repeats, the repeats inside; their number follows (queries per key head)."""
    given = context.axes(node.args["self"]) or ()
    dim = node.args["dim"]
    repeats = node.args["repeats"]
    if not isinstance(dim, int) or not isinstance(repeats, int):
        return pin_all(context, node)
    place = dim % len(given)
    copies = axes.fresh(repeats)
    if copies:
        context.rewrite(node, "repeats", copies)
    axis = (*given[place], *copies)
    if node.args.get("output_size") is not None:
        context.rewrite(node, "output_size", axis)
    return ((*given[:place], axis, *given[place + 1 :]),)


def pixel_shuffle(context: Context, node: Node) -> Sequence[Axes]:
    """channels = made x (r x r): the made ones pass, the r x r inner positions become space and are pinned."""
    given = context.axes(node.args["self"]) or ()
    why = because(node)
    made, inner = axes.carve(axes.resolve(given[-3]), dim_size(node.shape[-3]), why)
    for axis in given[-2:]:
        axes.pin(axis, why)
    axes.pin(inner if made is not None else given[-3], why)
    channels = made if made is not None else fresh_axes((node.shape[-3],), why)[0]
    return ((*given[:-3], channels, *fresh_axes(node.shape[-2:], why)),)


def pixel_unshuffle(context: Context, node: Node) -> Sequence[Axes]:
    """channels x (r x r), the inner positions taken from space and pinned."""
    given = context.axes(node.args["self"]) or ()
    why = because(node)
    for axis in given[-2:]:
        axes.pin(axis, why)
    factor = integer(node, "downscale_factor")
    return ((*given[:-3], (*given[-3], *axes.fresh(factor**2, why)), *fresh_axes(node.shape[-2:], why)),)


def _bound(value: object, default: int, total: int) -> int:
    if value is None:
        return default
    bound = value if isinstance(value, int) else default
    return min(max(bound + total if bound < 0 else bound, 0), total)


RULES: Mapping[str, Rule] = {
    "aten.reshape.default": reshape,
    "aten.permute.default": permute,
    "aten.transpose.int": transpose,
    "aten.t.default": transpose_matrix,
    "aten.cat.default": cat,
    "aten.slice.Tensor": narrow,
    "aten.expand.default": expand,
    "aten.stack.default": stack,
    "aten.repeat.default": repeat,
    "aten.repeat_interleave.self_int": repeat_interleave,
    "aten.pixel_shuffle.default": pixel_shuffle,
    "aten.pixel_unshuffle.default": pixel_unshuffle,
}
