"""One rule per operator family: from the axes of what a node reads to the axes of what it makes.

A rule is a function `(context, node) -> axes of each output`. It may unify axes, note that an axis is consumed (summed
over by a linear operator), note that an integer argument follows an axis, or pin an axis. An operator without a rule
pins every axis that it touches. To add one, write the function in the family's file and name it in its `RULES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph.model import Node
from sarto.graph.operators import GETITEM
from sarto.graph.rules import (
    attention,
    elementwise,
    factory,
    linear,
    lookup,
    norm,
    pinning,
    pool,
    product,
    recurrent,
    shape,
)
from sarto.graph.rules._context import (
    Axes,
    Context,
    RawConsumption,
    RawNote,
    RawProducer,
    RawRewrite,
    Rule,
    because,
    fresh_axes,
)


def picked(context: Context, node: Node) -> Sequence[Axes]:
    """One output of a node with several."""
    source, place = node.args["source"], node.args["index"]
    return (context.outputs[getattr(source, "name", "")][place if isinstance(place, int) else 0],)


RULES: Mapping[str, Rule] = {
    GETITEM: picked,
    **attention.RULES,
    **elementwise.RULES,
    **factory.RULES,
    **linear.RULES,
    **lookup.RULES,
    **norm.RULES,
    **pinning.RULES,
    **pool.RULES,
    **product.RULES,
    **recurrent.RULES,
    **shape.RULES,
}

__all__ = [
    "RULES",
    "Axes",
    "Context",
    "RawConsumption",
    "RawNote",
    "RawProducer",
    "RawRewrite",
    "Rule",
    "because",
    "fresh_axes",
]
