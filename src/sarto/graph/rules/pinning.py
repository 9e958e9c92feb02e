"""Operators that look at an axis as a whole: what they touch can't be sliced, and they are named as the reason.

Why it is right: sorting, running sums, indices into an axis and comparisons of positions change when a member is
dropped, and no later zeroing stands for that. They mostly touch tokens, masks and boxes, not channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph import axes
from sarto.graph.model import Node, leaves
from sarto.graph.rules._context import Axes, Context, Rule, because, fresh_axes


def pin_all(context: Context, node: Node) -> Sequence[Axes]:
    """Every axis that is read or made is pinned."""
    why = because(node)
    for arg in leaves(node.args):
        for axis in context.axes(arg) or ():
            axes.pin(axis, why)
    return tuple(fresh_axes(shape, why) for shape in node.shapes)


def pin_one(context: Context, node: Node) -> Sequence[Axes]:
    """The axis `dim` is pinned, the others pass; for every output."""
    given = context.axes(node.args["self"]) or ()
    dim = node.args.get("dim")
    if not isinstance(dim, int) or not given:
        return pin_all(context, node)
    place = dim % len(given)
    context.pin(given[place], node)
    result = []
    for shape in node.shapes:
        new = fresh_axes((shape[place],), because(node))[0]
        result.append((*given[:place], new, *given[place + 1 :]))
    return tuple(result)


def pin_last_two(context: Context, node: Node) -> Sequence[Axes]:
    """`tril` and `triu`: rows and columns are pinned."""
    given = context.axes(node.args["self"]) or ()
    for axis in given[-2:]:
        context.pin(axis, node)
    return (given,)


def softmax(context: Context, node: Node) -> Sequence[Axes]:
    """The axis that sums to one is pinned."""
    given = context.axes(node.args["self"]) or ()
    dim = node.args["dim"]
    context.pin(given[dim] if isinstance(dim, int) else (), node)
    return (given,)


RULES: Mapping[str, Rule] = {
    "aten.softmax.int": softmax,
    "aten.log_softmax.int": softmax,
    "aten._softmax.default": softmax,
    "aten.cumsum.default": softmax,
    "aten.topk.default": pin_one,
    "aten.sort.default": pin_one,
    "aten.argsort.default": pin_one,
    "aten.tril.default": pin_last_two,
    "aten.triu.default": pin_last_two,
    "aten.gather.default": pin_all,
    "aten.scatter.value": pin_all,
    "aten.scatter.src": pin_all,
    "aten.masked_scatter.default": pin_all,
    "aten.argmax.default": pin_all,
    "aten.argmin.default": pin_all,
    "aten.bucketize.Tensor": pin_all,
    "aten.one_hot.default": pin_all,
    "aten.diff.default": pin_all,
    "aten.arange.default": pin_all,
    "aten.arange.start": pin_all,
    "aten.arange.start_step": pin_all,
}
