"""Convolutions and linear layers: they consume the channels they read and make new ones.

Why it is right: an output is a sum over input channels, so leaving a channel out is adding zero for it; output channel
j depends on row j of the weight alone. A grouped convolution does so within each group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph import axes
from sarto.graph.model import Node
from sarto.graph.rules._context import Axes, Context, Rule, because, fresh_axes, integer


def linear(context: Context, node: Node) -> Sequence[Axes]:
    """x[..., in] is consumed by weight (out, in); the output's last axis is weight axis 0."""
    given = context.axes(node.args["input"]) or ()
    weight = context.axes(node.args["weight"]) or ()
    bias = context.axes(node.args["bias"])
    context.unify(given[-1], weight[-1], node)
    context.consume(node, "input", len(given) - 1)
    if len(weight) == 1:
        return (given[:-1],)
    if bias is not None:
        context.unify(weight[0], bias[0], node)
    context.produce(node, node.args["weight"], 0)
    return ((*given[:-1], weight[0]),)


def convolution(context: Context, node: Node) -> Sequence[Axes]:
    """x (batch, in, space) with weight (out, in / groups, kernel); kernel and space are pinned.

    With groups, in = groups x inner and out = groups x made: the group factor is shared by input and output (in a
    depthwise convolution it is the whole channel axis), the inner factor is consumed.
    """
    given = context.axes(node.args["input"]) or ()
    weight = context.axes(node.args["weight"]) or ()
    bias = context.axes(node.args["bias"])
    groups = integer(node, "groups")
    why = because(node)
    for axis in (*weight[2:], *given[2:]):
        axes.pin(axis, why)
    space = fresh_axes(node.shape[2:], why)
    out = weight[0]
    if bias is not None:
        context.unify(out, bias[0], node)
    context.produce(node, node.args["weight"], 0)
    if groups == 1:
        context.unify(given[1], weight[1], node)
        context.consume(node, "input", 1)
        return ((given[0], out, *space),)
    outer_in, inner_in = axes.carve(axes.resolve(given[1]), groups, why)
    outer_out, _ = axes.carve(axes.resolve(out), groups, why)
    if outer_in is None or outer_out is None:
        for axis in (given[1], out, weight[1]):
            axes.pin(axis, why)
        return ((given[0], out, *space),)
    context.unify(outer_in, outer_out, node)
    context.unify(inner_in, weight[1], node)
    if inner_in:
        context.consume(node, "input", 1)
    context.rewrite(node, "groups", outer_in)
    return ((given[0], out, *space),)


def transposed_convolution(context: Context, node: Node) -> Sequence[Axes]:
    """x (batch, in, space) with weight (in, out / groups, kernel): the same with the weight's axes changed over."""
    given = context.axes(node.args["input"]) or ()
    weight = context.axes(node.args["weight"]) or ()
    bias = context.axes(node.args["bias"])
    groups = integer(node, "groups")
    why = because(node)
    for axis in (*weight[2:], *given[2:]):
        axes.pin(axis, why)
    space = fresh_axes(node.shape[2:], why)
    context.unify(given[1], weight[0], node)
    outer, inner = axes.carve(axes.resolve(weight[0]), groups, why)
    if outer is None:
        axes.pin(weight[0], why)
        axes.pin(weight[1], why)
        return ((given[0], fresh_axes((node.shape[1],), why)[0], *space),)
    out = (*outer, *weight[1])
    if bias is not None:
        context.unify(out, bias[0], node)
    if weight[1]:
        context.produce(node, node.args["weight"], 1)
    if inner:
        context.consume(node, "input", 1)
    if groups > 1:
        context.rewrite(node, "groups", outer)
    return ((given[0], out, *space),)


RULES: Mapping[str, Rule] = {
    "aten.linear.default": linear,
    "aten.conv1d.default": convolution,
    "aten.conv1d.padding": convolution,
    "aten.conv2d.default": convolution,
    "aten.conv2d.padding": convolution,
    "aten.conv3d.default": convolution,
    "aten.conv_transpose1d.default": transposed_convolution,
    "aten.conv_transpose2d.input": transposed_convolution,
}
