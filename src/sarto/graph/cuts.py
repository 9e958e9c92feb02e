"""Cut points: where a graph can be parted, and the parts (`block`, `dissect`, `chain`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sarto.errors import GraphError, ShapeError
from sarto.graph.merge import Merger
from sarto.graph.model import (
    BatchDim,
    Input,
    ModelGraph,
    Node,
    Ref,
    Shape,
    leaves,
    prune,
)


@dataclass(frozen=True)
class CutPoint:
    """A value that alone carries all data from input to output.

    Attributes:
        value: the node (or input) that makes it.
        shape: its shape, batch first.
        layout: `map` (batch, channels, space...), `tokens` (batch, tokens, channels) or `vector` (batch, channels).
    """

    value: str
    shape: Shape
    layout: str


def cut_points(graph: ModelGraph) -> tuple[CutPoint, ...]:
    """Every value that alone carries the data, in order; its first axis is exactly the batch.

    A node is a cut where, right after it ran, no other value that depends on the input is still needed.
    """
    dependent = {entry.name for entry in graph.inputs}
    last: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        read = [arg.name for arg in leaves(node.args) if isinstance(arg, Ref)]
        if any(name in dependent for name in read):
            dependent.add(node.name)
        for name in read:
            last[name] = place
    for name in graph.outputs:
        last[name] = len(graph.nodes)
    live = {entry.name for entry in graph.inputs if entry.name in last}
    found: list[CutPoint] = []
    for place, node in enumerate(graph.nodes):
        if node.name in dependent and node.name in last:
            live.add(node.name)
        live = {name for name in live if last[name] > place}
        single = live == {node.name} and len(node.shapes) == 1 and node.name not in graph.outputs
        if single and node.shape and node.shape[0] == BatchDim(1):
            found.append(CutPoint(node.name, node.shape, _layout(node.shape)))
    return tuple(found)


def block(graph: ModelGraph, start: str | None = None, end: str | None = None) -> ModelGraph:
    """The part of a graph between two values, runnable by itself.

    Args:
        start: the value that becomes the input; the graph's own inputs where it is None.
        end: the value that becomes the output; the graph's own outputs where it is None.

    Raises:
        GraphError: a value does not exist, or the part also needs data that does not pass through `start`.
    """
    for name in (start, end):
        if name is not None and name not in graph.index and name not in {e.name for e in graph.inputs}:
            raise GraphError(f"no value named {name!r} in this graph", where=name)
    outputs = (end,) if end is not None else graph.outputs
    needed, nodes = set(outputs), list[Node]()
    for node in reversed(graph.nodes):
        if node.name in needed and node.name != start:
            nodes.append(node)
            needed.update(arg.name for arg in leaves(node.args) if isinstance(arg, Ref))
    if start is None:
        inputs = graph.inputs
    else:
        outside = sorted(needed & {entry.name for entry in graph.inputs} - {start})
        if outside:
            raise GraphError(
                f"the part from {start!r} to {outputs[0]!r} also reads the input {outside[0]!r}: {start!r} is no cut "
                "point. `sarto inspect` lists the cut points.",
                where=start,
            )
        inputs = (_as_input(graph, start),)
    if not nodes:
        raise GraphError(f"nothing lies between {start!r} and {outputs[0]!r}", where=outputs[0])
    return prune(replace(graph, inputs=inputs, nodes=tuple(reversed(nodes)), outputs=outputs))


def dissect(graph: ModelGraph, values: Sequence[str]) -> tuple[ModelGraph, ...]:
    """The blocks between neighbouring cut points, first to last.

    Raises:
        GraphError: a value is no cut point.
    """
    bounds = [None, *values, None]
    return tuple(block(graph, start, end) for start, end in pairwise(bounds))


def chain(blocks: Sequence[ModelGraph]) -> ModelGraph:
    """One graph that runs the blocks one after the other.

    Raises:
        ShapeError: a block's output does not have the shape or dtype that the next one reads.
        GraphError: nothing to chain, or a block with several inputs or outputs inside the chain.
    """
    if not blocks:
        raise GraphError("a chain needs at least one block")
    merger = Merger(blocks[0].inputs)
    values = merger.add(blocks[0], {entry.name: entry.name for entry in blocks[0].inputs})
    for before, after in pairwise(blocks):
        if len(before.outputs) != 1 or len(after.inputs) != 1:
            raise GraphError("blocks inside a chain must have one input and one output")
        made, wanted = _as_input(before, before.outputs[0]), after.inputs[0]
        if (made.shape, made.dtype) != (wanted.shape, wanted.dtype):
            raise ShapeError(
                f"a block gives {_text(made.shape)} {made.dtype} where the next one reads "
                f"{_text(wanted.shape)} {wanted.dtype}",
                where=wanted.name,
            )
        values = merger.add(after, {wanted.name: values[before.outputs[0]]})
    return merger.graph([values[name] for name in blocks[-1].outputs])


def _as_input(graph: ModelGraph, value: str) -> Input:
    for entry in graph.inputs:
        if entry.name == value:
            return entry
    node = graph.node(value)
    return Input(value, node.shape, node.dtypes[0])


def _layout(shape: Shape) -> str:
    return {2: "vector", 3: "tokens"}.get(len(shape), "map")


def _text(shape: Shape) -> str:
    return "(" + ", ".join("batch" if isinstance(dim, BatchDim) else str(dim) for dim in shape) + ")"
