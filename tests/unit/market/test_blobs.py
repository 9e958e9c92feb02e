from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest

from sarto.errors import StoreError
from sarto.market import FolderBlobs


def put(blobs: FolderBlobs, data: bytes) -> str:
    with blobs.workplace() as folder:
        (folder / "data").write_bytes(data)
        staged = blobs.stage(folder / "data")
        blobs.publish(staged)
    return staged.key


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


def test_bytes_lie_under_their_hash(blobs: FolderBlobs, tmp_path: Path) -> None:
    digits = hashlib.sha256(b"hello").hexdigest()
    assert put(blobs, b"hello") == f"sha256:{digits}"
    assert blobs.path(f"sha256:{digits}").read_bytes() == b"hello"
    blobs.close()
    assert files(tmp_path) == [f"blobs/{digits[:2]}/{digits[2:]}"]
    assert list(blobs) == [f"sha256:{digits}"]


def test_the_same_bytes_are_kept_once(blobs: FolderBlobs) -> None:
    key = put(blobs, b"hello")
    first = blobs.path(key).stat().st_ino
    assert put(blobs, b"hello") == key
    assert blobs.path(key).stat().st_ino == first


def test_publishing_again_repairs_a_damaged_blob(blobs: FolderBlobs) -> None:
    key = put(blobs, b"hello")
    blobs.path(key).write_bytes(b"jello")
    assert "is damaged: the 5 bytes" in str(blobs.problem(key))
    put(blobs, b"hello")
    assert blobs.problem(key) is None


def test_what_was_not_published_is_gone(blobs: FolderBlobs, tmp_path: Path) -> None:
    with blobs.workplace() as folder:
        (folder / "data").write_bytes(b"hello")
        key = blobs.stage(folder / "data").key
    blobs.close()
    assert files(tmp_path) == []
    with pytest.raises(StoreError, match="is missing"):
        blobs.path(key)


def test_removing_tells_what_it_frees(blobs: FolderBlobs, tmp_path: Path) -> None:
    key = put(blobs, b"hello")
    assert (blobs.remove(key), blobs.remove(key)) == (5, 0)
    assert list(blobs) == []


@pytest.mark.parametrize("key", ["sha256:../../x", "hello", "", "sha256:" + "A" * 64, "sha256:" + "a" * 65])
def test_keys_can_not_climb(blobs: FolderBlobs, key: str) -> None:
    for use in (blobs.path, blobs.remove, blobs.problem):
        with pytest.raises(StoreError, match="is no blob key"):
            use(key)


def test_a_hash_is_checked_once_and_again_after_a_change(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = put(blobs, b"hello")
    blobs.path(key)
    counted: list[int] = []
    real = hashlib.file_digest

    def digest(file: object, name: str) -> object:
        counted.append(1)
        return real(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", digest)
    path = blobs.path(key)
    assert counted == []
    path.write_bytes(b"jello")
    os.utime(path, ns=(1, 1))
    with pytest.raises(StoreError, match="is damaged"):
        blobs.path(key)
    assert counted == [1]


@pytest.mark.parametrize("broken", ["fsync", "replace", "mkdir"])
def test_a_full_disk_leaves_nothing(
    broken: str, blobs: FolderBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(StoreError, match=r"No space left.*the market is unchanged: free some space"):
        put(blobs, b"hello")
    monkeypatch.undo()
    blobs.close()
    assert files(tmp_path) == []
    put(blobs, b"hello")


def _die(folder: Path) -> None:
    blobs = FolderBlobs(folder)
    with blobs.workplace() as place:
        (place / "data").write_bytes(b"half")
        os._exit(0)


def test_leftovers_of_the_dead_are_cleared_and_the_living_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    alive = FolderBlobs(folder)
    with alive.workplace() as place:
        (place / "data").write_bytes(b"hello")
        process = multiprocessing.get_context("fork").Process(target=_die, args=(folder,))
        process.start()
        process.join()
        assert len(files(folder)) == 4
        FolderBlobs(folder).close()
        assert len(files(folder)) == 2
        staged = alive.stage(place / "data")
        alive.publish(staged)
    assert alive.path(staged.key).read_bytes() == b"hello"


def test_a_fork_does_not_share_its_parents_workplace(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    with blobs.workplace() as place:
        child = os.fork()
        if child == 0:
            put(blobs, b"from the child")
            blobs.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        (place / "data").write_bytes(b"hello")
        blobs.publish(blobs.stage(place / "data"))
    assert len(list(blobs)) == 2


def test_without_file_locks_only_old_leftovers_are_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    alive = FolderBlobs(tmp_path / "blobs")
    with alive.workplace() as place:
        (place / "data").write_bytes(b"hello")
        assert FolderBlobs(tmp_path / "blobs").tidy() == 0
        os.utime(place.parent, (1, 1))
        assert FolderBlobs(tmp_path / "blobs").tidy() == 0
        assert files(tmp_path) == []
