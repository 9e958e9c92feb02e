from __future__ import annotations

import errno
import json
import os
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from sarto.errors import RequestError, StoreError
from sarto.market import FolderBlobs, Store, content_id, id_of
from sarto.market import store as store_room
from sarto.market.index import Catalogue
from sarto.testing.store_contract import COLOUR, key_of, pixels, scorer, stock
from sarto.types import Learnware, Preprocessing


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1.0]}))


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [truncate, flip, swap, empty, Path.unlink]


def blob(store: Store, key: str) -> Path:
    digits = key.removeprefix("sha256:")
    return store.path / "blobs" / digits[:2] / digits[2:]


def files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "lock"
    )


@pytest.fixture
def market(tmp_path: Path) -> Path:
    Store.create(tmp_path / "market").close()
    return tmp_path / "market"


@pytest.mark.parametrize("part", ["graph_hash", "weights_hash", "samples_hash"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_learnware_is_found_and_refused(
    part: str, damage: Callable[[Path], None], market: Path
) -> None:
    with Store.open(market) as store:
        learnware = stock(store, samples=pixels())
        stock(store, "other", seed=1)
        store.graph("donor")
        damage(blob(store, getattr(learnware, part)))
        problems = store.verify()
        assert len(problems) == (2 if part == "graph_hash" else 1)  # both models have the same graph
        assert "learnware 'donor': " + part.removesuffix("_hash") in problems[0]
        read = store.samples if part == "samples_hash" else store.graph
        with pytest.raises(StoreError, match=r"learnware 'donor' can't be read.*the market is unchanged"):
            read("donor")
        before = store.learnwares()
        assert stock(store, "other-name", samples=pixels()) == learnware
        assert (store.learnwares(), store.verify()) == (before, [])
        read("donor")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_fragment_is_found_refused_and_replaced(
    damage: Callable[[Path], None], market: Path
) -> None:
    with Store.open(market) as store:
        put = store.put_fragment(key_of("a"), scorer(2), {"n": 1})
        damage(blob(store, put.weights_hash))
        assert f"fragment {put.key}: weights: blob {put.weights_hash}" in store.verify()[0]
        with pytest.raises(StoreError, match=f"fragment {put.key} can't be read"):
            store.fragment(put.key)
        again = store.put_fragment(put.key, scorer(2, seed=1), {"n": 2})
        assert (again.lineage, store.fragments()) == ({"n": 2}, (again,))
        found = store.fragment(put.key)
        assert found is not None
        assert torch.equal(found.tensors["fc.bias"], scorer(2, seed=1).tensors["fc.bias"])
        store.clean()
        assert store.verify() == []


def test_blobs_of_nobody_are_told_and_cleaned(market: Path) -> None:
    with Store.open(market) as store:
        stock(store)
        before = files(market)
        other = FolderBlobs(market / "blobs")
        with other.workplace() as folder:
            (folder / "x").write_bytes(b"left by a crash")
            key = other.stage(folder / "x").key
            other.publish(other.stage(folder / "x"))
        other.close()
        assert store.verify() == [f"info: blob {key} belongs to nothing; clean() removes it"]
        assert store.clean() == (key,)
        assert (store.verify(), store.clean(), files(market)) == ([], (), before)


def edit(market: Path, change: Callable[[dict[str, object]], object]) -> None:
    with closing(sqlite3.connect(market / "index.sqlite")) as connection, connection:
        (text,) = connection.execute("SELECT manifest FROM learnwares WHERE removed IS NULL").fetchone()
        found = json.loads(text)
        change(found)
        connection.execute("UPDATE learnwares SET manifest = ? WHERE removed IS NULL", (json.dumps(found),))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda found: found.update(licence="do what you want"),
            "id sha256:.* does not belong to its content",
        ),
        (lambda found: found.update(classes=["cat", "bee", "ant"]), "does not belong to its content"),
        (lambda found: found["preprocessing"].update(mean=[0.5, 0.5, 0.5]), "does not belong to its content"),
        (lambda found: found.update(id=key_of("0")), "does not belong to its content"),
        (lambda found: found.update(name="nobody"), "its manifest names it 'nobody'"),
        (lambda found: found.update(mood="good"), "can't be read.*mood"),
        (lambda found: found.pop("cost"), "can't be read.*cost"),
    ],
)
def test_a_changed_manifest_is_found(
    change: Callable[[dict[str, object]], object], words: str, market: Path
) -> None:
    with Store.open(market) as store:
        stock(store)
        edit(market, change)
        problems = store.verify()
        assert len(problems) == 1
        with pytest.raises(StoreError, match=words):
            raise StoreError(problems[0])


def test_an_unreadable_manifest_keeps_its_blobs(market: Path) -> None:
    with Store.open(market) as store:
        stock(store)
        before = files(market)
        edit(market, lambda found: found.clear())
        for use in (
            store.clean,
            store.learnwares,
            lambda: store.graph("donor"),
            lambda: store.remove("donor"),
        ):
            with pytest.raises(StoreError, match="manifest of learnware 'donor' can't be read"):
                use()
        assert files(market) == before


def test_an_ambiguous_prefix_lists_what_it_may_mean(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["sha256:abcdef" + "0" * 58, "sha256:abcdef" + "1" * 58])
    monkeypatch.setattr(store_room, "content_id", lambda **parts: next(ids))
    with Store.open(market) as store:
        stock(store, "one")
        stock(store, "two", seed=1)
        with pytest.raises(
            StoreError, match=r"beginning of 2 ids: 'one' \(sha256:abcdef000.*'two' .*give more digits"
        ):
            store.get("abcdef")
        assert store.get("abcdef1").name == "two"


def test_a_name_wins_over_a_prefix(market: Path) -> None:
    with Store.open(market) as store:
        first = stock(store, "first")
        digits = first.id.removeprefix("sha256:")[:8]
        second = stock(store, digits, seed=1)
        assert store.get(digits) == second
        assert store.get(f"sha256:{digits}") == first


def test_the_identity_is_the_content(market: Path) -> None:
    with Store.open(market) as store:
        learnware = stock(store, samples=pixels())
    assert id_of(learnware) == learnware.id
    loose = ("name", "notes", "origin", "created", "skill_basis")
    renamed = Learnware.parse({**json.loads(learnware.to_json()), "name": "x", "notes": "y", "origin": "z"})
    assert id_of(renamed) == learnware.id
    parts = {
        name: getattr(learnware, name) for name in ("graph_hash", "weights_hash", "samples_hash", "classes")
    }
    parts |= {"preprocessing": learnware.preprocessing, "licence": learnware.licence}
    assert content_id(**parts) == learnware.id
    changes = [
        {"graph_hash": key_of("1")},
        {"weights_hash": key_of("1")},
        {"samples_hash": None},
        {"classes": learnware.classes[::-1]},
        {"preprocessing": Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3)},
        {"licence": "x"},
    ]
    assert len({content_id(**(parts | change)) for change in changes} | {learnware.id}) == len(changes) + 1
    assert not set(loose) & set(parts)


def _failing(name: str, at: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Make the `at`-th call of a function of `os` fail as on a full disk."""
    real = getattr(os, name)

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []

        def call(*args: object, **kwargs: object) -> object:
            calls.append(1)
            if len(calls) == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    return patch


def _failing_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)


def _failing_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect

    class Connection(sqlite3.Connection):
        def commit(self) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: real(*args, factory=Connection, **kwargs))


@pytest.mark.parametrize(
    "fail",
    [
        _failing_write,
        _failing_commit,
        *(_failing("fsync", at) for at in (1, 3, 5, 7, 8, 9, 12)),
        *(_failing("replace", at) for at in (1, 3, 4, 5)),
    ],
)
def test_a_full_disk_changes_nothing(
    fail: Callable[[pytest.MonkeyPatch], None], market: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(market) as store:
        stock(store, "old", classes=("x", "y"), seed=9)
        before, learnwares = files(market), store.learnwares()
        fail(monkeypatch)
        with pytest.raises(StoreError, match=r"the market is unchanged.*free some space"):
            stock(store, samples=pixels())
        monkeypatch.undo()
        assert store.learnwares() == learnwares
        assert (store.verify(), files(market)) == ([], before)
        stock(store, samples=pixels())
        assert store.verify() == []


def test_models_that_are_no_classifiers_of_images_are_refused(market: Path) -> None:
    with Store.open(market) as store, pytest.raises(RequestError) as refused:
        stock(
            store,
            preprocessing=Preprocessing(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,)),
            samples=pixels(),
        )
    for words in (
        "1 channels, the model reads 3",
        "size [8, 8], the model reads [4, 4]",
        "samples have 3 channels",
    ):
        assert words in str(refused.value)
    with (
        Store.open(market) as store,
        pytest.raises(RequestError, match=r"samples are .4, 4. .*resize='bilinear'"),
    ):
        stock(store, preprocessing=COLOUR.replace(size=(8, 8)), samples=pixels())
    with Store.open(market) as store, pytest.raises(RequestError, match="may not hold ':'"):
        stock(store, classes=("a:b", "c", "d"))
    with Store.open(market) as store:
        assert (store.learnwares(), files(market)) == ((), ["index.sqlite"])


def test_the_index_stays_small_beside_a_removed_learnware(market: Path) -> None:
    with Store.open(market) as store:
        stock(store, samples=pixels())
        store.remove("donor")
    assert files(market) == ["index.sqlite"]
    index = Catalogue(market / "index.sqlite")
    with index.read() as session:
        assert session.connection().exec_driver_sql("SELECT manifest FROM learnwares").scalars().all() == [
            None
        ]
    index.close()
