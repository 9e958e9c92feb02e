"""AOTInductor: a graph that PyTorch compiled into a library, ahead of time. The file is code: load only your own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

SUFFIX = ".aoti.pt2"


def version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def prepare() -> None:
    import torch._inductor  # noqa: F401


class AotSession:
    """What the library takes stands in its metadata."""

    def __init__(self, path: str, threads: int) -> None:
        import torch
        from torch._inductor import aoti_load_package

        torch.set_num_threads(threads)
        self.torch: Any = torch
        self.model: Any = aoti_load_package(path)
        said = json.loads(self.model.loader.get_metadata()["sarto_inputs"])
        self.inputs: list[tuple[str, list[int | None], str]] = [
            (name, shape, dtype) for name, shape, dtype in said
        ]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with self.torch.inference_mode():
            found = self.model(*[self.torch.from_numpy(array) for array in arrays])
        outputs = found if isinstance(found, tuple | list) else (found,)
        return [output.numpy() for output in outputs]

    def close(self) -> None:
        self.model = None


def load(path: str, *, threads: int, precision: str) -> AotSession:
    return AotSession(path, threads)
