"""ONNX models put into the older and simpler words that a converter knows, without changing what they compute."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from onnx import helper, numpy_helper

from sarto.devices import load_onnx

#: Newest version of ONNX's operators that the converter reads in full.
OPSET = 17
_PREFIX = "sarto_"
_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def settle(
    model: onnx.ModelProto, small: Sequence[np.ndarray], large: Sequence[np.ndarray]
) -> onnx.ModelProto:
    """The same model with constant shapes (the batch as -1), GELU written out, and operators of version 17.

    Exporters compute the shape of a reshape from the batch; a converter that keeps such sums as tensors gives a
    module that can't be captured. Where the sums give the same sizes at two batch sizes, but for one, they are
    constants.

    Args:
        small: an example of each input.
        large: the same at another batch size.
    """
    plain = onnx.inliner.inline_local_functions(model)
    _write_out_gelu(plain.graph)
    _fix_shapes(plain, small, large)
    _drop_unread(plain.graph)
    version = next((entry.version for entry in plain.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    if version > OPSET:
        # An operator without an older form: the converter may know it all the same, or names it.
        with contextlib.suppress(RuntimeError, ValueError, onnx.checker.ValidationError):
            plain = onnx.version_converter.convert_version(plain, OPSET)
    return onnx.shape_inference.infer_shapes(plain)


def _fix_shapes(model: onnx.ModelProto, small: Sequence[np.ndarray], large: Sequence[np.ndarray]) -> None:
    """Make every reshape one to constant sizes, with at most one of them -1, where two batch sizes agree on it."""
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type in _RESHAPES and not node.domain]
    if not nodes:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in nodes)
    session = load_onnx(probe.SerializeToString())
    one, two = (_several(session(*given)) for given in (small, large))
    for node, a, b in zip(nodes, one, two, strict=True):
        sizes = [have if have == other else -1 for have, other in zip(a.shape, b.shape, strict=True)]
        if sizes.count(-1) > 1 or 0 in sizes:
            continue
        name = _PREFIX + node.output[0]
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        node.CopyFrom(helper.make_node("Reshape", [node.input[0], name], [node.output[0]], name=node.name))


def _several(result: np.ndarray | tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)


def _drop_unread(graph: onnx.GraphProto) -> None:
    needed = {entry.name for entry in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input) | _captured(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the graphs inside a node read."""
    inner = [entry.g for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH]
    names = {name for graph in inner for child in graph.node for name in (*child.input, *_captured(child))}
    return names | {entry.name for graph in inner for entry in graph.output}


def _write_out_gelu(graph: onnx.GraphProto) -> None:
    """Exact GELU as x * (1 + erf(x / sqrt 2)) / 2; the one with tanh is left to the converter."""
    nodes: list[onnx.NodeProto] = []
    for place, node in enumerate(graph.node):
        approximate = next((entry.s for entry in node.attribute if entry.name == "approximate"), b"none")
        if node.op_type != "Gelu" or node.domain or approximate != b"none":
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        name = f"{_PREFIX}gelu_{place}_"
        for key, value in (("root", 2**0.5), ("one", 1.0), ("half", 0.5)):
            array = np.array(value, np.float32)
            graph.initializer.append(numpy_helper.from_array(array, name + key))
        nodes += [
            helper.make_node("Div", [x, name + "root"], [name + "scaled"]),
            helper.make_node("Erf", [name + "scaled"], [name + "erf"]),
            helper.make_node("Add", [name + "erf", name + "one"], [name + "sum"]),
            helper.make_node("Mul", [x, name + "sum"], [name + "twice"]),
            helper.make_node("Mul", [name + "twice", name + "half"], [y]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
