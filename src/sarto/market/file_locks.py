"""Locks of files that go with the process that holds them, however it ends."""

from __future__ import annotations

try:
    import fcntl
except ImportError:  # pragma: no cover - systems without file locks
    fcntl = None  # type: ignore[assignment]


def lock_file(file: int, *, wait: bool = False) -> bool | None:
    """Whether the lock of an open file was free and is ours now; None where the file system has no locks.

    Args:
        file: its descriptor; closing it gives the lock up.
        wait: until it is free.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
