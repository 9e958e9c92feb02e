"""OpenVINO on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

SUFFIX = ".xml"


def version() -> str | None:
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return None


def prepare() -> None:
    import openvino

    openvino.Core()


class OpenvinoSession:
    """One stream, so that latency counts; computed in the precision that was asked for, and in no other."""

    def __init__(self, path: str, threads: int, precision: str) -> None:
        import openvino

        core = openvino.Core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        hints = {
            "float32": "f32",
            "int8": "f32",
            "float16": "f16" if "FP16" in able else "f32",
            "bfloat16": "bf16",
        }
        if precision == "bfloat16" and "BF16" not in able:
            raise ValueError(f"this processor has no bfloat16 in OpenVINO (it has {', '.join(able)})")
        settings = {
            "INFERENCE_PRECISION_HINT": hints[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        model = core.compile_model(core.read_model(path), "CPU", settings)
        self.request: Any = model.create_infer_request()
        self.inputs = [
            (
                port.get_any_name(),
                [size.get_length() if size.is_static else None for size in port.get_partial_shape()],
                np.dtype(port.get_element_type().to_dtype()).name,
            )
            for port in model.inputs
        ]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = self.request.infer(dict(enumerate(arrays)))
        return [np.array(found[place]) for place in range(len(found))]

    def close(self) -> None:
        self.request = None


def load(path: str, *, threads: int, precision: str) -> OpenvinoSession:
    return OpenvinoSession(path, threads, precision)
