"""Reading a few fields of a flatbuffer with every offset checked: the files of LiteRT and ExecuTorch are such."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from sarto.errors import RequestError

#: Entries of a vector that are looked at.
MOST_ENTRIES = 100_000


class Table:
    """A table of a flatbuffer; fields have numbers, and may be missing."""

    def __init__(self, data: memoryview, place: int) -> None:
        self.data, self.place = data, place
        self.head = place - _read(data, "<i", place)
        self.size = _read(data, "<H", self.head)

    def number(self, field: int, code: str, default: int = 0) -> int:
        """An integer of a struct code."""
        place = self._field(field)
        return default if place is None else _read(self.data, f"<{code}", place)

    def text(self, field: int) -> str:
        """A text, empty where it is missing."""
        start = self._follow(field)
        if start is None:
            return ""
        length = _read(self.data, "<I", start)
        if length > 1_000 or start + 4 + length > len(self.data):
            raise RequestError(f"a text of {length:,} bytes stands where a name should")
        return bytes(self.data[start + 4 : start + 4 + length]).decode("utf-8", "replace")

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a vector, none where it is missing."""
        start = self._follow(field)
        if start is None:
            return
        n = _read(self.data, "<I", start)
        if n > MOST_ENTRIES:
            raise RequestError(f"a list has {n:,} entries, the limit is {MOST_ENTRIES:,}")
        for place in range(start + 4, start + 4 + 4 * n, 4):
            yield Table(self.data, place + _read(self.data, "<I", place))

    def _field(self, field: int) -> int | None:
        at = 4 + 2 * field
        offset = _read(self.data, "<H", self.head + at) if at + 2 <= self.size else 0
        return self.place + offset if offset else None

    def _follow(self, field: int) -> int | None:
        place = self._field(field)
        return None if place is None else place + _read(self.data, "<I", place)


def root(data: memoryview, mark: bytes) -> Table:
    """The root table of a buffer with a file mark.

    Raises:
        RequestError: the mark is another one, or an offset leads out of the file.
    """
    found = bytes(data[4:8])
    if found != mark:
        raise RequestError(f"bytes 4 to 8 are {found!r}, not {mark!r}")
    return Table(data, _read(data, "<I", 0))


def _read(data: memoryview, code: str, place: int) -> int:
    if place < 0 or place + struct.calcsize(code) > len(data):
        raise RequestError(f"it is cut off or damaged: an offset leads to byte {place:,} of {len(data):,}")
    value: int = struct.unpack_from(code, data, place)[0]
    return value
