"""An order's latency is measured in its own runtime and precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sarto.devices.probe import probe, probe_onnx
from sarto.devices.runtimes import is_available
from sarto.pipeline.exporting import place_for
from sarto.pipeline.on_device import latency_on
from sarto.types import Device, Precision, RuntimeName

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
