"""Bytes by their hash: written whole or not at all, and checked before they are believed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sarto.errors import StoreError
from sarto.market.file_locks import lock_file

KEY = re.compile(r"sha256:[0-9a-f]{64}")
#: Age after which a temporary folder is given up where its owner can't be asked (no file locks).
_STALE_S = 24 * 3600
_LOCK = "lock"


@dataclass(frozen=True)
class Staged:
    """Bytes that are safe on disk but not yet visible under their key."""

    key: str
    path: Path
    size_bytes: int


class Blobs(Protocol):
    """Where the bytes of a market lie. A key is "sha256:<64 hex>" of the bytes.

    Preparing and staging may be slow and run beside other writers. `publish` and `remove` are quick; whoever
    calls them holds the market's write lock, so that no blob goes between being seen and being referred to.
    """

    def workplace(self) -> AbstractContextManager[Path]:
        """A new local folder in which files are prepared; what was not published is gone afterwards."""

    def stage(self, path: Path) -> Staged:
        """Make a file of the workplace safe on disk, and hash it."""

    def publish(self, staged: Staged) -> None:
        """Make staged bytes visible, in the place of what is there if that is damaged."""

    def path(self, key: str) -> Path:
        """A local path with the bytes, after their hash was checked."""

    def problem(self, key: str) -> str | None:
        """What is wrong with a blob, by reading all of it; None where it is whole."""

    def remove(self, key: str) -> int:
        """Delete a blob; the bytes that this frees, 0 where there was none."""

    def __iter__(self) -> Iterator[str]:
        """Every key, sorted."""

    def tidy(self) -> int:
        """Remove what writers left that died; the number of them."""

    def close(self) -> None:
        """Give the workplaces back."""


class FolderBlobs:
    """Blobs in a local folder: `ab/cdef...` for the key "sha256:abcdef...", `tmp/` for what is being written.

    Every writer has a folder of its own under `tmp/` and holds a lock on a file in it. The system releases
    the lock when the writer dies, however it dies: so leftovers of the dead are told from work of the living.
    """

    def __init__(self, folder: Path) -> None:
        """Open (or start) the folder, and clear what dead writers left there."""
        self._folder = folder
        self._checked: dict[str, tuple[int, int, int]] = {}
        self._session: _Session | None = None
        self.tidy()

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """A new empty folder on the same file system as the blobs; what was not published is gone afterwards.

        Raises:
            StoreError: it can't be made, or the file system failed while it was used (a full disk, say).
        """
        with writing(self._folder):
            session = self._joined()
            path = session.folder / uuid.uuid4().hex
            path.mkdir()
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def stage(self, path: Path) -> Staged:
        """Make a file of the workplace safe on disk, and hash it.

        Raises:
            StoreError: the system can't write it out.
        """
        with writing(self._folder), path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Staged(_key(digest), path, os.fstat(file.fileno()).st_size)

    def publish(self, staged: Staged) -> None:
        """Make staged bytes visible in one step; a whole blob that is there already stays as it is.

        Raises:
            StoreError: the step failed; the blob is either there as a whole or not at all.
        """
        target = self._place(staged.key)
        if target.exists() and self._damage(staged.key) is None:
            return
        with writing(self._folder):
            if not target.parent.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _fsync_folder(target.parent.parent)
            os.replace(staged.path, target)
            _fsync_folder(target.parent)

    def path(self, key: str) -> Path:
        """Where the bytes lie. They are hashed when first asked for, and again when the file has changed.

        Raises:
            StoreError: there is no such blob, or its bytes have another hash.
        """
        damage = self._damage(key)
        if damage is not None:
            raise StoreError(damage, where=str(self._place(key)))
        return self._place(key)

    def problem(self, key: str) -> str | None:
        """What is wrong with a blob, by reading all of it now."""
        self._checked.pop(key, None)
        return self._damage(key)

    def remove(self, key: str) -> int:
        """Delete a blob.

        Returns:
            Bytes that this frees; 0 where there was no such blob.

        Raises:
            StoreError: it can't be deleted.
        """
        place = self._place(key)
        with writing(self._folder, "a blob that nobody needs stays behind"):
            try:
                size_bytes = place.stat().st_size
                place.unlink()
            except FileNotFoundError:
                return 0
            with contextlib.suppress(OSError):
                place.parent.rmdir()
        self._checked.pop(key, None)
        return size_bytes

    def __iter__(self) -> Iterator[str]:
        """Every key, sorted; files with other names are not blobs."""
        for file in sorted(self._folder.glob("[0-9a-f][0-9a-f]/*")):
            key = _key(file.parent.name + file.name)
            if KEY.fullmatch(key):
                yield key

    def tidy(self) -> int:
        """Remove the temporary folders whose writer is gone; their number."""
        tmp = self._folder / "tmp"
        return sum(_clear(path) for path in sorted(tmp.iterdir())) if tmp.is_dir() else 0

    def close(self) -> None:
        """Remove this writer's temporary folder."""
        if self._session is not None:
            self._session.leave()
            self._session = None

    def _joined(self) -> _Session:
        """This process's session. Who works in it holds on to it: it ends when nobody does."""
        session = self._session
        if session is None or session.pid != os.getpid():
            session = self._session = _Session(self._folder / "tmp")
        return session

    def _place(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise StoreError(f"{key!r} is no blob key; a key is 'sha256:' and 64 hex digits")
        digits = key.removeprefix("sha256:")
        return self._folder / digits[:2] / digits[2:]

    def _damage(self, key: str) -> str | None:
        place = self._place(key)
        try:
            with place.open("rb") as file:
                found = os.fstat(file.fileno())
                seen = (found.st_ino, found.st_size, found.st_mtime_ns)
                if self._checked.get(key) == seen:
                    return None
                digest = _key(hashlib.file_digest(file, "sha256").hexdigest())
        except FileNotFoundError:
            return f"blob {key} is missing: no file {place}"
        except OSError as error:
            return f"blob {key} can't be read: {error}"
        if digest != key:
            return f"blob {key} is damaged: the {found.st_size} bytes in {place} have the hash {digest}"
        self._checked[key] = seen
        return None


class _Session:
    """A temporary folder that belongs to this process for as long as it lives."""

    def __init__(self, tmp: Path) -> None:
        self.pid = os.getpid()
        while True:
            folder = tmp / uuid.uuid4().hex
            folder.mkdir(parents=True)
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            # Between these two lines somebody may take the new folder for an abandoned one.
            if lock_file(lock) is not False and (folder / _LOCK).exists():
                break
            os.close(lock)
        self.folder = folder
        self._leave = weakref.finalize(self, _leave, folder, lock, self.pid)

    def leave(self) -> None:
        self._leave()


def _leave(folder: Path, lock: int, pid: int) -> None:
    if pid == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _clear(folder: Path) -> bool:
    """Remove a temporary folder that no living process works in; True where it was one."""
    try:
        old = time.time() - folder.stat().st_mtime > _STALE_S
        lock = os.open(folder / _LOCK, os.O_RDWR) if (folder / _LOCK).exists() else None
    except OSError:
        return False
    try:
        # The folder goes while the lock is held, so that nobody can move in meanwhile.
        locked = None if lock is None else lock_file(lock)
        free = old if locked is None else locked
        if free:
            shutil.rmtree(folder, ignore_errors=True)
        return free
    finally:
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def writing(folder: Path, outcome: str = "the market is unchanged") -> Iterator[None]:
    """Turn errors of the file system into one that says what they mean for the market."""
    try:
        yield
    except OSError as error:
        cure = (
            "free some space and try again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "look at the folder"
        )
        raise StoreError(
            f"writing to {str(folder)!r} failed ({error.strerror or error}); {outcome}: {cure}",
            where=str(folder),
        ) from error


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _key(digits: str) -> str:
    return "sha256:" + digits
