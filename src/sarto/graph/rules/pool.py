"""Pools, resampling, padding and means over space: channels pass, space is pinned and renewed.

Why it is right: each channel is treated alone; positions are mixed, so they can't be dropped one by one. A mean over
the channel axis itself divides by its size: that axis is pinned. A sum over it is a linear reader: it is consumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sarto.graph import axes
from sarto.graph.axes import Axis
from sarto.graph.model import BatchDim, Node
from sarto.graph.rules._context import Axes, Context, Rule, because, fresh_axes, integer, integers


def pool(context: Context, node: Node) -> Sequence[Axes]:
    """(batch, channels, space): the first two axes pass."""
    given = context.axes(node.args["input"] if "input" in node.args else node.args["self"]) or ()
    for axis in given[2:]:
        context.pin(axis, node)
    return ((*given[:2], *fresh_axes(node.shape[2:], because(node))),) * len(node.shapes)


def pad(context: Context, node: Node) -> Sequence[Axes]:
    """An axis that is padded with a constant lies between pinned new positions; with other paddings it is pinned."""
    given = list(context.axes(node.args["self"]) or ())
    amounts = integers(node, "pad")
    why = because(node)
    constant = node.args.get("mode", "constant") == "constant"
    for place in range(len(amounts) // 2):
        before, after = amounts[2 * place], amounts[2 * place + 1]
        axis = len(given) - 1 - place
        if not before and not after:
            continue
        whole = isinstance(node.shape[axis], BatchDim) or axes.is_pinned(given[axis])
        if whole or not constant or before < 0 or after < 0:
            context.pin(given[axis], node)
            given[axis] = fresh_axes((node.shape[axis],), why)[0]
            continue
        parts = [axes.fresh(before, why), given[axis], axes.fresh(after, why)]
        sizes = (before, 1, after)
        given[axis] = axes.add([part for part, size in zip(parts, sizes, strict=True) if size])
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
    places = {d % len(given) for d in listed if isinstance(d, int)} or set(range(len(given)))
    result: list[Axis] = []
    for place, axis in enumerate(given):
        if place not in places:
            result.append(axis)
            continue
        if consumed:
            context.consume(node, "self", place)
        else:
            context.normalised_over(axis, node)
        if node.args.get("keepdim"):
            result.append(())
    return (tuple(result),) * len(node.shapes)


def patches(context: Context, node: Node) -> Sequence[Axes]:
    """`im2col`: (batch, channels x kernel, places); kernel positions and space are pinned."""
    given = context.axes(node.args["self"]) or ()
    why = because(node)
    for axis in given[2:]:
        axes.pin(axis, why)
    kernel = math.prod(integers(node, "kernel_size"))
    return ((given[0], (*given[1], *axes.fresh(kernel, why)), *fresh_axes(node.shape[2:], why)),)


def windows(context: Context, node: Node) -> Sequence[Axes]:
    """`unfold`: axis `dimension` is pinned; a new last axis holds each window."""
    given = list(context.axes(node.args["self"]) or ())
    why = because(node)
    place = integer(node, "dimension") % len(given)
    axes.pin(given[place], why)
    given[place] = fresh_axes((node.shape[place],), why)[0]
    return ((*given, *fresh_axes(node.shape[-1:], why)),)


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
    "max_pool3d.default",
    "avg_pool3d.default",
    "adaptive_avg_pool3d.default",
    "adaptive_max_pool2d.default",
    "upsample_nearest1d.vec",
    "upsample_linear1d.vec",
    "upsample_trilinear3d.vec",
    "upsample_nearest3d.vec",
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
    "aten.std.correction": reduce,
    "aten.prod.dim_int": reduce,
    "aten.any.dim": reduce,
    "aten.all.dim": reduce,
    "aten.max.dim": reduce,
    "aten.min.dim": reduce,
    "aten.logsumexp.default": reduce,
    "aten.linalg_vector_norm.default": reduce,
    "aten.im2col.default": patches,
    "aten.unfold.default": windows,
    "aten.sum.dim_IntList": sum_over,
    "aten.sum.default": sum_over,
}
