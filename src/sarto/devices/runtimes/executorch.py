"""ExecuTorch on the processor, with XNNPACK."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

SUFFIX = ".pte"
#: Number of a type in a program's description -> name; what torch calls its scalar types.
TYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}


def version() -> str | None:
    try:
        return metadata.version("executorch")
    except metadata.PackageNotFoundError:
        return None


def prepare() -> None:
    import torch  # noqa: F401
    from executorch.extension.pybindings import portable_lib  # noqa: F401
    from executorch.runtime import Runtime  # noqa: F401


class ExecutorchSession:
    """The method `forward` of a program; all programs of a process share one pool of threads."""

    def __init__(self, path: str, threads: int) -> None:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)
        self.tensor = torch.from_numpy
        # The method runs in the memory of its program.
        self.program: Any = Runtime.get().load_program(path)
        self.method: Any = self.program.load_method("forward")
        about = self.method.metadata
        # Where the batch is free, the sizes are the largest ones.
        self.free = "sarto_max_batch" in self.program.method_names
        entries = [about.input_tensor_meta(place) for place in range(about.num_inputs())]
        self.inputs: list[tuple[str, list[int | None], str]] = [
            (
                f"input_{place}",
                [None if self.free and not axis else int(size) for axis, size in enumerate(entry.sizes())],
                TYPES[entry.dtype()],
            )
            for place, entry in enumerate(entries)
        ]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = self.method.execute([self.tensor(array) for array in arrays])
        return [np.array(output) for output in outputs]

    def close(self) -> None:
        self.method = self.program = None


def load(path: str, *, threads: int, precision: str) -> ExecutorchSession:
    return ExecutorchSession(path, threads)
