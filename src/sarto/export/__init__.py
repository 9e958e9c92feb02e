"""Models for other runtimes, each checked against eager before it counts."""

from __future__ import annotations

from sarto.devices import OnnxModel, load_onnx
from sarto.export.onnx import OnnxExport, export_onnx, to_onnx

__all__ = ["OnnxExport", "OnnxModel", "export_onnx", "load_onnx", "to_onnx"]
