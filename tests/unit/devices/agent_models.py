"""Small ONNX files and the agent's application, for tests of the agent."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOKEN = "a-token-for-tests-only"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def onnx_file(nodes: list[onnx.NodeProto], *tensors: onnx.TensorProto, functions: tuple = ()) -> bytes:
    """A file that computes y of x, shape (batch, 4)."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y",)]
    start = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    graph = helper.make_graph(nodes, "g", start, ends, list(tensors))
    opsets = [helper.make_opsetid("", 17)] + [helper.make_opsetid(f.domain, 1) for f in functions]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))
    return model.SerializeToString()


def linear(seed: int = 0, width: int = 3) -> tuple[bytes, np.ndarray]:
    """A file that multiplies with a matrix, and the matrix, shape (4, width)."""
    weight = np.random.default_rng(seed).random((4, width), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return onnx_file([node], numpy_helper.from_array(weight, "w")), weight


def large_in_memory(elements: int) -> bytes:
    """A file of few bytes whose activations are so many numbers, several times."""
    shape = numpy_helper.from_array(np.array([elements // 4, 4], np.int64), "shape")
    nodes = [helper.make_node("Expand", ["x", "shape"], ["a0"])]
    nodes += [helper.make_node("Exp", [f"a{i}"], [f"a{i + 1}"]) for i in range(3)]
    nodes += [helper.make_node("Add", ["a1", "a3"], ["s"]), helper.make_node("ReduceMean", ["s"], ["y"])]
    return onnx_file(nodes, shape)


def endless() -> bytes:
    """A file that loops for years."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    times = numpy_helper.from_array(np.array(1 << 60, np.int64), "times")
    yes = numpy_helper.from_array(np.array(True), "yes")
    return onnx_file([helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body)], times, yes)
