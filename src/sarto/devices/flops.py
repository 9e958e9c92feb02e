"""FLOPs of one operator call, from the shapes of what it reads and makes: 2 for each multiply-add of a product."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from sarto.errors import GraphError
from sarto.graph import Node
from sarto.graph.model import Arg, Ref, TensorRef, elements

#: Sizes of a tensor argument.
Sizes = Callable[[Arg], tuple[int, ...]]
#: FLOPs of a node at a batch size.
Rule = Callable[[Node, Sizes, int], int]

#: Label -> size, of one operand of an einsum.
_Operand = dict[str, int]


def _convolution(node: Node, sizes: Sizes, batch: int) -> int:
    return 2 * elements(node.shape, batch) * math.prod(sizes(node.args["weight"])[1:])


def _transposed(node: Node, sizes: Sizes, batch: int) -> int:
    return 2 * math.prod(sizes(node.args["input"])) * math.prod(sizes(node.args["weight"])[1:])


def _product(left: str) -> Rule:
    """A matrix product: every element of the result sums over the last axis of the left factor."""

    def rule(node: Node, sizes: Sizes, batch: int) -> int:
        return 2 * elements(node.shape, batch) * sizes(node.args[left])[-1]

    return rule


def _attention(node: Node, sizes: Sizes, batch: int) -> int:
    *outer, queries, width = sizes(node.args["query"])
    keys, values = sizes(node.args["key"])[-2], sizes(node.args["value"])[-1]
    return 2 * math.prod(outer) * queries * keys * (width + values)


def _recurrent(node: Node, sizes: Sizes, batch: int) -> int:
    """Each step multiplies with every matrix of every layer and direction once."""
    steps = math.prod(sizes(node.args["input"])[:-1])
    stored = [sizes(arg) for arg in _tuple(node, "params")]
    return 2 * steps * sum(math.prod(shape) for shape in stored if len(shape) == 2)


def _einsum(node: Node, sizes: Sizes, batch: int) -> int:
    """Products of pairs, in the order in which torch takes them; what is summed alone beforehand counts 0."""
    equation = node.args["equation"]
    operands, wanted = _read(str(equation), [sizes(arg) for arg in _tuple(node, "tensors")], node)
    path = [int(place) for place in cast(tuple[int, ...], node.args.get("path") or ())]
    total = 0
    while len(operands) > 1:
        first, second = sorted((path.pop(0), path.pop(0))) if path else (0, 1)
        right, left = operands.pop(second), operands.pop(first)
        kept = wanted.union(*operands)
        shared = {
            label for label in (left.keys() & right.keys()) - kept if left[label] != 1 and right[label] != 1
        }
        merged = {
            label: max(left.get(label, 1), right.get(label, 1))
            for label in left.keys() | right.keys()
            if label in kept or label in shared
        }
        total += 2 * math.prod(merged.values()) if shared else 0
        result = {label: size for label, size in merged.items() if label in kept}
        operands.insert(len(operands) if node.args.get("path") else 0, result)
    return total


def _read(equation: str, shapes: Sequence[tuple[int, ...]], node: Node) -> tuple[list[_Operand], set[str]]:
    """The operands of an einsum, and the labels of its result; an axis under an ellipsis is counted from the end."""
    given, arrow, made = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    rest = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=False)]
    if len(terms) != len(shapes) or any(
        n < 0 or (n > 0 and "..." not in t) for n, t in zip(rest, terms, strict=True)
    ):
        raise GraphError(
            f"einsum {equation!r} does not fit tensors of shape {[list(shape) for shape in shapes]}",
            where=node.name,
        )

    def labels(term: str, hidden: int) -> list[str]:
        before, _, after = term.partition("...")
        return [*before, *(f"...{place}" for place in range(hidden, 0, -1)), *after]

    operands: list[_Operand] = []
    for term, hidden, shape in zip(terms, rest, shapes, strict=True):
        operand: _Operand = {}
        for label, size in zip(labels(term, hidden), shape, strict=True):
            operand[label] = max(size, operand.get(label, 1))
        operands.append(operand)
    if arrow:
        return operands, set(labels(made, max(rest) if "..." in made else 0))
    letters = given.replace(",", "").replace(".", "")
    once = {letter for letter in letters if letters.count(letter) == 1}
    return operands, once | {label for label in labels("...", max(rest)) if label.startswith("...")}


def _tuple(node: Node, name: str) -> tuple[Arg, ...]:
    value = node.args[name]
    if not isinstance(value, tuple) or any(not isinstance(arg, Ref | TensorRef) for arg in value):
        raise GraphError(f"argument {name!r} of {node.op} must be a list of tensors", where=node.name)
    return value


#: Operators that multiply matrices. All others count 0.
RULES: Mapping[str, Rule] = {
    "aten.conv1d.default": _convolution,
    "aten.conv1d.padding": _convolution,
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.conv3d.default": _convolution,
    "aten.conv_transpose1d.default": _transposed,
    "aten.conv_transpose2d.input": _transposed,
    "aten.linear.default": _product("input"),
    "aten.matmul.default": _product("self"),
    "aten.mm.default": _product("self"),
    "aten.bmm.default": _product("self"),
    "aten.addmm.default": _product("mat1"),
    "aten.baddbmm.default": _product("batch1"),
    "aten.einsum.default": _einsum,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.lstm.input": _recurrent,
    "aten.gru.input": _recurrent,
    "aten.rnn_tanh.input": _recurrent,
    "aten.rnn_relu.input": _recurrent,
}
