"""Fused recurrent layers: a hidden unit is one row of every gate, one column of what reads the state, one state entry.

Why it is right: a hidden unit touches the others only through the columns of the recurrent weights and of the next
layer's input weights; leaving it out is setting these columns to zero. All gates of a unit go together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph import axes
from sarto.graph.axes import Axis
from sarto.graph.model import Arg, Node
from sarto.graph.rules._context import Axes, Context, Rule, because, fresh_axes, integer, listed
from sarto.graph.rules.pinning import pin_all

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(context: Context, node: Node) -> Sequence[Axes]:
    """input (batch, time, in) or (time, batch, in); states (layers x directions, batch, hidden).

    The initial state is one tensor for all layers and directions, so it makes their hidden units one channel group.
    Layers with a projection (`proj_size`) are pinned.
    """
    gates = _GATES[node.op.split(".")[1]]
    params = listed(node, "params")
    n_layers, biased = integer(node, "num_layers"), bool(node.args["has_biases"])
    directions = 2 if node.args["bidirectional"] else 1
    each = 4 if biased else 2
    states = [context.axes(state) or () for state in _states(node)]
    if len(params) != n_layers * directions * each:
        return pin_all(context, node)
    why = because(node)
    given = context.axes(node.args["input"]) or ()
    hidden = states[0][-1]
    for state in states:
        context.unify(hidden, state[-1], node)
    reads: Axis = given[-1]
    for layer in range(n_layers):
        for direction in range(directions):
            first = (layer * directions + direction) * each
            w_in, w_state, *biases = (context.axes(param) or () for param in params[first : first + each])
            context.unify(w_in[1], reads, node)
            if layer > 0:
                context.consume(node, f"params.{first}", 1)
            context.consume(node, f"params.{first + 1}", 1)
            context.unify(w_state[1], hidden, node)
            for rows in (w_in[0], w_state[0], *(bias[0] for bias in biases)):
                counter, units = axes.carve(axes.resolve(rows), gates, why)
                if counter is None:
                    return pin_all(context, node)
                axes.pin(counter, why)
                context.unify(units, hidden, node)
            context.produce(node, params[first], 0)
        if layer == 0:
            context.consume(node, "input", len(given) - 1)
        reads = axes.add([hidden] * directions)
    context.note("recurrent units", hidden)
    context.pin(given[1] if node.args["batch_first"] else given[0], node)
    layers = fresh_axes(node.shapes[1][:1], why)[0]
    final = (layers, states[0][1], hidden)
    return ((*given[:-1], reads), *(final for _ in node.shapes[1:]))


def _states(node: Node) -> tuple[Arg, ...]:
    hx = node.args["hx"]
    return hx if isinstance(hx, tuple) else (hx,)


RULES: Mapping[str, Rule] = {
    "aten.lstm.input": recurrent,
    "aten.gru.input": recurrent,
    "aten.rnn_tanh.input": recurrent,
    "aten.rnn_relu.input": recurrent,
}
