"""Matrix products and einsum: contracted axes are consumed, the others pass.

Why it is right: an output is a sum over the contracted axis, so leaving a position out is adding zero for it; any
other position of an operand reaches the output positions of the same index alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph.axes import Axis
from sarto.graph.model import Arg, Node, Ref
from sarto.graph.rules._context import Axes, Context, Rule, listed
from sarto.graph.rules.pinning import pin_all


def matmul(context: Context, node: Node) -> Sequence[Axes]:
    """(..., n, k) by (..., k, m) with leading axes broadcast; vectors as torch.matmul takes them."""
    names = tuple(node.args)[:2]
    return (_product(context, node, names[0], names[1]),)


def added(context: Context, node: Node) -> Sequence[Axes]:
    """`addmm` and `baddbmm`: a product plus a term that is broadcast to it."""
    first, second = ("mat1", "mat2") if "mat1" in node.args else ("batch1", "batch2")
    result = list(_product(context, node, first, second))
    term = context.axes(node.args["self"]) or ()
    for place, axis in enumerate(term, start=len(result) - len(term)):
        if axis:
            context.unify(result[place], axis, node)
    return (tuple(result),)


def _product(context: Context, node: Node, one: str, two: str) -> Axes:
    left, right = context.axes(node.args[one]) or (), context.axes(node.args[two]) or ()
    depth = right[-2] if len(right) > 1 else right[-1]
    context.unify(left[-1], depth, node)
    # The zeroing is done on a computed operand: a stored one may be shared by other readers.
    if isinstance(node.args[one], Ref):
        context.consume(node, one, len(left) - 1)
    else:
        context.consume(node, two, max(0, len(right) - 2))
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else ()
    lead_left, lead_right = left[:-2], right[:-2]
    rank = max(len(lead_left), len(lead_right))
    lead: list[Axis] = [()] * rank
    for operand in (lead_left, lead_right):
        for place, axis in enumerate(operand, start=rank - len(operand)):
            if axis and lead[place]:
                context.unify(lead[place], axis, node)
            lead[place] = lead[place] or axis
    if _computed(node.args[one]) and _computed(node.args[two]) and len(left) > 2 and len(right) > 2:
        context.note("query-key pairs", left[-1])
        context.note("value dims", right[-1])
        for axis in lead:
            context.note("heads", axis)
    else:
        if len(right) > 1:
            context.produce(node, node.args[two], len(right) - 1)
        if len(left) > 1:
            context.produce(node, node.args[one], len(left) - 2)
    return (*lead, *rows, *columns)


def _computed(arg: Arg) -> bool:
    return isinstance(arg, Ref)


def einsum(context: Context, node: Node) -> Sequence[Axes]:
    """By label: equal labels are one axis; a label that the output does not name is consumed."""
    equation = node.args["equation"]
    operands = listed(node, "tensors")
    terms = _labels(equation if isinstance(equation, str) else "", len(operands))
    if terms is None:
        return pin_all(context, node)
    *given, made = terms
    found: dict[str, Axis] = {}
    for labels, operand in zip(given, operands, strict=True):
        for label, axis in zip(labels, context.axes(operand) or (), strict=True):
            if axis and found.get(label):
                context.unify(found[label], axis, node)
            found[label] = found.get(label) or axis
    for label in dict.fromkeys("".join(given)):
        holders = [place for place, labels in enumerate(given) if label in labels]
        if label not in made:
            chosen = next((place for place in holders if _computed(operands[place])), holders[0])
            context.consume(node, f"tensors.{chosen}", given[chosen].index(label))
            if len(holders) > 1 and all(_computed(operands[place]) for place in holders):
                context.note("query-key pairs", found[label])
        elif len(holders) > 1 and all(_computed(operands[place]) for place in holders):
            context.note("heads", found[label])
        elif len(holders) == 1 and not _computed(operands[holders[0]]):
            context.produce(node, operands[holders[0]], given[holders[0]].index(label))
        elif len(given) > 1 and holders == [len(given) - 1]:
            context.note("value dims", found[label])
    return (tuple(found[label] for label in made),)


def _labels(equation: str, operands: int) -> list[str] | None:
    """Labels of each operand and of the output; None for an equation with an ellipsis or a diagonal."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation or len(terms) != operands or any(len(set(term)) < len(term) for term in terms):
        return None
    if not arrow:
        right = "".join(sorted(label for label in set(left) - {","} if left.count(label) == 1))
    return [*terms, right]


RULES: Mapping[str, Rule] = {
    "aten.matmul.default": matmul,
    "aten.mm.default": matmul,
    "aten.bmm.default": matmul,
    "aten.addmm.default": added,
    "aten.baddbmm.default": added,
    "aten.einsum.default": einsum,
}
