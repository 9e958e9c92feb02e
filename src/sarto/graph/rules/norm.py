"""Normalisation: per-channel in evaluation mode (batch norm) keeps channels apart; statistics over channels do not.

Why it is right: batch norm with running statistics is an affine map of each channel by itself. Layer norm and softmax
divide by statistics over the axis: dropping a unit is not zeroing it, so their axis is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph.model import Node
from sarto.graph.rules._context import Axes, Context, Rule


def batch_norm(context: Context, node: Node) -> Sequence[Axes]:
    """Axis 1 is the axis of all four vectors."""
    given = context.axes(node.args["input"]) or ()
    for name in ("weight", "bias", "running_mean", "running_var"):
        vector = context.axes(node.args[name])
        if vector is not None:
            context.unify(given[1], vector[0], node)
    return (given,)


RULES: Mapping[str, Rule] = {"aten.batch_norm.default": batch_norm}
