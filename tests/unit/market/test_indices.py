"""Indices grow, survive torn writes, refuse other probe images, and know what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sarto.errors import RequestError, StoreError
from sarto.market.indices import MODELS, SIGNATURES, Indices, ProbeIndex
from sarto.market.samples import Samples
from sarto.types.reassembly import IndexedModel, PlaceRecord, ProbeIndexAbout

N, LENGTH, SKETCH = 8, 28, 6


def _probes(seed: int = 0) -> Samples:
    images = np.random.default_rng(seed).integers(0, 255, (N, 4, 4, 3)).astype(np.uint8)
    return Samples(images, np.zeros(N, np.int64), ("probe",))


def _index(folder: Path, name: str = "zoo") -> ProbeIndex:
    probes = _probes()
    about = ProbeIndexAbout(
        name=name, probe_hash=probes.digest, n_probes=N, batch=N, length=LENGTH, sketch=SKETCH
    )
    return Indices(folder).create(about, probes)


def _model(seed: int, n_places: int = 3) -> tuple[IndexedModel, np.ndarray, np.ndarray, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    hash_ = "sha256:" + f"{seed:064x}"
    places = tuple(
        PlaceRecord(value=f"v{i}", layout="vector", channels=2 + i, rows=1, columns=1)
        for i in range(n_places)
    )
    table = tuple(range(n_places + 1))
    model = IndexedModel(
        learnware=hash_,
        name=f"m{seed}",
        graph_hash=hash_,
        weights_hash=hash_,
        places=places,
        params=table,
        flops=table,
        sizes=table,
        peaks=table,
        first_row=0,
        first_number=0,
        digest=hash_,
    )
    rows = generator.standard_normal((n_places, LENGTH)).astype(np.float32)
    short = generator.standard_normal((n_places, SKETCH)).astype(np.float32)
    features = [generator.standard_normal((N, 2 + i)).astype(np.float32) for i in range(n_places)]
    return model, rows, short, features


def test_what_was_added_is_read_back_model_by_model(tmp_path: Path) -> None:
    index, probe = _index(tmp_path), _probes().digest
    given = [_model(seed, n) for seed, n in ((1, 3), (2, 1), (3, 4))]
    for model, rows, short, features in given:
        index.add(model, rows, short, features, probe)
    again = Indices(tmp_path).get("zoo")
    found = again.models()
    assert [m.name for m in found] == ["m1", "m2", "m3"]
    assert [m.first_row for m in found] == [0, 3, 4]
    assert np.array_equal(again.signatures(), np.concatenate([rows for _, rows, _, _ in given]))
    assert np.array_equal(again.sketches(), np.concatenate([short for _, _, short, _ in given]))
    for model, (_, _, _, features) in zip(found, given, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(again.features(model), features, strict=True))
    assert again.probes() == _probes()
    assert again.verify() == []


def test_a_torn_write_is_forgotten_and_written_over(tmp_path: Path) -> None:
    index, probe = _index(tmp_path), _probes().digest
    index.add(*_model(1), probe)
    with (index.folder / SIGNATURES).open("ab") as file:
        file.write(b"x" * 50)
    with (index.folder / MODELS).open("ab") as file:
        file.write(b'{"learnware": "sha2')
    assert [m.name for m in index.models()] == ["m1"]
    index.add(*_model(2), probe)
    assert [m.name for m in Indices(tmp_path).get("zoo").models()] == ["m1", "m2"]
    assert index.verify() == []


def test_a_copy_of_a_donor_is_entered_once(tmp_path: Path) -> None:
    index, probe = _index(tmp_path), _probes().digest
    first = index.add(*_model(1), probe)
    model, *rest = _model(1)
    again = index.add(model.replace(name="copy", learnware="sha256:" + "f" * 64), *rest, probe)
    assert again == first
    assert len(index.models()) == 1


def test_numbers_of_other_probe_images_are_refused(tmp_path: Path) -> None:
    index = _index(tmp_path)
    with pytest.raises(StoreError, match="made with other probe images"):
        index.add(*_model(1), _probes(1).digest)
    assert index.models() == ()


def test_numbers_that_do_not_fit_or_are_none_are_refused(tmp_path: Path) -> None:
    index, probe = _index(tmp_path), _probes().digest
    model, rows, short, features = _model(1)
    with pytest.raises(RequestError, match="3 places: signatures"):
        index.add(model, rows[:2], short, features, probe)
    rows[0, 0] = np.nan
    with pytest.raises(RequestError, match="NaN or infinity"):
        index.add(model, rows, short, features, probe)


def test_damage_is_found(tmp_path: Path) -> None:
    index = _index(tmp_path)
    index.add(*_model(1), _probes().digest)
    path = index.folder / SIGNATURES
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(bytes(data))
    assert "signatures of 'm1' were changed" in index.verify()[0]
    path.write_bytes(bytes(data[:10]))
    with pytest.raises(StoreError, match="misses signatures"):
        index.models()


def test_names_are_unique_and_unknown_ones_get_a_suggestion(tmp_path: Path) -> None:
    indices = Indices(tmp_path)
    with pytest.raises(StoreError, match="sarto zoo index"):
        indices.get("zoo")
    _index(tmp_path)
    with pytest.raises(StoreError, match="already"):
        _index(tmp_path)
    with pytest.raises(StoreError, match="did you mean 'zoo'"):
        indices.get("zo")
    with pytest.raises(RequestError, match="must be 1 to 100 letters"):
        _index(tmp_path, "../up")
    assert indices.remove("zoo") and not indices.remove("zoo")
    assert indices.names() == ()


def test_places_and_tables_belong_together() -> None:
    model, *_ = _model(1)
    with pytest.raises(RequestError, match="3 places have 4 entries"):
        model.replace(params=(1, 2))
