"""Kinds of fields that the values share: names, hashes, counts, ratios, and mappings that can't change."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, Strict, StringConstraints
from pydantic_core import PydanticCustomError

K = TypeVar("K")
V = TypeVar("V")

#: Largest whole number in a value: what JSON readers, SQLite and int64 can hold.
LARGEST = 2**63 - 1


class FrozenDict(dict[K, V]):
    """A dict that can't change, so that a value which holds one can't change either."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a value can't be changed; make a new one with .replace(...)")

    __delitem__ = __setitem__ = clear = pop = popitem = setdefault = update = _refuse

    def __ior__(self, other: Any) -> NoReturn:  # type: ignore[misc]
        self._refuse()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenDict, (dict(self),))

    def __copy__(self) -> FrozenDict[K, V]:
        return self

    def __deepcopy__(self, memo: Any) -> FrozenDict[K, V]:
        return self


def problem(text: str) -> PydanticCustomError:
    """An error of one field; the text follows the field's path in the message."""
    return PydanticCustomError("sarto", "{text}", {"text": text})


def twice(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _printable(text: str) -> str:
    # Cc: control characters, Cs: halves of surrogate pairs, which no file can hold.
    bad = sorted({char for char in text if char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs")})
    if bad:
        shown = ", ".join(ascii(char) for char in bad[:3])
        raise problem(f"has the characters {shown}, which text may not hold")
    return text


def _one_line(text: str) -> str:
    if not text.strip() or text != text.strip():
        raise problem(f"must be a name without spaces around it, got {text[:60]!r}")
    if "\n" in text or "\t" in text:
        raise problem(f"must be one line, got {text[:60]!r}")
    return _printable(text)


def _integral(value: Any) -> Any:
    # 2e5 is a float to every reader of YAML and JSON, and a whole number to everybody who writes it.
    return int(value) if type(value) is float and value.is_integer() else value


def _no_flag(value: Any) -> Any:
    # true equals 1, and 1.0 does too.
    if type(value) is not int:
        raise problem("must be a whole number")
    return value


def _ordered(value: Any) -> Any:
    if isinstance(value, (set, frozenset, Mapping)):
        raise problem("must be a list (it has an order)")
    return value


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Text = Annotated[str, Strict(), StringConstraints(max_length=20_000), AfterValidator(_printable)]
Name = Annotated[str, Strict(), StringConstraints(max_length=200), AfterValidator(_one_line)]
FilePath = Annotated[
    str, Strict(), StringConstraints(max_length=4_096), AfterValidator(_one_line), BeforeValidator(_path)
]
Sha = Annotated[str, Strict(), StringConstraints(pattern=r"^sha256:[0-9a-f]{64}\z")]

#: Version of a layout; there is one so far.
Version = Annotated[Literal[1], BeforeValidator(_no_flag)]

Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict(), Field(ge=0, le=LARGEST), BeforeValidator(_integral)]
Positive = Annotated[int, Strict(), Field(ge=1, le=LARGEST), BeforeValidator(_integral)]

Number = Annotated[float, Strict()]
AtLeastZero = Annotated[float, Strict(), Field(ge=0)]
AboveZero = Annotated[float, Strict(), Field(gt=0)]
Ratio = Annotated[float, Strict(), Field(gt=0, le=1)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]

Several = Annotated[tuple[V, ...], BeforeValidator(_ordered)]
Frozen = Annotated[Mapping[K, V], AfterValidator(FrozenDict)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_ordered), Field(max_length=10_000)]
