"""Indexed zoos in a market: what the same probe images say of every donor, in files that only grow.

An index is a folder: `about.json`, the probe images, `models.jsonl` with one line a model, and numbers in three flat
files of float32 that are memory-mapped: signatures, sketches and pooled features. Numbers are written first and safe
on disk before the line that makes them known; what a crash leaves beyond the last line is overwritten by the next one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sarto.errors import RequestError, StoreError, suggest
from sarto.market.file_locks import lock_file
from sarto.market.index import now
from sarto.market.reading import read_encoded
from sarto.market.samples import Samples
from sarto.types.reassembly import IndexedModel, ProbeIndexAbout
from sarto.types.text import write_atomically

Rows = NDArray[np.float32]
ABOUT, MODELS, PROBES, LOCK = "about.json", "models.jsonl", "probes.safetensors", "lock"
SIGNATURES, SKETCHES, FEATURES = "signatures.f32", "sketches.f32", "features.f32"
_NAME = re.compile(r"\w[\w.-]{0,99}")
_BYTES = 4


class ProbeIndex:
    """One index: models are added at its end, nothing in it changes."""

    def __init__(self, folder: Path, about: ProbeIndexAbout) -> None:
        """Put an index together from its parts; `Indices` is the usual way."""
        self.folder, self.about = folder, about

    @property
    def name(self) -> str:
        """Its name in the market."""
        return self.about.name

    def models(self) -> tuple[IndexedModel, ...]:
        """Every indexed model, in the order of adding.

        Raises:
            StoreError: a line can't be read, or numbers are missing.
        """
        return tuple(self._read())

    def probes(self) -> Samples:
        """The probe images.

        Raises:
            StoreError: they are missing or are other ones.
        """
        try:
            found = read_encoded(self.folder / PROBES)
        except (OSError, RequestError, StoreError) as error:
            raise StoreError(f"the probe images of index {self.name!r} can't be read: {error}") from error
        if not isinstance(found, Samples) or found.digest != self.about.probe_hash:
            raise StoreError(
                f"index {self.name!r} holds other probe images than it was made with: make it again"
            )
        return found

    def signatures(self) -> Rows:
        """All signatures, shape (places of all models, length), memory-mapped."""
        return self._map(SIGNATURES, self.about.length)

    def sketches(self) -> Rows:
        """All sketches, shape (places of all models, sketch), memory-mapped."""
        return self._map(SKETCHES, self.about.sketch)

    def features(self, model: IndexedModel) -> tuple[Rows, ...]:
        """Pooled features of each place of a model, shape (probes, channels), memory-mapped."""
        n, at, found = self.about.n_probes, model.first_number, []
        whole = np.memmap(self.folder / FEATURES, dtype=np.float32, mode="r")
        for place in model.places:
            found.append(whole[at : at + n * place.channels].reshape(n, place.channels))
            at += n * place.channels
        return tuple(found)

    def add(
        self, model: IndexedModel, signatures: Rows, sketches: Rows, features: Sequence[Rows], probe_hash: str
    ) -> IndexedModel:
        """Append a model; safe on disk when this returns.

        Args:
            model: `first_row`, `first_number`, `digest` and `indexed` are filled in here.
            probe_hash: of the images that the numbers come from.

        Returns:
            The model as it was entered; where it or a copy of it is there already, that one, and nothing changes.

        Raises:
            StoreError: the numbers come from other probe images, or writing failed; the index is unchanged.
            RequestError: the numbers do not have the shapes of the model's places.
        """
        self._check(model, signatures, sketches, features, probe_hash)
        with self._locked():
            known = self._read(check=False)
            same = [
                m for m in known if (m.graph_hash, m.weights_hash) == (model.graph_hash, model.weights_hash)
            ]
            if same:
                return same[0]
            rows = known[-1].first_row + len(known[-1].places) if known else 0
            numbers = 0
            if known:
                last = known[-1]
                numbers = last.first_number + self.about.n_probes * sum(p.channels for p in last.places)
            data = np.ascontiguousarray(signatures, dtype="<f4")
            try:
                _write_at(self.folder / SIGNATURES, rows * self.about.length * _BYTES, data)
                _write_at(
                    self.folder / SKETCHES,
                    rows * self.about.sketch * _BYTES,
                    np.asarray(sketches, dtype="<f4"),
                )
                flat = np.concatenate([np.asarray(f, dtype="<f4").ravel() for f in features])
                _write_at(self.folder / FEATURES, numbers * _BYTES, flat)
                entered = model.replace(
                    first_row=rows, first_number=numbers, digest=_digest(data), indexed=now()
                )
                self._enter(entered)
            except OSError as error:
                raise StoreError(
                    f"index {self.name!r} can't be written: {error}; it is unchanged", where=str(self.folder)
                ) from error
        return entered

    def verify(self) -> list[str]:
        """Everything that is wrong with the files, by reading all signatures."""
        try:
            models, rows = self.models(), self.signatures()
            self.probes()
        except StoreError as error:
            return [str(error)]
        return [
            f"index {self.name!r}: signatures of {model.name!r} were changed; make the index again"
            for model in models
            if _digest(np.ascontiguousarray(rows[model.first_row : model.first_row + len(model.places)]))
            != model.digest
        ]

    def _check(
        self, model: IndexedModel, signatures: Rows, sketches: Rows, features: Sequence[Rows], probe_hash: str
    ) -> None:
        if probe_hash != self.about.probe_hash:
            raise StoreError(
                f"index {self.name!r} was made with other probe images ({self.about.probe_hash[7:19]}, these are "
                f"{probe_hash[7:19]}); similarities between them mean nothing: use its own, or make another index",
                where=self.name,
            )
        n, about = len(model.places), self.about
        wrong = signatures.shape != (n, about.length) or sketches.shape != (n, about.sketch)
        widths = [(about.n_probes, place.channels) for place in model.places]
        if wrong or [f.shape for f in features] != widths:
            raise RequestError(
                f"{model.name!r} has {n} places: signatures ({n}, {about.length}), sketches ({n}, {about.sketch}) and "
                f"as many features are expected, got {signatures.shape}, {sketches.shape} and {len(features)}"
            )
        if not all(bool(np.isfinite(part).all()) for part in (signatures, sketches, *features)):
            raise RequestError(f"signatures or features of {model.name!r} hold NaN or infinity")

    def _read(self, *, check: bool = True) -> list[IndexedModel]:
        path = self.folder / MODELS
        text = path.read_bytes() if path.exists() else b""
        # A line without its end was being written when the machine stopped.
        lines = text.split(b"\n")[:-1]
        try:
            found = [IndexedModel.parse(line) for line in lines]
        except RequestError as error:
            raise StoreError(
                f"index {self.name!r} can't be read: {error}; make it again", where=str(path)
            ) from error
        if check and found:
            needed = (found[-1].first_row + len(found[-1].places)) * self.about.length * _BYTES
            have = (self.folder / SIGNATURES).stat().st_size if (self.folder / SIGNATURES).exists() else 0
            if have < needed:
                raise StoreError(
                    f"index {self.name!r} misses signatures ({have:,} of {needed:,} bytes): make it again",
                    where=str(self.folder / SIGNATURES),
                )
        return found

    def _enter(self, model: IndexedModel) -> None:
        path = self.folder / MODELS
        line = model.to_json().encode() + b"\n"
        with path.open("r+b" if path.exists() else "w+b") as file:
            whole = file.read()
            file.seek(whole.rfind(b"\n") + 1)
            file.truncate()
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _map(self, file: str, width: int) -> Rows:
        models = self._read(check=False)
        n = models[-1].first_row + len(models[-1].places) if models else 0
        if n == 0:
            return np.zeros((0, width), dtype=np.float32)
        return np.memmap(self.folder / file, dtype=np.float32, mode="r", shape=(n, width))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; the lock goes with the process that holds it."""
        with (self.folder / LOCK).open("w") as file:
            lock_file(file.fileno(), wait=True)
            yield


class Indices:
    """The indexed zoos of a market, by name."""

    def __init__(self, folder: Path) -> None:
        """Look into the folder that holds them; it may be missing."""
        self.folder = folder

    def create(self, about: ProbeIndexAbout, probes: Samples) -> ProbeIndex:
        """A new, empty index.

        Raises:
            RequestError: the name or the probe images are not usable.
            StoreError: there is one of that name, or it can't be written.
        """
        if not _NAME.fullmatch(about.name):
            raise RequestError(
                f"name {about.name!r}: must be 1 to 100 letters, digits, '.', '_' or '-', and not begin with '.' or '-'"
            )
        if probes.digest != about.probe_hash or len(probes) != about.n_probes:
            raise RequestError(f"index {about.name!r}: the probe images are not those that it says")
        folder = self.folder / about.name
        if (folder / ABOUT).exists():
            raise StoreError(
                f"there is an index {about.name!r} already: add to it, or remove it first", where=about.name
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / PROBES).write_bytes(probes.encoded())
            write_atomically(folder / ABOUT, about.replace(created=now()).to_json(pretty=True) + "\n")
        except OSError as error:
            raise StoreError(f"index {about.name!r} can't be made: {error}", where=str(folder)) from error
        return self.get(about.name)

    def get(self, name: str) -> ProbeIndex:
        """The index of that name.

        Raises:
            StoreError: there is none, or it can't be read.
        """
        names = self.names()
        if name not in names:
            near = suggest(name, names) if names else "; the market holds none: sarto zoo index makes one"
            raise StoreError(f"no indexed zoo {name!r}{near}", where=name)
        path = self.folder / name / ABOUT
        try:
            about = ProbeIndexAbout.read(path)
        except RequestError as error:
            raise StoreError(
                f"index {name!r} can't be read: {error}; make it again", where=str(path)
            ) from error
        if about.name != name:
            raise StoreError(
                f"the index in {name!r} is that of {about.name!r}: give its folder that name", where=name
            )
        return ProbeIndex(self.folder / name, about)

    def names(self) -> tuple[str, ...]:
        """Names of the indices, sorted."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(path.parent.name for path in self.folder.glob(f"*/{ABOUT}")))

    def remove(self, name: str) -> bool:
        """Take an index out; True where there was one."""
        if name not in self.names():
            return False
        folder = self.folder / name
        (folder / ABOUT).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return True


def _write_at(path: Path, offset: int, data: NDArray[np.float32]) -> None:
    """Bytes from an offset on, on disk when this returns; nothing is left behind them."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(offset)
        file.write(np.ascontiguousarray(data).tobytes())
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _digest(data: NDArray[np.float32]) -> str:
    return "sha256:" + hashlib.sha256(data.tobytes()).hexdigest()
