"""An order's latency is measured in its own runtime and precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sarto.devices import Latency, Worker, count
from sarto.devices.probe import probe, probe_onnx
from sarto.devices.runtimes import Loaded, is_available
from sarto.errors import VerifyError
from sarto.export import TARGETS
from sarto.pipeline import on_device
from sarto.pipeline.exporting import place_for
from sarto.pipeline.on_device import OnDevice, device_checks, latency_on, measured_on
from sarto.pipeline.reporting import budget_checks
from sarto.types import Budget, Device, DeviceFile, Precision, RuntimeName
from sarto.types.device import PRECISIONS

GRAPH = probe(2, 8, 8)
SAMPLES = torch.rand(24, 8, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("torch", "float32"),
        ("onnxruntime", "float32"),
        ("onnxruntime", "float16"),
        ("openvino", "bfloat16"),
        pytest.param("torch", "bfloat16", marks=pytest.mark.slow),
        pytest.param("compile", "float32", marks=pytest.mark.slow),
        pytest.param("executorch", "float32", marks=pytest.mark.slow),
        pytest.param("litert", "float16", marks=pytest.mark.slow),
    ],
)
def test_latency_is_that_of_the_orders_runtime(
    runtime: RuntimeName, precision: Precision, tmp_path: Path
) -> None:
    if not is_available(runtime, converting=True):
        pytest.skip(f"extra not installed: {runtime}")
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(probe_onnx(2, 8, 8))
    found = latency_on(GRAPH, Device(runtime=runtime, precision=precision, batch=2), onnx, SAMPLES)
    assert (found.runtime, found.precision, found.batch, found.threads) == (runtime, precision, 2, 1)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms


def test_files_of_different_precisions_have_different_names() -> None:
    assert place_for(Path("out/small"), "onnx") == Path("out/small.onnx")
    assert place_for(Path("out/small"), "onnx", "int8") == Path("out/small.int8.onnx")
    names = {place_for(Path("out/small"), to).name for to in TARGETS}
    assert len(names) == len(TARGETS) and {"small.pt2", "small.aoti.pt2"} < names, (
        "none is written over another"
    )


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_what_torch_compile_computes_is_compared_on_the_samples(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eager torch stands in for the compiler, which takes a minute; it may get the outputs wrong."""
    asked: list[int] = []

    class Compiler(Worker):
        def run(self, model: Loaded, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            asked.append(len(arrays[0]))
            return [factor * output for output in super().run(model, arrays)]

    monkeypatch.setattr(on_device, "open_runtime", lambda device: Compiler("torch"))
    device, onnx = Device(runtime="compile", batch=5), tmp_path / "model.onnx"
    taken = Latency(1, 1, 1, 5, 5, threads=1, batch=5, runtime="compile", version="", processor="")
    monkeypatch.setattr(on_device, "measure_models", lambda models, device, **more: [taken])
    labels = GRAPH(SAMPLES).argmax(1)
    if factor != 1.0:
        with pytest.raises(
            VerifyError, match=r"compile in float32 differs from eager by 1\.0e-02 \(relative\)"
        ):
            measured_on(GRAPH, device, onnx, SAMPLES, tmp_path / "device", labels=labels)
        return
    file = measured_on(GRAPH, device, onnx, SAMPLES, tmp_path / "device", labels=labels).file
    assert file is not None and (file.name, file.format, file.n_samples) == ("model.pt2", "pt2", len(SAMPLES))
    assert file.difference <= 1e-4 and file.accuracy == file.accuracy_eager == 1.0
    assert set(asked) == {5}, "compiled for the order's batch alone"
    (check,) = device_checks(file, device)
    assert check.ok and check.name == "compile in float32 against eager" and check.value == file.difference


def test_the_size_of_the_device_s_own_file_is_held_against_the_budget() -> None:
    taken = Latency(1, 1, 1, 5, 5, threads=1, batch=1, runtime="onnxruntime", version="", processor="")
    whole = count(GRAPH).size_bytes
    for precision in PRECISIONS["onnxruntime"]:
        file = DeviceFile(
            name="x", format="onnx", precision=precision, size_bytes=whole + 7, difference=0, error=0
        )
        cost = OnDevice(taken, file).cost(GRAPH)
        (found,) = budget_checks(cost, Budget(size_bytes=whole), file)
        assert (found.ok, found.value) == (False, whole + 7)
        assert found.detail.startswith("measured: the bytes of x")
    (found,) = budget_checks(OnDevice(taken).cost(GRAPH), Budget(size_bytes=whole), None)
    assert (found.ok, found.value, found.detail) == (True, whole, "counted")
    (found,) = budget_checks(OnDevice(taken).cost(GRAPH), Budget(latency_ms=2), None, raw_ms=1.234)
    assert found.detail == "measured, at the profile's speed; 1.23 ms as it was"
