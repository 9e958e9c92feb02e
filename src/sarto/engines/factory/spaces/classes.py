"""Tasks over labelled images: which of a few classes is it? Each task has its own few."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sarto.engines.factory.data import Split
from sarto.errors import RequestError
from sarto.market import Samples, read_images

#: Farthest that a training image is moved, in pixels; half of them are mirrored.
SHIFT = 4


class ClassTasks:
    """Labelled images; a task tells those classes apart that its properties name.

    Properties that are no class (a superclass, say) say nothing of the answers. Answers are places in `classes`, which
    are sorted; `in_order` brings them into the order of a space.

    Attributes:
        classes: names of the classes, sorted.
    """

    mean = std = 0.5

    def __init__(self, train: Samples, test: Samples, *, moved: bool = True) -> None:
        """Take images that are there.

        Args:
            moved: shift and mirror training images.

        Raises:
            RequestError: the two splits have other classes or sizes of images.
        """
        if set(train.classes) != set(test.classes) or train.images.shape[1:] != test.images.shape[1:]:
            raise RequestError(
                f"train and test must have the same classes and sizes of images; they have {len(train.classes)} and "
                f"{len(test.classes)} classes, {train.images.shape[1:]} and {test.images.shape[1:]}"
            )
        self.classes = tuple(sorted(train.classes))
        self.moved = moved
        self.held = {
            split: {cls: found.images[found.labels == found.classes.index(cls)] for cls in self.classes}
            for split, found in (("train", train), ("test", test))
        }

    def draw(
        self, tasks: Sequence[frozenset[str]], split: Split, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images (n, channels, height, width) in [-1, 1] and answers (n,), each class of a task as often.

        Raises:
            RequestError: a task names no class, or one without images.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        images, answers = [], []
        for task in tasks:
            mine = [cls for cls in self.classes if cls in task]
            bare = [cls for cls in mine if not len(self.held[split][cls])]
            if bare:
                raise RequestError(f"there are no images of {', '.join(bare)} in the {split} split")
            if not mine:
                raise RequestError(f"none of its classes has images in the {split} split")
            cls = mine[rng.integers(len(mine))]
            held = self.held[split][cls]
            image = held[rng.integers(len(held))]
            images.append(_moved(image, rng) if split == "train" and self.moved else image)
            answers.append(self.classes.index(cls))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        return pixels.contiguous(), torch.tensor(answers)


def labelled(train: str, test: str, moved: bool = True) -> ClassTasks:
    """Tasks over the images of two paths, each a folder of a folder a class, or one .npz file.

    Raises:
        RequestError: a path holds no labelled images, or the two don't belong together.
    """
    return ClassTasks(read_images(Path(train)), read_images(Path(test)), moved=moved)


def _moved(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        image = image[:, ::-1]
    down, right = rng.integers(0, 2 * SHIFT + 1, 2)
    wide = np.pad(image, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
    return wide[down : down + image.shape[0], right : right + image.shape[1]]
