"""Features that need no model, under the trivial classifier that stands beside every result."""

from __future__ import annotations

import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.market import Labelled, Samples, TextSamples, words
from sarto.training import pixel_features, word_features

#: Names of the trivial classifiers on these features, and what they read, by what a sample is.
PLAIN = {
    "image": ("pixel ridge", "8x8 mean colours"),
    "text": ("bag of words ridge", "words of the texts, counted"),
}


def plain_features(samples: Labelled, own: Labelled) -> Tensor:
    """Features (n, width) of samples: mean colours of images, or counts of the words that `own` texts hold.

    Raises:
        RequestError: the two are not of one kind.
    """
    if isinstance(samples, Samples) and isinstance(own, Samples):
        return pixel_features(torch.from_numpy(samples.images.copy()).permute(0, 3, 1, 2))
    if isinstance(samples, TextSamples) and isinstance(own, TextSamples):
        known = sorted({word for text in own.texts for word in words(text)})
        return word_features([words(text) for text in samples.texts], known)
    raise RequestError(f"{samples.noun}s can't be compared with {own.noun}s")
