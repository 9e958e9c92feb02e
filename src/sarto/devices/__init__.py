"""What a model costs: counted exactly on the graph, measured on real runtimes."""

from __future__ import annotations

from sarto.devices.count import count, flops_by_node, params_by_tensor
from sarto.devices.latency import Latency, measure, measure_onnxruntime, measure_torch, peak_flops_per_ms
from sarto.devices.memory import Moment, peak_bytes, timeline

__all__ = [
    "Latency",
    "Moment",
    "count",
    "flops_by_node",
    "measure",
    "measure_onnxruntime",
    "measure_torch",
    "params_by_tensor",
    "peak_bytes",
    "peak_flops_per_ms",
    "timeline",
]
