"""A pass through a graph, node by node, with a look at what each reader is about to read and a say in its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sarto.engines.slicepack.readers import RECURRENT, Reader
from sarto.engines.slicepack.recurrence import run_layers, states_as_rows
from sarto.engines.slicepack.rows import rows_of, thinned
from sarto.graph import ModelGraph
from sarto.graph.model import Node, Ref, TensorRef
from sarto.graph.run import run_node

#: Called with what a reader reads, (samples, axis, positions); gives the weight to use, or None to leave it.
#: Of a recurrent layer's own states there are none before it runs: then rows are None.
See = Callable[[Reader, Tensor | None], Tensor | None]


@torch.no_grad()
def walk(
    donor: ModelGraph,
    graph: ModelGraph,
    inputs: Tensor,
    readers: tuple[Reader, ...],
    see: See,
    *,
    counts: Mapping[str, int] | None = None,
    until: str | None = None,
) -> Any:
    """Run a graph on inputs; the value of `until`, or of the graph's first output.

    Args:
        donor: the whole graph; says where units and samples lie.
        graph: the donor, or a slice of it with the same nodes.
        counts: units that the slice keeps of each group.
        see: called for every reader in order.
    """
    kept = counts or {}
    at: dict[str, list[Reader]] = {}
    for reader in readers:
        at.setdefault(reader.node, []).append(reader)
    last = {name: users[-1] for name, users in graph.readers.items()}
    end = until or graph.outputs[0]
    env: dict[str, Any] = {graph.inputs[0].name: inputs}
    for node in graph.nodes:
        found = at.get(node.name, [])
        weights: dict[str, Tensor] = {}
        for reader in found:
            if reader.source == node.name:
                continue
            rows = rows_of(donor, reader.source, reader.consumption.axis, env[reader.source], kept)
            weight = see(reader, rows)
            if weight is not None:
                weights[reader.arg] = weight
        if found and node.op in RECURRENT:
            env[node.name] = _recurrent(graph, node, env, found, weights, see)
        else:
            env[node.name] = run_node(graph, node, env, len(inputs), _with(weights))
        if node.name == end:
            return env[end]
        for name in [name for name in env if last.get(name) == node.name]:
            del env[name]
    return env[end]


def _with(weights: Mapping[str, Tensor]) -> Callable[[Node, str, Tensor], Tensor] | None:
    return (lambda _, arg, tensor: weights.get(arg, tensor)) if weights else None


def _recurrent(
    graph: ModelGraph,
    node: Node,
    env: Mapping[str, Any],
    readers: list[Reader],
    weights: dict[str, Tensor],
    see: See,
) -> tuple[Tensor, ...]:
    """The node, one layer at a time; readers see the states of the layer below, then the layer's own."""
    params = [graph.tensors[arg.name] for arg in node.args["params"] if isinstance(arg, TensorRef)]  # type: ignore[union-attr]
    hx = node.args["hx"]
    starts = [env[arg.name] for arg in (hx if isinstance(hx, tuple) else (hx,)) if isinstance(arg, Ref)]
    given = node.args["input"]
    inner = {reader.arg: reader for reader in readers if reader.source == node.name}
    each = len(params) // int(node.args["num_layers"])  # type: ignore[arg-type]

    def before(layer: int, reads: Tensor, own: list[Tensor]) -> list[Tensor]:
        for place in range(len(own)):
            arg = f"params.{layer * each + place}"
            reader = inner.get(arg)
            if reader is not None and reader.inside is not None:
                between = reader.inside.direction is None
                rows = thinned(states_as_rows(node, reads, None)) if between else None
                weights.update({arg: found} if (found := see(reader, rows)) is not None else {})
            own[place] = weights.get(arg, own[place])
        return own

    def after(layer: int, states: Tensor) -> None:
        for reader in inner.values():
            if (
                reader.inside is not None
                and reader.inside.layer == layer
                and reader.inside.direction is not None
            ):
                see(reader, thinned(states_as_rows(node, states, reader.inside.direction)))

    first = env[given.name] if isinstance(given, Ref) else graph.tensors[given.name]  # type: ignore[union-attr]
    return run_layers(node, first, starts if len(starts) > 1 else starts[0], params, before, after)
