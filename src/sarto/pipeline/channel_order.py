"""Whether a model that is said to read red, green, blue reads its channels the other way round."""

from __future__ import annotations

from scipy.stats import binom
from torch import Tensor

from sarto.graph import ModelGraph
from sarto.market import Intake, Samples, Store
from sarto.types import Learnware

#: Largest chance that a model which reads its channels in order is told otherwise.
CHANCE = 1e-3
#: Samples that run at once.
_BATCH = 256


def channels_turned(store: Store, item: Learnware, graph: ModelGraph, intake: Intake) -> str | None:
    """What speaks for blue, green, red, in words: the model names its own samples better with channels turned round.

    An exact sign test on the samples that only one of the two ways names right. Nothing is told of models without
    samples or of other than three channels; a model that colours don't matter to is not told apart.
    """
    if item.samples_hash is None or item.input_shape[:1] != (3,):
        return None
    held = store.samples(item.id)
    if not isinstance(held, Samples):
        return None
    images, truth = intake.tensor(held), [item.classes.index(held.classes[label]) for label in held.labels]
    plain, turned = _right(graph, images, truth), _right(graph, images.flip(1), truth)
    gained = sum(b and not a for a, b in zip(plain, turned, strict=True))
    lost = sum(a and not b for a, b in zip(plain, turned, strict=True))
    if float(binom.sf(gained - 1, gained + lost, 0.5)) > CHANCE:
        return None
    n = len(truth)
    return (
        f"it names {sum(turned) / n:.0%} of its {n} samples right with red and blue exchanged, {sum(plain) / n:.0%} as "
        "it is: it seems to read blue, green, red; stock it with the input channels of its first layer (and mean and "
        "std) turned round"
    )


def _right(graph: ModelGraph, images: Tensor, truth: list[int]) -> list[bool]:
    said: list[int] = []
    for start in range(0, len(images), _BATCH):
        out = graph(images[start : start + _BATCH])
        if isinstance(out, Tensor) and out.ndim == 2:
            said += out.argmax(1).tolist()
    return [a == b for a, b in zip(said, truth, strict=True)]
