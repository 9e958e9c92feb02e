"""Latency: what a measurement says of itself, and what it refuses. No timing is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from sarto.devices import (
    interleaved,
    load_onnx,
    measure,
    measure_onnxruntime,
    measure_torch,
    onnx_call,
    peak_flops_per_ms,
    processor,
    torch_call,
    torch_threads,
)
from sarto.devices.probe import probe, probe_onnx
from sarto.errors import RequestError
from sarto.types import Device

GRAPH = probe(1, 4, 4)
FILE = probe_onnx(1, 4, 4)


def test_a_measurement_in_torch_states_its_conditions_and_restores_the_threads() -> None:
    before = torch.get_num_threads()
    found = measure_torch(GRAPH, threads=2, batch=3, runs=7, warmup=2)
    assert torch.get_num_threads() == before
    assert (found.threads, found.batch, found.runtime, found.version) == (2, 3, "torch", torch.__version__)
    assert (found.runs, found.warmup, found.processor) == (7, 2, processor())
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms


def test_threads_are_restored_when_the_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kind", ["bytes", "path", "text"])
def test_a_measurement_in_onnxruntime_states_its_conditions(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(FILE)
    source = {"bytes": FILE, "path": path, "text": str(path)}[kind]
    found = measure_onnxruntime(source, threads=1, batch=2, seconds=0.02)
    assert (found.runtime, found.version) == ("onnxruntime", ort.__version__)
    assert (found.threads, found.batch, found.processor) == (1, 2, processor())
    assert found.runs >= 5 and found.warmup >= 3
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms


def test_a_device_says_where_it_is_measured() -> None:
    assert measure(GRAPH, Device(runtime="torch"), seconds=0.01).runtime == "torch"
    found = measure(GRAPH, Device(batch=5), onnx=FILE, seconds=0.01)
    assert (found.runtime, found.batch) == ("onnxruntime", 5)
    with pytest.raises(RequestError, match="export the graph first"):
        measure(GRAPH, Device(runtime="onnxruntime"))


def test_nonsense_is_refused_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        measure_torch(GRAPH, threads=0, batch=-1, seconds=0.0, runs=0, warmup=-3)
    for word in ("threads", "batch", "seconds", "runs", "warmup", "above 0", "5 problems"):
        assert word in str(caught.value)
    with pytest.raises(RequestError, match="seconds must be above 0, got nan"):
        measure_torch(GRAPH, seconds=float("nan"))
    with pytest.raises(RequestError, match="threads must be above 0, got -2"):
        measure_onnxruntime(tmp_path / "none.onnx", threads=-2)
    with pytest.raises(RequestError, match=r"can't load .*none\.onnx"):
        measure_onnxruntime(tmp_path / "none.onnx")
    with pytest.raises(RequestError, match="threads must be above 0"):
        peak_flops_per_ms(0)


def test_a_peak_is_a_speed() -> None:
    before = torch.get_num_threads()
    assert peak_flops_per_ms(1) > 1
    assert torch.get_num_threads() == before


def test_the_calls_of_two_runtimes_compute_the_same_and_can_take_turns() -> None:
    one, two = torch_call(GRAPH, batch=3), onnx_call(load_onnx(FILE), batch=3)
    have, want = np.asarray(two()[0]), one()  # type: ignore[index]
    assert isinstance(want, torch.Tensor)
    np.testing.assert_allclose(have, want.numpy(), rtol=1e-5, atol=1e-6)
    assert len(interleaved([one, two], seconds=0.01)) == 2


@pytest.mark.parametrize(("layers", "groups"), [(3, 1), (2, 4)])
def test_the_built_in_graph_and_its_file_are_the_same_function(layers: int, groups: int) -> None:
    graph, model = probe(layers, 4, 6, groups), load_onnx(probe_onnx(layers, 4, 6, groups))
    x = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(torch.from_numpy(model(x.numpy())), graph(x))


def test_a_file_of_fixed_or_unknown_sizes_takes_no_other_batch() -> None:
    fixed = file_of([2, 3])
    with pytest.raises(RequestError, match=r"'x' of shape \(2, 3\) takes no batch of 5"):
        measure_onnxruntime(fixed, batch=5)
    assert measure_onnxruntime(fixed, batch=2, seconds=0.01).batch == 2
    with pytest.raises(RequestError, match=r"'x' of shape \(batch, time\) takes no batch of 1"):
        measure_onnxruntime(file_of(["batch", "time"]))


def file_of(shape: list[int | str]) -> bytes:
    """An ONNX file that computes ReLU."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def test_a_device_behind_an_agent_is_not_measured_here() -> None:
    with pytest.raises(RequestError, match=r"behind http://pi:80 can't be measured in this process"):
        measure(GRAPH, Device(runtime="torch", agent="http://pi:80"))
