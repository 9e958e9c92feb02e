"""Fused recurrent layers run one layer at a time, so that what they read inside can be seen and repaired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sarto.graph.model import Node

#: (layer, what the layer reads, its parameters) -> the parameters to use.
Before = Callable[[int, Tensor, list[Tensor]], list[Tensor]]
_OPS: dict[str, Any] = {
    "aten.lstm.input": torch.ops.aten.lstm.input,
    "aten.gru.input": torch.ops.aten.gru.input,
    "aten.rnn_tanh.input": torch.ops.aten.rnn_tanh.input,
    "aten.rnn_relu.input": torch.ops.aten.rnn_relu.input,
}


def run_layers(
    node: Node,
    given: Tensor,
    hx: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    before: Before,
    after: Callable[[int, Tensor], None],
) -> tuple[Tensor, ...]:
    """What the node gives: states of the last layer, then the last states of all layers (of an LSTM its cells too).

    Args:
        given: what the first layer reads.
        hx: states to start from, (layers x directions, batch, hidden); of an LSTM these and the cells.
        params: of all layers, as the node has them.
        before: called before a layer runs.
        after: called with the layer's states, both directions side by side on the last axis.
    """
    n_layers = int(node.args["num_layers"])  # type: ignore[arg-type]
    directions = 2 if node.args["bidirectional"] else 1
    biased = bool(node.args["has_biases"])
    each = directions * (4 if biased else 2)
    ends: list[tuple[Tensor, ...]] = []
    for layer in range(n_layers):
        own = before(layer, given, list(params[layer * each : (layer + 1) * each]))
        start = slice(layer * directions, (layer + 1) * directions)
        states = (
            hx[start].contiguous() if isinstance(hx, Tensor) else [part[start].contiguous() for part in hx]
        )
        given, *last = _OPS[node.op](
            given, states, own, biased, 1, 0.0, False, directions == 2, bool(node.args["batch_first"])
        )
        after(layer, given)
        ends.append(tuple(last))
    return (given, *(torch.cat(parts) for parts in zip(*ends, strict=True)))


def states_as_rows(node: Node, states: Tensor, direction: int | None) -> Tensor:
    """States of one layer as (samples, units, steps); of one direction, or of both side by side."""
    rows = states if node.args["batch_first"] else states.transpose(0, 1)
    rows = rows.transpose(1, 2)
    if direction is None or not node.args["bidirectional"]:
        return rows
    return rows.chunk(2, dim=1)[direction]
