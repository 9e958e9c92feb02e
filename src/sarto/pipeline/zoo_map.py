"""Which parts of a zoo are interchangeable: the sets of its dissection, and the similarity of all places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sarto.engines.reassembly import cka_errors, similarity_error
from sarto.market import Store
from sarto.market.indices import ProbeIndex
from sarto.pipeline.indexed_zoo import usable


@dataclass(frozen=True)
class MappedModel:
    """A model of a map: its places, the set of each piece between them (-1: none), and where blocks begin and end."""

    name: str
    places: tuple[str, ...]
    params: tuple[int, ...]
    sets: tuple[int, ...]
    bounds: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ZooMap:
    """Which parts of a zoo are interchangeable.

    Attributes:
        mean_similarity: of a block to the blocks of its set, itself among them, between -2 and 2.
        mean_error: standard error of it, by the jack-knife over the batches of probe images; None where the notes say.
        widened: models that can't keep the size limit, and the slack that each was given.
        cka: between all places of all models, in their order.
        cka_errors: standard error of each, as `mean_error`.
        notes: which models are left out, why there are fewer blocks than usual, and why there are no errors, in words.
    """

    index: str
    k: int
    mean_similarity: float
    widened: tuple[tuple[str, float], ...]
    models: tuple[MappedModel, ...]
    cka: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...] = ()
    mean_error: float | None = None
    cka_errors: tuple[tuple[float, ...], ...] | None = None

    @property
    def errors_told(self) -> str:
        """The errors of the CKA of two places in words; empty where there are none."""
        errors = np.array(self.cka_errors if self.cka_errors is not None else ())
        if not errors.size:
            return ""
        pairs = errors[np.triu_indices(len(errors), 1)]
        return f"standard error {np.median(pairs):.3f} in the middle, {pairs.max():.3f} at most"


def similarity_map(
    store: Store, index: ProbeIndex, k: int | None = None, *, skip: float | None = None
) -> ZooMap:
    """The dissection of an index and the CKA between all its places.

    Args:
        k: blocks of each model; None: up to four.
        skip: lets models have no block in a set; see `Parting`.

    Raises:
        RequestError: fewer than two models are left.
        InfeasibleError: k blocks are too many for a model.
    """
    found = usable(store, index)
    zoo, learnwares = found.zoo, found.learnwares
    parting, notes = found.parted(k, skip=skip)
    rows = np.concatenate([entry.rows for entry in zoo.entries])
    chosen = np.asarray(zoo.vectors[rows])
    about, mean_error, errors = index.about, None, None
    if zoo.vectors.shape[1] != about.length:
        notes = (
            *notes,
            "no errors of similarities: so large a zoo is compared by sketches, which have no batches",
        )
    elif about.n_probes < 2 * about.batch:
        told = f"no errors of similarities: {about.n_probes} probe images are one batch of {about.batch}"
        notes = (*notes, told)
    else:
        mean_error = similarity_error(zoo.cuts(), parting, size=about.batch * (about.batch - 1) // 2)
        errors = cka_errors(chosen, batch=about.batch)
    n_skipped = int((parting.labels < 0).sum())
    models = tuple(
        MappedModel(
            learnware.name,
            tuple(place.value for place in entry.anatomy.places),
            entry.anatomy.params,
            tuple(parting.pieces(i, len(entry.anatomy.places)).tolist()),
            tuple((int(a), int(b)) for a, b in parting.bounds[i]),
        )
        for i, (entry, learnware) in enumerate(zip(zoo.entries, learnwares, strict=True))
    )
    return ZooMap(
        index.name,
        parting.k,
        (parting.value - 2.0 * (skip or 0.0) * n_skipped) / (parting.labels.size - n_skipped),
        tuple((learnwares[i].name, slack) for i, slack in parting.fixed),
        models,
        tuple(tuple(row) for row in np.round(chosen @ chosen.T, 4).tolist()),
        notes,
        mean_error,
        None if errors is None else tuple(tuple(row) for row in np.round(errors, 4).tolist()),
    )
