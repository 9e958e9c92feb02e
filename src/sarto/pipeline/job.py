"""An order's folder of hops: each finished hop is a file, so an interrupted order goes on where it stopped."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sarto.errors import RequestError
from sarto.market.file_locks import lock_file
from sarto.pipeline.artifact import MANIFEST, Artifact, write_text
from sarto.types import Request

T = TypeVar("T")
FOLDER = ".job"
#: In it: which process works here. It stays; without a holder it means nothing.
LOCK = "make.lock"


class Job:
    """The hops of one order. A hop's file is written whole, after its work is done.

    Its folder belongs to one process at a time, as long as the job is used.
    """

    def __init__(self, out: Path, request: Request, *, extra: str = "") -> None:
        """Open or begin the job in a folder.

        Args:
            extra: what else identifies the job, e.g. the key of a given plan.

        Raises:
            RequestError: the folder holds another order, or files that sarto did not write, or another process works
                in it.
        """
        self.out = out
        self.folder = out / FOLDER
        identity = json.dumps({"request": json.loads(request.to_json()), "extra": extra}, sort_keys=True)
        known = self.folder / "order.json"
        if known.is_file() and not _is_of(known.read_text(encoding="utf-8"), request, extra):
            raise RequestError(
                f"{out} holds another order; choose another folder, or remove it", where=str(out)
            )
        if not known.is_file():
            strangers = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
            strangers = [name for name in strangers if name != FOLDER]
            if strangers:
                raise RequestError(
                    f"{out} is not empty ({', '.join(strangers[:5])}); choose a new folder", where=str(out)
                )
            self.folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        if not known.is_file():
            write_text(known, identity)
        self._seconds: dict[str, float] = {}
        times = self.folder / "seconds.json"
        if times.is_file():
            self._seconds.update(json.loads(times.read_text(encoding="utf-8")))

    def _hold(self) -> None:
        """Take the folder's lock; the system gives it up with this process, however that ends.

        What is left of an earlier job of this process, after an error that somebody keeps, stands in nobody's way.
        """
        try:
            file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            # Nobody works in a folder that can't be written; a finished model is still read from it.
            return
        own = str(os.getpid()).encode()
        ours = os.read(file, 20) == own
        if lock_file(file) is False and not ours:
            os.close(file)
            raise RequestError(
                f"another make works in {self.out}: wait until it is done, or choose another folder",
                where=str(self.out),
            )
        if not ours:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, own)
        weakref.finalize(self, os.close, file)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall time of each hop that was worked on, resumed ones included."""
        return dict(self._seconds)

    @property
    def finished(self) -> Artifact | None:
        """The artifact, where the last hop was done and nothing was changed since."""
        if not (self.out / MANIFEST).is_file():
            return None
        artifact = Artifact.read(self.out)
        return None if artifact.damage() else artifact

    def done(self, name: str) -> bool:
        """Whether a hop was done before."""
        return (self.folder / f"{name}.json").is_file()

    def hop(self, name: str, work: Callable[[], T], write: Callable[[T], Any], read: Callable[[Any], T]) -> T:
        """The result of a hop: read from its file, or worked out and written there.

        Args:
            write: result -> plain JSON.
            read: plain JSON -> result.
        """
        path = self.folder / f"{name}.json"
        if path.is_file():
            return read(json.loads(path.read_text(encoding="utf-8")))
        started = time.perf_counter()
        result = work()
        self.record(name, started)
        write_text(path, json.dumps(write(result)))
        return result

    def record(self, name: str, started: float) -> None:
        """Note the wall time of a hop since `started` (of time.perf_counter)."""
        self._seconds[name] = round(time.perf_counter() - started, 4)
        write_text(self.folder / "seconds.json", json.dumps(self._seconds))


def _is_of(text: str, request: Request, extra: str) -> bool:
    """Whether a job was begun for this order; fields that the order got since then have their defaults."""
    try:
        found = json.loads(text)
        return bool(found["extra"] == extra) and Request.parse(found["request"]) == request
    except (ValueError, KeyError, TypeError, RequestError):
        return False
