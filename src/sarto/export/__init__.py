"""Models for other runtimes, each checked against eager before it counts."""

from __future__ import annotations

from sarto.export.onnx import OnnxExport, export_onnx, to_onnx

__all__ = ["OnnxExport", "export_onnx", "to_onnx"]
