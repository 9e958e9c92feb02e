"""Peak activation memory of a graph, by liveness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sarto.graph.model import Arg, BatchDim, ModelGraph, Node, Ref, elements, leaves

#: Operators whose output shares the memory of their first argument. A reshape does so as long as nothing between
#: it and the maker of that memory changed the order of axes; `_owner` is strict and counts a copy otherwise.
_VIEWS: Mapping[str, str] = {
    "aten.permute.default": "self",
    "aten.transpose.int": "self",
    "aten.t.default": "self",
    "aten.slice.Tensor": "self",
    "aten.select.int": "self",
    "aten.expand.default": "self",
    "aten.dropout.default": "input",
}
_RESHAPE = "aten.reshape.default"


@dataclass(frozen=True)
class Moment:
    """Bytes of activations that are alive while a node runs: what it reads, what it makes, and what is still needed."""

    node: str
    live_bytes: int


def timeline(graph: ModelGraph, *, batch: int = 1) -> tuple[Moment, ...]:
    """Live activation bytes at every node, in order.

    A value lives from its node to its last reader; inputs from the start, outputs to the end; while a node runs, what
    it reads and what it makes are both alive. Views share the memory of what they view. Weights don't count.
    """
    owner: dict[str, str] = {}
    size: dict[str, int] = {}
    contiguous: set[str] = set()
    for entry in graph.inputs:
        owner[entry.name], size[entry.name] = entry.name, _bytes(entry.shape, entry.dtype, batch)
        contiguous.add(entry.name)
    for node in graph.nodes:
        shared = _shared(node, owner, contiguous)
        owner[node.name] = shared if shared is not None else node.name
        if shared is None:
            size[node.name] = sum(
                _bytes(shape, dtype, batch) for shape, dtype in zip(node.shapes, node.dtypes, strict=True)
            )
            contiguous.add(node.name)
        elif node.op in (_RESHAPE, "aten.dropout.default"):
            contiguous.add(node.name)
    last: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        last[owner[node.name]] = place
        for name in _read(node.args):
            last[owner[name]] = place
    for name in graph.outputs:
        last[owner[name]] = len(graph.nodes)
    live = {entry.name for entry in graph.inputs if entry.name in last}
    moments = []
    for place, node in enumerate(graph.nodes):
        live.add(owner[node.name])
        moments.append(Moment(node.name, sum(size[name] for name in live)))
        live = {name for name in live if last[name] > place}
    return tuple(moments)


def peak_bytes(graph: ModelGraph, *, batch: int = 1) -> int:
    """The most activation bytes that are alive at once."""
    return max((moment.live_bytes for moment in timeline(graph, batch=batch)), default=0)


def _shared(node: Node, owner: Mapping[str, str], contiguous: set[str]) -> str | None:
    name = _VIEWS.get(node.op, "self" if node.op == _RESHAPE else "")
    source = node.args.get(name)
    if not isinstance(source, Ref):
        return None
    if node.op == "aten.dropout.default" and node.args.get("train"):
        return None
    if node.op == _RESHAPE and source.name not in contiguous:
        return None
    return owner[source.name]


def _read(args: Mapping[str, Arg]) -> list[str]:
    return [arg.name for arg in leaves(args) if isinstance(arg, Ref)]


def _bytes(shape: tuple[int | BatchDim, ...], dtype: str, batch: int) -> int:
    return elements(shape, batch) * getattr(torch, dtype).itemsize
