"""Elementwise operators and dropout: every unit keeps its place, so broadcast axes are the same axes.

Why it is right: output position i depends on position i of each operand alone (or on the one value of a size-1 axis).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph.axes import Axis
from sarto.graph.model import Node, Ref, leaves
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


def sum_of_two(context: Context, node: Node) -> Sequence[Axes]:
    """As any elementwise operator; where two computed values meet, the axes they share are those of a stream."""
    (made,) = elementwise(context, node)
    one, two = node.args["self"], node.args["other"]
    if isinstance(one, Ref) and isinstance(two, Ref) and one != two:
        left, right = context.axes(one) or (), context.axes(two) or ()
        for a, b in zip(reversed(left), reversed(right), strict=False):
            if a and b:
                context.note("stream", a)
    return (made,)


def prelu(context: Context, node: Node) -> Sequence[Axes]:
    """The slope vector, where it has more than one entry, runs along axis 1."""
    given = context.axes(node.args["self"]) or ()
    slope = context.axes(node.args["weight"]) or ()
    if slope and slope[0] and len(given) > 1:
        context.unify(given[1], slope[0], node)
    return (given,)


_NAMES = (
    # activations
    "relu relu6 gelu silu sigmoid tanh elu selu celu leaky_relu hardswish hardsigmoid hardtanh mish softplus "
    "softsign log_sigmoid hardshrink softshrink threshold "
    # arithmetic of one
    "clamp clamp_min clamp_max abs neg exp exp2 expm1 log log2 log1p sqrt rsqrt square reciprocal erf sin cos tan "
    "atan sign floor ceil round trunc frac logical_not bitwise_not isnan isinf nan_to_num "
    # arithmetic of two or more
    "add.Scalar sub.Tensor sub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode rsub.Scalar "
    "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar maximum minimum where.self where.ScalarOther where.ScalarSelf "
    "where.Scalar masked_fill.Scalar masked_fill.Tensor remainder.Scalar remainder.Tensor fmod.Scalar "
    "floor_divide floor_divide.Scalar clamp.Tensor atan2 lerp.Scalar lerp.Tensor addcmul addcdiv "
    # comparisons and logic
    "eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar "
    "ge.Tensor ge.Scalar logical_and logical_or logical_xor bitwise_and.Tensor bitwise_and.Scalar "
    "bitwise_or.Tensor bitwise_or.Scalar bitwise_xor.Tensor "
    # the same numbers
    "dropout alpha_dropout feature_dropout clone to.dtype _to_copy zeros_like ones_like full_like"
)

RULES: Mapping[str, Rule] = {
    **{f"aten.{name if '.' in name else name + '.default'}": elementwise for name in _NAMES.split()},
    "aten.add.Tensor": sum_of_two,
    "aten.prelu.default": prelu,
}
