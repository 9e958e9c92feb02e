"""A delivered chain is made again from its lock-file bit for bit; what is missing or changed is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sarto.cli.app import app
from sarto.errors import StoreError, VerifyError
from sarto.pipeline import Artifact
from sarto.pipeline.choose import propose
from sarto.pipeline.indexing import index_zoo, indices
from sarto.pipeline.locking import GRAPH_FILE, LOCK, WEIGHTS_FILE, Lock, read_lock
from sarto.pipeline.order import check_order
from sarto.pipeline.rebuilding import check_lock, check_rebuilt, rebuild
from sarto.types import ChainNode
from tests.e2e.conftest import Shop

RED = ("red disc", "green disc")


@pytest.fixture
def locked(shop: Shop) -> tuple[Shop, Path, Lock]:
    """A market, the folder of a chain with a new head, and its lock."""
    store = shop.market.store
    index_zoo(store, "zoo", n_probes=32, batch=8)
    request = shop.order(*RED, engines=["reassembly"], baselines=[], heldout=None)
    plans = propose(check_order(request, store)).feasible
    plan = next(p for p in plans if getattr(p.nodes[p.out], "kind", "") == "ridge")
    folder = shop.make(request, "chain", plan=plan).folder
    return shop, folder, read_lock(folder)


def test_the_same_tensors_come_out_and_what_is_gone_or_changed_is_told(
    locked: tuple[Shop, Path, Lock],
) -> None:
    shop, folder, lock = locked
    market = str(shop.market.path)
    nodes = [node for node in lock.plan.nodes.values() if isinstance(node, ChainNode)]
    assert [probes.digest for probes in lock.probes] == [node.samples for node in nodes]
    assert lock.probes[0].n_images == 32
    assert {donor.learnware for donor in lock.donors} == set(lock.plan.learnwares)
    assert "torch" in lock.versions
    report = Artifact.read(folder).report
    # Without the baselines engine no donor was measured, so nothing is said of any.
    assert not any("single donor" in text for text in report.sentences)
    assert "a donor as it is: left out with the baselines engine" in report.not_tried
    again = shop.folder / "again"
    done = CliRunner().invoke(app, ["rebuild", str(folder), "-o", str(again), "-m", market, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["same"] is True
    for name in ("graph/weights.safetensors", "graph/graph.json", "model.onnx", "plan.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name

    _check_other_tensors_are_told(shop, lock, again)
    _check_missing_parts_are_told(shop, lock)


def _check_other_tensors_are_told(shop: Shop, lock: Lock, again: Path) -> None:
    older = lock.replace(weights_hash="sha256:" + "0" * 64, versions={**lock.versions, "torch": "2.0"})
    with pytest.raises(VerifyError, match=r"tensors made again differ .*torch 2\.0 there"):
        check_rebuilt(older, Artifact.read(again))
    check_rebuilt(lock, Artifact.read(again))


def _check_missing_parts_are_told(shop: Shop, lock: Lock) -> None:
    store, donor = shop.market.store, lock.donors[0]
    others = lock.replace(samples_digest="sha256:" + "1" * 64)
    with pytest.raises(StoreError, match="the order's samples are not those of the lock"):
        check_lock(store, others)
    shop.market.remove(donor.name)
    with pytest.raises(StoreError, match=rf"the donor '{donor.name}' .* was removed"):
        check_lock(store, lock)
    factory, classes, _ = shop.donors[donor.name]
    shop.add(donor.name, classes, factory(len(classes)).eval())
    with pytest.raises(StoreError, match=rf"the donor '{donor.name}' was changed: .* its weights differ"):
        check_lock(store, lock)
    indices(store).remove("zoo")
    with pytest.raises(StoreError) as caught:
        check_lock(store, lock)
    assert len(caught.value.problems) == 2
    assert "32 probe images" in caught.value.problems[1]


def test_a_better_donor_that_was_stocked_since_changes_nothing(
    locked: tuple[Shop, Path, Lock], tmp_path: Path
) -> None:
    shop, folder, lock = locked
    store = shop.market.store
    discs = store.get("discs")
    assert lock.taken == dict.fromkeys(RED, discs.id)
    better = shop.add("better", shop.donors["discs"][1])
    now = check_order(lock.request, store).requirement
    # Without the lock the newcomer would give the classes, and other samples with them.
    assert [offer.learnware for offer in now.offers] == [better.id, better.id]
    assert now.samples_digest != lock.samples_digest
    check_lock(store, lock)
    again = rebuild(store, lock, shop.folder / "again")
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        assert again.manifest.files[name] == Artifact.read(folder).manifest.files[name], name
    assert read_lock(again.folder).taken == lock.taken
    # Locks that were written before this was kept are read, and go by today's best donors.
    older = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    del older["taken"]
    (tmp_path / LOCK).write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(StoreError, match="the order's samples are not those of the lock"):
        check_lock(store, read_lock(tmp_path))
    # A learnware that gave classes and samples, but no block, is named where it is gone.
    shop.market.remove("discs")
    others = tuple(donor for donor in lock.donors if donor.learnware != discs.id)
    with pytest.raises(
        StoreError, match=f"'red disc' was taken from the learnware {discs.id[7:19]}, which was removed"
    ):
        check_lock(store, lock.replace(donors=others))


def test_a_model_without_a_chain_has_no_lock(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no lock-file at .*models with chains of blocks have one"):
        read_lock(tmp_path)
    assert not (tmp_path / LOCK).exists()
