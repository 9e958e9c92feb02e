"""Latency: what a measurement says of itself, and what it refuses. No timing is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sarto.devices import measure, measure_onnxruntime, measure_torch
from sarto.errors import RequestError
from sarto.export import export_onnx
from sarto.graph import capture
from sarto.testing.pico import pico
from sarto.types import Device

GRAPH = capture(*pico("residual", dtype=torch.float32), prove=False)


def test_a_measurement_states_its_conditions_and_restores_the_threads() -> None:
    before = torch.get_num_threads()
    found = measure_torch(GRAPH, threads=2, batch=3, seconds=0.05)
    assert torch.get_num_threads() == before
    assert (found.threads, found.batch, found.runtime, found.version) == (2, 3, "torch", torch.__version__)
    assert found.runs >= 15 and found.warmup >= 3
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms


def test_onnxruntime_is_measured_on_the_exported_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(GRAPH, path)
    found = measure(GRAPH, Device(runtime="onnxruntime", threads=1, batch=2), onnx=path, seconds=0.05)
    assert (found.runtime, found.threads, found.batch) == ("onnxruntime", 1, 2)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert measure(GRAPH, Device(runtime="torch"), seconds=0.05).runtime == "torch"


def test_nonsense_is_refused_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        measure_torch(GRAPH, threads=0, batch=-1, seconds=0.0)
    assert all(word in str(caught.value) for word in ("threads", "batch", "seconds", "above 0"))
    with pytest.raises(RequestError, match="export the graph first"):
        measure(GRAPH, Device(runtime="onnxruntime"))
    with pytest.raises(RequestError, match="threads must be above 0"):
        measure_onnxruntime(tmp_path / "none.onnx", threads=-2)
