"""Elementwise operators and dropout: every unit keeps its place, so broadcast axes are the same axes.

Why it is right: output position i depends on position i of each operand alone (or on the one value of a size-1 axis).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph.axes import Axis
from sarto.graph.model import Node, leaves
from sarto.graph.rules._context import Axes, Context, Rule


def elementwise(context: Context, node: Node) -> Sequence[Axes]:
    """Right-aligned broadcast: axes that are not of size one are unified."""
    rank = len(node.shape)
    result: list[Axis] = [()] * rank
    for arg in leaves(node.args):
        operand = context.axes(arg)
        if operand is None:
            continue
        for place, axis in enumerate(operand, start=rank - len(operand)):
            if not axis:
                continue
            if result[place]:
                context.unify(result[place], axis, node)
            else:
                result[place] = axis
    return (tuple(result),)


def prelu(context: Context, node: Node) -> Sequence[Axes]:
    """The slope vector, where it has more than one entry, runs along axis 1."""
    given = context.axes(node.args["self"]) or ()
    slope = context.axes(node.args["weight"]) or ()
    if slope and slope[0] and len(given) > 1:
        context.unify(given[1], slope[0], node)
    return (given,)


_NAMES = (
    "relu.default",
    "relu6.default",
    "gelu.default",
    "silu.default",
    "sigmoid.default",
    "tanh.default",
    "elu.default",
    "selu.default",
    "celu.default",
    "leaky_relu.default",
    "hardswish.default",
    "hardsigmoid.default",
    "hardtanh.default",
    "mish.default",
    "softplus.default",
    "softsign.default",
    "clamp.default",
    "clamp_min.default",
    "clamp_max.default",
    "abs.default",
    "neg.default",
    "exp.default",
    "log.default",
    "log1p.default",
    "sqrt.default",
    "rsqrt.default",
    "square.default",
    "reciprocal.default",
    "erf.default",
    "sin.default",
    "cos.default",
    "sign.default",
    "floor.default",
    "ceil.default",
    "round.default",
    "logical_not.default",
    "log_sigmoid.default",
    "dropout.default",
    "alpha_dropout.default",
    "feature_dropout.default",
    "clone.default",
    "to.dtype",
    "_to_copy.default",
    "add.Tensor",
    "add.Scalar",
    "sub.Tensor",
    "sub.Scalar",
    "mul.Tensor",
    "mul.Scalar",
    "div.Tensor",
    "div.Scalar",
    "rsub.Scalar",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "maximum.default",
    "minimum.default",
    "where.self",
    "where.ScalarOther",
    "masked_fill.Scalar",
)

RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": elementwise for name in _NAMES},
    "aten.prelu.default": prelu,
}
