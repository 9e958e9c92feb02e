"""Normalisation: per-channel in evaluation mode (batch norm) keeps channels apart; statistics over channels do not.

Why it is right: batch norm with running statistics is an affine map of each channel by itself, and instance norm looks
at the space of one channel alone. Layer norm divides by statistics over the axis: dropping a unit is not zeroing it,
so the axis is pinned. Group norm does so inside each group: whole groups may go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph import axes
from sarto.graph.axes import Axis
from sarto.graph.model import Node
from sarto.graph.rules._context import Axes, Context, Rule, because, integer, integers


def batch_norm(context: Context, node: Node) -> Sequence[Axes]:
    """Axis 1 is the axis of all four vectors."""
    given = context.axes(node.args["input"]) or ()
    _vectors(context, node, given[1], "weight", "bias", "running_mean", "running_var")
    return (given,)


def instance_norm(context: Context, node: Node) -> Sequence[Axes]:
    """Axis 1 is the axis of all vectors; space is pinned."""
    given = context.axes(node.args["input"]) or ()
    _vectors(context, node, given[1], "weight", "bias", "running_mean", "running_var")
    for axis in given[2:]:
        context.pin(axis, node)
    return (given,)


def layer_norm(context: Context, node: Node) -> Sequence[Axes]:
    """The normalised axes are those of weight and bias, and pinned."""
    given = context.axes(node.args["input"]) or ()
    depth = len(integers(node, "normalized_shape"))
    last = given[len(given) - depth :]
    for name in ("weight", "bias"):
        for axis, own in zip(last, context.axes(node.args.get(name)) or (), strict=False):
            context.unify(axis, own, node)
    for place, axis in enumerate(last):
        context.normalised_over(axis, node)
        context.rewrite(node, "normalized_shape", axis, place)
    return (given,)


def group_norm(context: Context, node: Node) -> Sequence[Axes]:
    """channels = groups x inner; inner is pinned, whole groups may be sliced. Space is pinned."""
    given = context.axes(node.args["input"]) or ()
    groups = integer(node, "num_groups")
    why = because(node)
    _vectors(context, node, given[1], "weight", "bias")
    for axis in given[2:]:
        axes.pin(axis, why)
    outer, inner = axes.carve(axes.resolve(given[1]), groups, why)
    if outer is None:
        axes.pin(given[1], why)
        return (given,)
    context.normalised_over(inner, node)
    if outer:
        context.rewrite(node, "num_groups", outer)
    return (given,)


def weight_norm(context: Context, node: Node) -> Sequence[Axes]:
    """`v` scaled to length `g` along `dim`: the other axes are summed over, so they are pinned."""
    direction = context.axes(node.args["v"]) or ()
    length = context.axes(node.args["g"]) or ()
    dim = integer(node, "dim") % len(direction)
    for place, axis in enumerate(direction):
        if place != dim:
            context.pin(axis, node)
    for axis in length:
        if axis:
            context.unify(direction[dim], axis, node)
    return (direction,)


def _vectors(context: Context, node: Node, axis: Axis, *names: str) -> None:
    for name in names:
        vector = context.axes(node.args[name])
        if vector is not None:
            context.unify(axis, vector[0], node)


RULES: Mapping[str, Rule] = {
    "aten.batch_norm.default": batch_norm,
    "aten.instance_norm.default": instance_norm,
    "aten.layer_norm.default": layer_norm,
    "aten.rms_norm.default": layer_norm,
    "aten.group_norm.default": group_norm,
    "aten._weight_norm.default": weight_norm,
}
