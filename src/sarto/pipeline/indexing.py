"""Indexing the models of a market: probe images through each of them, once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sarto.engines.reassembly import Sketcher, anatomy, probe
from sarto.engines.reassembly.signatures import BATCH, SKETCH, signature_length
from sarto.errors import GraphError, RequestError, ShapeError, StoreError
from sarto.graph import ModelGraph, normalise
from sarto.market import Intake, Labelled, Samples, Store
from sarto.market.indices import Indices, ProbeIndex
from sarto.pipeline.channel_order import channels_turned
from sarto.pipeline.intakes import intake_of
from sarto.pipeline.progress import Progress, silent
from sarto.types import Learnware, Preprocessing
from sarto.types.reassembly import IndexedModel, PlaceRecord, ProbeIndexAbout

#: Folder of the indices in a market's folder.
FOLDER = "indices"
#: Probe images of an index that names no number.
N_PROBES = 256
#: Cut points that a model has at least where it can be parted into two blocks, which is the least of a chain.
FEWEST = 3


@dataclass(frozen=True)
class Indexing:
    """What an indexing did.

    Attributes:
        added: names of the models that were added.
        known: those that were there already.
        skipped: those that can't be indexed, or are copies of another, and why.
        doubtful: those that were added, and what seems wrong with them.
        notes: what of the probe images is other than was asked for.
    """

    added: tuple[str, ...]
    known: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    doubtful: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def indices(store: Store) -> Indices:
    """The indexed zoos of a market."""
    return Indices(store.path / FOLDER)


def index_zoo(
    store: Store,
    name: str,
    which: Sequence[str] = (),
    *,
    probes: Samples | None = None,
    n_probes: int = N_PROBES,
    batch: int = BATCH,
    cells: int = 1,
    progress: Progress = silent,
) -> Indexing:
    """Make an index, or add to it what it misses; interrupted, it goes on where it was.

    Args:
        name: of the index.
        which: learnwares; none: all that read images.
        probes: unlabelled images; None: those of the index, or of a new one a draw from what learnwares came with.
        n_probes: of a new index without images of its own.
        batch: images in one Gram matrix; see `sarto.engines.reassembly.signature`.

    Raises:
        RequestError: too few probe images (says how many are needed), or no learnware can be indexed.
        StoreError: the index was made with other probe images, or can't be written.
    """
    learnwares = [store.get(item) for item in which] if which else list(store.learnwares())
    images = [item for item in learnwares if isinstance(item.preprocessing, Preprocessing)]
    found = indices(store)
    is_new = name not in found.names()
    if not is_new:
        index = found.get(name)
        if probes is not None and probes.digest != index.about.probe_hash:
            raise StoreError(
                f"index {name!r} was made with other probe images; similarities between them mean nothing: leave the "
                "images out, or give the new index another name",
                where=name,
            )
        held = index.probes()
    else:
        held = probes if probes is not None else _drawn(store, images, n_probes)
        _check_probes(held, batch)
        index = found.create(_about(name, held, batch, cells), held)
    known = {(m.graph_hash, m.weights_hash): m.learnware for m in index.models()}
    stocked = {item.id: item.name for item in store.learnwares()}
    added, there = list[str](), list[str]()
    skipped, doubtful = list[tuple[str, str]](), list[tuple[str, str]]()
    skipped += [
        (item.name, "it reads texts; zoos are indexed with images")
        for item in learnwares
        if item not in images
    ]
    for place, item in enumerate(images):
        progress(f"indexing {item.name}", place, len(images))
        same = known.get((item.graph_hash, item.weights_hash))
        if same is not None:
            if same == item.id or same not in stocked:
                there.append(item.name)
            else:
                skipped.append((item.name, f"it is a copy of {stocked[same]!r}: the same graph and weights"))
            continue
        try:
            doubt = _enter(store, index, item, held)
        except (GraphError, RequestError, ShapeError) as error:
            skipped.append((item.name, str(error)))
            continue
        added.append(item.name)
        doubtful += [(item.name, doubt)] if doubt is not None else []
        known[item.graph_hash, item.weights_hash] = item.id
    progress("indexing", len(images), len(images))
    if not added and not there:
        if is_new:
            found.remove(name)
        told = (
            "; ".join(f"{item}: {why}" for item, why in skipped)
            or "the market holds no learnware that reads images"
        )
        raise RequestError(f"nothing was indexed: {told}")
    asked = None if is_new and probes is not None else n_probes
    notes = tuple(_unlike(index, is_new=is_new, n_probes=asked, batch=batch, cells=cells))
    return Indexing(tuple(added), tuple(there), tuple(skipped), tuple(doubtful), notes)


def _unlike(
    index: ProbeIndex, *, is_new: bool, n_probes: int | None, batch: int, cells: int
) -> Iterator[str]:
    """What of an index is other than was asked for, in words.

    Args:
        n_probes: as many were to be drawn; None: they were given.
    """
    about = index.about
    if is_new and n_probes is not None and about.n_probes < n_probes:
        yield f"{about.n_probes} probe images, not {n_probes}: learnwares came with no more of one size"
    # What differs from the default was asked for; whether a default was, too, can't be told.
    said = {"batch": (batch, BATCH), "cells": (cells, 1)}
    stays = [
        f"{name} {getattr(about, name)}, not {wanted}"
        for name, (wanted, usual) in said.items()
        if not is_new and wanted not in (usual, getattr(about, name))
    ]
    if stays:
        yield f"the index was there and stays as it was made ({', '.join(stays)}): give another name for a new one"
    left = about.n_probes % about.batch
    if left:
        yield f"{left} of {about.n_probes} probe images fill no batch of {about.batch}: similarities don't read them"


def ready_graph(store: Store, learnware: Learnware) -> ModelGraph:
    """A donor as it reads images in [0, 1]."""
    said = learnware.preprocessing
    if not isinstance(said, Preprocessing):
        raise RequestError(f"{learnware.name!r} reads texts; blocks are taken from models that read images")
    return normalise(store.graph(learnware.id), said.mean, said.std)


def probes_of(store: Store, digest: str) -> Labelled | None:
    """The probe images of an index by their hash; None where no index has them."""
    for name in indices(store).names():
        index = indices(store).get(name)
        if index.about.probe_hash == digest:
            return index.probes()
    return None


def _enter(store: Store, index: ProbeIndex, item: Learnware, held: Samples) -> str | None:
    """Enter a model; what seems wrong with it, in words."""
    graph = ready_graph(store, item)
    table = anatomy(graph)
    intake: Intake = intake_of(store, item)
    found = probe(graph, table, intake.tensor(held), batch=index.about.batch, cells=index.about.cells)
    sketches = Sketcher(index.about.length, index.about.sketch)(found.signatures)
    skill = sum(item.skill.values()) / len(item.skill) if item.skill else None
    model = IndexedModel(
        learnware=item.id,
        name=item.name,
        graph_hash=item.graph_hash,
        weights_hash=item.weights_hash,
        places=tuple(
            PlaceRecord(
                value=p.value,
                layout=p.layout,
                channels=p.channels,
                rows=p.grid[0],
                columns=p.grid[1],
                prefix=p.prefix,
                channels_last=p.channels_last,
                dtype=p.dtype,
            )
            for p in table.places
        ),
        params=table.params,
        flops=table.flops,
        sizes=table.sizes,
        peaks=table.peaks,
        first_row=0,
        first_number=0,
        digest=item.graph_hash,
        skill=skill,
        licence=item.licence,
    )
    index.add(model, found.signatures, sketches, found.features, held.digest)
    doubts = (shallow(len(table.places)), channels_turned(store, item, graph, intake))
    return "; ".join(doubt for doubt in doubts if doubt is not None) or None


def shallow(n_places: int) -> str | None:
    """Why chains leave out a model of so many cut points; None where they don't."""
    if n_places >= FEWEST:
        return None
    have = "1 cut point" if n_places == 1 else f"{n_places} cut points"
    return f"it has {have}, {FEWEST} are the least for two blocks, so chains leave it out"


def _about(name: str, held: Samples, batch: int, cells: int) -> ProbeIndexAbout:
    length = signature_length(len(held), batch)
    return ProbeIndexAbout(
        name=name,
        probe_hash=held.digest,
        n_probes=len(held),
        batch=batch,
        cells=cells,
        length=length,
        sketch=min(SKETCH, length),
    )


def _check_probes(held: Samples, batch: int) -> None:
    if len(held) < batch:
        raise RequestError(
            f"an index with batches of {batch} needs at least {batch} probe images, got {len(held)}: give more with "
            "--probes, draw more with --n-probes, or take smaller batches with --batch"
        )


def _drawn(store: Store, learnwares: Sequence[Learnware], n: int) -> Samples:
    """Images that learnwares came with, without their labels: the most common size, spread over the learnwares.

    Raises:
        RequestError: no learnware came with images.
    """
    parts: list[Samples] = []
    for item in learnwares:
        if item.samples_hash is not None:
            found = store.samples(item.id)
            if isinstance(found, Samples):
                parts.append(found)
    if not parts:
        raise RequestError("no learnware came with images; give the probe images with --probes")
    shapes = [part.images.shape[1:] for part in parts]
    common = max(set(shapes), key=lambda shape: (shapes.count(shape), shape))
    images = np.concatenate([part.images for part in parts if part.images.shape[1:] == common])
    images = np.unique(images.reshape(len(images), -1), axis=0).reshape(-1, *common)
    order = np.random.default_rng(0).permutation(len(images))[:n]
    return Samples(images[np.sort(order)], np.zeros(len(order), np.int64), ("probe",))
