"""What a runtime is: a file that loads a model and runs it on arrays.

The files of runtimes, `worker` and `devices.turns` import the standard library, numpy and
their runtime, and sarto nowhere (`torch_eager` and `torch_compile` read graphs, which only sarto can, and run in its
own environment). So `worker.py` can be run by any interpreter, in an environment that has the runtime and no sarto.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Session(Protocol):
    """A model that is ready to run.

    Attributes:
        inputs: name, shape (None where a size is free) and type of each array that it takes.
    """

    inputs: list[tuple[str, list[int | None], str]]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs for a batch, floating-point ones in single precision; arrays stay as they are."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Runtime(Protocol):
    """What each file of a runtime offers, as functions of the module."""

    SUFFIX: str

    def version(self) -> str | None:
        """Version of the runtime; None where it can't be imported."""
        ...

    def prepare(self) -> None:
        """Import what the runtime needs, so that loading a model is that alone."""
        ...

    def load(self, path: str, *, threads: int, precision: str) -> Session:
        """A session for a file, on so many threads."""
        ...
