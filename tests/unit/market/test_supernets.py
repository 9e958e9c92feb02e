"""Supernets in a market: stocked whole, found by name or id, kept by clean, checked by verify, removed."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

from sarto import zoo
from sarto.errors import RequestError, StoreError
from sarto.graph import ModelGraph, capture
from sarto.market import Store
from sarto.types import AssemblerSettings, Cost, Preprocessing, StockedSupernet, TaskSpace
from sarto.types.factory import SUPERNET_IDENTITY
from sarto.types.text import to_json_text

COST = Cost(params=2, flops=2, memory_bytes=2, size_bytes=2, basis="predicted")
TENSORS = {"encode.weight": torch.arange(6.0).reshape(2, 3)}


def manifest(name: str = "one") -> StockedSupernet:
    space = TaskSpace.parse(
        {"name": "s", "groups": {"g": ["a", "b"]}, "function": "m:f", "answers": ["no", "yes"]}
    )
    nothing = "sha256:" + "0" * 64
    return StockedSupernet(
        id=nothing,
        name=name,
        space=space,
        groups=("g:0",),
        placement="paper",
        preprocessing=Preprocessing(channels=1, mean=(0.0,), std=(1.0,)),
        assembler=AssemblerSettings(),
        graph_hash=nothing,
        weights_hash=nothing,
        assembler_hash=nothing,
        input_shape=(1, 8, 8),
        units=4,
        cost=COST,
        floor=COST,
        created="",
    )


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    torch.manual_seed(0)
    net = zoo.resnet(2, 1, (1,), 4, False, "cifar").eval()
    return capture(net, torch.rand(2, 1, 8, 8), prove=False)


def test_a_supernet_is_stocked_found_kept_and_removed(tmp_path: Path, graph: ModelGraph) -> None:
    with closing(Store.create(tmp_path / "market")) as store:
        put = store.supernets.put(manifest(), graph, TENSORS)
        assert put.id == put.content_id() and put.created
        again = store.supernets.put(manifest("other"), graph, TENSORS)
        assert (again.id, again.name) == (put.id, "one")  # the same content keeps its name
    with closing(Store.open(tmp_path / "market")) as store:
        assert store.verify() == [] and store.clean() == ()
        for which in ("one", put.id, put.id[7:15]):
            assert store.supernets.get(which) == put
        inputs = torch.rand(2, 1, 8, 8)
        assert torch.equal(store.supernets.graph("one")(inputs), graph(inputs))  # type: ignore[arg-type]
        assert torch.equal(store.supernets.assembler("one")["encode.weight"], TENSORS["encode.weight"])
        with pytest.raises(StoreError, match=r"no supernet 'on' \(did you mean 'one'\?\)"):
            store.supernets.get("on")
        removed, freed = store.supernets.remove("one")
        assert removed == put and freed > 0
        assert list(store.supernets) == [] and store.clean() == ()
        with pytest.raises(StoreError, match="sarto factory train makes one"):
            store.supernets.get("one")


def test_settings_that_came_later_change_an_id_only_where_they_are_used() -> None:
    one = manifest()
    plain = json.loads(one.to_json())
    before = {name: plain[name] for name in SUPERNET_IDENTITY} | {"format": "sarto.supernet/1"}
    del before["assembler"]["skips"], before["space"]["extra"], before["space"]["within"]
    assert one.content_id() == "sha256:" + hashlib.sha256(to_json_text(before).encode()).hexdigest()
    for other in (
        one.replace(assembler=one.assembler.replace(skips=True)),
        one.replace(space=one.space.replace(extra=(("a", "b"),))),
    ):
        assert other.content_id() != one.content_id()


def test_other_content_needs_another_name(tmp_path: Path, graph: ModelGraph) -> None:
    with closing(Store.create(tmp_path / "market")) as store:
        store.supernets.put(manifest(), graph, TENSORS)
        with pytest.raises(StoreError, match="the name 'one' belongs to another supernet"):
            store.supernets.put(manifest(), graph, {"encode.weight": torch.zeros(2, 3)})
        with pytest.raises(RequestError, match="not begin with"):
            store.supernets.put(manifest("-x"), graph, TENSORS)
        assert len(list(store.supernets)) == 1
        assert store.verify() == []


def test_damage_is_found_and_named(tmp_path: Path, graph: ModelGraph) -> None:
    with closing(Store.create(tmp_path / "market")) as store:
        put = store.supernets.put(manifest(), graph, TENSORS)
    digits = put.assembler_hash[7:]
    (tmp_path / "market" / "blobs" / digits[:2] / digits[2:]).write_bytes(b"broken")
    with closing(Store.open(tmp_path / "market")) as store:
        (problem,) = store.verify()
        assert problem.startswith("supernet 'one': assembler: blob")
        with pytest.raises(StoreError, match="supernet 'one' can't be read"):
            store.supernets.assembler("one")


def test_a_manifest_that_was_changed_is_found(tmp_path: Path, graph: ModelGraph) -> None:
    with closing(Store.create(tmp_path / "market")) as store:
        put = store.supernets.put(manifest(), graph, TENSORS)
    with closing(sqlite3.connect(tmp_path / "market" / "index.sqlite")) as database:
        changed = put.replace(placement="wide").to_json()
        database.execute("UPDATE supernets SET manifest = ?", (changed,))
        database.commit()
    with closing(Store.open(tmp_path / "market")) as store:
        assert any("does not belong to its content" in problem for problem in store.verify())


def test_a_market_from_before_there_were_supernets_gets_them(tmp_path: Path, graph: ModelGraph) -> None:
    Store.create(tmp_path / "market").close()
    with closing(sqlite3.connect(tmp_path / "market" / "index.sqlite")) as database:
        database.execute("DROP TABLE supernets")
        database.commit()
    with closing(Store.open(tmp_path / "market")) as store:
        assert list(store.supernets) == [] and store.verify() == [] and store.clean() == ()
        store.supernets.put(manifest(), graph, TENSORS)
        assert [found.name for found in store.supernets] == ["one"]
