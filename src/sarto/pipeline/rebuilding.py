"""Chains of blocks made again from their lock-files: first what is missing is told, then tensors are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sarto.errors import StoreError, VerifyError
from sarto.market import Store
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.environment import versions
from sarto.pipeline.indexing import probes_of
from sarto.pipeline.locking import GRAPH_FILE, WEIGHTS_FILE, Lock
from sarto.pipeline.make import make
from sarto.pipeline.order import check_order
from sarto.pipeline.progress import Progress, silent


def rebuild(store: Store, lock: Lock, out: Path, *, progress: Progress = silent) -> Artifact:
    """The model of a lock, made again into a folder; its tensors are those of the lock, bit for bit.

    Raises:
        StoreError: a donor was removed or changed, probe images or samples are gone.
        RequestError: the folder holds something else, or a file that the order names can't be read.
        VerifyError: other tensors came out; names the versions that differ.
    """
    check_lock(store, lock)
    artifact = make(store, lock.request, out, plan=lock.plan, taken=lock.taken, progress=progress)
    check_rebuilt(lock, artifact)
    return artifact


def check_lock(store: Store, lock: Lock) -> None:
    """Whether a market still holds all that a lock names; what was stocked since then changes nothing.

    Raises:
        StoreError: a donor was removed or is another model now, probe images or samples are gone; all at once.
    """
    problems = [*_donor_problems(store, lock)]
    problems += [
        f"the {probes.n_images} probe images {probes.digest[7:19]} are in no index of the market; index the zoo with "
        "the same images"
        for probes in lock.probes
        if probes_of(store, probes.digest) is None
    ]
    if not problems:
        found = check_order(lock.request, store, lock.taken).requirement
        if found.samples_digest != lock.samples_digest:
            there = {item.id for item in store.learnwares()}
            gone = [
                f"; {cls!r} was taken from the learnware {id_[7:19]}, which was removed from the market"
                for cls, id_ in lock.taken.items()
                if id_ is not None and id_ not in there
            ]
            if found.labelled_by == "donors":
                gone.append(
                    "; labels of images without any are what the donors decide, and another processor may decide "
                    "otherwise where they are unsure"
                )
            problems.append(
                "the order's samples are not those of the lock: give the same, or stock the donors with the same"
                + "".join(gone)
            )
    if problems:
        raise StoreError(problems[0], problems=problems, where=str(store.path))


def _donor_problems(store: Store, lock: Lock) -> Iterator[str]:
    held = {item.id: item for item in store.learnwares()}
    named = {item.name: item for item in held.values()}
    for donor in lock.donors:
        if donor.learnware in held:
            continue
        other = named.get(donor.name)
        if other is None:
            yield f"the donor {donor.name!r} ({donor.learnware[7:19]}) was removed from the market; add it again"
            continue
        parts = [
            what
            for what, one, two in (
                ("graph", donor.graph_hash, other.graph_hash),
                ("weights", donor.weights_hash, other.weights_hash),
            )
            if one != two
        ]
        told = f"its {' and '.join(parts)} differ" if parts else "what is said about it differs"
        yield (
            f"the donor {donor.name!r} was changed: the lock has {donor.learnware[7:19]}, the market "
            f"{other.id[7:19]}, {told}; add the locked one under another name"
        )


def check_rebuilt(lock: Lock, artifact: Artifact) -> None:
    """Whether a model that was made again has the tensors of its lock, bit for bit.

    Raises:
        VerifyError: it has not; names what is different here.
    """
    files = artifact.manifest.files
    if (files[GRAPH_FILE], files[WEIGHTS_FILE]) == (lock.graph_hash, lock.weights_hash):
        return
    here = versions()
    changed = [
        f"{name} {lock.versions.get(name, 'none')} there, {here.get(name, 'none')} here"
        for name in sorted({*lock.versions, *here})
        if lock.versions.get(name) != here.get(name)
    ]
    which = "graph" if files[GRAPH_FILE] != lock.graph_hash else "tensors"
    raise VerifyError(
        f"the {which} made again differ from the lock's: "
        + (
            f"versions differ ({'; '.join(changed)})"
            if changed
            else "the same versions, so another kind of machine"
        )
        + f"; the model in {artifact.folder} works, but is not the same",
        where=str(artifact.folder),
    )
