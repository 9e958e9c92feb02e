"""An order's folder of hops: each finished hop is a file, so an interrupted order goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sarto.errors import RequestError
from sarto.pipeline.artifact import MANIFEST, Artifact, write_text
from sarto.types import Request

T = TypeVar("T")
FOLDER = ".job"


class Job:
    """The hops of one order. A hop's file is written whole, after its work is done."""

    def __init__(self, out: Path, request: Request, *, extra: str = "") -> None:
        """Open or begin the job in a folder.

        Args:
            extra: what else identifies the job, e.g. the key of a given plan.

        Raises:
            RequestError: the folder holds another order, or files that sarto did not write.
        """
        self.out = out
        self.folder = out / FOLDER
        identity = json.dumps({"request": json.loads(request.to_json()), "extra": extra}, sort_keys=True)
        known = self.folder / "order.json"
        if known.is_file() and known.read_text(encoding="utf-8") != identity:
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
            write_text(known, identity)
        self._seconds: dict[str, float] = {}
        times = self.folder / "seconds.json"
        if times.is_file():
            self._seconds.update(json.loads(times.read_text(encoding="utf-8")))

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
