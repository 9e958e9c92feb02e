"""The artifact: a folder with the model, how it was ordered and built, and the page that says why to trust it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarto.errors import StoreError
from sarto.graph import ModelGraph
from sarto.graph.file import read_graph
from sarto.types import Plan, Preprocessing, Report, Request

GRAPH = "graph"
MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Artifact:
    """A delivered model on disk.

    Attributes:
        manifest: version, classes, preprocessing, and the hash of every file.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Artifact:
        """The artifact in a folder.

        Raises:
            StoreError: no artifact there, an unfinished one, or one of a newer version.
        """
        home = Path(folder)
        path = home / MANIFEST
        if not path.is_file():
            job = (home / ".job").is_dir()
            cure = "run the same `sarto make` again to finish it" if job else "make one with `sarto make -o`"
            raise StoreError(
                f"no artifact in {home}: {'it is unfinished; ' if job else ''}{cure}", where=str(home)
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is damaged: {error}", where=str(path)) from None
        if not isinstance(manifest, dict) or "files" not in manifest or "artifact" not in manifest:
            raise StoreError(f"{path} is no manifest of an artifact", where=str(path))
        if manifest["artifact"] != VERSION:
            raise StoreError(
                f"{home} was written by a newer version (layout {manifest['artifact']}, this sarto reads {VERSION}): "
                "upgrade sarto",
                where=str(path),
            )
        return cls(home, manifest)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.manifest["classes"])

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.parse(self.manifest["preprocessing"])

    @property
    def request(self) -> Request:
        return Request.read(self.folder / "request.json")

    @property
    def plan(self) -> Plan:
        return Plan.read(self.folder / "plan.json")

    @property
    def report(self) -> Report:
        return Report.read(self.folder / "report.json")

    @property
    def graph(self) -> ModelGraph:
        """The model; refused where a file differs from the manifest.

        Raises:
            StoreError: a file is missing or damaged.
        """
        files = self.manifest["files"]
        return read_graph(
            self.folder / GRAPH,
            graph_hash=files[f"{GRAPH}/graph.json"],
            weights_hash=files[f"{GRAPH}/weights.safetensors"],
        )

    def damage(self) -> list[str]:
        """What differs from the manifest: missing, changed or unknown files."""
        problems = []
        for name, want in sorted(self.manifest["files"].items()):
            path = self.folder / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif file_hash(path) != want:
                problems.append(f"{name} was changed: its hash is not the manifest's")
        return problems


def write_manifest(folder: Path, **content: Any) -> Artifact:
    """Finish an artifact: hash all its files and write the manifest, last of all."""
    files = {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".job" not in path.parts and path.name != MANIFEST
    }
    manifest = {"artifact": VERSION, **content, "files": files}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return Artifact(folder, manifest)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def file_hash(path: Path) -> str:
    """Content hash of a file, "sha256:<64 hex>"."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
