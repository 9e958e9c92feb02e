"""PyTorch with `torch.compile`: compiled at the first batch of each size, which takes seconds to minutes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

SUFFIX = ".pt2"


def version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def prepare() -> None:
    import torch._inductor.compile_fx  # noqa: F401

    import sarto.graph  # noqa: F401


class CompiledSession:
    """The same graph as eager's, compiled."""

    def __init__(self, path: str, threads: int, precision: str) -> None:
        self.session: Any = _eager().TorchSession(path, threads, precision, compiled=True)
        self.inputs = self.session.inputs

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session.run(arrays)
        return outputs

    def close(self) -> None:
        self.session.close()


def load(path: str, *, threads: int, precision: str) -> CompiledSession:
    return CompiledSession(path, threads, precision)


def _eager() -> Any:
    """The file beside this one, wherever this one was read from."""
    spec = importlib.util.spec_from_file_location("_torch_eager", Path(__file__).with_name("torch_eager.py"))
    if spec is None or spec.loader is None:
        raise ImportError("torch_eager.py is missing beside torch_compile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
