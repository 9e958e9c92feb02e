"""How long work says where it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called with a step's name, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def silent(step: str, done: int, total: int) -> None:
    """Says nothing."""
