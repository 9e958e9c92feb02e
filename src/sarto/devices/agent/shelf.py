"""The models that an agent keeps: uploaded, let in, and found by an id that it made itself."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sarto.devices.agent import allowed
from sarto.devices.agent.limits import Limits
from sarto.devices.runtimes import Refusal, Worker
from sarto.errors import RequestError, StoreError

#: Seconds that the first check of a process may take beyond its deadline: it imports what reads models.
IMPORTS_S = 60.0


class FullError(StoreError):
    """There is no room for a further model."""


class BusyError(RequestError):
    """The agent has too much to do.

    Attributes:
        waited: whether the request waited for its turn in vain; else it was not let into the queue.
    """

    def __init__(self, detail: str, *, waited: bool) -> None:
        super().__init__(detail)
        self.waited = waited


@dataclass
class Kept:
    """A model on the shelf.

    Attributes:
        path: what a runtime loads.
        used: when, on the monotonic clock.
    """

    id: str
    kind: str
    path: Path
    size_bytes: int
    used: float


class Shelf:
    """Models in a folder of the agent's own. Ids are looked up, and are never parts of paths before they were found."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self._kept: dict[str, Kept] = {}
        self._lock, self._checking = threading.Lock(), threading.Lock()
        self._checker: Worker | None = None
        self._coming = 0

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A file that does not exist, for bytes that come in; it is gone afterwards.

        Raises:
            BusyError: as many files as may are coming in, or being checked.
        """
        with self._lock:
            if self._coming >= self.limits.uploads:
                raise BusyError(
                    f"{self._coming} models are coming in or being checked here, and more may not at once; try again",
                    waited=False,
                )
            self._coming += 1
        file = self.folder / f"incoming-{uuid.uuid4().hex}"
        try:
            yield file
        finally:
            with self._lock:
                self._coming -= 1
            file.unlink(missing_ok=True)

    def add(self, kind: str, file: Path) -> Kept:
        """Let a file in, which moves or goes.

        Raises:
            RequestError: it is not on the list of what is let in; all problems at once.
            FullError: there is no room.
        """
        made = uuid.uuid4().hex
        home = self.folder / made
        try:
            size = file.stat().st_size
            self._make_room(size)
            home.mkdir()
            kept = Kept(made, kind, home / self._checked(kind, file, home), size, time.monotonic())
            with self._lock:
                self._check_room(size)
                self._kept[made] = kept
            return kept
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        finally:
            file.unlink(missing_ok=True)

    def get(self, model: str) -> Kept:
        """A model by its id.

        Raises:
            StoreError: there is none.
        """
        with self._lock:
            found = self._kept.get(model)
            if found is None:
                raise StoreError(f"there is no model {model[:40]!r} here; upload it again")
            found.used = time.monotonic()
            return found

    def __contains__(self, model: str) -> bool:
        return model in self._kept

    def remove(self, model: str) -> None:
        """Forget a model.

        Raises:
            StoreError: there is none.
        """
        with self._lock:
            found = self._kept.pop(model, None)
        if found is None:
            raise StoreError(f"there is no model {model[:40]!r} here")
        shutil.rmtree(self.folder / found.id, ignore_errors=True)

    def rest(self) -> None:
        """Give back what checking takes, where nothing is checked."""
        if self._checking.acquire(blocking=False):
            try:
                self._end_checker()
            finally:
                self._checking.release()

    def close(self) -> None:
        """End the process that checks files, whatever it does."""
        checker = self._checker
        if checker is not None:
            checker.kill()
        with self._checking:
            self._end_checker()

    def _make_room(self, size: int) -> None:
        now = time.monotonic()
        old = [kept.id for kept in list(self._kept.values()) if now - kept.used > self.limits.keep_s]
        for model in old:
            if model in self:
                self.remove(model)
        self._check_room(size)

    def _check_room(self, size: int) -> None:
        used = sum(kept.size_bytes for kept in self._kept.values())
        if len(self._kept) >= self.limits.models or used + size > self.limits.stored_bytes:
            raise FullError(
                f"{len(self._kept)} models of {used:,} bytes are kept here, and {size:,} bytes more are too many (at "
                f"most {self.limits.models} models, {self.limits.stored_bytes:,} bytes); delete some"
            )

    def _checked(self, kind: str, file: Path, home: Path) -> str:
        """Path below home of what a runtime loads. The check runs in a process of its own, which may die of it."""
        with self._checking:
            if self._checker is not None and not self._checker.alive:
                self._end_checker()
            spare = 0.0
            if self._checker is None:
                spare = IMPORTS_S
                self._checker = Worker(
                    "torch",
                    max_memory_bytes=self.limits.memory_bytes,
                    deadlines={"convert": self.limits.deadline_s},
                )
            arguments = {"kind": kind, "file": str(file), "folder": str(home)}
            try:
                said = self._checker.convert(Path(allowed.__file__), arguments, spare=spare)
            except Refusal as refusal:
                reason = refusal.reason.splitlines()[0][:300]
                raise RequestError(f"this {kind} file can't be read: {reason}") from refusal
            except RequestError as error:
                self._end_checker()
                raise RequestError(f"this {kind} file can't be read: {error.detail}") from error
        if "path" not in said:
            problems = [str(problem) for problem in said["problems"]]
            raise RequestError(f"this {kind} file is refused: {said['detail']}", problems=problems)
        return str(said["path"])

    def _end_checker(self) -> None:
        if self._checker is not None:
            self._checker.end()
            self._checker = None
