"""One rule per operator family: from the axes of what a node reads to the axes of what it makes.

A rule is a function `(context, node) -> axes of each output`. It may unify axes, note that an axis is consumed (summed
over by a linear operator), note that an integer argument follows an axis, or pin an axis. An operator without a rule
pins every axis that it touches. To add one, write the function in the family's file and name it in its `RULES`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sarto.graph.rules import elementwise, linear, norm, pool, shape
from sarto.graph.rules._context import (
    Axes,
    Context,
    RawConsumption,
    RawRewrite,
    Rule,
    because,
    fresh_axes,
)

RULES: Mapping[str, Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **norm.RULES,
    **pool.RULES,
    **shape.RULES,
}

__all__ = [
    "RULES",
    "Axes",
    "Context",
    "RawConsumption",
    "RawRewrite",
    "Rule",
    "because",
    "fresh_axes",
]
