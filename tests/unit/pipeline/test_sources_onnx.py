"""ONNX files as graphs: put into simpler words without changing numbers, converted, and compared with ONNX Runtime."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sarto.devices import load_onnx as load_session
from sarto.errors import RequestError
from sarto.export import export_onnx
from sarto.graph import capture
from sarto.pipeline import InputSpec, load_source
from sarto.pipeline.sources.onnx_shapes import OPSET, settle
from sarto.zoo import vgg

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def reshaping(opset: int = 21) -> onnx.ModelProto:
    """x (n, 4, 6) -> (n * 2, 12), its sizes computed from the shape of x, between an Unsqueeze, a Gelu and an Erf."""
    weights = [
        numpy_helper.from_array(np.array([2, 12], np.int64), "factors"),
        numpy_helper.from_array(np.array([0], np.int64), "first"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([12], np.int64), "twelve"),
        numpy_helper.from_array(np.array([2], np.int64), "two"),
    ]
    nodes = [
        helper.make_node("Gelu", ["x"], ["curved"]),
        helper.make_node("Unsqueeze", ["curved", "one"], ["wide"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Mul", ["batch", "two"], ["rows"]),
        helper.make_node("Concat", ["rows", "twelve"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["wide", "sizes"], ["flat"], allowzero=1),
        helper.make_node("Erf", ["flat"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "reshaping",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4, 6])],
        [helper.make_tensor_value_info("y", FLOAT, ["m", 12])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_a_settled_file_has_constant_sizes_and_the_same_numbers() -> None:
    model = reshaping()
    before = model.SerializeToString()
    generator = np.random.default_rng(0)
    small, large = (generator.normal(size=(n, 4, 6)).astype(np.float32) for n in (2, 5))
    settled = settle(model, [small], [large])
    assert model.SerializeToString() == before
    assert {node.op_type for node in settled.graph.node}.isdisjoint(
        {"Shape", "Gather", "Concat", "Gelu", "Unsqueeze"}
    )
    assert [entry.version for entry in settled.opset_import] == [OPSET]
    sizes = [
        numpy_helper.to_array(entry).tolist()
        for node in settled.graph.node
        if node.op_type == "Reshape"
        for entry in settled.graph.initializer
        if entry.name == node.input[1]
    ]
    assert sizes == [[-1, 1, 4, 6], [-1, 12]]
    old, new = load_session(before), load_session(settled.SerializeToString())
    other = generator.normal(size=(3, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(new(other), old(other), rtol=1e-6, atol=1e-6)


def test_sizes_that_are_no_constants_stay_computed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Concat", ["n", "n"], ["sizes"], axis=0),
        helper.make_node("Expand", ["one", "sizes"], ["square"]),
        helper.make_node("Reshape", ["square", "sizes"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([0], np.int64), "first"),
        numpy_helper.from_array(np.ones((1, 1), np.float32), "one"),
    ]
    graph = helper.make_graph(
        nodes,
        "square",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", "n"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    settled = settle(model, [np.zeros((2, 2), np.float32)], [np.zeros((5, 2), np.float32)])
    assert [node.op_type for node in settled.graph.node] == [node.op_type for node in nodes]


@pytest.fixture
def converter() -> None:
    """Skip where the converter is not installed, or its torchvision does not import beside this torch."""
    try:
        importlib.import_module("onnx2torch")
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"onnx2torch can't be imported: {error}")


def test_a_file_that_sarto_wrote_comes_back_as_the_same_model(tmp_path: Path, converter: None) -> None:
    graph = capture(vgg(widths=[4, "M", 6, "M"], n_classes=3).eval(), torch.randn(2, 3, 8, 8))
    said = {
        "classes": '["a", "b", "c"]',
        "preprocessing": '{"size": [8, 8], "mean": [0, 0, 0], "std": [1, 1, 1]}',
    }
    export_onnx(graph, tmp_path / "model.onnx", metadata=said)
    source = load_source(str(tmp_path / "model.onnx"))
    x = torch.randn(7, 3, 8, 8)
    torch.testing.assert_close(source.graph(x), graph(x), rtol=1e-5, atol=1e-5)
    assert source.classes == ("a", "b", "c") and source.origin == "ONNX file model.onnx"
    assert source.preprocessing is not None and source.preprocessing.size == (8, 8)
    assert len(source.graph.analysis.sliceable) == 2


def test_free_sizes_and_a_fixed_batch_are_told(tmp_path: Path, converter: None) -> None:
    path = tmp_path / "model.onnx"
    free = reshaping()
    free.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "k"
    onnx.save(free, path)
    with pytest.raises(RequestError, match=r"the shape of input 'x' is free \(n, k, 6\); give every input"):
        load_source(str(path))
    with pytest.raises(RequestError, match="no input 'z'"):
        load_source(str(path), inputs=[InputSpec((4, 6), name="z")])
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(free, path)
    with pytest.raises(RequestError, match="has a fixed batch: input 'x' has a batch of 1"):
        load_source(str(path), input_shape=(4, 6))


def test_a_damaged_file_and_an_unknown_operator_are_told(tmp_path: Path, converter: None) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(RequestError, match=r"ONNX Runtime .* can't load"):
        load_source(str(path))
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])],
        "det",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 3, 3])],
        [helper.make_tensor_value_info("y", FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(RequestError, match=r"the converter onnx2torch can't read model.onnx: .*Det"):
        load_source(str(path))
