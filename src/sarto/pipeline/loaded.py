"""A delivered model in use: images or texts in, class names out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.market import Intake, to_tensor
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.builder import run
from sarto.pipeline.rejection import read_novelty, run_with_features
from sarto.training import Novelty
from sarto.types import Preprocessing, TextPreprocessing


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image or text.

    Probabilities of a fitted head are calibrated where samples allowed it; those of a donor's own classifier are as it
    gives them.

    Attributes:
        label: the likeliest class; also where it is none of them.
        known: False where it looks like none of the classes; always True where the model has no measure of that.
        novelty: distance to the nearest class in radii of that class, 1 is usual; None where there is no measure.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    known: bool = True
    novelty: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A callable model: preprocesses, runs and names classes.

    Attributes:
        graph: images in [0, 1], shape (batch, channels, height, width), or token ids (batch, length), to logits.
        intake: how images or texts become that.
        novelty: what tells samples that are none of the classes; None where the artifact has none.
    """

    graph: ModelGraph
    classes: tuple[str, ...]
    intake: Intake
    novelty: Novelty | None = None

    def __repr__(self) -> str:
        return f"<Model of {self.intake.kind}s: {', '.join(self.classes)}>"

    @property
    def preprocessing(self) -> Preprocessing | TextPreprocessing:
        """Size and channels of the images, or length and vocabulary of the texts."""
        return self.intake.preprocessing

    def __call__(self, given: NDArray[Any] | str | Path | Sequence[str]) -> list[Prediction]:
        """Predictions for one image or text, or many.

        Args:
            given: for a model of images uint8 (height, width, channels), or (n, height, width, channels), or floats in
                [0, 1] of those shapes, or the path of an image file; for a model of texts one text or several.

        Raises:
            ShapeError: another size or number of channels.
            RequestError: another dtype, NaN, a file that is no image, an empty text, or not what the model reads.
        """
        inputs = self._inputs(given)
        if self.novelty is None:
            logits, novelties, known = run(self.graph, inputs), [None] * len(inputs), [True] * len(inputs)
        else:
            logits, read = run_with_features(self.graph, inputs)
            scores = self.novelty.scores(read)
            novelties, known = scores.tolist(), (scores <= self.novelty.threshold).tolist()
        if logits.ndim != 2:
            raise RequestError(
                "this model finds objects: its graph gives maps, and `boxes_of(model.graph(images), side)` of "
                "sarto.engines.factory.spaces.detection reads the boxes from them"
            )
        found = []
        for row, novelty, told in zip(torch.softmax(logits, 1).tolist(), novelties, known, strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            each = dict(zip(self.classes, row, strict=True))
            found.append(Prediction(self.classes[best], row[best], each, told, novelty))
        return found

    def _inputs(self, given: NDArray[Any] | str | Path | Sequence[str]) -> Tensor:
        said = self.preprocessing
        if isinstance(said, TextPreprocessing):
            texts = (
                [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
            )
            if not texts or not all(isinstance(text, str) for text in texts):
                raise RequestError(
                    f"this model reads texts: give a text or a list of texts, got {type(given).__name__}"
                    + ("" if isinstance(given, str | Path) or texts else " without a text")
                )
            return self.intake.ids(texts)
        array = _read(given, said.channels) if isinstance(given, str | Path) else np.asarray(given)
        if array.size == 0:
            raise RequestError(f"this model reads images: give at least one, got shape {array.shape}")
        return to_tensor(array[None] if array.ndim == 3 else array, said)


def load(folder: str | Path) -> Model:
    """The model of an artifact folder, ready to call.

    Raises:
        StoreError: no artifact there, or its files are damaged.
    """
    artifact = Artifact.read(folder)
    return Model(artifact.graph, artifact.classes, artifact.intake, read_novelty(artifact.folder))


def _read(path: str | Path, channels: int) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
            return pixels[..., None] if channels == 1 else pixels
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} can't be read as an image: {error}", where=str(path)) from None
