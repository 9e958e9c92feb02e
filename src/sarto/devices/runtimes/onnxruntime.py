"""ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

SUFFIX = ".onnx"
TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def version() -> str | None:
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return None


def prepare() -> None:
    import onnxruntime  # noqa: F401


class OnnxSession:
    """Sequential, and worker threads that wait without spinning."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.session: Any = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [
            (entry.name, [size if isinstance(size, int) else None for size in entry.shape], TYPES[entry.type])
            for entry in self.session.get_inputs()
        ]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        feed = {name: array for (name, _, _), array in zip(self.inputs, arrays, strict=True)}
        return [np.asarray(output) for output in self.session.run(None, feed)]

    def close(self) -> None:
        self.session = None


def load(path: str, *, threads: int, precision: str) -> OnnxSession:
    return OnnxSession(path, threads)
