"""A graph that computes in half precision, with inputs and outputs in single precision."""

from __future__ import annotations

from dataclasses import replace

import torch

from sarto.graph import Input, ModelGraph, Node, Ref
from sarto.graph.model import is_floating, rename_refs
from sarto.graph.precision import conversion
from sarto.types import Precision


def halved(graph: ModelGraph, precision: Precision) -> ModelGraph:
    """The same graph with weights and sums in float16 or bfloat16; who feeds it need not know."""
    dtype = getattr(torch, precision)
    inner = graph.to(dtype)
    taken = {node.name for node in graph.nodes} | {entry.name for entry in graph.inputs}
    begun, renamed = [], {}
    for entry, half in zip(graph.inputs, inner.inputs, strict=True):
        if is_floating(entry.dtype):
            name = _free(f"{entry.name}_half", taken)
            begun.append(conversion(name, Ref(entry.name), (entry.shape,), half.dtype))
            renamed[entry.name] = name
    nodes = [
        replace(node, args={k: rename_refs(a, renamed) for k, a in node.args.items()}) for node in inner.nodes
    ]
    ended, outputs = [], []
    known: dict[str, Node | Input] = {node.name: node for node in nodes}
    for name in inner.outputs:
        node = known.get(name)
        if not isinstance(node, Node) or node.dtypes[0] != precision:
            outputs.append(name)
            continue
        wide = _free(f"{name}_single", taken)
        ended.append(conversion(wide, Ref(name), (node.shape,), "float32"))
        outputs.append(wide)
    inputs = tuple(
        replace(entry, dtype="float32") if is_floating(entry.dtype) else entry for entry in graph.inputs
    )
    return replace(inner, inputs=inputs, nodes=(*begun, *nodes, *ended), outputs=tuple(outputs))


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
