"""A market on disk: learnwares and fragments that survive crashes, full disks and other writers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from sarto.errors import GraphError, RequestError, StoreError
from sarto.graph.file import read_graph_files, write_graph
from sarto.graph.model import ModelGraph, size_at
from sarto.market import rows
from sarto.market.blobs import KEY, Blobs, FolderBlobs, Staged
from sarto.market.checking import verify
from sarto.market.index import FILE, Catalogue, ObjectRow, SourceRow, not_a_market, now
from sarto.market.manifest import content_id, hashes_of, stocking_problems
from sarto.market.profiles import Profiles
from sarto.market.reading import read_encoded
from sarto.market.rows import Fragment
from sarto.market.samples import Samples
from sarto.market.supernets import Supernets
from sarto.market.texts import TextSamples
from sarto.market.vocabulary import Vocabulary, decode_vocabulary
from sarto.types import Cost, Learnware, Preprocessing, TextPreprocessing, WidthCost


@dataclass(frozen=True)
class Removed:
    """What went with a learnware: the fragments made from it, and the bytes that nobody else needs."""

    learnware: Learnware
    fragments: tuple[str, ...]
    freed_bytes: int


class Store:
    """Learnwares and fragments in a folder: blobs by hash, and an index of a few rows.

    Objects are whole or absent. Bytes are written first, then one transaction of the index makes them known;
    a crash leaves at most blobs that nobody refers to (`clean` removes them). Several processes and threads
    may use a market at once.
    """

    def __init__(self, path: Path, index: Catalogue, blobs: Blobs) -> None:
        """Put a store together from its parts; `create` and `open` are the usual ways."""
        self.path = path
        self._opened: Catalogue | None = index
        self._blobs = blobs

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """A new market in a folder that is empty or does not exist.

        Raises:
            StoreError: the folder holds something, a market for instance, or can't be made.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            strangers = sorted(
                entry.name
                for entry in folder.iterdir()
                if entry.name not in (FILE, f"{FILE}-journal", "blobs")
            )
        except OSError as error:
            raise StoreError(f"market {str(folder)!r} can't be made: {error}", where=str(folder)) from error
        if strangers:
            raise StoreError(
                f"a market needs a folder of its own; {str(folder)!r} holds {', '.join(strangers[:5])}: "
                "choose an empty one",
                where=str(folder),
            )
        return cls(folder, Catalogue(folder / FILE, create=True), FolderBlobs(folder / "blobs"))

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The market in a folder. What writers left behind that died is cleared.

        Raises:
            StoreError: no market there, one of a newer version, or a damaged one.
        """
        folder = Path(path)
        if not (folder / FILE).is_file():
            raise not_a_market(folder, f"no {FILE} in it" if folder.is_dir() else "there is no such folder")
        return cls(folder, Catalogue(folder / FILE), FolderBlobs(folder / "blobs"))

    def close(self) -> None:
        """Let go of the files. Graphs that were read stay usable."""
        if self._opened is not None:
            self._opened.close()
            self._blobs.close()
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(
        self,
        graph: ModelGraph,
        *,
        name: str,
        classes: Sequence[str],
        preprocessing: Preprocessing | TextPreprocessing,
        cost: Cost,
        licence: str = "",
        samples: Samples | TextSamples | None = None,
        notes: str = "",
        origin: str = "",
        skill: Mapping[str, float] | None = None,
        skill_basis: str | None = None,
        widths: Sequence[WidthCost] = (),
        vocabulary: Vocabulary | None = None,
    ) -> Learnware:
        """Stock a model with its specification.

        Args:
            graph: reads images or token ids after `preprocessing` and gives one score a class.
            name: unique among the learnwares of this market.
            classes: what the scores stand for, in order.
            samples: a few images or texts of some or all of the classes.
            vocabulary: of a model that reads texts.
            licence: as its owner states it; empty where nothing is stated.
            skill: accuracy a class, measured by the caller, as described by `skill_basis`.
            cost, widths: counted by the caller.

        Returns:
            The manifest. Where the same content is stocked already, the one that is there, under its name;
            nothing changes then.

        Raises:
            RequestError: the parts don't fit together; names every problem.
            StoreError: another learnware has this name, or writing failed; the market is unchanged.
        """
        problems = stocking_problems(
            graph,
            name=name,
            classes=classes,
            preprocessing=preprocessing,
            samples=samples,
            skill=skill,
            vocabulary=vocabulary,
        )
        if problems:
            raise RequestError(f"learnware {name!r} can't be stocked", problems=problems)
        with self._blobs.workplace() as folder:
            staged = self._stage(graph, folder)
            if samples is not None:
                (folder / "samples").write_bytes(samples.encoded())
                staged.append(self._blobs.stage(folder / "samples"))
            graph_hash, weights_hash, samples_hash, *_ = [*(item.key for item in staged), None]
            if vocabulary is not None:
                (folder / "vocabulary").write_bytes(vocabulary.encoded())
                staged.append(self._blobs.stage(folder / "vocabulary"))
            learnware = Learnware(
                id=content_id(
                    graph_hash=graph_hash,
                    weights_hash=weights_hash,
                    samples_hash=samples_hash,
                    classes=classes,
                    preprocessing=preprocessing,
                    licence=licence,
                ),
                name=name,
                classes=tuple(classes),
                preprocessing=preprocessing,
                graph_hash=graph_hash,
                weights_hash=weights_hash,
                samples_hash=samples_hash,
                licence=licence,
                notes=notes,
                origin=origin,
                input_shape=size_at(graph.inputs[0].shape[1:], 1),
                n_samples=samples.counts if samples is not None else {},
                skill=dict(skill) if skill is not None else None,
                skill_basis=skill_basis,
                cost=cost,
                created=now(),
                widths=tuple(widths),
            )
            with self._publishing(staged) as session:
                return rows.enter(session, learnware)

    def learnwares(self) -> tuple[Learnware, ...]:
        """Every manifest, oldest first."""
        with self._index.read() as session:
            return tuple(rows.manifest(row) for row in rows.live(session))

    def get(self, which: str) -> Learnware:
        """The manifest of a learnware.

        Args:
            which: its name, its id, or the first 6 or more hex digits of the id.

        Raises:
            StoreError: there is none, or several ids begin like this.
        """
        with self._index.read() as session:
            return rows.manifest(rows.find(session, which))

    def graph(self, which: str) -> ModelGraph:
        """The model of a learnware; its tensors are read from disk when they are asked for.

        Raises:
            StoreError: there is no such learnware, or its files are missing or damaged.
        """
        learnware = self.get(which)
        return self._read_graph(f"learnware {learnware.name!r}", learnware.graph_hash, learnware.weights_hash)

    def samples(self, which: str) -> Samples | TextSamples:
        """The samples of a learnware, grouped by class, in the order of the learnware's classes.

        Raises:
            StoreError: there is no such learnware, it has no samples, or the file is missing or damaged.
        """
        learnware = self.get(which)
        what = f"learnware {learnware.name!r}"
        if learnware.samples_hash is None:
            raise StoreError(f"{what} has no samples: add it again with some", where=learnware.id)
        with _told(what):
            found = read_encoded(self._blobs.path(learnware.samples_hash))
        return found.only([name for name in learnware.classes if name in found.classes])

    def vocabulary(self, which: str) -> Vocabulary | None:
        """The vocabulary of a learnware that reads texts; None for images.

        Raises:
            StoreError: there is no such learnware, or the file is missing or damaged.
        """
        learnware = self.get(which)
        if not isinstance(learnware.preprocessing, TextPreprocessing):
            return None
        with _told(f"learnware {learnware.name!r}"):
            return decode_vocabulary(self._blobs.path(learnware.preprocessing.vocabulary).read_bytes())

    def remove(self, which: str) -> Removed:
        """Take a learnware out, with the fragments made from it and the blobs that nobody else needs.

        Its id stays known as removed; the same content may be added again and gets the same id.

        Raises:
            StoreError: there is no such learnware.
        """
        with self._index.write() as session:
            row = rows.find(session, which)
            learnware = rows.manifest(row)
            derived = (
                select(ObjectRow).join(SourceRow).where(SourceRow.learnware == row.id).order_by(ObjectRow.key)
            )
            fragments = session.scalars(derived).all()
            freed = set(hashes_of(learnware).values())
            for item in fragments:
                freed |= {item.graph_hash, item.weights_hash}
                session.delete(item)
            row.manifest, row.removed = None, now()
        return Removed(learnware, tuple(item.key for item in fragments), self._sweep(freed))

    def put_fragment(
        self, key: str, graph: ModelGraph, lineage: Mapping[str, Any], *, replace: bool = False
    ) -> Fragment:
        """Stock a part that was made from learnwares, under the key of the plan that builds it.

        Args:
            key: "sha256:<64 hex>". Where it is stocked already and sound, nothing changes.
            lineage: plain JSON that says how it was made, the plan for instance. Every id of a learnware in
                it counts as a source, and so do the sources of every fragment whose key is in it.
            replace: put it in the place of the one that is there.

        Raises:
            RequestError: no such key, or a lineage that is not plain JSON.
            StoreError: a learnware that it names was removed, or writing failed; the market is unchanged.
        """
        problems = [] if KEY.fullmatch(key) else [f"key {key!r}: must be 'sha256:' and 64 hex digits"]
        text = "{}"
        try:
            text = json.dumps(dict(lineage), allow_nan=False, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(f"lineage must be plain JSON: {error}")
        if problems:
            raise RequestError("fragment can't be stocked", problems=problems)
        with self._blobs.workplace() as folder:
            staged = self._stage(graph, folder)
            with self._publishing(staged) as session:
                row = session.get(ObjectRow, key)
                if row is not None and not replace and self._sound(row):
                    staged.clear()
                    return rows.fragment(session, row)
                before = {row.graph_hash, row.weights_hash} if row is not None else set()
                if row is not None:
                    session.delete(row)
                    session.flush()
                sources = rows.sources(session, key, json.loads(text))
                graph_hash, weights_hash = (item.key for item in staged)
                row = ObjectRow(
                    key=key, graph_hash=graph_hash, weights_hash=weights_hash, lineage=text, created=now()
                )
                session.add(row)
                session.flush()
                session.add_all(SourceRow(key=key, learnware=source) for source in sources)
                session.flush()
                put = rows.fragment(session, row)
        self._sweep(before)
        return put

    def fragment(self, key: str) -> ModelGraph | None:
        """The graph of a stocked fragment; None where there is none.

        Raises:
            StoreError: its files are missing or damaged.
        """
        with self._index.read() as session:
            row = session.get(ObjectRow, key)
        return None if row is None else self._read_graph(f"fragment {key}", row.graph_hash, row.weights_hash)

    def fragments(self) -> tuple[Fragment, ...]:
        """Every stocked fragment, oldest first."""
        with self._index.read() as session:
            return tuple(rows.fragment(session, row) for row in rows.stocked(session))

    def sound_fragments(self, keys: Iterable[str]) -> frozenset[str]:
        """Those of the keys under which a fragment is stocked whose files are whole; reads the files."""
        with self._index.read() as session:
            found = [row for key in sorted(set(keys)) if (row := session.get(ObjectRow, key)) is not None]
        return frozenset(row.key for row in found if self._sound(row))

    def remove_fragment(self, key: str) -> bool:
        """Take one fragment out; True where there was one."""
        return key in self.remove_fragments([key])[0]

    def remove_fragments(self, keys: Iterable[str]) -> tuple[tuple[str, ...], int]:
        """Take fragments out at once; the keys of those that were there, and the bytes that this frees."""
        with self._index.write() as session:
            found = [row for key in sorted(set(keys)) if (row := session.get(ObjectRow, key)) is not None]
            for row in found:
                session.delete(row)
        freed = self._sweep({blob for row in found for blob in (row.graph_hash, row.weights_hash)})
        return tuple(row.key for row in found), freed

    def verify(self) -> list[str]:
        """Everything that is wrong with the market, by reading all of it; lines with "info:" are harmless.

        Found are: blobs that are missing, cut short or changed; manifests that can't be read or whose id does
        not belong to their content; a damaged index; and, as info, blobs that nothing refers to.
        """
        return verify(self._index, self._blobs)

    def clean(self) -> tuple[str, ...]:
        """Remove blobs that nothing refers to, and what dead writers left; the keys of those blobs.

        Raises:
            StoreError: a manifest can't be read, so that nobody knows which blobs it needs.
        """
        self._blobs.tidy()
        with self._index.write() as session:
            needed = rows.used(session)
            orphans = tuple(key for key in self._blobs if key not in needed)
            for key in orphans:
                self._blobs.remove(key)
        return orphans

    @property
    def profiles(self) -> Profiles:
        """The device profiles that the market holds."""
        return Profiles(self._index)

    @property
    def supernets(self) -> Supernets:
        """The supernets that the market holds."""
        return Supernets(self._index, self._blobs, self._publishing, self._sweep)

    @property
    def _index(self) -> Catalogue:
        if self._opened is None:
            raise StoreError(f"market {str(self.path)!r} was closed: open it again", where=str(self.path))
        return self._opened

    def _stage(self, graph: ModelGraph, folder: Path) -> list[Staged]:
        """The graph and the tensors, safe on disk."""
        written = write_graph(graph, folder)
        return [self._blobs.stage(written.graph_path), self._blobs.stage(written.weights_path)]

    @contextmanager
    def _publishing(self, staged: list[Staged]) -> Iterator[Session]:
        """A transaction at whose end the staged bytes become visible, just before what refers to them."""
        try:
            with self._index.write() as session:
                yield session
                for item in staged:
                    self._blobs.publish(item)
        except BaseException:
            with suppress(StoreError):
                self._sweep(item.key for item in staged)
            raise

    def _sweep(self, keys: Iterable[str]) -> int:
        """Remove those of the blobs that nothing refers to; the bytes that this frees."""
        doubtful = sorted(set(keys))
        if not doubtful:
            return 0
        with self._index.write() as session:
            needed = rows.used(session)
            return sum(self._blobs.remove(key) for key in doubtful if key not in needed)

    def _sound(self, row: ObjectRow) -> bool:
        return all(self._blobs.problem(key) is None for key in (row.graph_hash, row.weights_hash))

    def _read_graph(self, what: str, graph_hash: str, weights_hash: str) -> ModelGraph:
        with _told(what):
            return read_graph_files(self._blobs.path(graph_hash), self._blobs.path(weights_hash))


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say which object is damaged, and what to do."""
    try:
        yield
    except (StoreError, GraphError, RequestError) as error:
        raise StoreError(
            f"{what} can't be read: {error}; the market is unchanged: put the file back from a copy, "
            "or remove the object and add it again",
            where=error.where,
        ) from error
