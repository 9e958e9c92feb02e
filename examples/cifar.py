"""Reads CIFAR-10 from lossless JPEG XL sheets.

A sheet holds 25 rows x 40 columns of 32x32 tiles: 1000 images, sorted by class.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Train images of each class that no donor is trained on: the pool that orders draw samples from.
POOL = 100
TILE = 32


@dataclass(frozen=True)
class Split:
    """Images (n, 32, 32, 3) uint8 with labels (n,) into `classes`."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def of(self, name: str) -> np.ndarray:
        """The images of one class."""
        return self.images[self.labels == self.classes.index(name)]


def read_split(folder: Path, split: str) -> Split:
    """The train or test split of a folder with meta.json and sheets_jxl/."""
    import imagecodecs

    meta = json.loads((folder / "meta.json").read_text())
    per_class = meta["per_class"][split]
    images, labels = [], []
    paths = sorted((folder / "sheets_jxl").glob(f"{split}_*.jxl"))
    if not paths:
        raise SystemExit(f"no {split} sheets in {folder}/sheets_jxl: give the folder that holds meta.json")
    for path in paths:
        sheet = imagecodecs.jpegxl_decode(path.read_bytes())
        tiles = sheet.reshape(25, TILE, 40, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(1000, TILE, TILE, 3)
        first = int(path.stem.split("_")[1]) * 1000
        images.append(tiles)
        labels.append(np.arange(first, first + 1000) // per_class)
    return Split(np.concatenate(images), np.concatenate(labels), tuple(meta["classes"]))


def train_and_pool(train: Split) -> tuple[Split, Split]:
    """The images that donors train on, and the pool: the last 100 a class after a shuffle with seed 0."""
    generator = np.random.default_rng(0)
    kept, pool = [], []
    for label in range(len(train.classes)):
        order = generator.permutation(np.flatnonzero(train.labels == label))
        kept.append(order[:-POOL])
        pool.append(order[-POOL:])
    return tuple(
        Split(train.images[index], train.labels[index], train.classes)
        for index in (np.concatenate(kept), np.concatenate(pool))
    )  # type: ignore[return-value]
