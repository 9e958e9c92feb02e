"""A subnet of a supernet can give blocks to a chain, as its front and as its rear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sarto import Market, Samples
from sarto.devices import count
from sarto.engines.reassembly import anatomy
from sarto.graph import ModelGraph
from sarto.pipeline.builder import Builder
from sarto.pipeline.factory import train_factory
from sarto.types import FactoryConfig, Plan
from tests.unit.factory_assets import described

PREPROCESSING = {"size": [12, 12], "channels": 1, "mean": [0.5], "std": [0.5]}


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        return self.fc(torch.relu(self.two(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Market, str, str]]:
    """A market with a supernet, a few steps old, and a donor that reads the same images; the ids of both."""
    folder = tmp_path_factory.mktemp("stocked")
    with torch.random.fork_rng(), Market.create(folder / "market") as market:
        torch.manual_seed(0)
        config = FactoryConfig.parse(described(folder))
        supernet = train_factory(config, market.store, folder / "steps").manifest
        donor = market.add(
            _Small().eval(), name="small", classes=("a", "b", "c"), preprocessing=PREPROCESSING, samples=None
        )
        yield market, supernet.id, donor.id


@pytest.mark.parametrize(("first", "second"), [("subnet", "donor"), ("donor", "subnet")])
def test_a_subnet_gives_blocks_to_a_chain(first: str, second: str, stocked: tuple[Market, str, str]) -> None:
    market, supernet, donor = stocked
    rng = np.random.default_rng(0)
    probes = Samples(
        rng.integers(0, 255, (24, 12, 12, 1)).astype(np.uint8), np.zeros(24, np.int64), ("probe",)
    )
    builder = Builder(market.store, {probes.digest: probes})
    ids = {"subnet": supernet, "donor": donor}
    nodes: dict[str, dict[str, Any]] = {
        "subnet": {"op": "subnet", "of": supernet, "tasks": [["exactly_2", "digit_7"]], "limit": 0.5},
        "donor": {"op": "source", "of": donor},
    }
    joint = [_place(_graph(builder, nodes[first])), _place(_graph(builder, nodes[second]))]
    nodes["chain"] = {"op": "chain", "of": [first, second], "joints": [joint], "samples": probes.digest}
    classes = ["c", "a"] if second == "donor" else ["yes", "no"]
    nodes["head"] = {"op": "head", "of": "chain", "kind": "restrict", "classes": classes}
    built = builder.build(Plan.parse({"nodes": nodes, "out": "head"}))
    assert built.classes == tuple(classes)
    assert [part[1] for part in built.parts if part[1]] == [ids[first], ids[second]]
    assert sum(part[3] for part in built.parts) == count(built.graph).params
    logits = built.graph(torch.rand(5, 1, 12, 12))
    assert isinstance(logits, Tensor) and logits.shape == (5, 2)
    # The images go through both: other images, other logits.
    assert logits.isfinite().all() and float(logits.std(0).min()) > 0


def _graph(builder: Builder, node: dict[str, Any]) -> ModelGraph:
    head = {"op": "head", "of": "x", "kind": "restrict", "classes": ["a", "b", "c"]}
    if node["op"] == "subnet":
        head["classes"] = ["no", "yes"]
    return builder.build(Plan.parse({"nodes": {"x": node, "head": head}, "out": "head"})).graph


def _place(graph: ModelGraph) -> str:
    """A cut point of a map in the middle of a graph."""
    maps = [place.value for place in anatomy(graph).places if place.layout == "map"]
    return maps[len(maps) // 2]
