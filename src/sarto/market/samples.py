"""Labelled images: the few samples that come with a learnware or with an order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sarto.errors import RequestError
from sarto.market.labelled import Labelled, joined_labels, label_problems, sealed

#: Written into the header of encoded samples; a reader refuses another one.
FORMAT = "sarto.samples/1"


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Labelled):
    """Images with labels; the arrays are copied and can't be written to.

    Attributes:
        images: uint8, shape (n, height, width, channels).
        labels: int64, shape (n,); the position of each image's class in `classes`.
        classes: unique names; each has at least one image.

    Raises:
        RequestError: names every problem: rank, dtype, values that are not finite, labels out of range,
            another number of labels than of images, a class without images, a name given twice.
    """

    noun: ClassVar[str] = "image"

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        problems = _problems(np.asarray(self.images), np.asarray(self.labels), self.classes)
        if problems:
            raise RequestError("samples", problems=problems)
        object.__setattr__(self, "images", sealed(self.images, np.uint8))
        object.__setattr__(self, "labels", sealed(self.labels, np.int64))

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        return f"<Samples: {len(self)} images {height}x{width}x{channels}; {counts}>"

    def encoded(self) -> bytes:
        """The samples as a safetensors file; equal samples give equal bytes."""
        return encode_samples(self)

    def contents(self) -> list[bytes]:
        """The pixels of each image."""
        return [image.tobytes() for image in self.images]

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
        classes, labels = joined_labels(parts)
        return Samples(np.concatenate([part.images for part in parts]), labels, classes)

    def _chosen(
        self, classes: tuple[str, ...], labels: NDArray[np.int64], places: NDArray[np.intp]
    ) -> Samples:
        return Samples(self.images[places], labels, classes)


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


def _problems(images: NDArray[np.generic], labels: NDArray[np.generic], classes: Sequence[str]) -> list[str]:
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
    shape = tuple(images.shape)
    if images.ndim != 4:
        problems.append(
            f"images must have shape (n, height, width, channels), got {shape}"
            + (": add a channel axis with images[..., None]" if images.ndim == 3 else "")
        )
    elif 0 in shape:
        problems.append(f"images are empty: shape {shape}")
    count = len(images) if images.ndim > 0 else None
    return problems + list(label_problems(labels, tuple(classes), count, Samples.noun))
