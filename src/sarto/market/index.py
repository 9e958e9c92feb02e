"""The index of a market: which learnwares and fragments there are. Rows of SQLite; the bytes are blobs."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, ForeignKey, Index, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from sarto.errors import StoreError

#: Version of the tables below. A market of a newer version is refused.
SCHEMA = 1
#: Name of the index inside a market's folder.
FILE = "index.sqlite"
#: How long a writer waits for another one, in seconds.
_PATIENCE_S = 60.0
_STOCKED = text("removed IS NULL")


class Base(DeclarativeBase):
    """Tables of the index."""


class MetaRow(Base):
    """One row that says which version wrote the market, and when it was made."""

    __tablename__ = "meta"
    id: Mapped[int] = mapped_column(primary_key=True)
    schema_version: Mapped[int]
    created: Mapped[str]


class LearnwareRow(Base):
    """A learnware, or the tombstone of one: a removed id stays known and never gets other content."""

    __tablename__ = "learnwares"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    manifest: Mapped[str | None]
    created: Mapped[str]
    removed: Mapped[str | None]

    __table_args__ = (
        Index("learnware_name", "name", unique=True, sqlite_where=_STOCKED, postgresql_where=_STOCKED),
    )


class ObjectRow(Base):
    """A fragment under the key of the plan that builds it."""

    __tablename__ = "objects"
    key: Mapped[str] = mapped_column(primary_key=True)
    graph_hash: Mapped[str] = mapped_column(index=True)
    weights_hash: Mapped[str] = mapped_column(index=True)
    lineage: Mapped[str]
    created: Mapped[str]


class SourceRow(Base):
    """Which learnwares a fragment comes from."""

    __tablename__ = "object_sources"
    key: Mapped[str] = mapped_column(ForeignKey("objects.key", ondelete="CASCADE"), primary_key=True)
    learnware: Mapped[str] = mapped_column(ForeignKey("learnwares.id"), primary_key=True, index=True)


class Catalogue:
    """Transactions on the index.

    SQLite keeps a rollback journal here, not a write-ahead log: a market is a folder that is copied, mounted
    read-only and shared over a network, where a log with its shared-memory file fails or is left behind; and
    writes are rare and short. `synchronous=EXTRA` makes a commit last through a power cut.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open an index.

        Args:
            path: the file.
            create: makes file and tables.

        Raises:
            StoreError: no index, a damaged one, one of a newer version; with `create`, one that is there.
        """
        self._path = path
        self._engine = _engine(path, create)
        try:
            with self.write() if create else self.read() as session:
                tables = set(inspect(session.connection()).get_table_names())
                if create:
                    if "meta" in tables:
                        raise StoreError(
                            f"{str(path.parent)!r} is a market already: open it", where=str(path.parent)
                        )
                    Base.metadata.create_all(session.connection())
                    session.add(MetaRow(id=1, schema_version=SCHEMA, created=now()))
                    return
                version = _version(session, tables)
        except BaseException:
            self._engine.dispose()
            raise
        if version is None:
            raise not_a_market(path.parent, f"{FILE} is not a market's index")
        if version > SCHEMA:
            raise StoreError(
                f"market {str(path.parent)!r} was written by a newer version (schema {version}, "
                f"this sarto reads {SCHEMA}): upgrade sarto",
                where=str(path),
            )

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view.

        Raises:
            StoreError: the index can't be read.
        """
        with self._session(write=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """The one writer: holds the market's write lock until the block ends, then commits all or nothing.

        Raises:
            StoreError: another writer kept the lock too long, the disk is full, or the index is damaged.
        """
        with self._session(write=True) as session:
            yield session

    def damage(self) -> list[str]:
        """What SQLite's own check finds wrong with the file."""
        try:
            with self._engine.connect() as connection:
                rows = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        except DatabaseError as error:
            return [f"index {self._path}: {error.orig}"]
        return [f"index {self._path}: {row}" for row in rows if row != "ok"]

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _session(self, *, write: bool) -> Iterator[Session]:
        try:
            with (
                self._engine.connect().execution_options(sarto_write=write) as connection,
                Session(connection, expire_on_commit=False) as session,
                session.begin(),
            ):
                yield session
        except SQLAlchemyError as error:
            raise _translated(error, self._path) from error


def now() -> str:
    """The present moment, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def not_a_market(folder: Path, why: str) -> StoreError:
    """The error for a path that holds no market."""
    return StoreError(
        f"{str(folder)!r} is not a market ({why}): make one with `sarto market init {folder}`",
        where=str(folder),
    )


def _engine(path: Path, create: bool) -> Engine:
    mode = "rwc" if create else "rw"
    address = f"file:{quote(str(path.absolute()))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        # No isolation level: transactions are begun below, in words; each on a connection of its own.
        connection = sqlite3.connect(
            address, uri=True, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = EXTRA")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)

    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("sarto_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    event.listen(engine, "begin", begin)
    return engine


def _version(session: Session, tables: set[str]) -> int | None:
    """The version that wrote the index; None where it is no index. Works on tables of versions to come."""
    if "meta" not in tables:
        return None
    row = session.connection().exec_driver_sql("SELECT schema_version FROM meta").first()
    return int(row[0]) if row is not None else None


def _translated(error: SQLAlchemyError, path: Path) -> StoreError:
    found = str(getattr(error, "orig", None) or error)
    if "locked" in found:
        cure = f"another process kept the market locked for {_PATIENCE_S:g} s; try again when it is done"
    elif "full" in found:
        cure = "the disk is full; free some space and try again"
    elif "readonly" in found or "read-only" in found:
        cure = "the market can't be written to; check the permissions of the folder"
    else:
        cure = "the index is damaged or can't be opened; put back a copy of it"
    return StoreError(f"index {str(path)!r}: {found}; the market is unchanged: {cure}", where=str(path))
