"""An environment of its own for a runtime that can't live beside what is installed here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from sarto.devices.runtimes.client import Worker
from sarto.devices.runtimes.place import NEEDS, environment, python_of, works_in
from sarto.errors import RequestError, suggest
from sarto.types import RuntimeName

#: Packages that run, make and quantise the files of a runtime; the extra of the same name holds the same ones.
REQUIREMENTS: Mapping[RuntimeName, tuple[str, ...]] = MappingProxyType(
    {
        "openvino": ("openvino>=2026.4", "nncf>=3.4"),
        "executorch": ("executorch>=1.5", "torchao>=0.18"),
        "litert": ("litert-torch>=0.10", "ai-edge-litert>=2.3", "ai-edge-quantizer>=0.10"),
    }
)
#: Runs a command, and raises `subprocess.CalledProcessError` where it fails.
Command = Callable[[Sequence[str]], object]


def set_up(
    name: str, *, again: bool = False, requirements: Sequence[str] | None = None, call: Command | None = None
) -> tuple[Path, str]:
    """Make the environment of a runtime and start the runtime in it once: its folder, and the runtime's version.

    pip's own settings say where packages come from, here as everywhere. An environment that is there and works is kept.

    Args:
        again: make it anew.
        requirements: what to install; None takes what the extra of that name says.
        call: runs a command; None runs it and shows what it prints on standard error.

    Raises:
        RequestError: no such runtime, it needs no environment, its packages can't be installed, or it does not start.
    """
    separate = {runtime: need.extra for runtime, need in NEEDS.items() if need.extra is not None}
    runtime = next((known for known in separate if known == name), None)
    if runtime is None:
        why = "comes with sarto" if name in NEEDS else f"is no runtime{suggest(name, separate)}"
        raise RequestError(
            f"{name!r} {why}; environments are made for {', '.join(sorted(separate))}", where="NAME"
        )
    folder, run = environment(runtime), call or _shown
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    python = python_of(folder)
    if not python.is_file() or (version := _version(runtime, python)) is None:
        wanted = list(requirements) if requirements is not None else requirements_of(runtime)
        folder.parent.mkdir(parents=True, exist_ok=True)
        works_in(folder).unlink(missing_ok=True)
        try:
            run([sys.executable, "-m", "venv", str(folder)])
            run([str(python), "-m", "pip", "install", *wanted])
        except (OSError, subprocess.CalledProcessError) as error:
            raise RequestError(
                f"the environment of {runtime} in {folder} could not be made ({error}); what pip said stands above. "
                f"Run sarto device setup {runtime} again to go on",
                where=runtime,
            ) from error
        version = _version(runtime, python)
    if version is None:
        raise RequestError(
            f"{runtime} was installed in {folder} and does not start; sarto device setup {runtime} --again makes it "
            "anew",
            where=runtime,
        )
    works_in(folder).touch()
    return folder, version


def requirements_of(runtime: RuntimeName) -> list[str]:
    """What the environment of a runtime gets: the packages of its extra, and the torch that runs here.

    The same torch, because programs that one torch exports are read by the other; OpenVINO uses none.
    """
    torch = metadata.version("torch").partition("+")[0]
    return [*REQUIREMENTS[runtime], "numpy", *([] if runtime == "openvino" else [f"torch=={torch}"])]


def _version(runtime: RuntimeName, python: Path) -> str | None:
    """Version of a runtime in an environment; None where it does not start there."""
    try:
        with Worker(runtime, python=python) as worker:
            return None if worker.version == "None" else worker.version
    except RequestError:
        return None


def _shown(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)
