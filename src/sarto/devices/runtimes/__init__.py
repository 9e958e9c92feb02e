"""Runtimes: each in a worker process of its own, in this environment or in another one."""

from __future__ import annotations

from sarto.devices.runtimes.client import Loaded, MemoryUse, Refusal, Worker
from sarto.devices.runtimes.place import NEEDS, environment, home, interpreter, is_available, python_of

__all__ = [
    "NEEDS",
    "Loaded",
    "MemoryUse",
    "Refusal",
    "Worker",
    "environment",
    "home",
    "interpreter",
    "is_available",
    "python_of",
]
