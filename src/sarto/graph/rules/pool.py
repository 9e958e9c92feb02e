"""Pools, resampling, padding and means over space: channels pass, space is pinned and renewed.

Why it is right: each channel is treated alone; positions are mixed, so they can't be dropped one by one. A mean over
the channel axis itself divides by its size: that axis is pinned. A sum over it is a linear reader: it is consumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph.axes import Axis
from sarto.graph.model import Node
from sarto.graph.rules._context import Axes, Context, Rule, because, fresh_axes


def pool(context: Context, node: Node) -> Sequence[Axes]:
    """(batch, channels, space): the first two axes pass."""
    given = context.axes(node.args["input"] if "input" in node.args else node.args["self"]) or ()
    for axis in given[2:]:
        context.pin(axis, node)
    return ((*given[:2], *fresh_axes(node.shape[2:], because(node))),)


def pad(context: Context, node: Node) -> Sequence[Axes]:
    """Axes that are padded by nothing pass; the others are pinned and renewed."""
    given = list(context.axes(node.args["self"]) or ())
    amounts = node.args["pad"]
    if not isinstance(amounts, tuple):
        raise TypeError(f"pad of {node.name} is not a list")
    for place in range(len(amounts) // 2):
        if amounts[2 * place] or amounts[2 * place + 1]:
            axis = len(given) - 1 - place
            context.pin(given[axis], node)
            given[axis] = fresh_axes((node.shape[axis],), because(node))[0]
    return (tuple(given),)


def reduce(context: Context, node: Node) -> Sequence[Axes]:
    """Reduced axes are pinned (a statistic changes when a member is dropped); the others pass."""
    return _reduce(context, node, consumed=False)


def sum_over(context: Context, node: Node) -> Sequence[Axes]:
    """Reduced axes are consumed: leaving a member out is adding zero for it."""
    return _reduce(context, node, consumed=True)


def _reduce(context: Context, node: Node, *, consumed: bool) -> Sequence[Axes]:
    given = context.axes(node.args["self"]) or ()
    dims = node.args.get("dim")
    listed = dims if isinstance(dims, tuple) else () if dims is None else (dims,)
    places = {int(d) % len(given) for d in listed if isinstance(d, int)} or set(range(len(given)))
    result: list[Axis] = []
    for place, axis in enumerate(given):
        if place not in places:
            result.append(axis)
            continue
        if consumed:
            context.consume(node, "self", place)
        else:
            context.pin(axis, node)
        if node.args.get("keepdim"):
            result.append(())
    return (tuple(result),)


_POOLS = (
    "max_pool1d.default",
    "max_pool2d.default",
    "avg_pool1d.default",
    "avg_pool2d.default",
    "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default",
    "adaptive_max_pool1d.default",
    "upsample_nearest2d.vec",
    "upsample_bilinear2d.vec",
    "upsample_bicubic2d.vec",
    "upsample_nearest2d.default",
    "upsample_bilinear2d.default",
)

RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": pool for name in _POOLS},
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": pad,
    "aten.mean.dim": reduce,
    "aten.mean.default": reduce,
    "aten.amax.default": reduce,
    "aten.amin.default": reduce,
    "aten.var.correction": reduce,
    "aten.sum.dim_IntList": sum_over,
    "aten.sum.default": sum_over,
}
