"""An ONNX file as a function on arrays: what it says of itself, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from sarto.devices import load_onnx
from sarto.devices.probe import probe_onnx
from sarto.errors import RequestError


def added(kind: int = TensorProto.FLOAT, **metadata: str) -> bytes:
    """An ONNX file that gives the sum and the difference of two inputs."""
    given = [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in "xy"]
    made = [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in ("sum", "gap")]
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Sub", ["x", "y"], ["gap"])]
    model = helper.make_model(
        helper.make_graph(nodes, "added", given, made),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


def test_a_file_says_what_it_takes_and_gives() -> None:
    model = load_onnx(added(classes='["a"]'), threads=2)
    assert model.names == ("x", "y") and model.shapes == (("batch", 3), ("batch", 3))
    assert model.dtypes == (np.float32, np.float32) and model.outputs == ("sum", "gap")
    assert (model.metadata, model.threads, model.version) == ({"classes": '["a"]'}, 2, ort.__version__)


def test_sessions_run_in_order_and_their_threads_do_not_spin() -> None:
    options = load_onnx(added(), threads=2).session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(TensorProto.FLOAT, np.float32), (TensorProto.DOUBLE, np.float64), (TensorProto.INT64, np.int64)],
)
def test_arrays_go_in_and_come_out(kind: int, dtype: type[np.generic], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(added(kind))
    model = load_onnx(tmp_path / "m.onnx")
    x, y = np.arange(12).reshape(4, 3).astype(dtype), np.full((4, 3), 2, dtype)
    both = model(x, y)
    assert isinstance(both, tuple)
    np.testing.assert_array_equal(both, (x + y, x - y))
    one = load_onnx(probe_onnx(1, 4, 4))(np.zeros((2, 4, 4, 4), np.float32))
    assert isinstance(one, np.ndarray) and one.shape == (2, 10)


def test_arrays_that_do_not_fit_are_refused_all_at_once() -> None:
    model = load_onnx(added())
    with pytest.raises(RequestError, match="takes 2 arrays, 1 were given"):
        model(np.zeros((1, 3), np.float32))
    with pytest.raises(RequestError) as caught:
        model(np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float64))
    assert "2 problems" in str(caught.value)
    assert "'x' must be float32 of shape (batch, 3), got float32 of shape (1, 4)" in str(caught.value)
    assert "'y' must be float32 of shape (batch, 3), got float64 of shape (1, 3)" in str(caught.value)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for source, words in [
        (tmp_path / "none.onnx", r"can't load '.*none\.onnx'"),
        (tmp_path / "junk.onnx", r"can't load '.*junk\.onnx'"),
        (b"junk", "can't load these bytes"),
    ]:
        with pytest.raises(RequestError, match=words):
            load_onnx(source)
    with pytest.raises(RequestError, match="threads must be at least 1, got 0"):
        load_onnx(added(), threads=0)
    with pytest.raises(RequestError, match=r"2 problems: input 'x' of these bytes is a tensor\(uint32\)"):
        load_onnx(added(TensorProto.UINT32))
