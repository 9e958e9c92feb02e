"""Fused attention: heads pass, query and key dims are consumed together, value dims pass, tokens are pinned.

Why it is right: each head is computed alone; a score is a sum over query-key dims (with the scale frozen, which the
capture does); an output is, dim by dim, a mean of values. The softmax over key tokens pins these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph import axes
from sarto.graph.axes import Axis
from sarto.graph.model import Node
from sarto.graph.rules._context import Axes, Context, Rule, because


def attention(context: Context, node: Node) -> Sequence[Axes]:
    """query (..., L, E), key (..., S, E), value (..., S, V), mask (..., L, S) -> (..., L, V).

    With grouped queries (`enable_gqa`) the heads of the query are key heads x queries of each.
    """
    query, key, value = (context.axes(node.args[name]) or () for name in ("query", "key", "value"))
    mask = context.axes(node.args["attn_mask"])
    context.unify(query[-1], key[-1], node)
    context.unify(key[-2], value[-2], node)
    context.pin(key[-2], node)
    if node.args["is_causal"]:
        context.pin(query[-2], node)
    lead = [_same(context, node, k, v) for k, v in zip(key[:-2], value[:-2], strict=True)]
    heads: list[Axis] = []
    for place, (q, k) in enumerate(zip(query[:-2], lead, strict=True)):
        if axes.size(q) > axes.size(k) > 1 and node.args.get("enable_gqa") and place == len(lead) - 1:
            outer, _ = axes.carve(axes.resolve(q), axes.size(k), because(node))
            context.unify(outer or (), k, node) if outer is not None else context.pin(k, node)
            heads.append(q)
        else:
            heads.append(_same(context, node, q, k))
    result = (*heads, query[-2], value[-1])
    if mask is not None:
        scores = (*heads, query[-2], key[-2])
        for place, axis in enumerate(mask, start=len(scores) - len(mask)):
            if axis:
                context.unify(scores[place], axis, node)
    context.consume(node, "query", len(query) - 1)
    context.note("query-key pairs", query[-1])
    context.note("value dims", value[-1])
    for axis in heads:
        context.note("heads", axis)
    return (result,)


def _same(context: Context, node: Node, one: Axis, two: Axis) -> Axis:
    """Axes that are broadcast to each other, as one."""
    if one and two:
        context.unify(one, two, node)
    return one or two


RULES: Mapping[str, Rule] = {"aten.scaled_dot_product_attention.default": attention}
