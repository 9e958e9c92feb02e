"""ONNX files of packs, joined from those of their parts: as exporting the pack writes them, in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sarto.devices.profiling.packs import APART, CLASSES
from sarto.errors import GraphError


def joined_onnx(parts: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Models that end in a linear layer, without it: side by side, concatenated, under one small linear head.

    Raises:
        GraphError: a model has several inputs or outputs, or ends in something else.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(parts[0])
    for field in ("node", "initializer", "output", "value_info"):
        del getattr(whole.graph, field)[:]
    given, made, width = whole.graph.input[0].name, [], 0
    for place, part in enumerate(parts):
        last = _last(part)
        own = {value for node in part.graph.node for value in (*node.input, *node.output) if value}
        names = {value: f"part{place}.{value}" for value in own - {part.graph.input[0].name}}
        names |= {part.graph.input[0].name: given, "": ""}
        for node in part.graph.node:
            if node is last:
                continue
            copy = whole.graph.node.add()
            copy.CopyFrom(node)
            copy.name = f"part{place}.{node.name}"
            copy.input[:] = [names[value] for value in node.input]
            copy.output[:] = [names[value] for value in node.output]
        head = set(last.input[1:])
        for stored in part.graph.initializer:
            if stored.name == last.input[1]:
                transposed = any(a.name == "transB" and a.i for a in last.attribute)
                width += stored.dims[1 if transposed else 0]
            elif stored.name not in head and stored.name in own:
                copied = whole.graph.initializer.add()
                copied.CopyFrom(_apart(stored, place))
                copied.name = names[stored.name]
        made.append(names[last.input[0]])
    whole.graph.node.append(helper.make_node("Concat", made, ["joined"], axis=1))
    whole.graph.node.append(
        helper.make_node("Gemm", ["joined", "head.weight", "head.bias"], ["scores"], transB=1)
    )
    for name, array in (
        ("head.weight", np.full((CLASSES, width), 1e-3, np.float32)),
        ("head.bias", np.full(CLASSES, 1e-3, np.float32)),
    ):
        whole.graph.initializer.append(numpy_helper.from_array(array, name))
    whole.graph.output.append(
        helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", CLASSES])
    )
    return whole


def _last(model: onnx.ModelProto) -> onnx.NodeProto:
    """The linear layer that a model ends in."""
    single = len(model.graph.input) == len(model.graph.output) == 1
    ends = [node for node in model.graph.node if model.graph.output[0].name in node.output]
    stored = {entry.name for entry in model.graph.initializer}
    if not single or not ends or ends[0].op_type != "Gemm" or ends[0].input[1] not in stored:
        what = ends[0].op_type if ends else "nothing"
        raise GraphError(
            f"a pack is joined from models of one input that end in a linear layer, this one in {what}"
        )
    return ends[0]


def _apart(stored: onnx.TensorProto, place: int) -> onnx.TensorProto:
    """Weights of a part, each part's a little different."""
    array = numpy_helper.to_array(stored)
    if not place or array.dtype != np.float32 or array.ndim < 2:
        return stored
    return numpy_helper.from_array(array * np.float32(1 + APART * place), stored.name)
