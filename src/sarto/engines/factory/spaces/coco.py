"""AttrOD on COCO: the colour of an object is that of most pixels under its mask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sarto.engines.factory.data import Split
from sarto.engines.factory.spaces.attrod import CATEGORIES, COLOURS, EMPTY, Drawn, asks_for, drawn
from sarto.engines.factory.spaces.detection import average_precision, boxes_of, detection_loss
from sarto.errors import RequestError

#: Objects of one image that count, and the smallest side of a box, as a share of the image.
MOST, SMALLEST = 20, 0.02
#: Decoded images that are kept in memory.
KEPT = 2048
#: Where annotations and images of a split may lie, below the folder: COCO's own layout, and a flat one.
PLACES = {
    "train": (
        ("annotations/instances_train2017.json", "train2017", ""),
        ("instances_train.json", "images", "train_"),
    ),
    "test": (("annotations/instances_val2017.json", "val2017", ""), ("instances_val.json", "images", "val_")),
}


@dataclass(frozen=True)
class Picture:
    """One image: its file, and its objects as category, colour and box in shares of the image."""

    path: Path
    objects: tuple[tuple[str, str, tuple[float, float, float, float]], ...]


class Coco:
    """COCO images whose objects have a category and a dominant colour.

    Args:
        pictures: split -> images with objects of the four categories.
        side: images are brought to this size; a multiple of 8.

    Reference:
        NN-Factory, arXiv 2308.15003, section 5.1.
        Differs: colours are counted under the masks (without masks, in the middle of the boxes), where the paper asks a
        question-answering model.
    """

    mean = std = 0.5

    def __init__(self, pictures: dict[Split, list[Picture]], side: int) -> None:
        self.pictures, self.side = pictures, side
        self._read = lru_cache(KEPT)(self._pixels)
        self._wanted = lru_cache(4096)(self._with_wanted)

    def draw(
        self, tasks: Sequence[frozenset[str]], split: Split, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images (n, 3, side, side) in [-1, 1] and wanted boxes (n, most, 5) in pixels, as `detection_loss` reads them.

        Raises:
            RequestError: no image of the split has an object that a task asks for.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        images = np.empty((len(tasks), self.side, self.side, 3), np.uint8)
        boxes = np.zeros((len(tasks), MOST, 5), np.float32)
        every = self.pictures[split]
        for place, task in enumerate(tasks):
            mine = self._wanted(task, split)
            if not mine:
                raise RequestError(f"no image of the {split} split has an object that it asks for")
            chosen = (
                every[mine[rng.integers(len(mine))]]
                if rng.random() >= EMPTY
                else every[rng.integers(len(every))]
            )
            mirrored = split == "train" and rng.random() < 0.5
            pixels = self._read(chosen.path)
            images[place] = pixels[:, ::-1] if mirrored else pixels
            wanted = [box for category, colour, box in chosen.objects if asks_for(task, category, colour)]
            for row, (left, top, right, bottom) in enumerate(wanted[:MOST]):
                if mirrored:
                    left, right = 1 - right, 1 - left
                boxes[place, row] = (1, *(self.side * np.array([left, top, right, bottom])))
        made = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        return made.contiguous(), torch.from_numpy(boxes)

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Loss of each sample (n,) of maps (n, 5, cells, cells)."""
        return detection_loss(outputs, answers, self.side)

    def score(self, outputs: Tensor, answers: Tensor) -> float:
        """Average precision at an overlap of one half."""
        return average_precision(boxes_of(outputs, self.side), answers)

    def _with_wanted(self, task: frozenset[str], split: Split) -> tuple[int, ...]:
        return tuple(
            place
            for place, picture in enumerate(self.pictures[split])
            if any(asks_for(task, category, colour) for category, colour, _ in picture.objects)
        )

    def _pixels(self, path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((self.side, self.side), Image.Resampling.BILINEAR))


def coco(folder: str, side: int = 160) -> Coco:
    """The images of a folder in COCO's own layout, or in a flat one (instances_train.json, images/train_*.jpg).

    Raises:
        RequestError: annotations or images are missing, or the annotations are not COCO's.
    """
    home = Path(folder)
    return Coco({split: _pictures(home, split) for split in ("train", "test")}, side)


def attrod(side: int = 96, folder: str = "") -> Drawn | Coco:
    """The data of AttrOD: COCO where a folder is given, else the generated data set."""
    return coco(folder, side) if folder else drawn(side)


def dominant_colour(pixels: np.ndarray, mask: np.ndarray) -> str:
    """The colour of AttrOD that is nearest to most of the pixels (height, width, 3) under a mask (height, width)."""
    under = pixels[mask].astype(np.float64)
    palette = np.array(list(COLOURS.values()), np.float64)

    # Lightness counts less than what a lamp can't change: the colour itself.
    def spread(values: np.ndarray) -> np.ndarray:
        light = values.mean(-1, keepdims=True)
        return np.concatenate([0.5 * light, values - light], -1)

    far = ((spread(under)[:, None] - spread(palette)[None]) ** 2).sum(-1)
    counts = np.bincount(far.argmin(1), minlength=len(palette))
    return list(COLOURS)[int(counts.argmax())]


def _pictures(home: Path, split: Split) -> list[Picture]:
    for file, images, prefix in PLACES[split]:
        path = home / file
        if path.is_file():
            try:
                return _read(json.loads(path.read_text(encoding="utf-8")), home / images, prefix)
            except (KeyError, TypeError, ValueError) as error:
                raise RequestError(
                    f"{path} is no COCO annotation file: {error!r}", where=str(path)
                ) from error
    tried = " nor ".join(file for file, _, _ in PLACES[split])
    raise RequestError(f"{home} holds neither {tried}; give the folder of COCO2017", where=str(home))


def _read(data: dict[str, Any], images: Path, prefix: str) -> list[Picture]:
    names = {found["id"]: found["name"] for found in data["categories"] if found["name"] in CATEGORIES}
    held: dict[int, list[dict[str, Any]]] = {}
    for found in data["annotations"]:
        if (
            found["category_id"] in names
            and not found.get("iscrowd")
            and isinstance(found.get("segmentation", []), list)
        ):
            held.setdefault(found["image_id"], []).append(found)
    pictures = []
    for entry in data["images"]:
        path = images / f"{prefix}{entry['file_name']}"
        if entry["id"] not in held:
            continue
        if not path.is_file():
            raise RequestError(f"the image {path} is missing", where=str(path))
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        size = (entry["width"], entry["height"])
        objects = [_object(found, names, pixels, size) for found in held[entry["id"]]]
        kept = tuple(found for found in objects if found is not None)
        if kept:
            pictures.append(Picture(path, kept))
    return pictures


def _object(
    found: dict[str, Any], names: dict[int, str], pixels: np.ndarray, size: tuple[int, int]
) -> tuple[str, str, tuple[float, float, float, float]] | None:
    """Category, colour and box of an annotation; None where it is too small to see."""
    height, width = pixels.shape[:2]
    across, down = width / size[0], height / size[1]
    left, top, wide, high = found["bbox"]
    box = (left / size[0], top / size[1], (left + wide) / size[0], (top + high) / size[1])
    if min(box[2] - box[0], box[3] - box[1]) < SMALLEST:
        return None
    mask = Image.new("1", (width, height))
    pen = ImageDraw.Draw(mask)
    # Where there is no outline, the middle of the box is most likely the object.
    middle = [left + wide / 4, top + high / 4, left + 3 * wide / 4, top + 3 * high / 4]
    corners = [middle[0], middle[1], middle[2], middle[1], middle[2], middle[3], middle[0], middle[3]]
    for part in found.get("segmentation") or [corners]:
        points = [(x * across, y * down) for x, y in zip(part[::2], part[1::2], strict=True)]
        if len(points) >= 3:
            pen.polygon(points, fill=1)
    under = np.asarray(mask)
    if not under.any():
        return None
    return names[found["category_id"]], dominant_colour(pixels, under), box
