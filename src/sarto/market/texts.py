"""Labelled texts: the few samples that come with a learnware or with an order of text models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sarto.errors import RequestError
from sarto.market.labelled import Labelled, joined_labels, label_problems, sealed
from sarto.types.text import to_json_text

#: Written into encoded texts; a reader refuses another one.
FORMAT = "sarto.texts/1"
#: What encoded texts begin with; no file of images does.
START = b'{"classes":'
#: Longest text in characters.
MAX_TEXT = 100_000


@dataclass(frozen=True, eq=False, repr=False)
class TextSamples(Labelled):
    """Texts with labels.

    Attributes:
        texts: as they were written, without spaces around them.
        labels: int64, shape (n,); the position of each text's class in `classes`.
        classes: unique names; each has at least one text.

    Raises:
        RequestError: names every problem: texts that are empty or too long, labels out of range, another number of
            labels than of texts, a class without texts, a name given twice.
    """

    noun: ClassVar[str] = "text"

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(self.texts))
        object.__setattr__(self, "classes", tuple(self.classes))
        problems = text_problems(self.texts)
        problems += label_problems(np.asarray(self.labels), self.classes, len(self.texts), self.noun)
        if problems:
            raise RequestError("samples", problems=problems)
        object.__setattr__(self, "texts", tuple(text.strip() for text in self.texts))
        object.__setattr__(self, "labels", sealed(self.labels, np.int64))

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        return f"<TextSamples: {len(self)} texts; {counts}>"

    def encoded(self) -> bytes:
        """The samples as a JSON file: classes sorted by name, texts grouped by class; equal samples, equal bytes."""
        ordered = self.only(sorted(self.classes))
        grouped: list[list[str]] = [[] for _ in ordered.classes]
        for text, label in zip(ordered.texts, ordered.labels, strict=True):
            grouped[label].append(text)
        return to_json_text({"classes": list(ordered.classes), "format": FORMAT, "texts": grouped}).encode()

    def contents(self) -> list[bytes]:
        """The letters of each text."""
        return [text.encode() for text in self.texts]

    def concat(self, *others: TextSamples) -> TextSamples:
        """These samples followed by others; classes are joined by name."""
        classes, labels = joined_labels((self, *others))
        return TextSamples(tuple(text for part in (self, *others) for text in part.texts), labels, classes)

    def _chosen(
        self, classes: tuple[str, ...], labels: NDArray[np.int64], places: NDArray[np.intp]
    ) -> TextSamples:
        return TextSamples(tuple(self.texts[place] for place in places), labels, classes)


def decode_texts(data: bytes) -> TextSamples:
    """The samples that `TextSamples.encoded` wrote.

    Raises:
        RequestError: these bytes are something else.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not a readable file of texts ({error})") from error
    grouped = found.get("texts") if isinstance(found, dict) and found.get("format") == FORMAT else None
    classes = found.get("classes") if grouped is not None else None
    if (
        not isinstance(grouped, list)
        or not isinstance(classes, list)
        or len(classes) != len(grouped)
        or not all(isinstance(texts, list) for texts in grouped)
    ):
        raise RequestError(f"not a file of texts of the format {FORMAT!r}")
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(texts) for texts in grouped])
    return TextSamples(tuple(text for texts in grouped for text in texts), labels, tuple(classes))


def text_problems(texts: Sequence[object]) -> list[str]:
    """What is wrong with texts, by their place (counted from 0)."""
    problems = [] if texts else ["there are no texts: give at least one a class"]
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            problems.append(f"text {place} is no text but a {type(text).__name__}")
        elif not text.strip():
            problems.append(f"text {place} is empty: leave it out")
        elif len(text) > MAX_TEXT:
            problems.append(f"text {place} has {len(text):,} characters, the limit is {MAX_TEXT:,}: cut it")
        elif not _is_unicode(text):
            problems.append(
                f"text {place} holds half of a character (a lone surrogate): save it as UTF-8 again"
            )
    return problems


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
