"""PyTorch, operator by operator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

SUFFIX = ".pt2"


def version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def prepare() -> None:
    import sarto.graph  # noqa: F401


class TorchSession:
    """A graph folder or a `.pt2` file, read without trusting it.

    A folder is run in the precision that is asked for, a file in the one that it was written in. Half precision begins
    and ends in single precision.
    """

    def __init__(self, path: str, threads: int, precision: str, *, compiled: bool = False) -> None:
        import torch

        from sarto.graph import read_graph, read_pt2

        torch.set_num_threads(threads)
        graph = read_graph(path) if os.path.isdir(path) else read_pt2(path)
        self.torch: Any = torch
        self.inputs = [
            (entry.name, [size if isinstance(size, int) else None for size in entry.shape], entry.dtype)
            for entry in graph.inputs
        ]
        if precision != "float32" and os.path.isdir(path):
            graph = graph.to(getattr(torch, precision))
        self.dtypes = [getattr(torch, entry.dtype) for entry in graph.inputs]
        module = graph.module()
        self.module: Any = torch.compile(module, dynamic=False) if compiled else module

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        torch = self.torch
        given = [torch.from_numpy(array).to(dtype) for array, dtype in zip(arrays, self.dtypes, strict=True)]
        with torch.inference_mode():
            found = self.module(*given)
        outputs = found if isinstance(found, tuple | list) else (found,)
        halves = (torch.float16, torch.bfloat16)
        return [(output.float() if output.dtype in halves else output).numpy() for output in outputs]

    def close(self) -> None:
        self.module = None


def load(path: str, *, threads: int, precision: str) -> TorchSession:
    return TorchSession(path, threads, precision)
