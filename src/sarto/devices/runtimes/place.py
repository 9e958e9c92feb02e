"""Where a runtime lives: in this environment, or in one of its own that `sarto device setup` made."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sarto.errors import RequestError
from sarto.types import RuntimeName


@dataclass(frozen=True)
class Need:
    """What a runtime needs.

    Attributes:
        extra: the optional part of sarto that brings it; None where sarto itself does.
        imports: packages that must be there to run a file.
        converting: packages that must be there to make one.
    """

    extra: str | None
    imports: tuple[str, ...]
    converting: tuple[str, ...] = ()


NEEDS: Mapping[RuntimeName, Need] = MappingProxyType(
    {
        "torch": Need(None, ("torch",)),
        "compile": Need(None, ("torch",)),
        "aotinductor": Need(None, ("torch",)),
        "onnxruntime": Need(None, ("onnxruntime",)),
        "litert": Need("litert", ("ai_edge_litert",), ("litert_torch", "ai_edge_quantizer")),
        "executorch": Need("executorch", ("executorch",), ("torchao",)),
        "openvino": Need("openvino", ("openvino",), ("nncf",)),
    }
)


def interpreter(runtime: RuntimeName, *, converting: bool = False) -> Path:
    """The Python that has a runtime: this one, or that of its own environment.

    Args:
        converting: it must also be able to make files for the runtime.

    Raises:
        RequestError: neither has it; says how to get it.
    """
    need = NEEDS[runtime]
    wanted = need.imports + (need.converting if converting else ())
    if all(_is_here(name) for name in wanted):
        return Path(sys.executable)
    own = environment(runtime) if need.extra is not None else None
    if own is not None and python_of(own).is_file() and works_in(own).is_file():
        return python_of(own)
    cure = (
        f"pip install 'sarto[{need.extra}]', or sarto device setup {runtime}, which gives it an environment of its own"
        if need.extra is not None
        else f"install {', '.join(wanted)}"
    )
    if own is not None and python_of(own).is_file():
        cure = f"its environment {own} was begun, and never seen to work; sarto device setup {runtime} goes on with it"
    raise RequestError(f"runtime {runtime!r} is not installed here: {cure}", where=runtime)


def is_available(runtime: RuntimeName, *, converting: bool = False) -> bool:
    """Whether some Python of this machine has the runtime."""
    try:
        interpreter(runtime, converting=converting)
    except RequestError:
        return False
    return True


def environment(runtime: RuntimeName) -> Path:
    """Folder of a runtime's own environment, whether it exists or not."""
    return home() / "environments" / runtime


def home() -> Path:
    """Folder in which sarto keeps what it made on this machine: SARTO_HOME, or one in the user's cache."""
    given = os.environ.get("SARTO_HOME", "")
    if given:
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sarto"


def python_of(folder: Path) -> Path:
    """The interpreter of an environment's folder."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def works_in(folder: Path) -> Path:
    """The mark in an environment's folder that its runtime was started there once."""
    return folder / "works"


def _is_here(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
