"""Orders for classes that no stocked model knows: new heads on donors and chains, from a few samples of the order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import sarto
from sarto import Market, RequestError, Samples
from sarto.cli.app import app
from sarto.errors import InfeasibleError
from sarto.pipeline import Artifact, verify_artifact
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import Plans, propose, refilled, reopened
from sarto.pipeline.closing import closed
from sarto.pipeline.indexing import index_zoo
from sarto.pipeline.locking import Lock, read_lock
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.rebuilding import rebuild
from sarto.pipeline.reference import reference_of
from sarto.types import ChainNode, HeadNode, Learnware, Plan, Requirement, SliceNode, WidthCost
from tests.e2e.conftest import COLOURS, SIDE, Shop
from tests.e2e.test_profiled_orders import measured_discs, profile

#: Shapes that no donor was trained on.
NEW = ("red ring", "blue ring", "green ring")


def rings(classes: tuple[str, ...], count: int, seed: int) -> Samples:
    """`count` noisy images a class: discs with a hole, or what `draw` has."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    images = []
    for cls in classes:
        for _ in range(count):
            y, x, radius = rng.uniform(6, 10), rng.uniform(6, 10), rng.uniform(4, 5)
            away = (rows - y) ** 2 + (columns - x) ** 2
            inside = (away < radius**2) & (away > (radius - 2) ** 2)
            picture = np.where(inside[..., None], COLOURS[cls.split()[0]], rng.uniform(0.3, 0.6))
            images.append(picture + rng.normal(0, 0.08, picture.shape))
    pixels = (np.clip(np.stack(images), 0, 1) * 255).round().astype(np.uint8)
    return Samples(pixels, np.repeat(np.arange(len(classes)), count), tuple(classes))


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., str]:
    """Writes images of the order's own, and gives their path."""

    def written(samples: Samples, name: str = "own") -> str:
        return str(Shop.write_images(samples, tmp_path / name))

    return written


def ordered(shop: Shop, path: str, *classes: str, **more: Any) -> Order:
    request = shop.order(*(classes or NEW), samples=path, **{"heldout": None, **more})
    return check_order(request, shop.market.store)


def head_of(plan: Plan) -> str:
    head = plan.nodes[plan.out]
    return head.kind if isinstance(head, HeadNode) else ""


def notes_of(plans: Plans) -> list[str]:
    return [plan.note for plan in plans.feasible]


# --- what is accepted, and what is proposed -----------------------------------------------------------------------


def test_new_classes_are_told_and_every_donor_gives_features(shop: Shop, own: Callable[..., str]) -> None:
    order = ordered(shop, own(rings(NEW, 4, 1)))
    found = order.requirement
    assert (found.new, found.offers, found.apart) == (NEW, (), ())
    assert {order.learnwares[id_].name for id_ in found.donors} == set(shop.donors)
    assert "known to no stocked model: a new head is fitted on the 12 images given" in found.notes[0]
    plans = propose(order)
    whole = [note for note in notes_of(plans) if "pruned" not in note]
    assert sorted(whole) == [
        "ensemble of the whole donors",
        *(f"probe on {name}" for name in sorted(shop.donors)),
    ]
    # Sizes of a small donor may be the same counts of units: such are one plan, named after the largest.
    sizes = {
        item.name: {
            max(width.ratio for width in sizes_of(item) if width.keep == one.keep) for one in sizes_of(item)
        }
        for item in order.learnwares.values()
    }
    shared = set.intersection(
        *({width.ratio for width in sizes_of(item)} for item in order.learnwares.values())
    )
    pruned = {note for note in notes_of(plans) if "pruned" in note}
    assert pruned == {
        *(
            f"{name} pruned to {r:.0%} of its extractor, new head"
            for name, ratios in sizes.items()
            for r in ratios
        ),
        *(f"all donors side by side, each pruned to {r:.0%} of its extractor, new head" for r in shared),
    }
    assert all(head_of(plan) == "ridge" for plan in plans.feasible)
    told = dict(reason.split(": ", 1) for reason in plans.without)
    assert "subnets for classes that a supernet knows" in told["factory"] and "red ring" in told["factory"]
    assert "the market has no index" in told["reassembly"]
    assert Requirement.parse(found.to_json()) == found


def sizes_of(item: Learnware) -> list[WidthCost]:
    """The sizes below the whole that a model is stocked at, solved for parameters."""
    return [width for width in item.widths if width.ratio < 1 and width.objective == "params"]


def test_a_name_like_a_known_one_is_new_only_where_samples_have_it(
    shop: Shop, own: Callable[..., str]
) -> None:
    near = ("red disk", "red ring")
    order = ordered(shop, own(rings(near, 3, 2)), *near)
    assert order.requirement.new == near
    (note,) = order.requirement.notes
    assert note.startswith("red disk (did you mean 'red disc'?), red ring")
    with pytest.raises(RequestError) as caught:
        ordered(shop, own(rings(NEW, 3, 2), "other"), "red disk", "red ring")
    assert caught.value.problems == (
        "task.classes[0]: no model in the market knows 'red disk' (did you mean 'red disc'?)",
    )


def test_known_and_new_classes_share_one_new_head(shop: Shop, own: Callable[..., str]) -> None:
    path = own(rings(("red ring",), 4, 3))
    shop.write_images(shop.draw(["red disc"], 4, 3), Path(path))
    order = ordered(shop, path, "red disc", "red ring", budget={"params": 3_000})
    assert order.requirement.new == ("red ring",)
    assert [offer.cls for offer in order.requirement.offers] == ["red disc"]
    assert order.classes == ("red disc", "red ring")
    plans = propose(order)
    assert {plan.engine for plan in plans.all} == {"baselines", "slicepack"}
    assert all(plan.classes == order.classes and head_of(plan) == "ridge" for plan in plans.all)


def test_chains_end_in_a_new_head_alone(shop: Shop, own: Callable[..., str]) -> None:
    index_zoo(shop.market.store, "zoo", n_probes=32, batch=8)
    order = ordered(shop, own(rings(NEW, 4, 4)), engines=["reassembly"])
    plans = propose(order).feasible
    chains = [plan for plan in plans if any(isinstance(n, ChainNode) for n in plan.nodes.values())]
    assert chains == list(plans) and {head_of(plan) for plan in chains} == {"ridge"}
    assert all(len(plan.learnwares) > 1 for plan in chains)


def test_donors_that_one_model_can_not_read_for_serve_alone(shop: Shop, own: Callable[..., str]) -> None:
    for name, resize in (("wide", "bilinear"), ("strict", "refuse")):
        said = {**shop.preprocessing, "size": [24, 24], "resize": resize}
        shop.add(name, ("x", "y"), _Any().eval(), samples=None, preprocessing=said)
    order = ordered(shop, own(rings(NEW, 4, 5)))
    names = [
        [order.learnwares[id_].name for id_ in ids]
        for ids in (order.requirement.donors, order.requirement.apart)
    ]
    # The three donors refuse images of another size, so that none of them goes with the one that resizes.
    assert sorted(names[0]) == sorted(shop.donors) and names[1] == ["wide"]
    plans = propose(order)
    assert "probe on wide" in notes_of(plans) and "probe on strict" not in notes_of(plans)
    wide = next(plan for plan in plans.feasible if plan.note == "probe on wide")
    built = Builder(shop.market.store, {order.samples.digest: order.samples}).build(wide)
    assert built.intake.tensor(order.samples).shape[-2:] == (24, 24)
    must = ordered(shop, own(rings(NEW, 4, 5), "again"), donors={"must": ["wide"]})
    assert [must.learnwares[id_].name for id_ in must.requirement.donors] == ["wide"]
    with pytest.raises(RequestError, match=r"'strict' must be used, but can't read the images .* 16x16"):
        ordered(shop, own(rings(NEW, 4, 5), "third"), donors={"must": ["strict"]})


class _Any(nn.Module):
    """Reads images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


# --- what is refused ----------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_new_classes_is_told_at_once(shop: Shop, own: Callable[..., str]) -> None:
    few = own(rings(("red ring",), 1, 6))
    shop.write_images(rings(("blue ring",), 3, 6), Path(few))
    with pytest.raises(RequestError) as caught:
        ordered(
            shop,
            few,
            "red ring",
            "blue ring",
            "red disc",
            "zebra",
            engines=["factory"],
            samples_per_class=1,
        )
    told = caught.value.problems
    assert len(told) == 5
    assert any(
        "no model in the market knows 'zebra'" in text and "has no samples of it" in text for text in told
    )
    assert any(
        "has 1 image of class 'red ring'" in text and "at least 2 of each class" in text for text in told
    )
    assert any("has none of class 'red disc'" in text for text in told)
    assert any(text.startswith("samples_per_class: is 1") for text in told)
    assert any("name slicepack" in text and "reassembly" in text for text in told)


def test_without_labelled_samples_the_way_out_is_told(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        check_order(shop.order("zebra", "red disc", heldout=None), shop.market.store)
    assert "no model in the market knows 'zebra'" in str(caught.value)
    assert "labelled samples of the order's own, at least 2 of each class" in str(caught.value)
    flat = shop.write_images(rings(("red ring",), 3, 7), tmp_path / "flat") / "red ring"
    with pytest.raises(RequestError) as caught:
        ordered(shop, str(flat))
    assert "make one folder a class" in str(caught.value) and "need labelled samples" in str(caught.value)


def test_no_donor_that_reads_such_samples_is_told_with_the_reasons(
    shop: Shop, own: Callable[..., str], tmp_path: Path
) -> None:
    small = rings(NEW, 2, 8)
    path = own(Samples(small.images[:, ::2, ::2], small.labels, small.classes))
    with pytest.raises(RequestError, match=r"no donor .* reads the images .*bars.*: images are 8x8"):
        ordered(shop, path)
    texts = tmp_path / "texts.tsv"
    texts.write_text("label\ttext\n" + "".join(f"{cls}\tsome words\n{cls}\tmore\n" for cls in NEW))
    with pytest.raises(RequestError, match=r"no donor .* reads the texts .*it reads images, these are texts"):
        ordered(shop, str(texts))


def test_a_class_of_a_donor_that_may_not_be_used_is_not_new(shop: Shop, own: Callable[..., str]) -> None:
    path = own(shop.draw(["red disc", "red bar"], 3, 9))
    with pytest.raises(RequestError, match=r"'discs' knows it, but it is to be avoided"):
        ordered(shop, path, "red disc", "red bar", donors={"avoid": ["discs"]})


def test_a_budget_below_every_donor_says_what_the_engines_lack(shop: Shop, own: Callable[..., str]) -> None:
    order = ordered(shop, own(rings(NEW, 3, 10)), budget={"params": 50})
    assert propose(order).feasible == ()
    with pytest.raises(InfeasibleError, match=r"Floor: params .*factory: has subnets for classes"):
        shop.make(order.request, "never")


def test_a_pruned_donor_is_delivered_where_no_whole_one_keeps_the_budget(
    shop: Shop, own: Callable[..., str]
) -> None:
    path = own(rings(NEW, 6, 11))
    free = propose(ordered(shop, path))
    whole = min(
        plan.predicted.params for plan in free.feasible if "pruned" not in plan.note and plan.predicted
    )
    limit = int(0.8 * whole)
    made = shop.make(ordered(shop, path, budget={"params": limit}).request, "pruned")
    assert "pruned to" in made.plan.note and made.report is not None
    cut = [node for node in made.plan.nodes.values() if isinstance(node, SliceNode)]
    assert cut and all(
        node.classes == () and node.samples == made.report.requirement.samples_digest for node in cut
    )
    assert made.report.measured.params == made.plan.predicted.params <= limit, "counted before it was built"
    assert any("chosen and repaired on all these images" in text for text in made.report.sentences)
    assert any(row.name.startswith("random units") for row in made.report.rows), "the control of every slice"
    assert any("pruned extractor" in part.name for part in made.report.where_params)
    assert all(check.ok for check in verify_artifact(made.folder))
    paper = propose(ordered(shop, path, method="paper"))
    assert not any("pruned" in plan.note for plan in paper.all)
    assert any("the paper's method slices by classes that a model knows" in text for text in paper.without)


def test_pruned_donors_keep_a_budget_of_milliseconds_on_a_profiled_device(
    shop: Shop, own: Callable[..., str]
) -> None:
    shop.market.store.profiles.put(profile(unit_step=1))
    path = own(rings(("red ring", "blue ring"), 6, 12))
    shop.write_images(shop.draw(["red disc"], 6, 12), Path(path))
    order = ordered(
        shop,
        path,
        *("red ring", "blue ring", "red disc"),
        device={"profile": "paper"},
        engines=["slicepack", "baselines"],
        budget={"latency_ms": 50.0},
    )
    plans = [plan for plan in propose(order).feasible if "pruned" in plan.note]
    assert plans and all(plan.predicted and plan.predicted.latency_high_ms for plan in plans)
    # What was measured of a donor says how fast the machine is, though no donor knows a class.
    every = ordered(shop, own(rings(NEW, 3, 14), "rings"), device={"profile": "paper"})
    shop.market.store.profiles.put(measured_discs(shop, level_ms=5.0))
    known = check_order(every.request, shop.market.store)
    assert known.requirement.offers == ()
    with reference_of(known) as reference:
        assert reference is not None and reference.level_ms == pytest.approx(5.0)
    # They have their stocked sizes alone: what one takes says nothing of others.
    assert refilled(order, plans[0], 1.2) is None and reopened(order, plans[0], 1.2) is None
    said = plans[0].predicted
    assert said is not None
    late = said.replace(latency_low_ms=60.0, latency_ms=60.0, latency_high_ms=60.0)
    assert [one.broken for one in closed(order, plans[0], lambda _: late)] == [("latency_ms",)]


# --- from end to end ----------------------------------------------------------------------------------------------


def test_the_best_donor_under_a_new_head_is_delivered(shop: Shop, own: Callable[..., str]) -> None:
    path, held = own(rings(NEW, 8, 11)), own(rings(NEW, 20, 12), "held")
    args = ["--classes", ",".join(NEW), "--samples", path, "--heldout", held, "-m", str(shop.market.path)]
    planned = CliRunner().invoke(app, ["plan", *args, "--json"])
    assert planned.exit_code == 0, planned.output
    assert "known to no stocked model" in planned.stderr
    folder = shop.folder / "made"
    done = CliRunner().invoke(
        app, ["make", *args, "-o", str(folder), "--baselines", "finetune,grail", "--json"]
    )
    assert done.exit_code == 0, done.output
    keys = {item["key"] for item in json.loads(planned.stdout)["plans"]}
    assert json.loads(done.stdout)["plan_key"] in keys
    artifact = Artifact.read(folder)
    report = artifact.report
    assert artifact.classes == NEW and artifact.damage() == []
    assert {row.role for row in report.rows} >= {"pick", "probe", "finetune", "baseline", "trivial"}
    assert {"GRAIL", "majority class", "nearest class mean"} <= {row.name for row in report.rows}
    assert report.pick.accuracy_heldout is not None and report.pick.accuracy_heldout > 0.8
    ranked = [
        (-row.accuracy_loto, row.cost.params)
        for row in report.rows
        if row.role in ("pick", "probe", "ensemble") and row.accuracy_loto is not None and row.cost
    ]
    assert report.pick.cost is not None
    assert (-(report.pick.accuracy_loto or 0), report.pick.cost.params) == min(ranked)
    _check_nobody_is_said_to_know(artifact)
    assert "a donor as it is: no single learnware knows all the wanted classes" in report.not_tried
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 0
    model = sarto.load(folder)
    truth = rings(NEW, 20, 13)
    said = [found.label for found in model(truth.images)]
    right = np.mean([one == NEW[label] for one, label in zip(said, truth.labels, strict=True)])
    assert right > 0.8


def _check_nobody_is_said_to_know(artifact: Artifact) -> None:
    report = artifact.report
    names = [donor.name for donor in report.lineage]
    for score in report.per_class:
        assert score.learnware is None and score.donor_skill is None
        assert score.donor == f"new head on the features of {' and '.join(names)}"
    assert any(text.startswith("No stocked model knows red ring") for text in report.sentences)
    page, card = (
        (artifact.folder / name).read_text(encoding="utf-8") for name in ("report.html", "README.md")
    )
    assert "classes that no stocked model knows" in page and "new head on the features" in card


@pytest.mark.slow  # ten seconds and more
def test_a_chain_is_delivered_and_made_again_though_somebody_knows_the_classes_by_now(
    shop: Shop, own: Callable[..., str]
) -> None:
    store = shop.market.store
    index_zoo(store, "zoo", n_probes=32, batch=8)
    path = own(rings(NEW, 8, 14))
    request = shop.order(*NEW, samples=path, heldout=None, engines=["reassembly"], baselines=[])
    artifact = shop.make(request, "chain")
    report = artifact.report
    _check_nobody_is_said_to_know(artifact)
    named = {row.name: row.role for row in report.rows}
    assert named["random stitches, same blocks"] == "control"
    assert any("stitched to itself" in name for name in named)
    assert all(check.ok for check in verify_artifact(artifact.folder))
    lock = read_lock(artifact.folder)
    assert lock.taken == dict.fromkeys(NEW) and Lock.parse(lock.to_json()) == lock
    shop.add("rings", NEW, samples=rings(NEW, 4, 15))
    assert check_order(request, store).requirement.new == ()
    again = rebuild(store, lock, shop.folder / "again")
    for name in ("graph/graph.json", "graph/weights.safetensors"):
        assert again.manifest.files[name] == artifact.manifest.files[name], name
    assert read_lock(again.folder).taken == lock.taken


def test_models_of_new_classes_gain_and_lose_none(
    shop: Shop, own: Callable[..., str], tmp_path: Path
) -> None:
    path = own(rings(NEW, 4, 16))
    market: Market = shop.market
    alone: dict[str, Any] = {"heldout": None, "engines": ["baselines"], "baselines": []}
    artifact = shop.make(shop.order(*NEW, samples=path, **alone))
    with pytest.raises(RequestError, match=r"no stocked model knows red ring.*order all classes anew"):
        market.edit(artifact, tmp_path / "less", remove="red ring")
    shop.write_images(shop.draw(["red disc", "red bar"], 4, 16), Path(path))
    known = shop.make(shop.order("red disc", "red bar", samples=path, **alone), "known")
    with pytest.raises(RequestError, match=r"no stocked model knows red ring"):
        market.edit(known, tmp_path / "more", add="red ring")


def test_an_order_that_nothing_is_sliced_for_has_nothing_to_stock(
    shop: Shop, own: Callable[..., str]
) -> None:
    request = shop.order(*NEW, samples=own(rings(NEW, 4, 1)), heldout=None, engines=["baselines"])
    with pytest.raises(RequestError, match=r"nothing of this order is sliced.*takes whole donors"):
        shop.market.stock_order(request)
    assert shop.fragments() == {}
    shop.market.stock_order(request.replace(engines=("slicepack",)))
    stocked = shop.fragments()
    assert stocked, "pruned donors can be made ahead"
    shop.make(request.replace(engines=("slicepack", "baselines")), "ahead")
    assert {key: found for key, found in shop.fragments().items() if key in stocked} == stocked
    assert not [text for text in shop.sliced() if "random" not in text], "nothing was sliced anew"
