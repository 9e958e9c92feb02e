from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sarto.errors import StoreError
from sarto.market import Store
from sarto.market import index as index_room
from sarto.testing.store_contract import stock


def run(market: Path, statement: str) -> None:
    with closing(sqlite3.connect(market / "index.sqlite")) as connection, connection:
        connection.execute(statement)


@pytest.fixture
def market(tmp_path: Path) -> Path:
    with Store.create(tmp_path / "market") as store:
        stock(store)
    return tmp_path / "market"


def test_a_newer_market_is_refused(market: Path) -> None:
    run(market, "UPDATE meta SET schema_version = 2")
    run(market, "ALTER TABLE learnwares ADD COLUMN mood TEXT")
    with pytest.raises(StoreError, match=r"newer version \(schema 2, this sarto reads 1\): upgrade sarto"):
        Store.open(market)


def test_what_is_no_market_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"nowhere' is not a market .there is no such folder.*sarto market init /.*nowhere"
    ):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"no index.sqlite in it.*sarto market init"):
        Store.open(tmp_path)
    (tmp_path / "index.sqlite").write_bytes(b"")
    with pytest.raises(StoreError, match=r"is not a market's index.*sarto market init"):
        Store.open(tmp_path)
    with closing(sqlite3.connect(tmp_path / "index.sqlite")) as connection:
        connection.execute("CREATE TABLE learnwares (id TEXT)")
    with pytest.raises(StoreError, match="is not a market's index"):
        Store.open(tmp_path)
    (tmp_path / "index.sqlite").write_bytes(b"not a database, but long enough to look at" * 40)
    with pytest.raises(StoreError, match=r"file is not a database.*put back a copy"):
        Store.open(tmp_path)


def test_a_market_is_made_once_and_in_a_folder_of_its_own(market: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a market already: open it"):
        Store.create(market)
    with Store.open(market) as store:
        assert len(store.learnwares()) == 1
    with pytest.raises(StoreError, match=r"holds market: choose an empty one"):
        Store.create(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="can't be made"):
        Store.create(tmp_path / "file")


def test_an_interrupted_creation_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"")
    (tmp_path / "blobs").mkdir()
    with Store.create(tmp_path) as store:
        assert store.learnwares() == ()


def test_names_are_unique_among_what_is_stocked_only(market: Path) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        run(market, "INSERT INTO learnwares VALUES ('x', 'donor', '{}', 'now', NULL)")
    run(market, "INSERT INTO learnwares VALUES ('x', 'donor', '{}', 'now', 'then')")


def test_a_locked_market_says_so(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_room, "_PATIENCE_S", 0.05)
    with (
        closing(sqlite3.connect(market / "index.sqlite", isolation_level=None)) as other,
        Store.open(market) as store,
    ):
        other.execute("BEGIN IMMEDIATE")
        assert len(store.learnwares()) == 1
        with pytest.raises(StoreError, match=r"another process kept the market locked for 0.05 s; try again"):
            stock(store, "second", seed=1)
        other.execute("ROLLBACK")
        stock(store, "second", seed=1)
        assert store.verify() == []


def test_a_damaged_index_is_found(market: Path) -> None:
    path = market / "index.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'learnwares'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    data[(page - 1) * size : (page - 1) * size + 8] = b"\xff" * 8
    path.write_bytes(data)
    with Store.open(market) as store:
        problems = store.verify()
        assert problems and all(str(path) in text for text in problems)
        with pytest.raises(StoreError, match=r"malformed.*put back a copy"):
            store.learnwares()


def test_a_market_that_vanishes_is_not_started_anew(market: Path) -> None:
    with Store.open(market) as store:
        (market / "index.sqlite").unlink()
        with pytest.raises(StoreError, match="unable to open"):
            store.learnwares()
    assert not (market / "index.sqlite").exists()
