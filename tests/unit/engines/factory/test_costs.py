"""Floors are those of what is delivered: an order at the floor is kept, by every limit."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from sarto import zoo
from sarto.devices import count
from sarto.devices.profiling import Predictor
from sarto.engines.factory.assembler import Assembler
from sarto.engines.factory.costs import CostTable
from sarto.engines.factory.openings import counted
from sarto.engines.factory.search import floor_costs, search
from sarto.engines.factory.supernet import Supernet, as_placed, placed
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import ModelGraph, capture, gate_layout, normalise, restrict
from sarto.types import AssemblerSettings, Budget, TaskSpace
from tests.unit.factory_assets import SPACE as FEW

SPACE = TaskSpace.parse(FEW)
TASK = SPACE.seen[0]


def ready(graph: ModelGraph) -> ModelGraph:
    """A model as it is delivered: two of five outputs, and normalisation in front."""
    return normalise(restrict(graph, [0, 3]), [0.5, 0.4, 0.3], [0.2, 0.2, 0.2])


@pytest.fixture(scope="module", params=["resnet nested", "resnet paper", "vit nested"])
def supernet(request: pytest.FixtureRequest) -> Supernet:
    torch.manual_seed(0)
    kind, order = request.param.split()
    if kind == "vit":
        net = zoo.vit(5, side=12, patch=4, width=16, depth=1, heads=2)
    else:
        net = zoo.resnet(5, 3, (1, 1), 8, False, "cifar")
    graph = as_placed(capture(net.eval(), torch.rand(2, 3, 12, 12), prove=False), "wide")
    groups = placed(graph, "wide")
    shape = AssemblerSettings(order=order, hidden=16, gaters=2, limit_dims=8)  # type: ignore[arg-type]
    return Supernet(
        graph, SPACE, groups, Assembler(len(SPACE.properties), gate_layout(graph, groups), shape).eval()
    )


def table_of(supernet: Supernet) -> CostTable:
    def taken(rows: np.ndarray, *, level: float) -> np.ndarray:
        return np.array([0.9, 1.0, 1.1])[:, None] * (0.1 + rows.sum(1) / 7)

    # A device that runs three at a time; a process takes a thousand bytes, and at most a tenth more than said.
    profile = SimpleNamespace(device=SimpleNamespace(batch=3))

    def grown(counted: np.ndarray) -> np.ndarray:
        return np.outer([0.9, 1.0, 1.1], 1000 + 2 * counted[0] + counted[1]).reshape(3, -1)

    predictor = SimpleNamespace(
        profile=profile, memory_of=grown, compiled=lambda graph: SimpleNamespace(latency_ms=taken)
    )
    return CostTable(supernet.graph, supernet.groups, cast(Predictor, predictor)).delivered(ready)


def test_counted_costs_are_those_of_the_delivered_model(supernet: Supernet) -> None:
    table, names = table_of(supernet), ["params", "flops", "size_bytes", "memory_bytes"]
    plain = CostTable(supernet.graph, supernet.groups)
    gates = supernet.assembler.gates(torch.tensor([SPACE.code(TASK)]).float(), torch.tensor([0.4]))
    counts = counted(gates, supernet.layout)
    exact = count(ready(supernet.subnet(gates[0])))
    found, before = table.costs(counts, names), plain.costs(counts, names)
    assert {name: values[0] for name, values in found.items()} == {
        name: getattr(exact, name) for name in names
    }
    assert before["size_bytes"][0] != exact.size_bytes, "what is made of it makes a difference"
    with pytest.raises(Exception, match="nothing is known of the latency"):
        plain.delivered(ready).latency_ms(counts)
    most = math.ceil(1.1 * (1000 + 2 * exact.size_bytes + 3 * exact.memory_bytes))
    assert table.costs(counts, ["process_bytes"])["process_bytes"][0] == pytest.approx(most)
    with pytest.raises(RequestError, match="nothing is known of a process's memory"):
        plain.costs(counts, ["process_bytes"])


@pytest.mark.parametrize(
    "limit", ["params", "flops", "size_bytes", "memory_bytes", "latency_ms", "process_bytes"]
)
def test_an_order_at_the_floor_is_kept(supernet: Supernet, limit: str) -> None:
    table, tiny = table_of(supernet), 1e-9 if limit == "latency_ms" else 1
    with pytest.raises(InfeasibleError, match=f"Raise {limit} to") as caught:
        search(supernet, [TASK], Budget.parse({limit: tiny}), table)
    assert caught.value.floor is not None
    floor = caught.value.floor[limit]
    advised = re.search(rf"Raise {limit} to (\S+)$", str(caught.value))
    assert advised is not None and floor <= float(advised[1]) <= 1.001 * floor
    assert limit == "latency_ms" or advised[1] == str(floor) == str(int(floor))
    for value in (floor, type(tiny)(advised[1])):
        found = search(supernet, [TASK], Budget.parse({limit: value}), table)
        built = count(ready(supernet.subnet(found.gates)))
        grown = math.ceil(1.1 * (1000 + 2 * built.size_bytes + 3 * built.memory_bytes))
        built = built.replace(process_bytes=grown)
        if limit != "latency_ms":
            assert getattr(built, limit) <= value
    assert floor_costs(supernet, [TASK], table, [limit])[limit] == pytest.approx(floor)
