"""AttrOD: objects with a category and a colour; a task asks for the boxes of some of them.

A model has no task input and gives one map: for each cell how likely the centre of a wanted object lies there, and the
object's box. Which objects are wanted is the task's, so it comes in by the units that are open.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from sarto.engines.factory.data import Split
from sarto.engines.factory.spaces.detection import average_precision, boxes_of, detection_loss

CATEGORIES = ("bicycle", "car", "motorcycle", "person")
COLOURS = {
    "white": (240, 240, 235),
    "bronze": (190, 130, 60),
    "charcoal": (55, 60, 68),
    "crimson": (200, 25, 50),
    "chartreuse": (140, 230, 40),
}
#: Objects of one image; sides of an object, as a share of the image; deviation of its colour.
OBJECTS = (1, 4)
SIDES = (0.18, 0.42)
SHADE = 12.0
#: Share of a category's outlines that only tests draw.
TESTED = 0.4
#: Images of a task without any wanted object.
EMPTY = 0.15
#: An object is drawn again elsewhere when it would hide this share of another one.
HIDDEN = 0.25
_DRAWS = 20


class Drawn:
    """Generated images: outlines of real objects, filled with a colour, on noise.

    Args:
        side: of an image, in pixels; a multiple of 8.

    Reference:
        NN-Factory, arXiv 2308.15003, section 5.1.
        Differs: generated, since COCO has no colours; outlines are those of instances of COCO 2017.
    """

    mean = std = 0.5

    def __init__(self, side: int) -> None:
        self.side = side
        self.shapes: dict[Split, dict[str, list[dict]]] = {"train": {}, "test": {}}
        for category, held in outlines().items():
            n = max(1, round(TESTED * len(held)))
            self.shapes["test"][category] = held[::-1][:n]
            self.shapes["train"][category] = held[: len(held) - n]

    def draw(
        self, tasks: Sequence[frozenset[str]], split: Split, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images (n, 3, side, side) in [-1, 1] and wanted boxes (n, 4, 5) in pixels, as `detection_loss` reads them."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        images = np.empty((len(tasks), self.side, self.side, 3), np.uint8)
        boxes = np.zeros((len(tasks), OBJECTS[1], 5), np.float32)
        for place, task in enumerate(tasks):
            images[place], found = self.scene(task, split, rng)
            wanted = [box for category, colour, box in found if asks_for(task, category, colour)]
            for row, box in enumerate(wanted):
                boxes[place, row] = (1, *box)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        return pixels.contiguous(), torch.from_numpy(boxes)

    def scene(
        self, task: frozenset[str], split: Split, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[tuple[str, str, tuple[float, float, float, float]]]]:
        """One image (side, side, 3), and its objects: category, colour, box in pixels.

        The first object is mostly one that the task asks for; the others are any, half of them near misses (of the
        category in another colour, or in the colour of another category).
        """
        n = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
        image = _background(self.side, rng)
        found: list[tuple[str, str, tuple[float, float, float, float]]] = []
        for place in range(n):
            wanted = place == 0 and rng.random() >= EMPTY
            category, colour = self._kind(task, wanted, rng)
            spot = self._spot([box for *_, box in found], rng)
            if spot is None:
                continue
            shapes = self.shapes[split][category]
            box = _paint(image, shapes[rng.integers(len(shapes))], spot, COLOURS[colour], rng)
            found.append((category, colour, box))
        return np.asarray(image), found

    def _kind(self, task: frozenset[str], wanted: bool, rng: np.random.Generator) -> tuple[str, str]:
        every = [(category, colour) for category in CATEGORIES for colour in COLOURS]
        asked = [pair for pair in every if asks_for(task, *pair)]
        if wanted:
            return asked[rng.integers(len(asked))]
        if rng.random() < 0.5:
            one = asked[rng.integers(len(asked))]
            near = [p for p in every if p not in asked and (p[0] == one[0] or p[1] == one[1])]
            if near:
                return near[rng.integers(len(near))]
        return every[rng.integers(len(every))]

    def _spot(
        self, taken: list[tuple[float, float, float, float]], rng: np.random.Generator
    ) -> tuple[float, float, float] | None:
        """Left, top and side of a free place; None after some tries."""
        for _ in range(_DRAWS):
            side = self.side * rng.uniform(*SIDES)
            left, top = rng.uniform(0, self.side - side, 2)
            box = (left, top, left + side, top + side)
            if all(_hidden(box, other) < HIDDEN for other in taken):
                return float(left), float(top), float(side)
        return None

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Loss of each sample (n,) of maps (n, 5, cells, cells)."""
        return detection_loss(outputs, answers, self.side)

    def score(self, outputs: Tensor, answers: Tensor) -> float:
        """Average precision at an overlap of one half."""
        return average_precision(boxes_of(outputs, self.side), answers)


def drawn(side: int = 96) -> Drawn:
    """The generated data set."""
    return Drawn(side)


def asks_for(task: frozenset[str], category: str, colour: str) -> bool:
    """Whether a task wants objects of a category in a colour; a task without colours wants all."""
    colours = task & COLOURS.keys()
    return category in task and (not colours or colour in colours)


@cache
def outlines() -> dict[str, list[dict]]:
    """Category -> outlines: polygons in a unit box, and the box's width by its height."""
    text = files("sarto.engines.factory.spaces").joinpath("shapes.json").read_text(encoding="utf-8")
    shapes: dict[str, list[dict]] = json.loads(text)["shapes"]
    return shapes


def _background(side: int, rng: np.random.Generator) -> Image.Image:
    coarse = rng.integers(60, 200, (1, 3, 4, 4))
    smooth = F.interpolate(
        torch.from_numpy(coarse).float(), size=(side, side), mode="bilinear", align_corners=False
    )
    noise = rng.normal(0, 14, (side, side, 3))
    return Image.fromarray(
        np.clip(smooth[0].permute(1, 2, 0).numpy() + noise, 0, 255).astype(np.uint8), mode=None
    )


def _paint(
    image: Image.Image,
    shape: dict,
    spot: tuple[float, float, float],
    colour: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """Draw an outline into a square place, keeping its proportions, mirrored half of the time; its box."""
    left, top, side = spot
    aspect = float(shape["aspect"]) * rng.uniform(0.85, 1.18)
    width, height = (side, side / aspect) if aspect > 1 else (side * aspect, side)
    mirrored = rng.random() < 0.5
    tilt = rng.uniform(-0.15, 0.15)
    fill = tuple(int(v) for v in np.clip(np.array(colour) + rng.normal(0, SHADE, 3), 0, 255))
    pen = ImageDraw.Draw(image)
    points: list[tuple[float, float]] = []
    for part in shape["parts"]:
        placed = []
        for x, y in part:
            u = (1 - x if mirrored else x) + tilt * (y - 0.5)
            placed.append((left + width * u, top + height * y))
        pen.polygon(placed, fill=fill)
        points += placed
    far = image.size[0] - 1
    xs, ys = [min(max(x, 0.0), far) for x, _ in points], [min(max(y, 0.0), far) for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def _hidden(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Overlap as a share of the smaller box."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return max(0.0, wide) * max(0.0, high) / max(1e-9, min(areas))
