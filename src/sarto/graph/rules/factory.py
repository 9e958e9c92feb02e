"""Tensors made from a size: zeros, ones, full, empty states. Their axes follow what they are unified with.

Why it is right: every entry is the same number, so a smaller one is the part of the larger one that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph.model import BatchDim, Node
from sarto.graph.rules._context import Axes, Context, Rule, fresh_axes


def filled(context: Context, node: Node) -> Sequence[Axes]:
    """New axes; the entries of `size` follow them."""
    made = fresh_axes(node.shape)
    for place, (dim, axis) in enumerate(zip(node.shape, made, strict=True)):
        if axis and not isinstance(dim, BatchDim):
            context.rewrite(node, "size", axis, place)
    return (made,)


def scalar(context: Context, node: Node) -> Sequence[Axes]:
    """A tensor without axes."""
    return (fresh_axes(node.shape),)


RULES: Mapping[str, Rule] = {
    "aten.zeros.default": filled,
    "aten.ones.default": filled,
    "aten.full.default": filled,
    "aten.new_zeros.default": filled,
    "aten.new_ones.default": filled,
    "aten.new_full.default": filled,
    "aten.scalar_tensor.default": scalar,
}
