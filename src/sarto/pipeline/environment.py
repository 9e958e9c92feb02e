"""Where an order was built and measured."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sarto.types import Environment

_PACKAGES = ("sarto", "torch", "onnx", "onnxruntime", "numpy", "scipy", "safetensors", "pydantic")


def environment(threads: int) -> Environment:
    """Versions, threads and machine of this process."""
    return Environment(versions=versions(), threads=threads, machine=f"{_processor()}, {platform.system()}")


@cache
def versions() -> dict[str, str]:
    """Package -> version of what computes here, Python included."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
