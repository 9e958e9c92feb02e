"""Models for other runtimes, compared with eager before they count."""

from __future__ import annotations

from sarto.devices import OnnxModel, load_onnx
from sarto.export.comparing import LEAST_AGREEMENT, LIMITS, MOST_ERROR
from sarto.export.exporting import Exported, check_target, export, write_for
from sarto.export.onnx import OnnxExport, export_onnx, to_onnx
from sarto.export.resizing import Known
from sarto.export.sidecar import sidecar_of
from sarto.export.targets import FORMATS, TARGETS, TargetName

__all__ = [
    "FORMATS",
    "LEAST_AGREEMENT",
    "LIMITS",
    "MOST_ERROR",
    "TARGETS",
    "Exported",
    "Known",
    "OnnxExport",
    "OnnxModel",
    "TargetName",
    "check_target",
    "export",
    "export_onnx",
    "load_onnx",
    "sidecar_of",
    "to_onnx",
    "write_for",
]
