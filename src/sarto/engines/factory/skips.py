"""Whole blocks as gates: which channel groups may close to the last unit, and what is left of a block that did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from sarto.errors import GraphError
from sarto.graph import ModelGraph, Selection, slice
from sarto.graph.model import Node, Ref, TensorRef, leaves, prune, shapes_of
from sarto.graph.run import run_node

#: Operators that read a constant of one number a channel as well as one that is repeated over all positions.
_BROADCASTING = frozenset({"aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"})


def skippable(graph: ModelGraph, groups: Iterable[str]) -> frozenset[str]:
    """Groups that may have no open unit, all of them at once, while the output still depends on the input.

    These are the groups inside a branch that ends in a sum (or a concatenation) with another way around it: with no
    unit left the branch is its exact constant. A group of a plain chain, or of a stream, is none of them.

    Reference:
        NN-Factory, arXiv 2308.15003, section 3.1, closes filters and never a block.
        Differs: a block whose units are all closed is skipped.
    """
    sketch, analysis = graph.sketch(), graph.analysis
    found: list[str] = []
    for group in groups:
        empty = Selection({name: () for name in (*found, group)})
        try:
            left = slice(sketch, empty, analysis=analysis)
        except GraphError:
            continue
        entries = {entry.name for entry in left.inputs}
        if any(
            isinstance(arg, Ref) and arg.name in entries for node in left.nodes for arg in leaves(node.args)
        ):
            found.append(group)
    return frozenset(found)


@torch.no_grad()
def without_constants(graph: ModelGraph) -> ModelGraph:
    """The graph whose skipped branches are one stored number a channel; the source is unchanged.

    A branch that reads no input has the same value for every sample. Where that is also the same at every position,
    and what reads it adds or multiplies it, the branch's nodes give way to a stored tensor that broadcasts.
    """
    known: dict[str, Tensor] = {}
    for node in graph.nodes:
        if all(arg.name in known for arg in leaves(node.args) if isinstance(arg, Ref)):
            made = run_node(graph, node, known, 2, None)
            if not isinstance(made, Tensor):
                return graph
            known[node.name] = made
    if not known:
        return graph
    stored = set(shapes_of(graph.tensors))
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}

    def held(name: str) -> TensorRef | None:
        if name not in names:
            small = _one_a_channel(known[name])
            if small is None:
                return None
            names[name] = f"{name}.constant"
            while names[name] in stored:
                names[name] += "_"
            tensors[names[name]] = small
        return TensorRef(names[name])

    def reading(node: Node) -> Node:
        mine = [
            (key, arg.name) for key, arg in node.args.items() if isinstance(arg, Ref) and arg.name in known
        ]
        if node.op not in _BROADCASTING or len(mine) != 1 or mine[0][0] not in ("self", "other"):
            return node
        key, name = mine[0]
        constant = held(name)
        if constant is None or (key == "self" and not _turns(node)):
            return node
        other = node.args["other"] if key == "self" else node.args["self"]
        return replace(node, args={**node.args, "self": other, "other": constant})

    nodes = tuple(node if node.name in known else reading(node) for node in graph.nodes)
    return prune(replace(graph, nodes=nodes, tensors={**dict(graph.tensors.items()), **tensors}))


def _turns(node: Node) -> bool:
    """Whether the two arguments may change places."""
    return node.op == "aten.mul.Tensor" or (node.op == "aten.add.Tensor" and node.args.get("alpha", 1) == 1)


def _one_a_channel(value: Tensor) -> Tensor | None:
    """The value with size 1 on every axis along which it does not change; None where it changes along several."""
    for axis in range(value.ndim):
        first = value.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(value), value):
            value = first
    if sum(size > 1 for size in value.shape) > 1 or value.shape[0] > 1:
        return None
    return value.clone(memory_format=torch.contiguous_format)
