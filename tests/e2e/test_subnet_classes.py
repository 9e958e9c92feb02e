"""Orders for classes that stocked supernets tell apart too, and by task with samples: what is left out is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image

import sarto
from sarto import Market, Request, Samples, zoo
from sarto.devices import Latency
from sarto.devices.profiling import design, terms_of
from sarto.devices.profiling.fit import fit_backbone
from sarto.devices.profiling.making import backbone_model
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import ModelGraph
from sarto.pipeline import tasks, verify
from sarto.pipeline.factory import open_supernet, train_factory
from sarto.pipeline.on_device import OnDevice
from sarto.types import FactoryConfig, Plan
from sarto.types.profile import BackboneModel
from tests.e2e.test_profiled_orders import profile
from tests.unit.factory_assets import described

CLASSES = ("oak", "ray", "shark")
READS = {"size": [12, 12], "channels": 1, "mean": [0.5], "std": [0.5]}


def images(n: int = 6, side: int = 12, classes: tuple[str, ...] = CLASSES) -> Samples:
    """So many images of each class, each class of a brightness of its own."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(len(classes)), n)
    noise = rng.integers(0, 60, (len(labels), side, side, 1))
    return Samples((noise + (60 * labels)[:, None, None, None]).astype(np.uint8), labels, classes)


def write(samples: Samples, path: Path) -> str:
    np.savez(path, images=samples.images, labels=samples.labels, classes=np.array(samples.classes))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A market with two supernets for the same tasks, `beasts` and, deeper and with the paper's order, `deep`."""
    folder = tmp_path_factory.mktemp("trained")
    held = {split: write(images(), folder / f"{split}.npz") for split in ("train", "test")}
    (folder / "beasts.yaml").write_text(
        f"""
space: 1
name: beasts
groups: {{class: [oak, ray, shark]}}
choose: {{class: 3}}
tasks: [[ray, shark], [oak, ray], [oak, ray, shark]]
function: sarto.engines.factory.spaces.classes:labelled
arguments: {{train: {held["train"]}, test: {held["test"]}}}
answers: [oak, ray, shark]
outputs_of: {{oak: [oak], ray: [ray], shark: [shark]}}
"""
    )
    arguments = {"in_channels": 1, "depths": [1, 1, 1], "width": 8, "stem": "cifar"}
    changes: dict[str, dict[str, Any]] = {
        "beasts": {},
        "deep": {
            "backbone": {"zoo": "resnet", "arguments": arguments},
            "assembler": {"hidden": 8, "gaters": 2, "most": 1.0, "order": "paper"},
        },
    }
    with Market.create(folder / "market") as market:
        for name, change in changes.items():
            config = described(folder, name=name, space=str(folder / "beasts.yaml"), data={}, **change)
            train_factory(FactoryConfig.parse(config), market.store, folder / name)
    return folder / "market"


@pytest.fixture
def market(trained: Path, tmp_path: Path) -> Iterator[Market]:
    """A copy of that market."""
    shutil.copytree(trained, tmp_path / "market")
    with torch.random.fork_rng(), Market.open(tmp_path / "market") as found:
        torch.manual_seed(0)
        yield found


def stock(market: Market, name: str = "donor", classes: tuple[str, ...] = CLASSES, **more: Any) -> None:
    given = {"samples": images(classes=classes), "preprocessing": READS, **more}
    net = zoo.resnet(len(classes), 1, (1,), 6, False, "cifar").eval()
    market.add(net, name=name, classes=classes, **given)


def order(*classes: str, **more: Any) -> Request:
    task = {"properties": more.pop("properties")} if "properties" in more else {"classes": list(classes)}
    return Request.parse({"task": task, "baselines": [], **more})


def measured(name: str, graph: ModelGraph) -> BackboneModel:
    """What a profile knows of a backbone of which each term takes as long."""
    terms = terms_of(graph.sketch())
    rows = design(terms, 16, step=4, pool=60).astype(float)
    times = terms.at(rows, width=4, step=4) @ np.full(len(terms.terms), 2.1) + 0.2
    fit = fit_backbone(terms, rows, times, np.full(len(terms.terms), 0.5), step=4, widths=(4,))
    return backbone_model(name, terms, fit)


def profiled(market: Market, name: str) -> dict[str, Any]:
    """A device whose profile was measured on one model of the market."""
    if name in {one.name for one in market.store.supernets}:
        graph = open_supernet(market.store, name)[1].graph
    else:
        graph = market.store.graph(name)
    market.store.profiles.put(profile(backbones=(measured(name, graph),)))
    return {"profile": "paper"}


def engines(plans: Any) -> set[str]:
    return {plan.engine for plan in plans.feasible}


def of(market: Market, plans: tuple[Plan, ...]) -> set[str]:
    """Names of the supernets of plans."""
    return {market.store.supernets.get(id_).name for plan in plans for id_ in plan.supernets}


def test_packs_and_subnets_stand_beside_each_other_in_the_report(market: Market, tmp_path: Path) -> None:
    stock(market)
    request = order("shark", "ray", device={"runtime": "torch"}, engines=["slicepack", "factory"])
    artifact = market.make(request, tmp_path / "out")
    report, listed = artifact.report, {plan.key(): plan for plan in market.plan(request).feasible}
    rows = {engine: [] for engine in ("slicepack", "factory")}  # type: dict[str, list[str]]
    for row in report.rows:
        if row.role in ("pick", "plan") and row.plan_key in listed:
            assert row.accuracy_loto is not None and row.cost is not None
            rows[listed[row.plan_key].engine].append(row.name)
    assert len(rows["slicepack"]) >= 2 and len(rows["factory"]) >= 2
    # The page's table and its figure have both; names in the figure are cut short.
    page = (tmp_path / "out" / "report.html").read_text()
    figure = page[page.index("<svg") : page.index("</svg>")]
    for names in rows.values():
        assert all(str(escape(name)) in page for name in names), names
        assert any(name[:20] in figure for name in names)


def test_a_supernet_that_a_profile_does_not_know_is_left_out(market: Market, tmp_path: Path) -> None:
    stock(market)
    timed = {"latency_ms": 1e5}
    # Of the donors alone: packs are made, and both supernets are told.
    plans = market.plan(order("shark", "ray", device=profiled(market, "donor"), budget=timed))
    assert engines(plans) == {"slicepack", "baselines"}
    told = [text for text in plans.without if text.startswith("factory:")]
    assert len(told) == 2 and all("profile 'paper' is of other backbones (donor)" in text for text in told)
    # Where no milliseconds are asked for, nothing has to be known of them.
    free = market.plan(order("shark", "ray", device=profiled(market, "donor")))
    assert of(market, free.feasible) == {"beasts", "deep"}
    assert all(
        plan.predicted.latency_ms is None for plan in free.feasible if plan.supernets and plan.predicted
    )
    # Of one supernet: the other does not keep it from being delivered.
    request = order("shark", "ray", device=profiled(market, "beasts"), budget=timed)
    plans = market.plan(request)
    assert engines(plans) == {"slicepack", "factory", "baselines"} and of(market, plans.feasible) == {
        "beasts"
    }
    (told_now,) = [text for text in plans.without if text.startswith("factory:")]
    assert told_now.startswith("factory: supernet 'deep': profile 'paper' is of other backbones (beasts)")
    rows = market.make(request, tmp_path / "out").report.rows
    assert any("subnet of beasts" in row.name for row in rows)
    # A given plan of the other one is built and measured; its certificate has no floor of what is not known.
    alone = order("shark", "ray", device={"profile": "paper"}, engines=["factory"])
    (deep,) = [one for one in market.store.supernets if one.name == "deep"]
    nodes = next(plan for plan in plans.feasible if plan.supernets).nodes
    given = Plan.parse(
        {
            "nodes": {
                "subnet": {"op": "subnet", "of": deep.id, "tasks": [["ray", "shark"]], "limit": 0.5},
                "out": nodes["out"].model_dump(mode="json"),
            },
            "out": "out",
        }
    )
    roomy = alone.replace(budget={"latency_ms": 1e5, "params": 10**9})
    found = market.make(roomy, tmp_path / "given", plan=given).report.certificate
    assert found is not None and set(found.floor) == {"params"}


@pytest.mark.parametrize("known", [True, False], ids=["profile", "no profile"])
def test_a_subnet_for_classes_fills_a_latency_budget_as_measured(
    market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    stock(market)
    market.store.supernets.remove("deep")
    device, limit = {"runtime": "torch"}, 1.0
    if known:
        device = profiled(market, "beasts")
        free = market.plan(order("shark", "ray", device=device, engines=["factory"])).feasible
        said = [plan.predicted.latency_high_ms for plan in free if plan.predicted is not None]
        limit = (min(said) + max(said)) / 2
    graph = open_supernet(market.store, "beasts")[1].graph
    whole = sum(group.size for group in graph.analysis.sliceable)

    def taken(graph: ModelGraph, *rest: object, **more: object) -> OnDevice:
        # What no unit takes and what each does are both others than any profile says.
        ms = limit * (0.25 + 0.9 * sum(group.size for group in graph.analysis.sliceable) / whole)
        return OnDevice(cast(Latency, SimpleNamespace(median_ms=ms, low_ms=ms, high_ms=ms, processor="one")))

    monkeypatch.setattr(verify, "measured_on", taken)
    request = order("shark", "ray", device=device, engines=["factory"], budget={"latency_ms": limit})
    report = market.make(request, tmp_path / "out").report
    assert 0.9 * limit <= report.measured.latency_ms <= limit
    assert report.certificate is not None and report.certificate.limit is not None


@pytest.mark.slow  # ten seconds and more
def test_of_two_supernets_for_a_task_the_one_that_is_known_does_it(
    market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = {"latency_ms": 1e5}
    by_task = order(properties=["ray", "shark"], device=profiled(market, "beasts"), budget=limited)
    plans = market.plan(by_task)
    assert of(market, plans.feasible) == {"beasts"} and "supernet 'deep': profile" in plans.without[0]
    artifact = market.make(by_task, tmp_path / "out")
    assert artifact.report.certificate.supernet_name == "beasts"
    assert [note for note in artifact.requirement.notes if note.startswith("left out: supernet 'deep'")]
    # Without a profile: the paper's order can't be bisected, the nested one can.
    quick = SimpleNamespace(median_ms=1.0)
    monkeypatch.setattr(tasks, "latency_on", lambda *given: quick)
    timed = order(properties=["ray", "shark"], budget={"latency_ms": 5.0})
    plans = market.plan(timed)
    assert of(market, plans.feasible) == {"beasts"} and "needs the nested order" in plans.without[0]
    # Where none is known, all reasons come at once; where all are too large, the smallest floor.
    profiled(market, "deep")
    market.store.supernets.remove("deep")
    with pytest.raises(
        RequestError, match=r"supernet 'beasts': profile 'paper' is of other backbones \(deep\)"
    ):
        market.plan(by_task)


def test_of_two_supernets_that_are_too_large_the_smaller_floor_is_told(market: Market) -> None:
    asked = {"properties": ["ray", "shark"]}
    alone = {}
    for name in ("beasts", "deep"):
        with pytest.raises(InfeasibleError) as one:
            market.plan(Request.parse({"task": {**asked, "supernet": name}, "budget": {"params": 10}}))
        alone[name] = one.value.floor
    with pytest.raises(InfeasibleError) as caught:
        market.plan(Request.parse({"task": asked, "budget": {"params": 10}}))
    assert len(caught.value.problems) == 2 and all(f"'{name}'" in str(caught.value) for name in alone)
    assert alone["beasts"]["params"] < alone["deep"]["params"]
    assert caught.value.floor == alone["beasts"] == caught.value.nearest


def test_rules_and_other_images_leave_supernets_out_and_say_so(market: Market) -> None:
    stock(market)
    told = market.plan(order("shark", "ray", donors={"avoid": ["beasts"]})).without
    assert "factory: supernet 'beasts': it is to be avoided" in told
    stock(
        market,
        "large",
        ("ray", "shark", "eel"),
        samples=images(side=16, classes=("ray", "shark", "eel")),
        preprocessing={**READS, "size": [16, 16]},
    )
    request = order("large:shark", "large:ray", engines=["factory"], donors={"avoid": ["donor"]})
    with pytest.raises(InfeasibleError, match="reads images of 12x12 with 1 channels, the order's are 16x16"):
        market.plan(request)


@pytest.mark.parametrize("case", ["half known", "no samples", "not allowed"])
def test_what_learnwares_can_not_do_alone_a_supernet_does(market: Market, case: str, tmp_path: Path) -> None:
    if case == "half known":
        stock(market, classes=("oak", "elm"))
    else:
        stock(market, samples=None if case == "no samples" else images(), licence="MIT")
    rules = {"deny_licences": ["MIT"]} if case == "not allowed" else {}
    artifact = market.make(order("oak", "ray", device={"runtime": "torch"}, donors=rules), tmp_path / "out")
    assert artifact.classes == ("oak", "ray") and artifact.report.certificate is not None
    assert artifact.report.requirement.offers[0].learnware == artifact.report.certificate.supernet
    assert artifact.damage() == []
    # Where the supernets may not do it either, what is said of the learnwares is told.
    avoided = {"avoid": ["beasts", "deep"], **rules}
    with pytest.raises(RequestError, match="'ray'"):
        market.plan(order("oak", "ray", donors=avoided))
    with pytest.raises(RequestError):
        market.plan(order("oak", "ray", engines=["slicepack"], donors=rules))


def test_samples_of_an_order_by_task_are_scored(market: Market, tmp_path: Path) -> None:
    told = images(9)
    labels = told.labels.copy()
    labels[[9, 18]] = labels[[18, 9]]  # a ray and a shark under each other's name
    mine = Samples(told.images, labels, CLASSES)
    request = order(
        properties=["ray", "shark"],
        device={"runtime": "torch"},
        samples=write(mine, tmp_path / "mine.npz"),
        samples_per_class=7,
    )
    artifact = market.make(request, tmp_path / "out")
    pick, requirement = artifact.report.pick, artifact.requirement
    model = sarto.load(tmp_path / "out")
    first = [np.flatnonzero(mine.labels == label)[:7] for label in (1, 2)]
    right = {
        cls: sum(model(mine.images[place])[0].label == cls for place in places)
        for cls, places in zip(("ray", "shark"), first, strict=True)
    }
    assert 0 < sum(right.values()) < 14
    assert pick.accuracy_loto == sum(right.values()) / 14 and pick.interval is not None
    assert {score.cls: score.recall_loto for score in artifact.report.per_class} == {
        cls: pytest.approx(n / 7) for cls, n in right.items()
    }
    assert requirement.n_samples == {"ray": 7, "shark": 7}
    assert any("samples of oak" in note and "left out" in note for note in requirement.notes)
    assert any("of your 14 labelled samples are named right" in text for text in artifact.report.sentences)
    assert (
        artifact.plan.key()
        == market.make(request.replace(samples=None, samples_per_class=None), tmp_path / "plain").plan.key()
    )


def test_samples_that_say_nothing_of_a_task_are_told(market: Market, tmp_path: Path) -> None:
    by_task = order(properties=["ray", "shark"], device={"runtime": "torch"})
    strange = by_task.replace(samples=write(images(classes=("elm", "eel")), tmp_path / "strange.npz"))
    artifact = market.make(strange, tmp_path / "out")
    assert artifact.report.pick.accuracy_loto is None and artifact.report.per_class == ()
    (note,) = artifact.requirement.notes
    assert "are not scored: they are of elm, eel, the answers are ray, shark" in note
    large = by_task.replace(samples=write(images(side=16), tmp_path / "large.npz"))
    with pytest.raises((RequestError, sarto.errors.ShapeError), match=r"large\.npz"):
        market.make(large, tmp_path / "none")
    with pytest.raises(RequestError, match="give these as samples"):
        market.make(by_task.replace(heldout=strange.samples), tmp_path / "held")


def test_subnets_beside_packs_take_batch_norm_statistics_where_asked(market: Market, tmp_path: Path) -> None:
    stock(market)
    asked = order("shark", "ray", device={"runtime": "torch"}, engines=["slicepack", "factory"])
    mine = asked.replace(samples=write(images(9), tmp_path / "mine.npz"), recalibrate=True)
    plans = market.plan(mine)
    subnets = [plan for plan in plans.feasible if plan.supernets]
    assert subnets and all(plan.nodes["subnet"].samples == plans.order.samples.digest for plan in subnets)
    artifact = market.make(mine, tmp_path / "out", plan=subnets[0])
    assert artifact.report.certificate is not None and artifact.report.certificate.recalibrated == 18
    assert "batch norm statistics taken from these samples" in artifact.report.pick.interval.method
    plain = market.make(
        asked, tmp_path / "plain", plan=next(p for p in market.plan(asked).feasible if p.supernets)
    )
    name = next(name for name in artifact.graph.tensors if name.endswith("running_mean"))
    assert not torch.allclose(artifact.graph.tensors[name], plain.graph.tensors[name])
    assert plain.report.certificate is not None and plain.report.certificate.recalibrated == 0


def test_images_without_labels_serve_an_order_by_task_for_statistics_alone(
    market: Market, tmp_path: Path
) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    for place, image in enumerate(images(5).images):
        Image.fromarray(image.squeeze()).save(folder / f"{place:02}.png")
    asked = order(properties=["ray", "shark"], device={"runtime": "torch"}, samples=str(folder))
    scored = market.make(asked, tmp_path / "out")
    assert scored.report.pick.accuracy_loto is None
    assert any("carry no labels: none of them is scored" in note for note in scored.requirement.notes)
    taken = market.make(asked.replace(recalibrate=True), tmp_path / "taken")
    assert taken.report.certificate is not None and taken.report.certificate.recalibrated == 15
