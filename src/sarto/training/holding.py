"""One training in a folder at a time: a lock that goes with the process that holds it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sarto.errors import StoreError
from sarto.market.file_locks import lock_file

#: Beside the checkpoints: who trains here. It stays; without a holder it means nothing.
LOCK = "training.lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder for this process alone.

    The system gives the lock up with its process, however that ends: what a killed training left is taken over. Where
    a file system has no locks, the process that the file names decides.

    Raises:
        StoreError: another process trains there; names it.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        owner = _owner(file)
        if not _free(file, owner):
            who = f"process {owner[0]} on {owner[1]}" if owner else "another process"
            raise StoreError(
                f"{who} trains in {folder} already: wait until it is done, end it, or give another folder",
                where=str(folder),
            )
        _write(file, json.dumps({"process": os.getpid(), "machine": platform.node()}))
        try:
            yield
        finally:
            _write(file, "")


def _free(file: TextIO, owner: tuple[int, str] | None) -> bool:
    """Whether nobody holds the file; the lock is then ours, where there are locks."""
    locked = lock_file(file.fileno())
    if locked is None:
        return owner is None or owner[1] != platform.node() or not _lives(owner[0])
    return locked


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _owner(file: TextIO) -> tuple[int, str] | None:
    """Process and machine that the file names; None where it names none, or is just being written."""
    file.seek(0)
    try:
        told = json.loads(file.read())
        return int(told["process"]), str(told["machine"])
    except (ValueError, KeyError, TypeError):
        return None


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
