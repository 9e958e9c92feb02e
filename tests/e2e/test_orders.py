"""Orders from end to end: models of tiny donors are made, explained, loaded, made again, and compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import sarto
from sarto import InfeasibleError, Plan, RequestError
from sarto.pipeline import Artifact
from sarto.pipeline.builder import Builder
from sarto.pipeline.rejection import NOVELTY
from sarto.types import HeadNode, SliceNode

FOUR = ("red disc", "green disc", "blue cross", "red bar")
#: Orders that compare nothing are quicker.
QUICK = {"engines": ["slicepack"], "heldout": None}


def graph_of(artifact: Artifact) -> tuple[str, str]:
    """Hashes of the delivered graph's two files."""
    files = artifact.manifest.files
    return files["graph/graph.json"], files["graph/weights.safetensors"]


# --- one order, all of it ---------------------------------------------------------------------------------------


def test_an_artifact_is_complete_and_its_files_are_the_manifests(made: Artifact) -> None:
    found = {
        str(p.relative_to(made.folder))
        for p in made.folder.rglob("*")
        if p.is_file() and ".job" not in p.parts
    }
    assert found == {
        *("graph/graph.json", "graph/weights.safetensors", "model.onnx", "manifest.json", "request.json"),
        *("requirement.json", "plan.json", "report.json", "report.html", "README.md", "novelty.safetensors"),
    }
    again = Artifact.read(made.folder)
    assert again.damage() == []
    assert again.classes == FOUR == again.plan.classes
    assert again.manifest.plan_key == again.plan.key()
    assert all(path.stat().st_size > 0 for path in made.folder.rglob("*") if path.is_file())


def test_every_check_holds_and_nothing_costs_more_than_predicted(made: Artifact) -> None:
    report = made.report
    assert [check.name for check in report.checks if not check.ok] == []
    assert {"budget: params", "ONNX Runtime equals eager"} <= {check.name for check in report.checks}
    # Two fragments of one donor may share layers that the prediction counts twice.
    assert report.measured.params <= report.predicted.params <= 3_000
    assert report.measured.flops <= report.predicted.flops
    assert report.measured.params == sum(part.params for part in report.where_params)
    graph = made.graph
    assert report.measured.params == sum(graph.tensors[name].numel() for name in graph.parameters)


def test_of_donors_that_share_nothing_predicted_costs_are_the_counted_ones(shop: Any) -> None:
    report = shop.make(shop.order("red disc", "blue cross", "red bar", **QUICK)).report
    assert (report.predicted.params, report.predicted.flops) == (
        report.measured.params,
        report.measured.flops,
    )


def test_the_report_compares_with_what_one_would_do_otherwise(made: Artifact) -> None:
    report = made.report
    assert {row.role for row in report.rows} >= {
        "pick",
        "probe",
        "ensemble",
        "control",
        "trivial",
        "finetune",
    }
    assert sum(row.role == "pick" for row in report.rows) == 1
    assert {row.name for row in report.rows if row.role == "trivial"} == {
        *("majority class", "pixel ridge", "nearest class mean")
    }
    assert all(row.accuracy_heldout is not None for row in report.rows)
    compared = {comparison.row for comparison in report.comparisons}
    assert (
        compared <= {row.name for row in report.rows} and "random units, same widths, with repair" in compared
    )


def test_the_control_has_the_widths_of_the_delivered_plan(made: Artifact, shop: Any) -> None:
    for artifact in (made, shop.make(shop.order(*FOUR, budget={"params": 2_500}, **QUICK))):
        report = artifact.report
        controls = [row for row in report.rows if row.name == "random units, same widths, with repair"]
        assert [row.role for row in controls] == ["control"]
        assert report.pick.cost is not None and controls[0].cost is not None
        assert controls[0].cost.params == report.pick.cost.params
        assert controls[0].plan_key != report.pick.plan_key


def test_with_one_sample_a_class_no_plan_is_said_to_be_measured(shop: Any) -> None:
    request = shop.order("red disc", "green disc", samples_per_class=1, **QUICK)
    report = shop.make(request).report
    assert report.pick.accuracy_loto is None
    sliced = [row for row in report.rows if row.role in ("plan", "control")]
    assert sliced and all(row.accuracy_loto is None and row.interval is None for row in sliced)
    assert any("nothing could be measured" in sentence for sentence in report.sentences)


def test_the_model_knows_its_classes_and_the_report_says_how_well(
    made: Artifact, shared: Any, photos: NDArray[np.uint8]
) -> None:
    pick = made.report.pick
    assert pick.accuracy_heldout is not None and pick.accuracy_heldout > 0.7
    held = sarto.read_samples(shared.heldout).only(FOUR)
    said = [prediction.label for prediction in sarto.load(made.folder)(held.images)]
    right = np.mean([label == held.classes[truth] for label, truth in zip(said, held.labels, strict=True)])
    assert right == pytest.approx(pick.accuracy_heldout, abs=1e-12)
    rows = made.report.confusion.counts if made.report.confusion else ()
    assert sum(row[i] for i, row in enumerate(rows)) == round(right * len(held))


def test_a_loaded_model_agrees_with_onnx_runtime(
    made: Artifact, photos: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = sarto.load(made.folder)
    found = model(photos)
    assert {prediction.label for prediction in found} <= set(FOUR)
    assert all(sum(p.probabilities.values()) == pytest.approx(1, abs=1e-6) for p in found)
    session = ort.InferenceSession(str(made.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = (photos.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    logits = np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0], dtype=np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    for row, prediction in zip(odds / odds.sum(1, keepdims=True), found, strict=True):
        assert list(prediction.probabilities.values()) == pytest.approx(row, abs=1e-5)
        assert prediction.label == FOUR[int(row.argmax())]

    Image.fromarray(photos[0]).save(tmp_path / "photo.png")
    for alone in (photos[0], photos[0] / 255, tmp_path / "photo.png", str(tmp_path / "photo.png")):
        (one,) = model(alone)
        assert one.label == found[0].label
        assert one.probability == pytest.approx(found[0].probability, abs=1e-5)


def test_a_second_make_touches_nothing(
    made: Artifact, shared: Any, files: Callable[[Path], dict[str, Any]]
) -> None:
    before = files(made.folder)
    shared.said.clear()
    again = shared.make(made.request, "made")
    assert files(made.folder) == before
    assert again.manifest == made.manifest
    assert shared.said == []


def test_a_market_stays_sound(made: Artifact, shared: Any) -> None:
    assert shared.market.verify() == []
    assert shared.fragments()


# --- determinism, given plans -----------------------------------------------------------------------------------


def test_test_data_choose_nothing_and_orders_repeat(made: Artifact, shop: Any) -> None:
    held = sarto.read_samples(shop.heldout)
    wrong = sarto.Samples(held.images, np.roll(held.labels, 30), held.classes)
    path = shop.write_images(wrong, shop.folder / "wrong")
    other = shop.make(made.request.replace(heldout=str(path)))
    assert graph_of(other) == graph_of(made)
    assert other.plan.key() == made.plan.key()
    for name in ("model.onnx", NOVELTY):
        assert (other.folder / name).read_bytes() == (made.folder / name).read_bytes(), name
    assert [row.name for row in other.report.rows] == [row.name for row in made.report.rows]
    scores = [
        (a.accuracy_heldout, b.accuracy_heldout)
        for a, b in zip(made.report.rows, other.report.rows, strict=True)
    ]
    assert any(a != b for a, b in scores)


def test_a_plan_from_a_file_gives_the_model_that_choosing_gave(made: Artifact, shop: Any) -> None:
    made.plan.write(shop.folder / "plan.json")
    plan = Plan.read(shop.folder / "plan.json")
    assert plan == made.plan and plan.key() == made.plan.key()
    built = shop.make(made.request, plan=plan)
    assert graph_of(built) == graph_of(made)
    assert built.report.pick.accuracy_loto == made.report.pick.accuracy_loto
    assert built.report.pick.accuracy_heldout == made.report.pick.accuracy_heldout


def test_a_plan_of_other_samples_says_so(made: Artifact, shop: Any) -> None:
    nodes = {
        name: node.replace(samples="sha256:" + "5" * 64) if isinstance(node, HeadNode) else node
        for name, node in made.plan.nodes.items()
    }
    with pytest.raises(RequestError, match=r"head is fitted on samples sha256:555\w+, which are not at hand"):
        shop.make(made.request, plan=made.plan.replace(nodes=nodes))


def test_a_plan_of_other_classes_is_refused(made: Artifact, shop: Any) -> None:
    turned = shop.order(*reversed(FOUR), heldout=None)
    with pytest.raises(RequestError, match=r"plan tells apart red disc, green disc.*order.*red bar, blue"):
        shop.make(turned, plan=made.plan)
    assert not (shop.folder / "out").exists()


# --- budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # ten seconds and more
def test_an_order_changes_the_repair_of_its_slices_and_nothing_else(shop: Any) -> None:
    changes = {"polish": True, "towards": "zero", "lam": 0.5}
    plain = shop.market.plan(shop.order("red disc", "red bar", **QUICK))
    changed = shop.market.plan(shop.order("red disc", "red bar", repair=changes, **QUICK))
    assert len(changed.all) == len(plain.all)
    for one, two in zip(plain.all, changed.all, strict=True):
        for name, node in one.nodes.items():
            other = two.nodes[name]
            if isinstance(node, SliceNode) and node.repair is not None:
                assert other == node.replace(repair=node.repair.replace(**changes)) != node
            else:
                assert other == node
    made = shop.make(shop.order("red disc", "red bar", repair=changes, **QUICK))
    assert made.report.pick.accuracy_loto is not None
    with pytest.raises(RequestError, match=r"repair: the paper's method trains its repair"):
        shop.order("red disc", "red bar", repair=changes, method="paper")


def test_an_impossible_size_is_refused_before_anything_is_built_with_one_that_works(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = shop.order(*FOUR, budget={"params": 50})
    built: list[Plan] = []
    build = Builder.build
    monkeypatch.setattr(Builder, "build", lambda self, plan: built.append(plan) or build(self, plan))
    with pytest.raises(InfeasibleError, match=r"no plan fits params <= 50\. Floor: params") as caught:
        shop.market.plan(request)
    assert not built
    floor, nearest = caught.value.floor, caught.value.nearest
    assert floor is not None and nearest is not None and 50 < floor["params"] <= nearest["params"]
    with pytest.raises(InfeasibleError):
        shop.make(request)
    assert not (shop.folder / "out").exists()
    assert shop.fragments() == {}

    budget = json.loads(json.dumps(caught.value.to_json()))["nearest"]
    plans = shop.market.plan(shop.order(*FOUR, budget=budget))
    assert plans.feasible
    artifact = shop.make(shop.order(*FOUR, budget=budget, **QUICK))
    assert artifact.report.measured.params <= nearest["params"]


def test_an_impossible_latency_is_refused_with_floor_and_nearest(shop: Any) -> None:
    request = shop.order(*FOUR, budget={"latency_ms": 1e-7}, **QUICK)
    with pytest.raises(InfeasibleError, match="latency_ms <= 1e-07") as caught:
        shop.make(request)
    floor, nearest = caught.value.floor, caught.value.nearest
    assert floor is not None and nearest is not None
    assert 1e-7 < floor["latency_ms"] <= nearest["latency_ms"]


@pytest.mark.slow
def test_a_latency_that_no_prediction_refuses_is_refused_as_measured(shop: Any) -> None:
    least = shop.market.plan(shop.order(*FOUR, budget={"latency_ms": 100}, **QUICK)).feasible[-1].predicted
    request = shop.order(*FOUR, budget={"latency_ms": 2 * least.latency_low_ms}, **QUICK)
    with pytest.raises(InfeasibleError, match=r"as measured with onnxruntime, 1 threads") as caught:
        shop.make(request)
    assert caught.value.floor is not None and caught.value.floor["latency_ms"] > 2 * least.latency_low_ms


# --- classes come and go ------------------------------------------------------------------------------------------


def test_classes_come_and_go_and_only_new_fragments_are_made(shop: Any) -> None:
    tight = {**QUICK, "budget": {"params": 1_500}}
    shop.make(shop.order("red disc", "blue cross", **tight), "two")
    two = shop.fragments()
    assert two
    # Widths follow the budget: the same widths are asked for by plans that are changed by hand.
    plan = next(p for p in shop.market.plan(shop.order("red disc", "blue cross", **tight)).feasible)
    assert all(key in two for key in slices(plan))
    for classes in (("red disc", "blue cross", "red bar"), ("red disc", "red bar")):
        before, said = shop.fragments(), len(shop.said)
        order = shop.order(*classes, **QUICK)
        same = next(p for p in shop.market.plan(order).feasible if p.note == plan.note)
        keys = slices(same)
        shop.make(order, "-".join(classes), plan=same)
        after = shop.fragments()
        assert {key: after[key] for key in before} == before
        new = set(after) - set(before)
        made = ("slicing", "drawing random units")
        told = [text for text in shop.said[said:] if text.startswith(made)]
        fresh = [text for text in told if text in ("slicing red bar out of bars",)]
        assert set(keys) & set(before), "what is known already is used again"
        assert len(told) == len(new), "every slicing makes a new fragment"
        assert (len(fresh) >= 1) == (classes == ("red disc", "blue cross", "red bar"))
    # Of the fragments that the last order is made of, none was new.
    assert set(keys) <= set(before)


def slices(plan: Plan) -> list[str]:
    """Keys of the fragments that a plan is made of."""
    keys = plan.subkeys()
    return [keys[name] for name, node in plan.nodes.items() if isinstance(node, SliceNode)]


# --- special orders -------------------------------------------------------------------------------------------------


def test_a_donor_that_knows_all_classes_is_offered_as_it_is(shop: Any) -> None:
    artifact = shop.make(shop.order("blue disc", "red disc"))
    donor = next(row for row in artifact.report.rows if "as it is" in row.name)
    assert donor.role in ("donor", "pick") and donor.samples_used == 0
    held = sarto.read_samples(shop.heldout).only(["blue disc", "red disc"])
    with torch.inference_mode():
        images = torch.from_numpy(held.images.transpose(0, 3, 1, 2) / 255).float()
        mean, std = (torch.tensor(shop.preprocessing[name]).view(3, 1, 1) for name in ("mean", "std"))
        said = shop.models["discs"]((images - mean) / std)[:, [2, 0]].argmax(1)
    right = float((said == torch.from_numpy(held.labels.copy())).double().mean())
    assert donor.accuracy_heldout == pytest.approx(right, abs=1e-12)


def test_two_classes_of_one_donor_can_share_a_fragment(shop: Any) -> None:
    plans = shop.market.plan(shop.order("red disc", "green disc", "red bar"))
    kinds = {len(slices(plan)) for plan in plans.feasible if plan.engine == "slicepack"}
    assert {2, 3} <= kinds


def test_one_image_a_class_is_enough_and_the_report_says_what_that_costs(shop: Any) -> None:
    artifact = shop.make(shop.order("red disc", "blue cross", samples_per_class=1, engines=["slicepack"]))
    report = artifact.report
    assert report.pick.accuracy_loto is None and report.pick.interval is None
    assert report.pick.accuracy_heldout is not None
    assert any("with one sample a class nothing can be left out" in text for text in report.sentences)
    assert dict(report.requirement.n_samples) == {"red disc": 1, "blue cross": 1}


def test_a_class_with_one_image_among_others_is_named_where_it_is_not_counted(
    shop: Any, tmp_path: Path
) -> None:
    for cls, count in (("red disc", 4), ("blue cross", 4), ("red bar", 1)):
        shop.write_images(shop.draw([cls], count, 9), tmp_path / "own")
    request = shop.order("red disc", "blue cross", "red bar", samples=str(tmp_path / "own"), **QUICK)
    report = shop.make(request).report
    told = "'red bar' has one sample and is not counted in the accuracy"
    assert report.sentences[0].startswith("About ") and report.sentences[0].endswith(f"; {told}.")
    packs = [row for row in report.rows if row.role in ("pick", "plan")]
    assert packs and all(told in row.note for row in packs)
    recalls = {score.cls: score.recall_loto for score in report.per_class}
    assert recalls["red bar"] is None and recalls["red disc"] is not None


def test_one_class_alone_is_refused(shop: Any) -> None:
    with pytest.raises(RequestError, match=r"task\.classes: 'red disc' alone leaves nothing to tell apart"):
        shop.make(shop.order("red disc"))
    assert not (shop.folder / "out").exists()


def test_a_donor_of_a_single_class_is_stocked_and_ordered_from(shop: Any) -> None:
    factory = shop.donors["crosses"][0]
    torch.manual_seed(5)
    one = shop.add("one", ["red ring"], factory(1).eval(), samples=ringed(shop))
    assert one.classes == ("red ring",)
    artifact = shop.make(shop.order("red ring", "red bar", **QUICK))
    assert artifact.classes == ("red ring", "red bar")
    assert artifact.report.pick.accuracy_loto is not None


def ringed(shop: Any) -> sarto.Samples:
    """Crosses that are called rings."""
    drawn = shop.draw(["red cross"], 6, 9)
    return sarto.Samples(drawn.images, drawn.labels, ("red ring",))


def test_of_two_donors_the_better_skilled_is_chosen_unless_one_is_named(shop: Any) -> None:
    classes = ("green disc", "red disc", "blue disc")
    shop.add("a-mixup", classes)
    skill = {lw.name: lw.skill["red disc"] for lw in shop.market.learnwares() if "red disc" in lw.classes}
    assert skill["a-mixup"] < skill["discs"]
    names = {learnware.id: learnware.name for learnware in shop.market.learnwares()}

    def chosen(cls: str) -> str:
        plans = shop.market.plan(shop.order(cls, "red bar", heldout=None))
        return names[plans.order.requirement.offers[0].learnware]

    assert chosen("red disc") == "discs"
    assert chosen("a-mixup:red disc") == "a-mixup"
    others = shop.market.plan(shop.order("red disc", "red bar")).order.requirement.others
    assert [names[offer.learnware] for offer in others] == ["a-mixup"]
