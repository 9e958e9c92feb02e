"""Orders by task: from a stocked supernet to a verified, certified model, without data and without training."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

import sarto
from sarto import Market, Request, Samples
from sarto.devices import Latency, processor
from sarto.engines.factory.supernet import Supernet
from sarto.errors import InfeasibleError, RequestError, StoreError
from sarto.graph import relative_difference
from sarto.pipeline.factory import open_supernet, train_factory
from sarto.pipeline.on_device import OnDevice
from sarto.pipeline.subnets import ReadySupernet, Subnets
from sarto.types import Certificate, DonorRules, FactoryConfig, SubnetNode
from tests.unit.factory_assets import described


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A market with the supernet `few`, a few steps old."""
    folder = tmp_path_factory.mktemp("stocked")
    with Market.create(folder / "market") as market:
        train_factory(FactoryConfig.parse(described(folder)), market.store, folder / "steps")
    return folder / "market"


def order(*properties: str, **more: object) -> Request:
    task = {"properties": list(properties), **more.pop("task", {})}  # type: ignore[dict-item]
    device = {"runtime": "torch", **more.pop("device", {})}  # type: ignore[dict-item]
    return Request.parse({"task": task, "device": device, **more})


def write_unknown(path: Path, n: int) -> None:
    """So many images of no class that anybody knows."""
    images = np.random.default_rng(0).integers(0, 255, (n, 12, 12, 1), dtype=np.uint8)
    np.savez(path, images=images, labels=np.zeros(n, np.int64), classes=np.array(["unknown"]))


def test_a_task_becomes_a_model_with_a_certificate(stocked: Path, tmp_path: Path) -> None:
    with Market.open(stocked) as market:
        full = market.store.supernets.get("few").cost
        request = order("exactly_2", "digit_7", budget={"size_bytes": int(0.6 * full.size_bytes)})
        plans = market.plan(request)
        sizes = [plan.predicted.size_bytes for plan in plans.feasible if plan.predicted is not None]
        assert len(sizes) == 3 and max(sizes) <= 0.6 * full.size_bytes
        assert all(plan.engine == "factory" for plan in plans.feasible)
        # Judged at a fifth of the units and more; the smallest of the three has fewer.
        assert ["expected" in plan.note for plan in plans.feasible] == [True, True, False]
        assert plans.feasible[2].note.endswith("accuracy not known")
        artifact = market.make(request, tmp_path / "out")
        again = market.make(request, tmp_path / "out")
        assert again.plan == artifact.plan and artifact.damage() == []
        manifest, supernet = open_supernet(market.store, "few")
    report = artifact.report
    found = Certificate.read(tmp_path / "out" / "certificate.json")
    assert report.certificate == found and found.supernet == manifest.id and found.seen
    assert found.difference <= found.difference_limit == 1e-5
    assert found.expected is not None and found.nearest == {}
    assert 0 <= found.slack["size_bytes"] < 1 and found.floor["size_bytes"] <= report.measured.size_bytes
    assert found.hashes["assembler"] == manifest.assembler_hash
    assert all(check.ok for check in report.checks) and len(report.checks) >= 5
    assert any("without data and without training" in sentence for sentence in report.sentences)
    assert r"exactly\_2+digit\_7" in (tmp_path / "out" / "README.md").read_text()
    assert "exactly_2+digit_7" in (tmp_path / "out" / "report.html").read_text()
    # The delivered file equals the gated supernet, by another road: images in [0, 1] through both.
    (node,) = [node for node in artifact.plan.nodes.values() if isinstance(node, SubnetNode)]
    images = torch.rand(3, 1, 12, 12)
    gates = ReadySupernet(manifest, supernet).gates(node)
    whole = supernet.gated()((images - 0.5) / 0.5, gates.expand(3, -1).contiguous())
    delivered = artifact.graph(images)
    assert isinstance(whole, torch.Tensor) and isinstance(delivered, torch.Tensor)
    assert relative_difference([delivered], [whole]) <= 1e-5
    model = sarto.load(tmp_path / "out")
    said = model(np.zeros((12, 12, 1), np.uint8))[0]
    assert said.label in ("no", "yes") and abs(sum(said.probabilities.values()) - 1) < 1e-5


def test_a_budget_under_the_smallest_with_every_block_skips_some(stocked: Path, tmp_path: Path) -> None:
    changes = {"assembler": {"hidden": 8, "gaters": 2, "most": 1.0, "skips": True}}
    with Market.create(tmp_path / "market") as market:
        done = train_factory(
            FactoryConfig.parse(described(tmp_path, **changes)), market.store, tmp_path / "steps"
        )
        with Market.open(stocked) as other:
            whole = other.store.supernets.get("few").floor
        floor = done.manifest.floor
        assert floor.params < whole.params and floor.flops < whole.flops
        artifact = market.make(
            order("exactly_2", "digit_7", budget={"params": whole.params - 1}), tmp_path / "out"
        )
        again = market.make(
            order("exactly_2", "digit_7", budget={"params": whole.params - 1}), tmp_path / "out"
        )
    assert again.plan == artifact.plan and artifact.damage() == []
    (node,) = [node for node in artifact.plan.nodes.values() if isinstance(node, SubnetNode)]
    assert () in node.keep.values()
    assert artifact.report.measured.params <= whole.params - 1
    found = artifact.report.certificate
    assert found is not None and found.difference <= 1e-5 and found.floor["params"] < whole.params


def test_an_unseen_task_names_its_nearest_and_several_tasks_share_a_model(
    stocked: Path, tmp_path: Path
) -> None:
    with Market.open(stocked) as market:
        unseen = market.make(order("exactly_2", "odd"), tmp_path / "unseen").report.certificate
        both = order("has", "odd", task={"also": [["has", "digit_7"]]}, budget={"size_bytes": 8000})
        plans = market.plan(both)
    assert unseen is not None and not unseen.seen
    assert unseen.nearest["has+odd"] == pytest.approx(2 / 3)
    held = [node for node in plans.feasible[0].nodes.values() if isinstance(node, SubnetNode)]
    assert held[0].tasks == (("has", "odd"), ("has", "digit_7"))
    assert all(plan.note.endswith("accuracy not known") for plan in plans.feasible)


def test_smaller_subnets_of_many_tasks_are_smaller_and_keep_the_budget(stocked: Path) -> None:
    also = [[how, digit] for how in ("has", "exactly_2") for digit in ("digit_7", "digit_1")]
    with Market.open(stocked) as market:
        for size in (6000, 8000, 12000):
            plans = market.plan(order("has", "odd", task={"also": also}, budget={"size_bytes": size}))
            costs = [plan.predicted for plan in plans.feasible]
            assert costs and all(cost is not None and cost.size_bytes <= size for cost in costs), size
            params = [cost.params for cost in costs if cost is not None]
            assert params == sorted(params, reverse=True)


def test_answers_alone_name_no_task_where_every_task_has_all_of_them(stocked: Path) -> None:
    request = Request.parse({"task": {"classes": ["no", "yes"]}, "device": {"runtime": "torch"}})
    with (
        Market.open(stocked) as market,
        pytest.raises(RequestError, match="answers of supernet 'few' to each of 5 tasks; name one of these"),
    ):
        market.plan(request)


def test_budgets_under_the_floor_and_unknown_tasks_are_told(stocked: Path, tmp_path: Path) -> None:
    with Market.open(stocked) as market:
        with pytest.raises(InfeasibleError, match="Raise size_bytes to") as caught:
            market.plan(order("has", "odd", budget={"size_bytes": 100}))
        assert caught.value.floor["size_bytes"] > 100
        for task, says in (
            (order("has", "ood"), r"'ood' is no property of 'few' \(did you mean 'odd'\?\)"),
            (order("has", "exactly_2"), "contradict"),
            (order("has"), "nothing of group 'predicate'"),
            (order("has", "odd", task={"space": "fuw"}), r"no supernet for space 'fuw' \(did you mean 'few'"),
            (order("has", "odd", task={"supernet": "none"}), "no supernet 'none'"),
            (order("has", "odd", engines=["slicepack"]), "an order by properties is for 'factory'"),
            (order("has", "odd", device={"profile": "nowhere"}), "no device profile 'nowhere'"),
        ):
            with pytest.raises((RequestError, StoreError), match=says):
                market.plan(task)
    with Market.create(tmp_path / "empty") as market, pytest.raises(RequestError, match="holds no supernet"):
        market.plan(order("has", "odd"))


@pytest.mark.slow
def test_latency_without_a_profile_is_measured_in_the_loop(stocked: Path, tmp_path: Path) -> None:
    with Market.open(stocked) as market:
        request = order("has", "odd", budget={"latency_ms": 1e4})
        artifact = market.make(request, tmp_path / "out")
    assert artifact.report.measured.latency_ms is not None
    assert artifact.report.certificate is not None
    assert artifact.report.certificate.ratio > 0.9 and "latency_ms" in artifact.report.certificate.slack


def test_the_memory_of_a_process_is_measured_where_no_profile_foretells_it(
    stocked: Path, tmp_path: Path
) -> None:
    given = {"device": {"runtime": "onnxruntime"}}
    with Market.open(stocked) as market:
        enough = order("has", "odd", budget={"process_bytes": 10**10}, **given)
        made = market.make(enough, tmp_path / "out")
        with pytest.raises(InfeasibleError, match=r"as measured: .*process_bytes") as caught:
            market.make(order("has", "odd", budget={"process_bytes": 10}, **given), tmp_path / "none")
    found = made.report.certificate
    assert found is not None and found.floor == {} and "process_bytes" in found.slack
    assert made.report.measured.process_bytes is not None and found.measured is not None
    assert caught.value.nearest is not None and caught.value.nearest["process_bytes"] > 1000


def test_batch_norms_take_statistics_from_samples(stocked: Path, tmp_path: Path) -> None:
    write_unknown(tmp_path / "some.npz", 12)
    request = order("has", "odd", samples=str(tmp_path / "some.npz"), recalibrate=True)
    with Market.open(stocked) as market:
        artifact = market.make(request, tmp_path / "out")
        plain = market.make(order("has", "odd"), tmp_path / "plain")
    assert artifact.report.certificate is not None and artifact.report.certificate.recalibrated == 12
    assert artifact.plan.key() != plain.plan.key()
    basis = artifact.report.certificate.expected_basis
    assert basis.endswith("judged before batch norm statistics were taken anew")
    # The first batch norm's mean is that of what it reads, over these samples.
    name = next(name for name in artifact.graph.tensors if name.endswith("running_mean"))
    assert not torch.allclose(artifact.graph.tensors[name], plain.graph.tensors[name])


def test_int8_is_made_from_the_orders_samples_and_delivered(stocked: Path, tmp_path: Path) -> None:
    eight = {"runtime": "onnxruntime", "precision": "int8", "batch": 6}
    write_unknown(tmp_path / "some.npz", 40)
    with Market.open(stocked) as market:
        with pytest.raises(RequestError, match=r"int8 is calibrated on real samples.*give samples"):
            market.make(order("has", "odd", device=eight), tmp_path / "none")
        made = market.make(
            order("has", "odd", device=eight, samples=str(tmp_path / "some.npz")), tmp_path / "out"
        )
    file = made.report.device_file
    assert file is not None and (file.name, file.n_samples) == ("model.int8.onnx", 40)
    assert file.name in made.manifest.files and (made.folder / file.name).is_file()
    assert any(check.name == "onnxruntime in int8 against eager" for check in made.report.checks)


def test_a_supernet_of_classes_stands_beside_packs(tmp_path: Path) -> None:
    from sarto import zoo

    classes = ("oak", "ray", "shark")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 6)
    images = rng.integers(0, 80, (18, 12, 12, 1), dtype=np.uint8) + (80 * labels)[:, None, None, None]
    images = images.astype(np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels, classes=np.array(classes))
    space = f"""
space: 1
name: beasts
groups: {{class: [oak, ray, shark]}}
choose: {{class: 3}}
tasks: [[ray, shark], [oak, ray, shark]]
function: sarto.engines.factory.spaces.classes:labelled
arguments: {{train: {tmp_path / "train.npz"}, test: {tmp_path / "test.npz"}}}
answers: [oak, ray, shark]
outputs_of: {{oak: [oak], ray: [ray], shark: [shark]}}
"""
    (tmp_path / "beasts.yaml").write_text(space)
    config = described(tmp_path, name="beasts", space=str(tmp_path / "beasts.yaml"), data={})
    with Market.create(tmp_path / "market") as market:
        train_factory(FactoryConfig.parse(config), market.store, tmp_path / "steps")
        for rules, words in (
            ({"avoid": ["beasts"]}, "'beasts' covers the task, but it is to be avoided"),
            (
                {"allow_licences": ["MIT"]},
                "'beasts' covers the task, but its licence 'CC0-1.0' is not allowed",
            ),
            ({"least": 2}, "comes from one supernet, more are asked for"),
            ({"must": ["beast"]}, r"no learnware or supernet 'beast' \(did you mean 'beasts'"),
        ):
            with pytest.raises(RequestError, match=words):
                market.plan(Request.parse({"task": {"classes": ["shark", "ray"]}, "donors": rules}))
        alone = market.plan(Request.parse({"task": {"classes": ["shark", "ray"]}}))
        assert {plan.engine for plan in alone.feasible} == {"factory"}
        assert alone.feasible[0].classes == ("shark", "ray")
        torch.manual_seed(0)
        market.add(
            zoo.resnet(3, 1, (1,), 6, False, "cifar").eval(),
            name="donor",
            classes=classes,
            preprocessing={"size": [12, 12], "channels": 1, "mean": [0.5], "std": [0.5]},
            samples=Samples(images, labels, classes),
        )
        request = Request.parse(
            {"task": {"classes": ["shark", "ray"]}, "device": {"runtime": "torch"}, "baselines": []}
        )
        plans = market.plan(request)
        assert {plan.engine for plan in plans.feasible} == {"slicepack", "factory", "baselines"}
        for rules, engines in (
            ({"avoid": ["beasts"]}, {"slicepack", "baselines"}),
            ({"must": ["beasts"]}, {"factory"}),
        ):
            ruled = market.plan(request.replace(donors=DonorRules(**rules)))
            assert {plan.engine for plan in ruled.feasible} == engines
        chosen = next(plan for plan in plans.feasible if plan.engine == "factory")
        artifact = market.make(request, tmp_path / "out", plan=chosen)
        graph = Subnets(market.store).graph(
            next(node for node in chosen.nodes.values() if isinstance(node, SubnetNode))
        )
    report = artifact.report
    assert report.certificate is not None and report.certificate.tasks == ("ray+shark",)
    assert report.pick.accuracy_loto is not None and report.lineage[0].name == "beasts"
    inputs = torch.rand(4, 1, 12, 12)
    whole, delivered = graph(inputs), artifact.graph(inputs)
    assert isinstance(whole, torch.Tensor) and isinstance(delivered, torch.Tensor)
    assert torch.allclose(delivered, whole[:, [2, 1]], atol=1e-5)


@pytest.mark.slow  # ten seconds and more
def test_a_detector_is_made_for_objects_of_some_colours(tmp_path: Path) -> None:
    config = FactoryConfig.parse(
        {
            "name": "attrod",
            "space": "attrod",
            "data": {"side": 32},
            "backbone": {"zoo": "centre_detector", "arguments": {"depths": [1, 1], "width": 4}},
            "preprocessing": {"size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
            "assembler": {"hidden": 8, "gaters": 2},
            "joint": {"steps": 2, "batch": 8},
            "judging": {"limits": [0.5], "samples": 4, "most_tasks": 2},
        }
    )
    with Market.create(tmp_path / "market") as market:
        train_factory(config, market.store, tmp_path / "steps")
        artifact = market.make(order("car", "white", "crimson"), tmp_path / "out")
        _, supernet = open_supernet(market.store, "attrod")
    found = artifact.report.certificate
    assert found is not None and found.seen is False and len(found.nearest) == 3
    maps = artifact.graph(torch.rand(2, 3, 32, 32))
    assert isinstance(maps, torch.Tensor) and maps.shape == (2, 5, 4, 4)
    with pytest.raises(RequestError, match="this model finds objects"):
        sarto.load(tmp_path / "out")(np.zeros((32, 32, 3), np.uint8))
    assert artifact.classes == ("object",) and supernet.space.kind == "detection"


def test_a_profile_of_another_backbone_is_refused(stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from sarto.pipeline import curves

    profile = SimpleNamespace(name="desk", backbones=[SimpleNamespace(backbone="resnet50")])
    other = SimpleNamespace(compiled=lambda graph: SimpleNamespace(of_backbone=False))
    monkeypatch.setattr(curves, "Predictor", lambda given: other)
    with Market.open(stocked) as market:
        _, supernet = open_supernet(market.store, "few")
    with pytest.raises(
        RequestError, match=r"profile 'desk' is of other backbones \(resnet50\); measure this one"
    ):
        curves.cost_table(supernet, profile)  # type: ignore[arg-type]


@pytest.mark.parametrize(("factor", "share"), [(0.9, 0.9), (1.5, 0.6)])
def test_a_latency_budget_is_filled_by_what_was_measured(
    stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, share: float
) -> None:
    """A device that takes `factor` microseconds a unit, where a profile says one, and 1.2 at most."""
    from types import SimpleNamespace

    from sarto.devices.profiling.predictor import Predictor
    from sarto.engines.factory.costs import CostTable
    from sarto.graph import ModelGraph
    from sarto.pipeline import subnets, task_models, tasks

    def said(rows: np.ndarray, level: float) -> np.ndarray:
        return 1e-3 * np.array([0.8, 1.0, 1.2])[:, None] * rows.sum(1)

    predictor = SimpleNamespace(compiled=lambda graph: SimpleNamespace(latency_ms=said))
    measured: list[float] = []

    def taken(graph: ModelGraph, *rest: object, **more: object) -> OnDevice:
        units = sum(group.size for group in graph.analysis.sliceable)
        measured.append(factor * 1e-3 * units)
        latency = SimpleNamespace(median_ms=measured[-1], low_ms=measured[-1], high_ms=measured[-1])
        return OnDevice(cast(Latency, latency))

    def table(supernet: Supernet, profile: object) -> CostTable:
        return CostTable(supernet.graph, supernet.groups, cast(Predictor, predictor))

    device = SimpleNamespace(processor=processor())
    here = SimpleNamespace(device=device, memory=None, backbone=lambda skeleton: None)
    monkeypatch.setattr(tasks, "profile_of", lambda device, store: here)
    monkeypatch.setattr(task_models, "measured_on", taken)
    monkeypatch.setattr(subnets, "cost_table", table)
    with Market.open(stocked) as market:
        _, supernet = open_supernet(market.store, "few")
        streams = sum(group.size for group in supernet.graph.analysis.sliceable) - supernet.assembler.units
        # Room for the streams, which have no gates, and for a share of the gated units at what they take.
        limit = factor * 1e-3 * (streams + share * supernet.assembler.units)
        request = order("has", "odd", budget={"latency_ms": limit}, device={"profile": "desk"})
        report = market.make(request, tmp_path / "filled").report
        again = len(measured)
        whole = order("has", "odd", budget={"latency_ms": 100 * limit}, device={"profile": "desk"})
        roomy = market.make(whole, tmp_path / "whole").report
    assert report.measured.latency_ms == pytest.approx(measured[again - 1]) and again > 1
    # A unit of so small a network is more than 2 % of the budget, and still it is filled.
    assert 0.95 * limit <= report.measured.latency_ms <= 0.98 * limit
    assert report.certificate is not None
    assert 0.02 <= report.certificate.slack["latency_ms"] <= 0.05
    broken = [text for text in report.sentences if text.startswith("Verified before and over the budget")]
    assert bool(broken) == (measured[0] > limit) == (factor > 1.2)
    # With room for everything one measurement is enough.
    assert len(measured) == again + 1 and roomy.certificate is not None and roomy.certificate.ratio == 1.0


def test_a_loss_that_is_no_number_stops_at_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    config = described(folder, joint={"steps": 8, "batch": 12, "save_every": 8, "lr": 1e30})
    with Market.create(tmp_path / "market") as market:
        with pytest.raises(
            RequestError, match=r"before its first checkpoint: .*the weights are those of step 0"
        ):
            train_factory(FactoryConfig.parse(config), market.store, tmp_path / "steps")
        assert list(market.store.supernets) == []


@pytest.mark.slow
def test_a_profile_of_the_backbone_bounds_the_latency(
    stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sarto.devices.profiling.blocks import blocks
    from sarto.pipeline import profiles
    from sarto.types import Device

    few = tuple(block for block in blocks() if block.name in ("convolution-32x16x6", "linear-64x8"))
    monkeypatch.setattr(profiles, "blocks", lambda: few)
    with Market.open(stocked) as market:
        _, supernet = open_supernet(market.store, "few")
        profile = profiles.measure_profile(
            "desk",
            Device(runtime="torch"),
            backbones={"few": supernet.graph},
            n_subnets=8,
            few_blocks=True,
            memory=False,
            seconds=0.01,
        )
        profile.write(tmp_path / "desk.json")
        device = {"profile": str(tmp_path / "desk.json")}
        plans = market.plan(order("has", "odd", device=device))
        whole = max(plan.predicted.latency_high_ms or 0 for plan in plans.feasible if plan.predicted)
        assert whole > 0
        budget = {"latency_ms": 4 * whole}
        artifact = market.make(order("has", "odd", device=device, budget=budget), tmp_path / "out")
        with pytest.raises(InfeasibleError, match="Raise latency_ms to"):
            market.plan(order("has", "odd", device=device, budget={"latency_ms": 1e-6}))
    found = artifact.report.certificate
    assert found is not None and found.predicted is not None and found.measured is not None
    low, middle, high = (
        getattr(found.predicted, name) for name in ("latency_low_ms", "latency_ms", "latency_high_ms")
    )
    assert 0 < low <= middle <= high <= 4 * whole
    assert found.floor["latency_ms"] <= high and found.ratio > 0.9
    assert [text for text in artifact.report.sentences if "it was for the profile" in text]
