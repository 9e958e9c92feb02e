"""The ONNX file of a graph from that of another one of the same operators: only weights and their sizes differ."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from sarto.export.norms import fold_norms
from sarto.graph import ModelGraph


@dataclass(frozen=True, eq=False)
class Known:
    """A graph, and the ONNX file that was made of it."""

    graph: ModelGraph
    data: bytes


def resized_onnx(known: Known, graph: ModelGraph) -> onnx.ModelProto | None:
    """A graph's ONNX model in milliseconds, with the known one's operators; None where the graph has others.

    What the exporter made of weights beforehand, or of sizes, stays the known graph's: compare the model with eager.
    """
    if _without_weights(known.graph) != _without_weights(graph):
        return None
    model = onnx.load_from_string(known.data)
    tensors = fold_norms(graph).tensors
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for stored in model.graph.initializer:
        if stored.name in tensors:
            stored.CopyFrom(numpy_helper.from_array(tensors[stored.name].contiguous().numpy(), stored.name))
    return model


def _without_weights(graph: ModelGraph) -> tuple[object, ...]:
    """All that an exporter reads of a graph besides its weights and the shapes that follow them."""
    return (
        [(entry.name, entry.shape, entry.dtype) for entry in graph.inputs],
        list(graph.outputs),
        [(node.name, node.op, dict(node.args), node.dtypes) for node in graph.nodes],
        [(name, tensor.dtype, tensor.ndim) for name, tensor in graph.tensors.items()],
    )
