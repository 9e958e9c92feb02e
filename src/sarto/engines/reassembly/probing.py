"""One streaming pass of the probe images through a model: signatures and pooled features of all its cut points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sarto.engines.reassembly.places import Anatomy
from sarto.engines.reassembly.signatures import BATCH, signature
from sarto.errors import RequestError
from sarto.graph import ModelGraph, evaluate


@dataclass(frozen=True, eq=False)
class Probed:
    """What the probe images say of a model.

    Attributes:
        signatures: shape (places, length of a signature), float32.
        features: pooled activations of each place, shape (n, channels), float32.
    """

    signatures: NDArray[np.float32]
    features: tuple[NDArray[np.float32], ...]


def probe(graph: ModelGraph, found: Anatomy, inputs: Tensor, *, batch: int = BATCH, cells: int = 1) -> Probed:
    """Signatures and features of every place, from one pass, a batch at a time.

    Args:
        inputs: what the model reads, shape (n, ...).
        cells: parts of the grid along each axis that signatures tell apart; 1 pools over everything.

    Raises:
        RequestError: fewer images than one batch; activations that hold NaN or do not vary (names the place).
    """
    if len(inputs) < batch:
        raise RequestError(f"similarities need at least {batch} probe images, got {len(inputs)}: give more")
    watched = {place.value for place in found.places}
    pooled: dict[str, list[Tensor]] = {value: [] for value in watched}
    plain: dict[str, list[Tensor]] = {value: [] for value in watched}
    for start in range(0, len(inputs), batch):
        _, kept = evaluate(graph, inputs[start : start + batch], watch=watched)
        for place in found.places:
            plain[place.value].append(place.pooled(kept[place.value]))
            if cells > 1:
                pooled[place.value].append(place.pooled(kept[place.value], cells))
    rows, features = [], []
    for place in found.places:
        values = torch.cat(plain[place.value])
        told = torch.cat(pooled[place.value]) if cells > 1 else values
        try:
            rows.append(signature(told, batch=batch))
        except RequestError as error:
            raise RequestError(f"at {place.value!r}: {error.detail}", where=place.value) from error
        features.append(values.to(torch.float32).numpy())
    return Probed(torch.stack(rows).to(torch.float32).numpy(), tuple(features))
