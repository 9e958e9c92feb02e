"""What an agent gives to those who use it, at most."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from sarto.devices.timing import check_positive

#: Runtimes that an agent never offers, and why.
NEVER = {"aotinductor": "its files are native code, which an agent never runs"}


def half_of_memory() -> int:
    """Half of the machine's memory in bytes; 4 GiB where the system does not say."""
    return memory_bytes() // 2 or 4 << 30


def memory_bytes() -> int:
    """Memory of this machine; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds.

    Attributes:
        upload_bytes: of one uploaded model.
        request_bytes: of any other request, arrays included.
        stored_bytes: of all models that are kept.
        models: that are kept.
        uploads: that come in or are checked at once; further ones are refused.
        memory_bytes: resident in the process that runs models; it is ended where it takes more.
        threads: that a request may ask for.
        deadline_s: of one request's work, without waiting for its turn or for a process to start.
        head_s: from the connection to the end of the request's head.
        idle_s: between two parts of a body, either way.
        body_s: of a whole body.
        waiting: requests that wait for their turn; further ones are refused.
        wait_s: that a request waits for its turn.
        keep_s: that an unused model is kept.
        rest_s: that the process that runs models lives without work.
        connections: open at once.
    """

    upload_bytes: int = 256 << 20
    request_bytes: int = 64 << 20
    stored_bytes: int = 2 << 30
    models: int = 64
    uploads: int = 4
    memory_bytes: int = field(default_factory=half_of_memory)
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    deadline_s: float = 300.0
    head_s: float = 10.0
    idle_s: float = 15.0
    body_s: float = 600.0
    waiting: int = 8
    wait_s: float = 300.0
    keep_s: float = 3_600.0
    rest_s: float = 60.0
    connections: int = 64

    def __post_init__(self) -> None:
        check_positive(**{entry.name: getattr(self, entry.name) for entry in fields(self)})
