"""The artifact: a folder with the model, how it was ordered and built, and the page that says why to trust it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sarto.errors import RequestError, StoreError
from sarto.graph import ModelGraph
from sarto.graph.file import read_graph
from sarto.market import Intake, Vocabulary, decode_vocabulary
from sarto.types import (
    AnyPreprocessing,
    DeviceFile,
    Donor,
    Plan,
    Preprocessing,
    Report,
    Request,
    Requirement,
    TextPreprocessing,
    Value,
    licences_of,
)

GRAPH = "graph"
MANIFEST = "manifest.json"
#: Tokens of a model that reads texts.
VOCABULARY = "vocabulary.json"
#: The order as it was checked: who gave each class. Artifacts of older versions have none.
REQUIREMENT = "requirement.json"
#: Files without which there is no model.
NEEDED = (f"{GRAPH}/graph.json", f"{GRAPH}/weights.safetensors", "model.onnx", "report.json")


class Manifest(Value):
    """What an artifact's manifest holds.

    Attributes:
        artifact: version of the layout.
        licences: of all donors, each once.
        files: path below the folder -> content hash, of every file but the manifest.
    """

    artifact: Literal[1] = 1
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: AnyPreprocessing
    plan_key: str
    lineage: tuple[Donor, ...] = ()
    licences: tuple[str, ...] = ()
    files: dict[str, Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        climbing = [n for n in self.files if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
        needed = (*NEEDED, VOCABULARY) if isinstance(self.preprocessing, TextPreprocessing) else NEEDED
        missing = [name for name in needed if name not in self.files]
        problems = [f".files: {name!r} leads out of the folder" for name in climbing]
        problems += [f".files: {name!r} is missing" for name in missing]
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self


@dataclass(frozen=True, eq=False)
class Artifact:
    """A delivered model on disk."""

    folder: Path
    manifest: Manifest

    @classmethod
    def read(cls, folder: str | Path) -> Artifact:
        """The artifact in a folder.

        Raises:
            StoreError: no artifact there, an unfinished one, a damaged one, or one of a newer version.
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
            return cls(home, Manifest.read(path))
        except RequestError as error:
            newer = any(problem.startswith("artifact:") for problem in error.problems)
            cure = (
                "it was written by another version of sarto: upgrade" if newer else "the manifest is damaged"
            )
            first = (error.problems or (error.detail,))[0]
            raise StoreError(f"{home} can't be read, {cure}: {first}", where=str(path)) from None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def preprocessing(self) -> Preprocessing | TextPreprocessing:
        return self.manifest.preprocessing

    @property
    def intake(self) -> Intake:
        """How images or texts become what the model reads.

        Raises:
            StoreError: the vocabulary is missing, or another one than the manifest says.
        """
        return Intake(self.preprocessing, self._vocabulary())

    def _vocabulary(self) -> Vocabulary | None:
        said, path = self.preprocessing, self.folder / VOCABULARY
        if not isinstance(said, TextPreprocessing):
            return None
        try:
            found = decode_vocabulary(path.read_bytes())
        except (OSError, RequestError) as error:
            raise StoreError(
                f"{self.folder} can't be read: {VOCABULARY}: {error}", where=str(path)
            ) from error
        if found.digest != said.vocabulary:
            raise StoreError(f"{path} was changed: it is not the vocabulary of the manifest", where=str(path))
        return found

    @property
    def request(self) -> Request:
        return Request.read(self.folder / "request.json")

    @property
    def requirement(self) -> Requirement | None:
        """Who gave each class, and on which samples all was decided; None where an older version made it."""
        path = self.folder / REQUIREMENT
        return Requirement.read(path) if path.is_file() else None

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
        files = self.manifest.files
        return read_graph(
            self.folder / GRAPH,
            graph_hash=files[f"{GRAPH}/graph.json"],
            weights_hash=files[f"{GRAPH}/weights.safetensors"],
        )

    def damage(self) -> list[str]:
        """What differs from the manifest: missing, changed or unknown files."""
        problems = []
        for name, want in sorted(self.manifest.files.items()):
            path = self.folder / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif file_hash(path) != want:
                problems.append(f"{name} was changed: its hash is not the manifest's")
        return problems


def write_manifest(
    folder: Path,
    *,
    classes: tuple[str, ...],
    preprocessing: Preprocessing | TextPreprocessing,
    plan_key: str,
    lineage: tuple[Donor, ...],
) -> Artifact:
    """Finish an artifact: hash all its files and write the manifest, last of all."""
    files = {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".job" not in path.parts and path.name != MANIFEST
    }
    manifest = Manifest(
        classes=classes,
        preprocessing=preprocessing,
        plan_key=plan_key,
        lineage=lineage,
        licences=licences_of(lineage),
        files=files,
    )
    manifest.write(folder / MANIFEST)
    return Artifact(folder, manifest)


def delivered_hashes(folder: Path, device_file: DeviceFile | None) -> dict[str, str]:
    """Content hashes of the forms in which a model is delivered: its graph, ONNX, and what the order's device runs."""
    names = [f"{GRAPH}/graph.json", f"{GRAPH}/weights.safetensors", "model.onnx"]
    if device_file is not None:
        names.append(device_file.name)
    return {name: file_hash(folder / name) for name in names}


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
