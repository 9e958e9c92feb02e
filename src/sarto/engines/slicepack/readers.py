"""The linear operators of a donor that read sliceable units, inside fused recurrent layers too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sarto.graph import Consumption, ModelGraph, repairable
from sarto.graph.expressions import units_in
from sarto.graph.model import Arg, Node, Ref, TensorRef

#: Fused recurrent layers; their states are tensors (batch and time first, in the order that `batch_first` says).
RECURRENT = ("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")


@dataclass(frozen=True)
class Inside:
    """Where a fused recurrent layer reads hidden units: between its layers, or from one step to the next.

    Attributes:
        layer: whose weight it is.
        direction: of the recurrence; None where it reads the layer below (both directions side by side).
    """

    layer: int
    direction: int | None


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear operator that reads sliceable units.

    Attributes:
        consumption: what it reads, and which units lie where.
        source: name of the value that it reads; inside a recurrent layer that layer's own.
        weight: name of its stored weight; None where it has none.
        arg: the argument that the weight is: `weight`, or `params.3` of a recurrent layer.
        repairable: whether a linear map can be folded into it.
        inside: where inside a recurrent layer; None for all others.
    """

    consumption: Consumption
    source: str
    weight: str | None
    arg: str
    repairable: bool
    inside: Inside | None = None

    @property
    def node(self) -> str:
        return self.consumption.node

    @property
    def name(self) -> str:
        """One of a kind: the node, and which of its weights where it has several."""
        return self.node if self.inside is None else f"{self.node}.{self.arg}"


def readers_of(graph: ModelGraph) -> tuple[Reader, ...]:
    """Every linear operator that reads sliceable units, in order."""
    return tuple(_readers(graph))


def _readers(graph: ModelGraph) -> Iterator[Reader]:
    for consumption in graph.analysis.consumptions:
        if not units_in(consumption.expr):
            continue
        node = graph.node(consumption.node)
        if node.op in RECURRENT:
            yield from _recurrent(graph, node, consumption)
            continue
        source, weight = node.argument(consumption.arg), node.args.get("weight")
        if isinstance(source, Ref):
            name = weight.name if isinstance(weight, TensorRef) else None
            yield Reader(consumption, source.name, name, "weight", repairable(graph, consumption) is None)


def _recurrent(graph: ModelGraph, node: Node, consumption: Consumption) -> Iterator[Reader]:
    params = node.args["params"]
    if not isinstance(params, tuple):
        return
    directions = 2 if node.args["bidirectional"] else 1
    each = 4 if node.args["has_biases"] else 2
    if consumption.arg == "input":
        source = node.args["input"]
        # Both directions of the first layer read the input, each with its own weight.
        for direction in range(directions):
            weight = _name(params[direction * each])
            if isinstance(source, Ref) and weight is not None:
                arg = f"params.{direction * each}"
                yield Reader(consumption, source.name, weight, arg, _alone(graph, weight), Inside(0, None))
        return
    place = int(consumption.arg.removeprefix("params."))
    layer, within = divmod(place, directions * each)
    direction, kind = divmod(within, each)
    weight = _name(params[place])
    if weight is not None:
        inside = Inside(layer, direction if kind == 1 else None)
        yield Reader(consumption, node.name, weight, consumption.arg, _alone(graph, weight), inside)


def _name(arg: Arg) -> str | None:
    return arg.name if isinstance(arg, TensorRef) else None


def _alone(graph: ModelGraph, weight: str) -> bool:
    """Whether one argument of one node alone reads a stored tensor."""
    used = 0
    for node in graph.nodes:
        for arg in node.args.values():
            used += sum(
                isinstance(inner, TensorRef) and inner.name == weight
                for inner in (arg if isinstance(arg, tuple) else (arg,))
            )
    return used == 1
