"""Where a number comes from: commit, machine, versions, data."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from benchmarks.schema import Machine
from sarto.errors import RequestError


def revision(folder: Path) -> tuple[str | None, bool]:
    """The commit of a checkout, and whether its files differ from it; (None, True) where there is no git.

    Results don't count as a difference: a run must not spoil the next one.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!benchmarks/README.md")
    except (OSError, subprocess.CalledProcessError):
        return None, True
    return commit, bool(changes)


def data_folder() -> Path:
    """The folder of data sets and weights that SARTO_DATA names.

    Raises:
        RequestError: the variable is not set, or names no folder.
    """
    named = os.environ.get("SARTO_DATA", "")
    if not named or not Path(named).is_dir():
        raise RequestError(
            f"the environment variable SARTO_DATA {f'names {named}, which is no folder' if named else 'is not set'}: "
            "it names the folder of the data sets and weights that benchmarks read (cifar10, cifar100, mnist, trec, "
            "weights and others); --smoke runs without it"
        )
    return Path(named)


def this_machine() -> Machine:
    """The processor, the cores this process may use, and the memory."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = None
    with contextlib.suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=processor, cores=cores, memory_bytes=memory, system=platform.platform(terse=True)
    )


def version(package: str) -> str | None:
    """The installed version of a package, or of Python itself; None when it is not installed."""
    if package == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
