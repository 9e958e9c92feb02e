"""How a model takes samples in: its preprocessing, with the vocabulary where it reads texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sarto.errors import RequestError
from sarto.market.labelled import Labelled
from sarto.market.preprocess import to_tensor
from sarto.market.samples import Samples
from sarto.market.texts import TextSamples
from sarto.market.vocabulary import Vocabulary, text_ids
from sarto.types import Preprocessing, TextPreprocessing

#: Shares of red, green and blue in the brightness of a pixel (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Intake:
    """What a model reads, with all that is needed to give it that.

    Attributes:
        vocabulary: of a model that reads texts; None for images.

    Raises:
        RequestError: a vocabulary that is missing, left over, or another one than the preprocessing names.
    """

    preprocessing: Preprocessing | TextPreprocessing
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        said, found = self.preprocessing, self.vocabulary
        if isinstance(said, TextPreprocessing):
            have = found.digest if found is not None else "no vocabulary"
            if have != said.vocabulary:
                raise RequestError(f"the preprocessing names the vocabulary {said.vocabulary}, got {have}")
        elif found is not None:
            raise RequestError("a vocabulary goes with the preprocessing of texts, this one is of images")

    @property
    def kind(self) -> str:
        """ "image" or "text"."""
        return self.preprocessing.TAG

    def tensor(self, samples: Labelled) -> Tensor:
        """Samples as the graph takes them: float32 (n, channels, height, width), or int64 (n, length).

        Grey images are given three equal channels where the model reads three, coloured ones are made grey where it
        reads one.

        Raises:
            RequestError: samples of another kind.
            ShapeError: images of another size that may not be resized.
        """
        if isinstance(samples, TextSamples) and self.vocabulary is not None:
            return self.ids(samples.texts)
        if isinstance(samples, Samples) and isinstance(self.preprocessing, Preprocessing):
            return to_tensor(with_channels(samples.images, self.preprocessing.channels), self.preprocessing)
        raise RequestError(f"the model reads {self.kind}s, the samples are {samples.noun}s")

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Token ids of texts, int64 (n, length).

        Raises:
            RequestError: a text is empty, or the model reads images.
        """
        if self.vocabulary is None or not isinstance(self.preprocessing, TextPreprocessing):
            raise RequestError("texts were given, the model reads images")
        return torch.tensor(text_ids(texts, self.preprocessing, self.vocabulary), dtype=torch.int64)


def with_channels(images: NDArray[Any], channels: int) -> NDArray[Any]:
    """The same images with three equal channels instead of a grey one, or grey (float32 in [0, 1]) instead of three.

    Other numbers of channels are left as they are.

    Args:
        images: shape (n, height, width, channels), uint8, or floats in [0, 1].
    """
    have = images.shape[-1]
    if have == 1 and channels == 3:
        return np.repeat(images, 3, axis=-1)
    if have == 3 and channels == 1:
        values = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
        grey = values @ np.array(LUMA, np.float32)
        return np.asarray(np.clip(grey, 0, 1)[..., None], np.float32)
    return images
