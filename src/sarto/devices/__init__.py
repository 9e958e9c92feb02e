"""What a model costs: counted exactly on the graph, measured on real runtimes, guessed from counts."""

from __future__ import annotations

from sarto.devices.count import count, flops_by_node, params_by_tensor
from sarto.devices.latency import (
    Latency,
    measure,
    measure_onnxruntime,
    measure_torch,
    onnx_call,
    peak_flops_per_ms,
    processor,
    torch_call,
    torch_threads,
)
from sarto.devices.measuring import measure_memory, measure_models, open_runtime
from sarto.devices.memory import Moment, peak_bytes, timeline
from sarto.devices.predict import LatencyModel, calibrate, predict
from sarto.devices.runtimes import MemoryUse, Worker
from sarto.devices.session import OnnxModel, load_onnx
from sarto.devices.timing import Timing, interleaved
from sarto.devices.units import UnitCost, unit_costs

__all__ = [
    "Latency",
    "LatencyModel",
    "MemoryUse",
    "Moment",
    "OnnxModel",
    "Timing",
    "UnitCost",
    "Worker",
    "calibrate",
    "count",
    "flops_by_node",
    "interleaved",
    "load_onnx",
    "measure",
    "measure_memory",
    "measure_models",
    "measure_onnxruntime",
    "measure_torch",
    "onnx_call",
    "open_runtime",
    "params_by_tensor",
    "peak_bytes",
    "peak_flops_per_ms",
    "predict",
    "processor",
    "timeline",
    "torch_call",
    "torch_threads",
    "unit_costs",
]
