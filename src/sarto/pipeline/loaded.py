"""A delivered model in use: images in, class names out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.market import to_tensor
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.builder import run
from sarto.types import Preprocessing


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image; probabilities are calibrated where samples allowed it."""

    label: str
    probability: float
    probabilities: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Model:
    """A callable model: preprocesses, runs and names classes.

    Attributes:
        graph: images in [0, 1], shape (batch, channels, height, width), to logits.
    """

    graph: ModelGraph
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def __call__(self, images: NDArray[Any] | str | Path) -> list[Prediction]:
        """Predictions for one image or many.

        Args:
            images: uint8 (height, width, channels), or (n, height, width, channels), or floats in [0, 1] of those
                shapes, or the path of an image file.

        Raises:
            ShapeError: another size or number of channels.
            RequestError: another dtype, NaN, or a file that is no image.
        """
        array = _read(images) if isinstance(images, str | Path) else np.asarray(images)
        batch = array[None] if array.ndim == 3 else array
        logits = run(self.graph, to_tensor(batch, self.preprocessing))
        found = []
        for row in torch.softmax(logits, 1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            found.append(Prediction(self.classes[best], row[best], dict(zip(self.classes, row, strict=True))))
        return found


def load(folder: str | Path) -> Model:
    """The model of an artifact folder, ready to call.

    Raises:
        StoreError: no artifact there, or its files are damaged.
    """
    artifact = Artifact.read(folder)
    return Model(artifact.graph, artifact.classes, artifact.preprocessing)


def _read(path: str | Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read as an image: {error}", where=str(path)) from None
