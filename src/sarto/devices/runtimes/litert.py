"""LiteRT (formerly TensorFlow Lite) on the processor, with XNNPACK."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

SUFFIX = ".tflite"


def version() -> str | None:
    try:
        return metadata.version("ai-edge-litert")
    except metadata.PackageNotFoundError:
        return None


def prepare() -> None:
    import ai_edge_litert.interpreter  # noqa: F401


class LitertSession:
    """Buffers are laid out anew when the batch changes, where the file leaves it free."""

    def __init__(self, path: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter: Any = Interpreter(model_path=path, num_threads=threads)
        self.interpreter.allocate_tensors()
        runner = self.interpreter.get_signature_runner()
        entries = [found for _, found in sorted(runner.get_input_details().items(), key=_place)]
        self.taken = [entry["index"] for entry in entries]
        self.made = [found["index"] for _, found in sorted(runner.get_output_details().items(), key=_place)]
        self.inputs = [
            (
                name,
                [None if size < 0 else int(size) for size in entry["shape_signature"]],
                np.dtype(entry["dtype"]).name,
            )
            for name, entry in zip(
                sorted(runner.get_input_details(), key=lambda n: _place((n, None))), entries, strict=True
            )
        ]
        self.shapes = [tuple(int(size) for size in entry["shape"]) for entry in entries]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        shapes = [array.shape for array in arrays]
        if shapes != self.shapes:
            for index, shape in zip(self.taken, shapes, strict=True):
                self.interpreter.resize_tensor_input(index, shape, strict=True)
            self.interpreter.allocate_tensors()
            self.shapes = shapes
        for index, array in zip(self.taken, arrays, strict=True):
            self.interpreter.set_tensor(index, array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.made]

    def close(self) -> None:
        self.interpreter = None


def load(path: str, *, threads: int, precision: str) -> LitertSession:
    return LitertSession(path, threads)


def _place(entry: tuple[str, Any]) -> tuple[int, str]:
    """Where a name such as args_2 or output_0 stands."""
    number = re.search(r"(\d+)$", entry[0])
    return (int(number.group(1)) if number else 0, entry[0])
