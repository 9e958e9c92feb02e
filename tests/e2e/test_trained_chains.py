"""Chains of blocks that are trained within orders, their students, and both made again bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sarto.cli.app import app
from sarto.devices import count
from sarto.market import Samples
from sarto.pipeline import schooling
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import propose
from sarto.pipeline.contest import Score
from sarto.pipeline.indexing import index_zoo
from sarto.pipeline.locking import read_lock
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.schooling import left_out, not_made, student_plan, tuned_plan, untrained
from sarto.training.loop import checkpoints
from sarto.types import Plan, SliceNode, Training, TuneNode
from tests.e2e.conftest import Shop

RED = ("red disc", "green disc")


@pytest.fixture(scope="module")
def indexed(shared: Shop) -> Shop:
    index_zoo(shared.market.store, "zoo", n_probes=32, batch=8)
    return shared


def _order(shop: Shop) -> Order:
    return check_order(shop.order(*RED, engines=["reassembly"]), shop.market.store)


def _chain(order: Order, kind: str) -> Plan:
    return next(p for p in propose(order).feasible if getattr(p.nodes[p.out], "kind", "") == kind)


def _builder(shop: Shop, order: Order, checkpoints: Path | None = None) -> Builder:
    return Builder(shop.market.store, {order.samples.digest: order.samples}, checkpoints=checkpoints)


def _tuned(order: Order, chain: Plan, **how: object) -> Plan:
    training = Training.parse({"epochs": 2, **how})
    return tuned_plan(chain, training, order.samples.digest, seed=3, own_samples=False)


def test_an_order_trains_its_best_chain_and_says_whether_that_helped(indexed: Shop) -> None:
    how = {"epochs": 3, "scope": "full", "batch": 16}
    request = indexed.order(*RED, engines=["reassembly"], baselines=["student"], train=how)
    artifact = indexed.make(request, "trained")
    rows = {row.name: row for row in artifact.report.rows}
    (after,) = [row for row in rows.values() if row.name.endswith(", trained")]
    before = (
        rows.get(after.name.removesuffix(", trained"))
        or rows[f"{after.name.removesuffix(', trained')}, before training"]
    )
    kept = after.note.endswith(": kept")
    assert kept or after.note.endswith(": not kept")
    assert (after.role in ("pick", "plan"), before.role in ("pick", "plan")) == (kept, not kept)
    assert "towards the features of" in after.note and "right before" in after.note
    assert after.cost is not None and before.cost is not None and after.cost.params == before.cost.params
    # Held-out images are read for the report alone; both versions stand there.
    assert after.accuracy_heldout is not None and before.accuracy_heldout is not None
    assert any("trained: trained" in text and after.note in text for text in artifact.report.sentences)
    (student,) = [row for row in rows.values() if row.name.startswith("distilled student")]
    assert student.role == "baseline" and student.accuracy_heldout is not None
    assert student.accuracy_loto is None and "scored on the held-out samples alone" in student.note
    assert student.cost is not None and after.cost is not None
    assert (
        student.cost.params == count(_builder(indexed, _order(indexed)).build(_pick(artifact)).graph).params
    )
    assert not list((artifact.folder / ".job").glob("training/*"))
    assert not any("student of the chain's shape" in text for text in artifact.report.not_tried)


def _pick(artifact: Artifact) -> Plan:
    return untrained(artifact.plan)


@pytest.mark.parametrize("towards", ["features", "labels"])
def test_a_trained_chain_is_made_again_from_its_lock(towards: str, indexed: Shop) -> None:
    order = _order(indexed)
    plan = _tuned(order, _chain(order, "ridge"), towards=towards)
    request = indexed.order(*RED, engines=["reassembly"], baselines=[], heldout=None)
    folder = indexed.make(request, f"locked-{towards}", plan=plan).folder
    lock = read_lock(folder)
    assert lock.solver["training"].endswith(f"stitches, towards {towards}, seed 3")
    again = indexed.folder / f"again-{towards}"
    market = str(indexed.market.path)
    done = CliRunner().invoke(app, ["rebuild", str(folder), "-o", str(again), "-m", market, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["same"] is True
    for name in ("graph/weights.safetensors", "graph/graph.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    one, two = (Artifact.read(path).report for path in (folder, again))
    assert one.pick.note == two.pick.note and one.pick.accuracy_loto == two.pick.accuracy_loto


def test_step_sizes_are_small_unless_the_order_names_one(indexed: Shop) -> None:
    order = _order(indexed)
    chain = _chain(order, "ridge")
    rates = [
        next(n.rate for n in _tuned(order, chain, **how).nodes.values() if isinstance(n, TuneNode))
        for how in ({}, {"scope": "full"}, {"scope": "full", "rate": 0.02})
    ]
    assert rates == [1e-4, 3e-5, 0.02]


def test_nothing_that_is_left_out_is_trained_on(indexed: Shop) -> None:
    order = _order(indexed)
    builder, samples = _builder(indexed, order), order.samples
    assert isinstance(samples, Samples)
    plan = _tuned(order, _chain(order, "restrict"))
    node = next(n for n in plan.nodes.values() if isinstance(n, TuneNode))
    probes = builder.images(node.samples[0])
    assert isinstance(probes, Samples)
    known = {image.tobytes() for image in probes.images}
    # The probe images are a draw from the donors' samples, so that some are samples of the order.
    assert known & {image.tobytes() for image in samples.images}
    for rest, fold in schooling.left_out_folds(torch.from_numpy(samples.labels.copy())):
        part = schooling._without(builder, plan, samples, rest.numpy(), fold.numpy())
        trained = next(n for n in part.nodes.values() if isinstance(n, TuneNode))
        images = [builder.images(digest) for digest in trained.samples]
        seen = {image.tobytes() for held in images if isinstance(held, Samples) for image in held.images}
        gone = {image.tobytes() for image in samples.images[fold.numpy()]}
        assert seen and not seen & gone
        assert known - gone <= seen


def test_without_a_training_left_out_samples_are_what_the_chain_says(indexed: Shop) -> None:
    order = _order(indexed)
    builder, samples = _builder(indexed, order), order.samples
    assert isinstance(samples, Samples)
    chain = _chain(order, "restrict")
    # A donor's own classifier was fitted on nothing, so leaving out changes nothing.
    assert torch.equal(left_out(builder, chain, samples), builder.logits(chain, samples).argmax(1))
    assert untrained(_tuned(order, chain)).key() == chain.key()
    assert untrained(_tuned(order, chain, towards="labels")).key() == chain.key()


def test_a_training_goes_on_from_its_checkpoints(indexed: Shop, tmp_path: Path) -> None:
    order = _order(indexed)
    plan = _tuned(order, _chain(order, "restrict"))
    first = _builder(indexed, order, tmp_path).build(plan).graph
    (folder,) = tmp_path.iterdir()
    last, earlier = checkpoints(folder)[-1], checkpoints(folder)[:-1]
    assert earlier
    last.unlink()  # As if it had been cut short.
    second = _builder(indexed, order, tmp_path).build(plan).graph
    straight = _builder(indexed, order).build(plan).graph
    assert last.is_file()
    for name, tensor in straight.tensors.items():
        assert torch.equal(first.tensors[name], tensor) and torch.equal(second.tensors[name], tensor)


def test_a_student_has_the_shape_of_the_chain_and_the_classifier_of_its_teacher(indexed: Shop) -> None:
    order = _order(indexed)
    chain, builder = _chain(order, "restrict"), _builder(indexed, order)
    student = student_plan(chain, order.samples.digest, 44, seed=0)
    node = next(n for n in student.nodes.values() if isinstance(n, TuneNode))
    assert node.start == "fresh" and node.epochs >= schooling.STUDENT_STEPS
    short = student.replace(nodes={**student.nodes, "tuned": node.replace(epochs=1)})
    one, two = builder.build(chain).graph, builder.build(short).graph
    assert count(one) == count(two)
    same = {name for name in one.parameters if torch.equal(one.tensors[name], two.tensors[name])}
    assert same and all("fc." in name for name in same)


@pytest.mark.parametrize("right", ["trained", "untrained", "both"])
def test_the_trained_chain_takes_the_place_of_the_other_only_where_more_is_right(
    right: str, indexed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = _order(indexed)
    labels = torch.from_numpy(order.samples.labels.copy())

    def said(builder: Builder, plan: Plan, samples: Samples) -> torch.Tensor:
        good = right in ("both", "trained" if schooling.training_of(plan) is not None else "untrained")
        return labels if good else 1 - labels

    monkeypatch.setattr(schooling, "left_out", said)
    asked = replace(
        order,
        requirement=order.requirement.replace(request=order.request.replace(train=Training(epochs=1))),
    )
    row = {"name": "chain", "role": "plan", "note": "a -> b", "accuracy_loto": 0.5}
    plain = {"row": row, "plan": _chain(order, "restrict").model_dump(mode="json"), "correct": []}
    score = Score.from_plain({**plain, "predictions": [], "heldout": None})
    rows = {s.row.name: s.row for s in schooling.train_best(_builder(indexed, order), asked, [score])}
    if right == "trained":
        assert {name: found.role for name, found in rows.items()} == {
            "chain, before training": "baseline",
            "chain, trained": "plan",
        }
        assert rows["chain, trained"].note.endswith("0.0% right before, 100.0% after: kept")
    else:
        assert {name: found.role for name, found in rows.items()} == {
            "chain": "plan",
            "chain, trained": "baseline",
        }
        assert rows["chain, trained"].note.endswith(": not kept")


def test_a_chain_that_can_not_be_trained_says_why(indexed: Shop) -> None:
    order = _order(indexed)
    sliced = next(
        p for p in propose(order).feasible if any(isinstance(n, SliceNode) for n in p.nodes.values())
    )
    row = {"name": "sliced", "role": "plan", "note": "some units", "accuracy_loto": 0.5}
    plain = {"row": row, "plan": sliced.model_dump(mode="json"), "correct": [], "predictions": []}
    score = Score.from_plain({**plain, "heldout": None})
    asked = replace(
        order,
        requirement=order.requirement.replace(request=order.request.replace(train=Training(epochs=1))),
    )
    held = {s.digest: s for s in order.donor_samples.values()}
    builder = Builder(indexed.market.store, {order.samples.digest: order.samples, **held})
    (left,) = schooling.train_best(builder, asked, [score])
    assert left.row.role == "plan" and left.row.note.startswith(
        "some units; not trained: the classifier reads"
    )
    (why, _) = not_made(asked.request, [left], heldout=True)
    assert why.startswith("training: the classifier reads") and why.endswith("train towards labels")


def test_what_was_not_made_is_said(indexed: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    order = _order(indexed)
    chain = _chain(order, "restrict")
    row = {"name": "chain", "role": "plan", "note": "a -> b"}
    score = Score.from_plain(
        {"row": row, "plan": chain.model_dump(mode="json"), "correct": [], "predictions": [], "heldout": None}
    )
    train = order.request.replace(train=Training(epochs=1))
    told = list(not_made(train, [score], heldout=True))
    assert told[0] == "training: no chain of blocks was built, or the plan was given"
    monkeypatch.setattr(schooling, "STUDENT_FLOPS", 0.0)
    assert schooling.score_student(_builder(indexed, order), order, [score], heldout=True) == []
    (why,) = not_made(order.request, [score], heldout=True)
    assert "FLOPs; ask for it with baselines: student" in why
