"""Recurrent layers as the paper's method needs them: which weight reads a state, and where that state can be seen."""

from __future__ import annotations

from collections.abc import Iterator

from sarto.graph import Consumption, Node
from sarto.graph.model import TensorRef

RECURRENT = frozenset(["aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input"])


def weights_read(node: Node, consumption: Consumption) -> Iterator[str]:
    """Names of the weights through which a recurrent layer reads: one for a state, one a direction for its input."""
    params = node.args["params"]
    if not isinstance(params, tuple):
        return
    if consumption.arg.startswith("params."):
        places = [_place(consumption)]
    else:
        places = [direction * _each(node) for direction in range(_directions(node))]
    for place in places:
        weight = params[place]
        if isinstance(weight, TensorRef):
            yield weight.name


def direction_shown(node: Node, consumption: Consumption) -> int | None:
    """The direction whose states, which are read here, the node gives out; None where no value shows them.

    Only the last of stacked layers gives its states out.
    """
    n_layers = node.args["num_layers"]
    if not consumption.arg.startswith("params.") or not isinstance(n_layers, int):
        return None
    first = (n_layers - 1) * _directions(node) * _each(node)
    direction, what = divmod(_place(consumption) - first, _each(node))
    return direction if direction >= 0 and what == 1 else None


def _place(consumption: Consumption) -> int:
    return int(consumption.arg.partition(".")[2])


def _each(node: Node) -> int:
    return 4 if node.args["has_biases"] else 2


def _directions(node: Node) -> int:
    return 2 if node.args["bidirectional"] else 1
