"""Labelled images: the few samples that come with a learnware or with an order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sarto.errors import RequestError, suggest

#: Written into the header of encoded samples; a reader refuses another one.
FORMAT = "sarto.samples/1"


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Images with labels; the arrays are copied and can't be written to.

    Two values are equal when they hold the same images of the same classes, in the same order within each
    class; how the classes are numbered does not matter.

    Attributes:
        images: uint8, shape (n, height, width, channels).
        labels: int64, shape (n,); the position of each image's class in `classes`.
        classes: unique names; each has at least one image.

    Raises:
        RequestError: names every problem: rank, dtype, values that are not finite, labels out of range,
            another number of labels than of images, a class without images, a name given twice.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        problems = _problems(np.asarray(self.images), np.asarray(self.labels), self.classes)
        if problems:
            raise RequestError("samples", problems=problems)
        object.__setattr__(self, "images", _sealed(self.images, np.uint8))
        object.__setattr__(self, "labels", _sealed(self.labels, np.int64))

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        return f"<Samples: {len(self)} images {height}x{width}x{channels}; {counts}>"

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Samples) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each class, in the order of `classes`."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, found, strict=True)}

    @cached_property
    def digest(self) -> str:
        """Content hash "sha256:<64 hex>"; the same whichever way the samples were stored."""
        return "sha256:" + hashlib.sha256(encode_samples(self)).hexdigest()

    def only(self, classes: Sequence[str]) -> Samples:
        """The images of these classes, grouped by class and labelled in the order asked for.

        Raises:
            RequestError: a class is not among the samples, or is named twice.
        """
        names = tuple(classes)
        problems = [
            f"no samples of class {name!r}{suggest(name, self.classes)}"
            for name in names
            if name not in self.classes
        ]
        problems += [f"class {name!r} is asked for {names.count(name)} times" for name in _repeated(names)]
        if not names:
            problems.append(f"no class is asked for; the samples have {', '.join(self.classes)}")
        if problems:
            raise RequestError("samples", problems=problems)
        return self._pick(names, [np.flatnonzero(self.labels == self.classes.index(name)) for name in names])

    def take(self, k: int, seed: int | None = None) -> Samples:
        """At most k images a class: the first ones, or a draw where a seed is given; grouped by class.

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

    def concat(self, *others: Samples) -> Samples:
        """These samples followed by others; classes are joined by name.

        Raises:
            RequestError: image sizes differ.
        """
        parts = (self, *others)
        sizes = sorted({part.images.shape[1:] for part in parts})
        if len(sizes) > 1:
            raise RequestError(
                f"samples of different sizes can't be joined: found (height, width, channels) "
                f"{', '.join(map(str, sizes))}; resize them first"
            )
        classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
        labels = [np.array([classes.index(name) for name in part.classes])[part.labels] for part in parts]
        return Samples(np.concatenate([part.images for part in parts]), np.concatenate(labels), classes)

    def _pick(self, classes: tuple[str, ...], places: Sequence[NDArray[np.intp]]) -> Samples:
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in places])
        return Samples(self.images[np.concatenate(places)], labels, classes)


def encode_samples(samples: Samples) -> bytes:
    """The samples as a safetensors file; equal samples give equal bytes.

    Classes are sorted by name and images grouped by class. The header is written here, because the library
    does not promise the order of its keys.
    """
    ordered = samples.only(sorted(samples.classes))
    images, labels = ordered.images.tobytes(), ordered.labels.astype("<i8").tobytes()
    about = {"classes": ordered.classes, "format": FORMAT}
    # The wider dtype comes first, so that its data are aligned.
    header = {
        "__metadata__": {
            "sarto": json.dumps(about, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        },
        "images": {
            "data_offsets": [len(labels), len(labels) + len(images)],
            "dtype": "U8",
            "shape": ordered.images.shape,
        },
        "labels": {"data_offsets": [0, len(labels)], "dtype": "I64", "shape": ordered.labels.shape},
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + labels + images


def _problems(
    images: NDArray[np.generic], labels: NDArray[np.generic], classes: tuple[str, ...]
) -> list[str]:
    """Everything that is wrong with the three parts, in plain words."""
    problems: list[str] = []
    if images.dtype != np.uint8:
        cure = "give whole numbers 0..255 as uint8"
        if images.dtype.kind == "f":
            broken = int((~np.isfinite(images)).sum())
            cure += "; from values in 0..1: (x * 255).round().astype('uint8')"
            if broken:
                problems.append(
                    f"{broken} values of images are NaN or infinite: remove or repair those images"
                )
        problems.append(f"images must be uint8, got {images.dtype}: {cure}")
    if images.ndim != 4:
        problems.append(
            f"images must have shape (n, height, width, channels), got {_shape(images)}"
            + (": add a channel axis with images[..., None]" if images.ndim == 3 else "")
        )
    elif 0 in images.shape:
        problems.append(f"images are empty: shape {_shape(images)}")
    if not classes:
        problems.append("there are no classes: name at least one")
    problems += [f"class {name!r} is named {classes.count(name)} times" for name in _repeated(classes)]
    nameless = [name for name in classes if not _is_name(name)]
    if nameless:
        problems.append(f"class names must be printable text without spaces around it, got {nameless[0]!r}")
    if labels.dtype.kind not in "iu":
        problems.append(f"labels must be whole numbers (int64), got {labels.dtype}")
    if labels.ndim != 1:
        problems.append(f"labels must have shape (n,), got {_shape(labels)}")
    elif images.ndim > 0 and len(labels) != len(images):
        problems.append(f"{len(labels)} labels for {len(images)} images: give one label an image")
    if labels.dtype.kind in "iu" and labels.size:
        low, high = int(labels.min()), int(labels.max())
        if classes and (low < 0 or high >= len(classes)):
            problems.append(
                f"labels go from {low} to {high}, but {len(classes)} classes allow 0 to {len(classes) - 1}"
            )
        empty = [name for label, name in enumerate(classes) if not np.any(labels == label)]
        if empty:
            names = ", ".join(map(repr, empty))
            problems.append(f"no image of class {names}: add images, or leave the class out")
    return problems


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _shape(array: NDArray[np.generic]) -> str:
    return str(tuple(array.shape))


def _sealed(values: NDArray[Any], dtype: type[Any]) -> NDArray[Any]:
    """A contiguous copy that nobody can write to."""
    array = np.array(values, dtype=dtype, order="C", copy=True)
    array.flags.writeable = False
    return array


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 200 and name == name.strip() and name.isprintable()
