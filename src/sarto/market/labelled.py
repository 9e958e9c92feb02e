"""What all samples have in common: labels, classes, a content hash, and ways to choose some of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from sarto.errors import RequestError, suggest


class Labelled(ABC):
    """Samples of one kind with their classes; nothing of them can be changed.

    Two values are equal when they hold the same samples of the same classes, in the same order within each class; how
    the classes are numbered does not matter.

    Attributes:
        noun: what one sample is, in words.
        labels: int64, shape (n,); the position of each sample's class in `classes`.
        classes: unique names; each has at least one sample.
    """

    noun: ClassVar[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    @abstractmethod
    def encoded(self) -> bytes:
        """The bytes of a file that holds the samples; equal samples give equal bytes."""

    @abstractmethod
    def concat(self, *others: Self) -> Self:
        """These samples followed by others of their kind; classes are joined by name.

        Raises:
            RequestError: they can't be joined.
        """

    @abstractmethod
    def contents(self) -> list[bytes]:
        """What each sample holds without its label; equal samples give equal bytes."""

    @abstractmethod
    def _chosen(self, classes: tuple[str, ...], labels: NDArray[np.int64], places: NDArray[np.intp]) -> Self:
        """The samples at some places, with new labels."""

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Labelled) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples of each class, in the order of `classes`."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, found, strict=True)}

    @cached_property
    def digest(self) -> str:
        """Content hash "sha256:<64 hex>"; the same whichever way the samples were stored."""
        return "sha256:" + hashlib.sha256(self.encoded()).hexdigest()

    def only(self, classes: Sequence[str]) -> Self:
        """The samples of these classes, grouped by class and labelled in the order asked for.

        Raises:
            RequestError: a class is not among the samples, or is named twice.
        """
        names = tuple(classes)
        problems = [
            f"no samples of class {name!r}{suggest(name, self.classes)}"
            for name in names
            if name not in self.classes
        ]
        problems += [f"class {name!r} is asked for {names.count(name)} times" for name in repeated(names)]
        if not names:
            problems.append(f"no class is asked for; the samples have {', '.join(self.classes)}")
        if problems:
            raise RequestError("samples", problems=problems)
        return self._pick(names, [np.flatnonzero(self.labels == self.classes.index(name)) for name in names])

    def take(self, k: int, seed: int | None = None) -> Self:
        """At most k samples a class: the first ones, or a draw where a seed is given; grouped by class.

        The draw of a class depends on the seed and the class's name only; a smaller one is part of a larger.

        Raises:
            RequestError: k is below 1.
        """
        if k < 1:
            raise RequestError(f"samples per class must be at least 1, got {k}", where="samples_per_class")
        chosen = []
        for label, name in enumerate(self.classes):
            places = np.flatnonzero(self.labels == label)
            if seed is not None:
                salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
                order = np.random.default_rng([seed, salt]).permutation(len(places))
                places = places[np.sort(order[:k])]
            chosen.append(places[:k])
        return self._pick(self.classes, chosen)

    def _pick(self, classes: tuple[str, ...], places: Sequence[NDArray[np.intp]]) -> Self:
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in places])
        return self._chosen(classes, labels, np.concatenate(places))


def joined_labels(parts: Sequence[Labelled]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Classes and labels of samples one after the other; classes are joined by name."""
    classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    labels = [np.array([classes.index(name) for name in part.classes])[part.labels] for part in parts]
    return classes, np.concatenate(labels)


def label_problems(
    labels: NDArray[np.generic], classes: tuple[str, ...], count: int | None, noun: str
) -> Iterator[str]:
    """Everything that is wrong with labels and classes, in plain words.

    Args:
        count: number of samples; None: not known.
        noun: what one sample is.
    """
    if not classes:
        yield "there are no classes: name at least one"
    for name in repeated(classes):
        yield f"class {name!r} is named {classes.count(name)} times"
    nameless = [name for name in classes if not is_name(name)]
    if nameless:
        yield f"class names must be printable text without spaces around it, got {nameless[0]!r}"
    if labels.dtype.kind not in "iu":
        yield f"labels must be whole numbers (int64), got {labels.dtype}"
    if labels.ndim != 1:
        yield f"labels must have shape (n,), got {tuple(labels.shape)}"
    elif count is not None and len(labels) != count:
        yield f"{len(labels)} labels for {count} {noun}s: give one label {_one(noun)}"
    if labels.dtype.kind in "iu" and labels.size:
        low, high = int(labels.min()), int(labels.max())
        if classes and (low < 0 or high >= len(classes)):
            yield f"labels go from {low} to {high}, but {len(classes)} classes allow 0 to {len(classes) - 1}"
        empty = [name for label, name in enumerate(classes) if not np.any(labels == label)]
        if empty:
            yield f"no {noun} of class {', '.join(map(repr, empty))}: add {noun}s, or leave the class out"


def sealed(values: NDArray[Any], dtype: type[Any]) -> NDArray[Any]:
    """A contiguous copy that nobody can write to."""
    array = np.array(values, dtype=dtype, order="C", copy=True)
    array.flags.writeable = False
    return array


def repeated(names: Sequence[str]) -> list[str]:
    """The names that are there more than once."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def is_name(name: object) -> bool:
    """Whether a text can name a class: printable, at most 200 characters, no spaces around it."""
    return isinstance(name, str) and 0 < len(name) <= 200 and name == name.strip() and name.isprintable()


def _one(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
