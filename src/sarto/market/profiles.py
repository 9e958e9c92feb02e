"""Device profiles in the index of a market: whole values in rows of their own, no blobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import inspect, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from sarto.errors import RequestError, StoreError, suggest
from sarto.market.index import Base, Catalogue, now
from sarto.types.profile import DeviceProfile


class ProfileRow(Base):
    """A measured device under its name."""

    __tablename__ = "profiles"
    name: Mapped[str] = mapped_column(primary_key=True)
    profile: Mapped[str]
    created: Mapped[str]


class Profiles:
    """The device profiles of a market, by name."""

    def __init__(self, index: Catalogue) -> None:
        """Look into an index; `Store.profiles` is the usual way."""
        self._index = index

    def put(self, profile: DeviceProfile) -> None:
        """Stock a profile, in the place of the one of its name; older markets get a table for it.

        Raises:
            StoreError: writing failed; the market is unchanged.
        """
        with self._index.write() as session:
            if not _has_table(session):
                table = Base.metadata.tables[ProfileRow.__tablename__]
                Base.metadata.create_all(session.connection(), tables=[table])
            session.merge(ProfileRow(name=profile.name, profile=profile.to_json(), created=now()))

    def get(self, name: str) -> DeviceProfile:
        """The profile of that name.

        Raises:
            StoreError: there is none, or it can't be read.
        """
        with self._index.read() as session:
            rows = {row.name: row for row in _rows(session)}
        if name not in rows:
            near = suggest(name, rows) if rows else "; the market holds none: sarto device measure makes one"
            raise StoreError(f"no device profile {name!r}{near}", where=name)
        return _read(rows[name])

    def remove(self, name: str) -> bool:
        """Take a profile out; True where there was one."""
        with self._index.write() as session:
            row = session.get(ProfileRow, name) if _has_table(session) else None
            if row is not None:
                session.delete(row)
            return row is not None

    def __iter__(self) -> Iterator[DeviceProfile]:
        """Every profile, by name.

        Raises:
            StoreError: one can't be read.
        """
        with self._index.read() as session:
            rows = _rows(session)
        yield from (_read(row) for row in rows)


def problems(session: Session) -> Iterator[str]:
    """What is wrong with the stocked profiles."""
    for row in _rows(session):
        try:
            _read(row)
        except StoreError as error:
            yield str(error)


def _rows(session: Session) -> Sequence[ProfileRow]:
    if not _has_table(session):
        return ()
    return session.scalars(select(ProfileRow).order_by(ProfileRow.name)).all()


def _has_table(session: Session) -> bool:
    return inspect(session.connection()).has_table(ProfileRow.__tablename__)


def _read(row: ProfileRow) -> DeviceProfile:
    try:
        profile = DeviceProfile.parse(row.profile)
    except RequestError as error:
        raise StoreError(
            f"device profile {row.name!r} can't be read ({error}): measure it again, or put back a copy of the index",
            where=row.name,
        ) from error
    if profile.name != row.name:
        raise StoreError(
            f"device profile {row.name!r} holds that of {profile.name!r}: measure it again", where=row.name
        )
    return profile
