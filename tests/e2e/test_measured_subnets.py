"""Orders without a profile: what is delivered takes about what the budget allows, also where a measurement strays."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from sarto import Market, Request
from sarto.devices import Latency
from sarto.errors import InfeasibleError
from sarto.graph import ModelGraph
from sarto.pipeline import task_models, tasks
from sarto.pipeline.factory import train_factory
from sarto.pipeline.on_device import OnDevice
from sarto.types import FactoryConfig
from tests.unit.factory_assets import described


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A market with the supernet `few`, a few steps old."""
    folder = tmp_path_factory.mktemp("measured")
    with Market.create(folder / "market") as market:
        train_factory(FactoryConfig.parse(described(folder)), market.store, folder / "steps")
    return folder / "market"


def order(**budget: float) -> Request:
    task = {"properties": ["has", "odd"]}
    return Request.parse({"task": task, "device": {"runtime": "torch"}, "budget": budget})


def units_of(graph: ModelGraph) -> int:
    return sum(group.size for group in graph.analysis.sliceable)


@pytest.mark.slow  # ten seconds and more
def test_a_plan_that_takes_longer_when_it_is_measured_again_is_followed_by_one_a_little_smaller(
    stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    def latency(ms: float) -> Latency:
        return cast(Latency, SimpleNamespace(median_ms=ms, low_ms=ms, high_ms=ms))

    def searched(graph: ModelGraph, *rest: object, **more: object) -> Latency:
        return latency(1e-3 * units_of(graph))

    def taken(graph: ModelGraph, *rest: object, **more: object) -> OnDevice:
        measured.append(1.06e-3 * units_of(graph))
        return OnDevice(latency(measured[-1]))

    monkeypatch.setattr(tasks, "latency_on", searched)
    monkeypatch.setattr(task_models, "measured_on", taken)
    with Market.open(stocked) as market:
        whole = units_of(market.store.supernets.graph(market.store.supernets.get("few").id))
        limit = 0.8e-3 * whole
        report = market.make(order(latency_ms=limit), tmp_path / "out").report
    assert measured[0] > limit >= report.measured.latency_ms == measured[-1] >= 0.9 * limit
    assert any(text.startswith("Verified before and over the budget") for text in report.sentences)
    assert report.certificate is not None and report.certificate.limit is not None


@pytest.mark.parametrize("name", ["params", "flops", "size_bytes", "memory_bytes"])
def test_an_order_at_the_advised_budget_is_made(stocked: Path, tmp_path: Path, name: str) -> None:
    with Market.open(stocked) as market:
        with pytest.raises(InfeasibleError) as caught:
            market.plan(order(**{name: 1}))
        advised = re.search(rf"Raise {name} to (\d+)", str(caught.value))
        assert advised is not None and caught.value.floor == {name: int(advised[1])}
        report = market.make(order(**{name: int(advised[1])}), tmp_path / "out").report
    assert getattr(report.measured, name) == int(advised[1])
    assert report.certificate is not None and report.certificate.floor[name] == int(advised[1])
