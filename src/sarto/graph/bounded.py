"""Reading text of unknown origin: JSON that can't grow, and values that are safe to show."""

from __future__ import annotations

import json
import re
from reprlib import Repr
from typing import Any, Final

import numpy as np

from sarto.errors import GraphError, SartoError

#: How deep JSON may be nested; graph files need seven levels.
MAX_DEPTH: Final = 16
#: How many values a JSON text may hold; bounds the memory that its parsed form takes.
MAX_VALUES: Final = 8_000_000

#: A string of JSON, also one without an end: so every byte is looked at once.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1


def parse_json(data: bytes, *, max_bytes: int, error: type[SartoError] = GraphError) -> Any:
    """Plain data from JSON text; size, depth and number of values are bounded before anything is built.

    Raises:
        error: the text is too long, too deep, not UTF-8, not JSON, or holds NaN or an endless number.
    """
    if len(data) > max_bytes:
        raise error(f"the JSON has {len(data):,} bytes, the limit is {max_bytes:,}")
    structure = _STRING.sub(b"", data).translate(None, _NOT_STRUCTURE)
    if len(structure) > MAX_VALUES:
        raise error(f"the JSON holds more than {MAX_VALUES:,} values")
    steps = _STEP[np.frombuffer(structure, np.uint8)]
    if steps.size and int(np.cumsum(steps, dtype=np.int32).max()) > MAX_DEPTH:
        raise error(f"the JSON is nested more than {MAX_DEPTH} levels deep")
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as found:
        raise error(f"the JSON is not UTF-8 ({found.reason} at byte {found.start})") from found
    except json.JSONDecodeError as found:
        where = f"character {found.pos:,} of {len(data):,}"
        raise error(f"not JSON, or cut short: {found.msg} at {where}") from found
    except ValueError as found:
        raise error(f"the JSON holds a number that can't be read ({found})") from found


def shown(value: object) -> str:
    """A value of unknown origin for a message: short, and without control characters."""
    short = Repr()
    short.maxstring = short.maxother = 80
    short.maxtuple = short.maxlist = 8
    short.maxlevel = 3
    return short.repr(value)


def is_text(value: str, limit: int) -> bool:
    """Whether a text is printable (line breaks and tabs are) and at most so many characters long."""
    return len(value) <= limit and value.replace("\n", " ").replace("\t", " ").isprintable()


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON")
