"""Trained supernets in a market: backbone and assembler as blobs, a manifest in the index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from sqlalchemy import inspect, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from sarto.errors import GraphError, RequestError, StoreError, suggest
from sarto.graph.file import read_graph_files, write_graph, write_weights
from sarto.graph.lazy import LazyTensors
from sarto.graph.model import ModelGraph
from sarto.market.blobs import Blobs, Staged
from sarto.market.index import Base, Catalogue, now
from sarto.types.factory import StockedSupernet

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"\w[\w.-]{0,99}")
#: Fewest hex digits that an abbreviated id may have.
_DIGITS = 6
Publishing = Callable[[list[Staged]], AbstractContextManager[Session]]


class SupernetRow(Base):
    """A supernet under its id."""

    __tablename__ = "supernets"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    manifest: Mapped[str]
    created: Mapped[str]


class Supernets:
    """The supernets of a market, by name or id. Each is whole or absent, as learnwares are."""

    def __init__(
        self,
        index: Catalogue,
        blobs: Blobs,
        publishing: Publishing,
        sweep: Callable[[Iterable[str]], int],
    ) -> None:
        """Look into a market; `Store.supernets` is the usual way."""
        self._index = index
        self._blobs = blobs
        self._publishing = publishing
        self._sweep = sweep

    def put(
        self, manifest: StockedSupernet, graph: ModelGraph, assembler: Mapping[str, Tensor]
    ) -> StockedSupernet:
        """Stock a supernet. Its hashes, its id and its time are set here, whatever the manifest says of them.

        Where the same content is stocked already, the manifest that is there gets the new qualities and notes, and
        keeps its name and time.

        Args:
            graph: the backbone without gates.
            assembler: name -> tensor.

        Raises:
            RequestError: the name can't be one.
            StoreError: another supernet has this name, or writing failed; the market is unchanged.
        """
        if not _NAME.fullmatch(manifest.name):
            raise RequestError(
                f"name {manifest.name!r}: must be 1 to 100 letters, digits, '.', '_' or '-', and not begin with '.' "
                "or '-'"
            )
        with self._blobs.workplace() as folder:
            written = write_graph(graph, folder)
            with (folder / "assembler").open("wb") as file:
                write_weights(assembler, file)
            staged = [
                self._blobs.stage(path)
                for path in (written.graph_path, written.weights_path, folder / "assembler")
            ]
            hashes = dict(
                zip(("graph_hash", "weights_hash", "assembler_hash"), (s.key for s in staged), strict=True)
            )
            found = manifest.replace(**hashes, created=now())
            found = found.replace(id=found.content_id())
            with self._publishing(staged) as session:
                _make_table(session)
                row = session.get(SupernetRow, found.id)
                if row is not None:
                    known = _read(row)
                    found = found.replace(name=known.name, created=known.created)
                elif any(other.name == found.name for other in _rows(session)):
                    raise StoreError(
                        f"the name {found.name!r} belongs to another supernet; the market is unchanged: choose "
                        f"another name, or remove that one first (`sarto factory rm {found.name}`)",
                        where=found.name,
                    )
                session.merge(
                    SupernetRow(id=found.id, name=found.name, manifest=found.to_json(), created=found.created)
                )
        return found

    def get(self, which: str) -> StockedSupernet:
        """The manifest of a supernet by its name, its id, or the first 6 or more hex digits of the id.

        Raises:
            StoreError: there is none, several ids begin like this, or it can't be read.
        """
        with self._index.read() as session:
            return _read(_find(session, which))

    def graph(self, which: str) -> ModelGraph:
        """The backbone without gates; its tensors are read when they are used.

        Raises:
            StoreError: there is no such supernet, or its files are missing or damaged.
        """
        found = self.get(which)
        try:
            return read_graph_files(self._blobs.path(found.graph_hash), self._blobs.path(found.weights_hash))
        except (StoreError, GraphError) as error:
            raise _damaged(found, error) from error

    def assembler(self, which: str) -> Mapping[str, Tensor]:
        """Name -> tensor of the assembler.

        Raises:
            StoreError: there is no such supernet, or the file is missing or damaged.
        """
        found = self.get(which)
        try:
            return LazyTensors(self._blobs.path(found.assembler_hash))
        except StoreError as error:
            raise _damaged(found, error) from error

    def remove(self, which: str) -> tuple[StockedSupernet, int]:
        """Take a supernet out; its manifest, and the bytes that this frees.

        Raises:
            StoreError: there is none.
        """
        with self._index.write() as session:
            row = _find(session, which)
            found = _read(row)
            session.delete(row)
        return found, self._sweep(found.hashes().values())

    def __iter__(self) -> Iterator[StockedSupernet]:
        """Every manifest, oldest first.

        Raises:
            StoreError: one can't be read.
        """
        with self._index.read() as session:
            rows = _rows(session)
        yield from (_read(row) for row in rows)


def used(session: Session) -> set[str]:
    """Keys of the blobs that supernets refer to.

    Raises:
        StoreError: a manifest can't be read, so nobody knows what it refers to.
    """
    return {key for row in _rows(session) for key in _read(row).hashes().values()}


def problems(session: Session, blobs: Blobs) -> Iterator[str]:
    """What is wrong with the stocked supernets, by reading all of them."""
    for row in _rows(session):
        try:
            found = _read(row)
        except StoreError as error:
            yield str(error)
            continue
        what = f"supernet {row.name!r}"
        if found.content_id() != found.id:
            yield f"{what}: id {found.id} does not belong to its content ({found.content_id()})"
        for part, key in found.hashes().items():
            why = blobs.problem(key)
            if why is not None:
                yield f"{what}: {part}: {why}"


def _make_table(session: Session) -> None:
    if not _has_table(session):
        table = Base.metadata.tables[SupernetRow.__tablename__]
        Base.metadata.create_all(session.connection(), tables=[table])


def _has_table(session: Session) -> bool:
    return inspect(session.connection()).has_table(SupernetRow.__tablename__)


def _rows(session: Session) -> Sequence[SupernetRow]:
    if not _has_table(session):
        return ()
    return session.scalars(select(SupernetRow).order_by(SupernetRow.created, SupernetRow.name)).all()


def _find(session: Session, which: str) -> SupernetRow:
    rows = _rows(session)
    digits = which.removeprefix("sha256:")
    short = re.fullmatch(f"[0-9a-f]{{{_DIGITS},64}}", digits) is not None
    found = [row for row in rows if which in (row.name, row.id)]
    found = found or [row for row in rows if short and row.id.startswith(f"sha256:{digits}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(
            f"{which!r} is the beginning of {len(found)} ids; give more digits or the name", where=which
        )
    near = (
        suggest(which, [row.name for row in rows])
        if rows
        else "; the market holds none: sarto factory train makes one"
    )
    raise StoreError(f"no supernet {which!r}{near}", where=which)


def _read(row: SupernetRow) -> StockedSupernet:
    try:
        found = StockedSupernet.parse(row.manifest)
    except RequestError as error:
        raise StoreError(
            f"manifest of supernet {row.name!r} can't be read ({error}): put back a copy of the index",
            where=row.id,
        ) from error
    if found.id != row.id:
        raise StoreError(f"manifest of supernet {row.name!r} is that of {found.id}", where=row.id)
    return found


def _damaged(found: StockedSupernet, error: Exception) -> StoreError:
    return StoreError(
        f"supernet {found.name!r} can't be read: {error}; the market is unchanged: put the file back from a copy, or "
        f"remove it (`sarto factory rm {found.name}`) and train it again",
        where=found.id,
    )
