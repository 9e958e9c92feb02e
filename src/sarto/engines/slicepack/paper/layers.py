"""The donor as the paper sees it: a row of layers m_1 .. m_L, each a channel group with what makes and reads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sarto.engines.slicepack.paper.mixing import places_of
from sarto.engines.slicepack.paper.recurrent import RECURRENT, direction_shown, weights_read
from sarto.errors import GraphError
from sarto.graph import (
    INSIDE_HEADS,
    ChannelGroup,
    Consumption,
    Features,
    ModelGraph,
    Node,
    features,
    repairable,
)
from sarto.graph.expressions import AxisExpr, units_in
from sarto.graph.model import Ref, TensorRef, leaves, shapes_of

_EMBEDDING = "aten.embedding.default"

#: A map l_i: (the tensor that reads through it, axis, place among the leaves of that axis).
MapKey = tuple[str, int, int]


@dataclass(frozen=True)
class Output:
    """A value that holds the units of a layer where something linear reads them.

    Attributes:
        value: node (or input) that gives it; of several outputs it is the first.
        axis: where the units lie; expr: how.
    """

    value: str
    axis: int
    expr: AxisExpr


@dataclass(frozen=True)
class Layer:
    """A layer m_i of the paper: the units of one channel group.

    Attributes:
        group: id of the channel group.
        size: its number of units.
        start: place of the first node that the units touch; everything before it is not the layer's business.
        outputs: Z_i, "the output of layer m_i": after activation and pooling, where the next linear operator reads.
        owned: trainable tensors that make the units (weights, biases, affine numbers of norms) -> the axes of units.
        maps: the l_i, one for each reader, with the output that it reads and the place of the units among the leaves
            of that output's axis (None: a state inside a recurrent layer that no value shows).
    """

    group: str
    size: int
    start: int
    outputs: tuple[Output, ...]
    owned: Mapping[str, tuple[int, ...]]
    maps: Mapping[MapKey, tuple[Output, int] | None]


@dataclass(frozen=True)
class Donor:
    """A donor read for the paper's method.

    Attributes:
        graph: the whole model, its classifier included.
        nodes: those that the features need, in order: the extractor M.
        features: where the classifier reads.
        axis: the units on the features.
        classifier: name of the classifier's weight.
        layers: front to back.
    """

    graph: ModelGraph
    nodes: tuple[Node, ...]
    features: Features
    axis: AxisExpr
    classifier: str
    layers: tuple[Layer, ...]


def read_layers(graph: ModelGraph, *, streams: bool = False, groups: Collection[str] | None = None) -> Donor:
    """The layers of a donor, front to back.

    Left out are embeddings (the paper shares the table and does not count it), positions inside attention heads, and,
    unless asked for, units that several layers add to.

    Args:
        streams: also units of residual streams.
        groups: exactly these channel groups instead.

    Raises:
        GraphError: a group is unknown or can't be sliced, the graph is no classifier, or no layer is left.
    """
    found = features(graph)
    needed = _needed(graph, found.value)
    position = {node.name: place for place, node in enumerate(needed)}
    weight = graph.node(found.classifier).args["weight"]
    if not isinstance(weight, TensorRef):
        raise GraphError("the classifier has no stored weight", where=found.classifier)
    reading = _reading_places(graph)
    named = [graph.analysis.group(name) for name in groups or ()]
    pinned = [
        f"group {group.id!r} can't be sliced: {'; '.join(group.pinned)}" for group in named if group.pinned
    ]
    if pinned:
        raise GraphError(pinned[0], problems=pinned)
    usual = [group for group in graph.analysis.sliceable if _is_layer(graph, group, streams)]
    layers = [
        _layer(graph, group, needed, reading)
        for group in (usual if groups is None else named)
        if any(name in position for name in group.producers)
    ]
    if not layers:
        raise GraphError("this donor has no layer that the paper's method could slice")
    axis = graph.analysis.value_axes[found.value][0][1]
    ordered = tuple(sorted(layers, key=lambda layer: layer.start))
    return Donor(graph, needed, found, axis, weight.name, ordered)


def _is_layer(graph: ModelGraph, group: ChannelGroup, streams: bool) -> bool:
    made_by = {graph.node(name).op for name in group.producers}
    return group.kind not in INSIDE_HEADS and made_by != {_EMBEDDING} and (streams or group.kind != "stream")


def _layer(
    graph: ModelGraph,
    group: ChannelGroup,
    nodes: tuple[Node, ...],
    reading: Mapping[tuple[str, int], Consumption],
) -> Layer:
    shapes = shapes_of(graph.tensors)
    owned: dict[str, tuple[int, ...]] = {}
    for tensor, axis in group.places:
        learned = tensor in graph.parameters and shapes[tensor][1].is_floating_point
        if learned and (tensor, axis) not in reading:
            owned[tensor] = (*owned.get(tensor, ()), axis)
    maps: dict[MapKey, tuple[Output, int] | None] = {}
    read: dict[tuple[str, int], Output] = {}
    shown: dict[tuple[str, int], Output] = {}
    for consumption in group.consumptions:
        output, direction = _output(graph, consumption)
        if output is not None:
            table = read if direction is None else shown
            table[output.value, output.axis] = output
        for tensor, axis in _mapped_places(graph, consumption):
            for place in places_of(graph.analysis.tensor_axes[tensor][axis], group.id):
                leaf = place if direction is None else direction
                maps[tensor, axis, place] = (output, leaf) if output is not None else None
    # A recurrent layer shows its units over time; what reads them may see the last state alone.
    outputs = tuple((shown or read).values())
    start = next(place for place, node in enumerate(nodes) if _touches(graph, node, group.id))
    return Layer(group.id, group.size, start, outputs, owned, maps)


def _output(graph: ModelGraph, consumption: Consumption) -> tuple[Output | None, int | None]:
    """The value that a reader reads; for a state that a recurrent layer reads, the layer's own output and direction."""
    node = graph.node(consumption.node)
    source = node.argument(consumption.arg)
    if isinstance(source, Ref):
        return Output(source.name, consumption.axis, consumption.expr), None
    direction = direction_shown(node, consumption) if node.op in RECURRENT else None
    if direction is None:
        return None, None
    exprs = graph.analysis.value_axes[node.name][0]
    return Output(node.name, len(exprs) - 1, exprs[-1]), direction


def _mapped_places(graph: ModelGraph, consumption: Consumption) -> list[tuple[str, int]]:
    """Stored weights (tensor, axis) that a map can be multiplied into."""
    node = graph.node(consumption.node)
    if node.op in RECURRENT:
        return [(name, 1) for name in weights_read(node, consumption)]
    weight = node.args.get("weight")
    if repairable(graph, consumption) is None and isinstance(weight, TensorRef):
        return [(weight.name, 1)]
    return []


def _reading_places(graph: ModelGraph) -> dict[tuple[str, int], Consumption]:
    """Axes of stored weights that read units, map or no map; all other places of a group make or carry its units."""
    table: dict[tuple[str, int], Consumption] = {}
    for consumption in graph.analysis.consumptions:
        node = graph.node(consumption.node)
        if node.op in RECURRENT:
            places = [(name, 1) for name in weights_read(node, consumption)]
        else:
            weight = node.args.get("weight")
            # Transposed convolutions store (in, out), all others (out, in).
            axis = 0 if "transpose" in node.op else 1
            places = [(weight.name, axis)] if isinstance(weight, TensorRef) else []
        table.update(dict.fromkeys(places, consumption))
    return table


def _touches(graph: ModelGraph, node: Node, group: str) -> bool:
    """Whether a node holds the units: in what it gives, or in a stored tensor that it reads."""
    analysis = graph.analysis
    made = (expr for exprs in analysis.value_axes[node.name] for expr in exprs)
    stored = (
        expr
        for arg in leaves(node.args)
        if isinstance(arg, TensorRef)
        for expr in analysis.tensor_axes[arg.name]
    )
    return any(group in units_in(expr) for exprs in (made, stored) for expr in exprs)


def _needed(graph: ModelGraph, value: str) -> tuple[Node, ...]:
    """Nodes that a value needs, in order."""
    wanted, kept = {value}, []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            kept.append(node)
            wanted.update(arg.name for arg in leaves(node.args) if isinstance(arg, Ref))
    return tuple(reversed(kept))
