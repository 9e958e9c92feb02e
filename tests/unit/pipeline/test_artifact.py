"""Reading a folder that somebody else may have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sarto.errors import StoreError
from sarto.pipeline.artifact import NEEDED, Artifact, file_hash, write_manifest
from sarto.types import Preprocessing

PIXELS = Preprocessing(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NEEDED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_manifest(
        tmp_path, classes=("a", "b"), preprocessing=PIXELS, plan_key="sha256:" + "0" * 64, lineage=()
    )
    return tmp_path


def test_a_finished_folder_knows_its_files_and_what_was_changed(folder: Path) -> None:
    artifact = Artifact.read(folder)
    assert artifact.classes == ("a", "b") and artifact.preprocessing == PIXELS
    assert artifact.manifest.files["model.onnx"] == file_hash(folder / "model.onnx")
    assert artifact.damage() == []
    (folder / "model.onnx").write_text("other")
    (folder / "report.json").unlink()
    assert artifact.damage() == [
        "model.onnx was changed: its hash is not the manifest's",
        "report.json is missing",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["files"].update({"../../secret": "sha256:" + "0" * 64}), "leads out of the folder"),
        (lambda m: m["files"].update({"/secret": "sha256:" + "0" * 64}), "leads out of the folder"),
        (lambda m: m["files"].pop("model.onnx"), "'model.onnx' is missing"),
        (lambda m: m.update(artifact=2), "another version of sarto: upgrade"),
        (lambda m: m.pop("files"), "files"),
        (lambda m: m.update(surprise=1), "unknown key"),
        (lambda m: m.update(classes=[]), "classes"),
    ],
)
def test_a_manifest_that_was_tampered_with_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=words):
        Artifact.read(folder)


def test_no_artifact_and_an_unfinished_one_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"make one with `sarto make -o`"):
        Artifact.read(tmp_path)
    (tmp_path / ".job").mkdir()
    with pytest.raises(StoreError, match="run the same `sarto make` again to finish it"):
        Artifact.read(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\x00\xff not json")
    with pytest.raises(StoreError, match="damaged"):
        Artifact.read(tmp_path)
