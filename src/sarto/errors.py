"""What sarto says when it can't do what was asked: what was asked; what was found, and where; what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Problems that a message spells out; `problems` and `to_json` hold all of them.
SPELT_OUT = 20
_KNOWN_SHOWN = 12
_LONGEST_WORD = 80
_MOST_WORDS = 5_000


class SartoError(Exception):
    """Base of all errors that sarto raises on purpose.

    Attributes:
        detail: what was asked, what was found, what to do.
        where: the file, node, key or class that it is about; None when the text says it all.
        problems: every single problem, when the input was checked as a whole.
    """

    def __init__(self, detail: str, *, where: str | None = None, problems: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.where = where
        self.problems = tuple(problems)

    def __str__(self) -> str:
        text = _join(self.detail, self.problems)
        return text if self.where is None or self.where in text else f"{self.where}: {text}"

    def to_json(self) -> dict[str, Any]:
        """The error as a JSON object: type, detail, where, problems."""
        return {
            "type": type(self).__name__,
            "detail": _join(self.detail, self.problems),
            "where": self.where,
            "problems": list(self.problems),
        }


class RequestError(SartoError, ValueError):
    """A value, file or argument is not what it has to be."""


class ShapeError(SartoError, ValueError):
    """Sizes that should fit each other do not."""


class GraphError(SartoError):
    """A model can't be captured, or the asked surgery would not be exact."""


class StoreError(SartoError):
    """A market or a stored object is damaged, missing or of another version."""


class VerifyError(SartoError):
    """What was built is not what was promised: other numbers, another size, another cost."""


class InfeasibleError(SartoError):
    """No plan fits the budget.

    Attributes:
        floor: the smallest cost that was found for each limit; plain JSON values.
        nearest: the plan that comes nearest, and its cost; plain JSON values.
    """

    def __init__(
        self,
        detail: str,
        *,
        where: str | None = None,
        problems: Sequence[str] = (),
        floor: Mapping[str, Any] | None = None,
        nearest: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, where=where, problems=problems)
        self.floor = None if floor is None else dict(floor)
        self.nearest = None if nearest is None else dict(nearest)

    def to_json(self) -> dict[str, Any]:
        """The error as a JSON object: type, detail, where, problems, floor, nearest."""
        return {**super().to_json(), "floor": self.floor, "nearest": self.nearest}


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like this one, whatever its case; None when none is near."""
    if len(word) > _LONGEST_WORD:
        return None
    names = [name for name in sorted(known)[:_MOST_WORDS] if len(name) <= 2 * _LONGEST_WORD]
    by_fold = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(word.casefold(), list(by_fold), n=1, cutoff=0.6)
    return by_fold[found[0]] if found else None


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: " (did you mean 'zebra'?)", else " (known: a, b, c)".

    It starts with a space, and is empty when nothing is known.
    """
    names = sorted(set(known))
    if not names:
        return ""
    near = closest(word, names)
    if near is not None:
        return f" (did you mean {near!r}?)"
    shown = ", ".join(names[:_KNOWN_SHOWN])
    rest = len(names) - _KNOWN_SHOWN
    return f" (known: {shown}, and {rest:,} more)" if rest > 0 else f" (known: {shown})"


def _join(detail: str, problems: Sequence[str]) -> str:
    if not problems or (len(problems) == 1 and problems[0] in detail):
        return detail
    shown = "; ".join(problems[:SPELT_OUT])
    if len(problems) > SPELT_OUT:
        shown += f"; and {len(problems) - SPELT_OUT:,} more"
    text = shown if len(problems) == 1 else f"{len(problems):,} problems: {shown}"
    return text if detail in problems else f"{detail}: {text}"
