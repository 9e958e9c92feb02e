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
    TensorRef,
    elements,
    is_floating,
    leaves,
    prune,
    shape_text,
)
from sarto.graph.rules import attention, elementwise, linear, lookup, product, recurrent, shape

#: Operators that only move numbers or change each by itself: cuts on both sides of them are one cut.
LIGHT = frozenset([*elementwise.RULES, *shape.RULES, "aten.batch_norm.default"])
#: Operators where ids or masks that meet learned weights become data.
_MEETING = frozenset(op for family in (attention, linear, lookup, product, recurrent) for op in family.RULES)


@dataclass(frozen=True)
class CutPoint:
    """A value that alone carries all data from input to output.

    Attributes:
        value: the node (or input) that makes it.
        shape: its shape, batch first.
        layout: `map` (batch, channels, space...), `tokens` (batch, tokens, channels) or `vector` (batch, channels).
        stride: how many times smaller its space is than that of the input, where both are maps.
    """

    value: str
    shape: Shape
    layout: str
    stride: int | None = None


def cut_points(graph: ModelGraph) -> tuple[CutPoint, ...]:
    """Every value that alone carries the data, in order; its first axis is exactly the batch.

    A node is a cut where, right after it ran, no other data value is still needed. Side values (masks, token ids and
    what is computed from them alone) do not count: a block takes the inputs that they need beside its data.
    """
    data = data_values(graph)
    last: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        for name in _reads(node):
            last[name] = place
    for name in graph.outputs:
        last[name] = len(graph.nodes)
    live = {entry.name for entry in graph.inputs if entry.name in last and entry.name in data}
    begins = [
        place
        for place, node in enumerate(graph.nodes)
        if node.name in data and node.name in last and not data & set(_reads(node))
    ]
    found: list[CutPoint] = []
    for place, node in enumerate(graph.nodes):
        if node.name in data and node.name in last:
            live.add(node.name)
        live = {name for name in live if last[name] > place}
        single = live == {node.name} and len(node.shapes) == 1 and node.name not in graph.outputs
        single = single and place >= max(begins, default=0)
        if single and node.shape and node.shape[0] == BatchDim(1):
            found.append(CutPoint(node.name, node.shape, _layout(node.shape), _stride(graph, node.shape)))
    return tuple(found)


def main_cuts(graph: ModelGraph) -> tuple[CutPoint, ...]:
    """One cut of each run that only light operators part: the smallest, of these the last.

    After an activation rather than before it, and before a repetition rather than after it. A cut with nothing but
    light operators before or behind it parts nothing and is none.
    """
    heavy, count = {entry.name: 0 for entry in graph.inputs}, 0
    for node in graph.nodes:
        count += node.op not in LIGHT
        heavy[node.name] = count
    runs: dict[int, list[CutPoint]] = {}
    for cut in cut_points(graph):
        if 0 < heavy[cut.value] < count:
            runs.setdefault(heavy[cut.value], []).append(cut)
    return tuple(min(reversed(run), key=lambda cut: elements(cut.shape)) for run in runs.values())


def data_values(graph: ModelGraph) -> frozenset[str]:
    """Inputs and nodes that carry data, as against side values (masks, ids) and constants.

    Data begin at floating-point inputs, and where ids meet learned weights (an embedding). What is computed from other
    inputs elementwise or by moving stays a side value.
    """
    data = {entry.name for entry in graph.inputs if is_floating(entry.dtype)}
    side = {entry.name for entry in graph.inputs} - data
    learned: set[str] = set()
    for node in graph.nodes:
        read = set(_reads(node))
        learns = bool(read & learned) or any(
            isinstance(arg, TensorRef) and arg.name in graph.parameters for arg in leaves(node.args)
        )
        if read & data or (read & side and learns and node.op in _MEETING):
            data.add(node.name)
        elif read & side:
            side.add(node.name)
        elif learns:
            learned.add(node.name)
    return frozenset(data)


def block(graph: ModelGraph, start: str | None = None, end: str | None = None) -> ModelGraph:
    """The part of a graph between two values, runnable by itself.

    Its inputs are `start` and, after it, those inputs of the graph that its side values (masks, ids) need.

    Args:
        start: the value that becomes the input; the graph's own inputs where it is None.
        end: the value that becomes the output; the graph's own outputs where it is None.

    Raises:
        GraphError: a value does not exist, or the part also needs data that do not pass through `start`.
    """
    for name in (start, end):
        if name is not None and name not in graph.index and name not in {e.name for e in graph.inputs}:
            raise GraphError(f"no value named {name!r} in this graph", where=name)
    outputs = (end,) if end is not None else graph.outputs
    needed, nodes = set(outputs), list[Node]()
    for node in reversed(graph.nodes):
        if node.name in needed and node.name != start:
            nodes.append(node)
            needed.update(_reads(node))
    nodes.reverse()
    if not nodes:
        raise GraphError(f"nothing lies between {start!r} and {outputs[0]!r}", where=outputs[0])
    inputs = graph.inputs if start is None else _block_inputs(graph, start, nodes, needed)
    return prune(replace(graph, inputs=inputs, nodes=tuple(nodes), outputs=outputs))


def _block_inputs(
    graph: ModelGraph, start: str, nodes: Sequence[Node], needed: set[str]
) -> tuple[Input, ...]:
    """`start` and the side inputs of a part.

    Raises:
        GraphError: the part reads data that do not come from `start`.
    """
    data = data_values(graph)
    reached = {start}
    for node in nodes:
        if reached & set(_reads(node)):
            reached.add(node.name)
    strangers = [entry.name for entry in graph.inputs if entry.name in needed & data - reached]
    strangers += [node.name for node in nodes if node.name in data - reached]
    if strangers:
        raise GraphError(
            f"the part after {start!r} also needs {strangers[0]!r}, which does not come from it: {start!r} is no cut "
            "point. `sarto inspect` lists the cut points.",
            where=start,
        )
    beside = tuple(entry for entry in graph.inputs if entry.name in needed and entry.name != start)
    return (_as_input(graph, start), *beside)


def dissect(graph: ModelGraph, values: Sequence[str]) -> tuple[ModelGraph, ...]:
    """The blocks between neighbouring cut points, first to last.

    Raises:
        GraphError: a value is no cut point.
    """
    bounds = [None, *values, None]
    return tuple(block(graph, start, end) for start, end in pairwise(bounds))


def chain(blocks: Sequence[ModelGraph]) -> ModelGraph:
    """One graph that runs the blocks one after the other.

    The first input of a block is what the one before gives; further inputs (masks, ids) become inputs of the chain.

    Raises:
        ShapeError: a block's output does not have the shape or dtype that the next one reads.
        GraphError: nothing to chain, or a block inside the chain with several outputs.
    """
    if not blocks:
        raise GraphError("a chain needs at least one block")
    inputs = {entry.name: entry for entry in blocks[0].inputs}
    for after in blocks[1:]:
        for entry in after.inputs[1:]:
            _refuse_other(inputs.setdefault(entry.name, entry), entry)
    merger = Merger(tuple(inputs.values()))
    values = merger.add(blocks[0], {entry.name: entry.name for entry in blocks[0].inputs})
    for before, after in pairwise(blocks):
        if len(before.outputs) != 1 or not after.inputs:
            raise GraphError(
                f"a block inside a chain must have one output and read it: found {len(before.outputs)} outputs"
            )
        made, wanted = _as_input(before, before.outputs[0]), after.inputs[0]
        if (made.shape, made.dtype) != (wanted.shape, wanted.dtype):
            raise ShapeError(
                f"a block gives {shape_text(made.shape)} {made.dtype} where the next one reads "
                f"{shape_text(wanted.shape)} {wanted.dtype}",
                where=wanted.name,
            )
        beside = {entry.name: entry.name for entry in after.inputs[1:]}
        values = merger.add(after, {**beside, wanted.name: values[before.outputs[0]]})
    return merger.graph([values[name] for name in blocks[-1].outputs])


def _refuse_other(one: Input, two: Input) -> None:
    if one != two:
        raise ShapeError(
            f"two blocks take a side input {one.name!r}, one as {shape_text(one.shape)} {one.dtype} and one as "
            f"{shape_text(two.shape)} {two.dtype}; rename one of them",
            where=one.name,
        )


def _reads(node: Node) -> list[str]:
    return [arg.name for arg in leaves(node.args) if isinstance(arg, Ref)]


def _stride(graph: ModelGraph, shape: Shape) -> int | None:
    given = graph.inputs[0].shape
    if len(shape) != 4 or len(given) != 4:
        return None
    here, there = shape[-1], given[-1]
    return there // here if isinstance(here, int) and isinstance(there, int) and here else None


def _as_input(graph: ModelGraph, value: str) -> Input:
    for entry in graph.inputs:
        if entry.name == value:
            return entry
    node = graph.node(value)
    return Input(value, node.shape, node.dtypes[0])


def _layout(shape: Shape) -> str:
    return {2: "vector", 3: "tokens"}.get(len(shape), "map")
