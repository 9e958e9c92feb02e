"""What the rows of the index mean: manifests, fragments, who comes from whom, and which blobs are needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from sarto.errors import RequestError, StoreError, suggest
from sarto.market.blobs import KEY
from sarto.market.index import LearnwareRow, ObjectRow, SourceRow
from sarto.market.manifest import hashes_of
from sarto.market.supernets import used as used_by_supernets
from sarto.types import Learnware

#: Fewest hex digits that an abbreviated id may have.
PREFIX_DIGITS = 6


@dataclass(frozen=True)
class Fragment:
    """A stocked part of learnwares.

    Attributes:
        key: of the plan that builds it.
        graph_hash: blob of its graph.
        weights_hash: blob of its tensors.
        lineage: how it was made, as it was given.
        learnwares: ids of the learnwares that it comes from; it goes when one of them goes.
        created: ISO 8601, UTC.
    """

    key: str
    graph_hash: str
    weights_hash: str
    lineage: Mapping[str, Any]
    learnwares: tuple[str, ...]
    created: str


def live(session: Session) -> Sequence[LearnwareRow]:
    """Rows of the learnwares that were not removed, oldest first."""
    query = select(LearnwareRow).where(LearnwareRow.removed.is_(None))
    return session.scalars(query.order_by(LearnwareRow.created, LearnwareRow.name)).all()


def stocked(session: Session) -> Sequence[ObjectRow]:
    """Rows of the fragments, oldest first."""
    return session.scalars(select(ObjectRow).order_by(ObjectRow.created, ObjectRow.key)).all()


def find(session: Session, which: str) -> LearnwareRow:
    """The row of a learnware by name, id, or the first hex digits of its id.

    Raises:
        StoreError: there is none, it was removed, or several ids begin like this.
    """
    rows = live(session)
    for row in rows:
        if which in (row.name, row.id):
            return row
    digits = which.removeprefix("sha256:")
    begins = f"sha256:{digits}"
    abbreviated = re.fullmatch(f"[0-9a-f]{{{PREFIX_DIGITS},64}}", digits) is not None
    found = [row for row in rows if abbreviated and row.id.startswith(begins)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{row.name!r} ({row.id[:19]}...)" for row in found)
        raise StoreError(
            f"{which!r} is the beginning of {len(found)} ids: {listed}; give more digits or the name",
            where=which,
        )
    gone = session.scalars(select(LearnwareRow).where(LearnwareRow.removed.is_not(None))).all()
    for row in gone:
        if which in (row.name, row.id) or (abbreviated and row.id.startswith(begins)):
            raise StoreError(
                f"learnware {row.name!r} ({row.id[:19]}...) was removed on {row.removed}: add it again first",
                where=which,
            )
    raise StoreError(f"no learnware {which!r}{suggest(which, [row.name for row in rows])}", where=which)


def manifest(row: LearnwareRow) -> Learnware:
    """The manifest of a row.

    Raises:
        StoreError: it can't be read.
    """
    try:
        return Learnware.parse(row.manifest or "")
    except RequestError as error:
        raise StoreError(
            f"manifest of learnware {row.name!r} can't be read ({error}): put back a copy of the index",
            where=row.id,
        ) from error


def enter(session: Session, learnware: Learnware) -> Learnware:
    """Put a manifest into the index, or return the one that is there with this content.

    Raises:
        StoreError: its name belongs to another learnware.
    """
    row = session.get(LearnwareRow, learnware.id)
    query = select(LearnwareRow).where(LearnwareRow.name == learnware.name, LearnwareRow.removed.is_(None))
    other = session.scalars(query).first()
    if row is not None and row.removed is None:
        if other is not None and other.id != row.id:
            raise StoreError(
                f"this model is stocked already as {row.name!r}, and the name {learnware.name!r} belongs to another "
                f"learnware ({other.id[:19]}...); the market is unchanged: leave out the one or the other",
                where=learnware.name,
            )
        return manifest(row)
    if other is not None:
        raise StoreError(
            f"the name {learnware.name!r} belongs to another learnware ({other.id[:19]}...); the market is "
            f"unchanged: choose another name, or remove that one first (`sarto market rm {learnware.name}`)",
            where=learnware.name,
        )
    if row is None:
        row = LearnwareRow(id=learnware.id)
        session.add(row)
    row.name, row.manifest, row.created, row.removed = (
        learnware.name,
        learnware.to_json(),
        learnware.created,
        None,
    )
    session.flush()
    return learnware


def fragment(session: Session, row: ObjectRow) -> Fragment:
    """The record of a fragment's row."""
    query = select(SourceRow.learnware).where(SourceRow.key == row.key).order_by(SourceRow.learnware)
    return Fragment(
        row.key,
        row.graph_hash,
        row.weights_hash,
        json.loads(row.lineage),
        tuple(session.scalars(query)),
        row.created,
    )


def sources(session: Session, key: str, lineage: Mapping[str, Any]) -> list[str]:
    """Ids of the learnwares that a lineage names, itself or through the fragments that it names.

    Raises:
        StoreError: one of them was removed.
    """
    named = {text for text in _texts(lineage) if KEY.fullmatch(text)} - {key}
    named |= set(session.scalars(select(SourceRow.learnware).where(SourceRow.key.in_(named))))
    rows = session.scalars(
        select(LearnwareRow).where(LearnwareRow.id.in_(named)).order_by(LearnwareRow.id)
    ).all()
    gone = [row for row in rows if row.removed is not None]
    if gone:
        listed = ", ".join(f"{row.name!r} ({row.id[:19]}...)" for row in gone)
        raise StoreError(
            f"fragment {key} comes from {listed}, which was removed; the market is unchanged: "
            "add it again first",
            where=key,
        )
    return [row.id for row in rows]


def used(session: Session) -> set[str]:
    """Keys of the blobs that something refers to.

    Raises:
        StoreError: a manifest can't be read, so nobody knows what it refers to.
    """
    keys = {key for row in live(session) for key in hashes_of(manifest(row)).values()}
    for row in stocked(session):
        keys |= {row.graph_hash, row.weights_hash}
    return keys | used_by_supernets(session)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
