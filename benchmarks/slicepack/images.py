"""CIFAR images from lossless sheets, and the pool of training images that no original is trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.place import data_folder

#: Train images of each class that the originals never see; the few samples of an order are drawn from them.
POOL = {"cifar10": 100, "cifar100": 50}
TILE = 32


@dataclass(frozen=True, eq=False)
class Images:
    """Images (n, 32, 32, 3), uint8, with labels (n,) into `classes`."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def of(self, name: str) -> np.ndarray:
        """The images of one class."""
        return self.pixels[self.labels == self.classes.index(name)]


@cache
def read(data: str, split: str) -> Images:
    """The whole train or test split under SARTO_DATA."""
    import imagecodecs

    folder = data_folder() / data
    meta = json.loads((folder / "meta.json").read_text())
    per_class = meta["per_class"][split]
    pixels, labels = [], []
    for path in sorted((folder / "sheets_jxl").glob(f"{split}_*.jxl")):
        sheet = imagecodecs.jpegxl_decode(path.read_bytes())
        pixels.append(
            sheet.reshape(25, TILE, 40, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(1000, TILE, TILE, 3)
        )
        first = int(path.stem.split("_")[1]) * 1000
        labels.append(np.arange(first, first + 1000) // per_class)
    if not pixels:
        raise FileNotFoundError(f"no {split} sheets of {data} under SARTO_DATA")
    return Images(np.concatenate(pixels), np.concatenate(labels), tuple(meta["classes"]))


@cache
def train_and_pool(data: str) -> tuple[Images, Images]:
    """What originals train on, and the pool: the last images of each class after a shuffle with seed 0."""
    whole, generator = read(data, "train"), np.random.default_rng(0)
    kept, pool = [], []
    for label in range(len(whole.classes)):
        order = generator.permutation(np.flatnonzero(whole.labels == label))
        kept.append(order[: -POOL[data]])
        pool.append(order[-POOL[data] :])
    first, second = (np.concatenate(index) for index in (kept, pool))
    return (
        Images(whole.pixels[first], whole.labels[first], whole.classes),
        Images(whole.pixels[second], whole.labels[second], whole.classes),
    )


def to_unit(pixels: np.ndarray) -> Tensor:
    """Images (n, 32, 32, 3), uint8, as float (n, 3, 32, 32) in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
