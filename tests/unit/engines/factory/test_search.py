"""Search: the largest subnet within a budget, against brute force over all limits and over all units."""

from __future__ import annotations

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
from sarto.engines.factory.openings import TaskOrders, counted, openings
from sarto.engines.factory.search import Found, curve, search, search_measured, widened
from sarto.engines.factory.supernet import Supernet, as_placed, placed
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import Selection, capture, gate_layout, slice
from sarto.types import AssemblerSettings, Budget, TaskSpace

SPACE = TaskSpace.parse(
    {
        "name": "few",
        "groups": {"quantifier": ["has", "exactly_2"], "predicate": ["digit_7", "digit_1", "odd"]},
        "function": "none:none",
        "answers": ["no", "yes"],
    }
)
TASK, OTHER = SPACE.seen[0], SPACE.seen[-1]


@pytest.fixture(scope="module", params=["nested", "paper"])
def supernet(request: pytest.FixtureRequest) -> Supernet:
    torch.manual_seed(0)
    net = zoo.resnet(2, 1, (1, 1), 8, False, "cifar").eval()
    graph = capture(net, torch.rand(2, 1, 12, 12), prove=False)
    groups = placed(graph, "wide")
    shape = AssemblerSettings(order=request.param, hidden=16, gaters=2, limit_dims=8, most=1.0)
    made = Assembler(len(SPACE.properties), gate_layout(graph, groups), shape).eval()
    return Supernet(graph, SPACE, groups, made)


def test_counted_costs_are_those_of_the_extracted_model(supernet: Supernet) -> None:
    table = CostTable(supernet.graph, supernet.groups)
    gates = torch.stack(
        [
            supernet.assembler.gates(torch.tensor([SPACE.code(TASK)]).float(), torch.tensor([v]))[0]
            for v in (0.3, 0.8)
        ]
    )
    found = table.costs(counted(gates, supernet.layout), ["params", "flops", "size_bytes", "memory_bytes"])
    for row in range(2):
        exact = count(supernet.subnet(gates[row]))
        for name, values in found.items():
            assert values[row] == getattr(exact, name), name


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_the_largest_that_fits_is_found(supernet: Supernet, share: float) -> None:
    table = CostTable(supernet.graph, supernet.groups)
    whole = count(supernet.graph).size_bytes
    budget = Budget(size_bytes=int(share * whole))
    found = search(supernet, [TASK], budget, table)
    assert count(supernet.subnet(found.gates)).size_bytes <= share * whole
    # No limit gives more within the budget, and no single unit can be added.
    for limit in np.arange(0.09, 1.0, 0.01):
        gates = supernet.assembler.gates(
            torch.tensor([SPACE.code(TASK)]).float(), torch.tensor([limit]).float()
        )[0]
        if count(supernet.subnet(gates)).size_bytes <= share * whole:
            assert found.gates.sum() >= gates.sum()
    for unit in set(openings(supernet, [TASK]).order.tolist()) - set(
        found.gates.nonzero().flatten().tolist()
    ):
        more = found.gates.clone()
        more[unit] = 1
        assert count(supernet.subnet(more)).size_bytes > share * whole
    plain = search(supernet, [TASK], budget, table, fill=False)
    assert plain.filled == 0 and bool((plain.gates <= found.gates).all())
    assert int(found.gates.sum() - plain.gates.sum()) == found.filled


@pytest.mark.parametrize("tasks", [[TASK], [TASK, OTHER]])
def test_openings_are_the_gates_that_the_assembler_gives_at_each_limit(
    supernet: Supernet, tasks: list[frozenset[str]]
) -> None:
    found = openings(supernet, tasks)
    codes = torch.tensor([SPACE.code(task) for task in tasks]).float()
    for place, limit in enumerate(found.limits):
        gates = supernet.assembler.gates(codes, limit.expand(len(tasks))).amax(0)
        assert torch.equal(found.gates(place), gates)
        assert found.counts[place].tolist() == counted(gates[None], supernet.layout)[0].tolist()
        if supernet.assembler.settings.order == "nested":
            assert set(found.order[: int(gates.sum())].tolist()) == set(gates.nonzero().flatten().tolist())


def test_an_order_that_is_known_is_not_asked_for_again(
    supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    if supernet.assembler.settings.order == "paper":
        pytest.skip("gates of the paper's order depend on the limit")
    table, orders = CostTable(supernet.graph, supernet.groups), TaskOrders(supernet)
    budget = Budget(size_bytes=int(0.5 * count(supernet.graph).size_bytes))
    fresh = [search(supernet, tasks, budget, table) for tasks in ([TASK], [OTHER], [TASK, OTHER])]
    orders.prepare([TASK, OTHER])
    monkeypatch.setattr(type(supernet.assembler), "weights", None)
    known = [
        search(supernet, tasks, budget, table, orders=orders) for tasks in ([TASK], [OTHER], [TASK, OTHER])
    ]
    assert all(
        torch.equal(a.gates, b.gates) and a.limit == b.limit for a, b in zip(fresh, known, strict=True)
    )


def test_several_tasks_get_the_union_of_their_units(supernet: Supernet) -> None:
    table = CostTable(supernet.graph, supernet.groups)
    whole = count(supernet.graph)
    both = search(supernet, [TASK, OTHER], Budget(size_bytes=int(0.7 * whole.size_bytes)), table, fill=False)
    limit = torch.tensor([both.limit])
    for task in (TASK, OTHER):
        alone = supernet.assembler.gates(torch.tensor([SPACE.code(task)]).float(), limit)[0]
        assert bool((alone <= both.gates).all())


def test_an_impossible_budget_names_floor_and_nearest(supernet: Supernet) -> None:
    table = CostTable(supernet.graph, supernet.groups)
    with pytest.raises(InfeasibleError, match="no subnet for has\\+digit_7 keeps size_bytes <= 10") as caught:
        search(supernet, [TASK], Budget(size_bytes=10), table)
    floor = caught.value.floor["size_bytes"]
    assert search(supernet, [TASK], Budget(size_bytes=int(floor)), table).ratio > 0
    assert caught.value.nearest == {"size_bytes": floor}


def test_latency_needs_a_profile_and_tasks_their_properties(supernet: Supernet) -> None:
    table = CostTable(supernet.graph, supernet.groups)
    with pytest.raises(RequestError, match="sarto device measure"):
        search(supernet, [TASK], Budget(latency_ms=1.0), table)
    with pytest.raises(RequestError, match="is no property"):
        search(supernet, [frozenset({"has", "digit_x"})], Budget(params=1000), table)
    with pytest.raises(RequestError, match="at least one task"):
        search(supernet, [], Budget(params=1000), table)


def test_bisection_with_measurements_finds_the_largest_that_holds(supernet: Supernet) -> None:
    table = CostTable(supernet.graph, supernet.groups)
    asked: list[float] = []

    def measure(gates: torch.Tensor) -> float:
        asked.append(float(gates.mean()))
        return 1.0 + 9.0 * float(gates.mean())

    if supernet.assembler.settings.order == "paper":
        with pytest.raises(RequestError, match="nested order"):
            search_measured(supernet, [TASK], Budget(latency_ms=5.0), table, measure)
        return
    found, taken = search_measured(supernet, [TASK], Budget(latency_ms=5.0), table, measure)
    assert taken == pytest.approx(1.0 + 9.0 * found.ratio) and len(asked) <= 8
    # Three hundredths of the budget stay free, for what is measured again; one unit more would not leave them.
    units = supernet.assembler.units
    assert 1.0 + 9.0 * found.ratio <= 0.97 * 5.0 < 1.0 + 9.0 * (found.ratio + 1 / units)
    whole = count(supernet.graph).size_bytes
    both = Budget(latency_ms=5.0, size_bytes=int(0.15 * whole))
    less, _ = search_measured(supernet, [TASK], both, table, measure)
    assert less.ratio < found.ratio and count(supernet.subnet(less.gates)).size_bytes <= 0.15 * whole
    assert bool((less.gates <= found.gates).all())
    # Between two limits of the assembler, units are opened one by one.
    assert int(found.gates.sum()) == int(found.limit * units + 1e-4) + found.filled
    with pytest.raises(InfeasibleError, match="smallest subnet takes"):
        search_measured(supernet, [TASK], Budget(latency_ms=1.01), table, measure)


def test_units_that_a_device_computes_anyway_are_opened(supernet: Supernet) -> None:
    """A device whose time rises with every fourth unit of a group."""

    def taken(rows: np.ndarray, *, level: float) -> np.ndarray:
        return np.array([0.9, 1.0, 1.1])[:, None] * (np.ceil(rows / 4) * 4).sum(1)

    predictor = SimpleNamespace(compiled=lambda graph: SimpleNamespace(latency_ms=taken))
    table = CostTable(supernet.graph, supernet.groups, cast(Predictor, predictor))
    sizes = np.array([stop - start for start, stop in supernet.layout.values()])
    code, limit = torch.tensor([SPACE.code(TASK)]).float(), torch.tensor([0.4])
    gates = supernet.assembler.gates(code, limit)[0]
    given = Found(gates, float(gates.mean()), 0.4, 0)
    before = counted(gates[None], supernet.layout)
    found = widened(supernet, [TASK], given, Budget(), table)
    after = counted(found.gates[None], supernet.layout)
    assert bool((found.gates >= gates).all()) and found.filled == int((found.gates - gates).sum()) > 0
    assert np.array_equal(table.latency_ms(before), table.latency_ms(after))
    assert np.array_equal(after[0], np.minimum(np.ceil(before[0] / 4) * 4, sizes))
    # Other limits hold: half of the bytes that all of these units take leave some closed.
    had, has = (count(supernet.subnet(one)).size_bytes for one in (gates, found.gates))
    budget = Budget(size_bytes=(had + has) // 2, latency_ms=1e6)
    some = widened(supernet, [TASK], given, budget, table)
    assert count(supernet.subnet(some.gates)).size_bytes <= (had + has) // 2
    assert gates.sum() <= some.gates.sum() < found.gates.sum()
    over = widened(supernet, [TASK], given, Budget(size_bytes=had - 1), table)
    assert torch.equal(over.gates, gates)


def test_a_curve_rises(supernet: Supernet) -> None:
    found = curve(supernet, TASK, CostTable(supernet.graph, supernet.groups), profiled=False)
    assert len(found) >= 90 and found[-1].ratio <= 1.0
    assert all(point.ratio <= point.limit + 1e-6 for point in found)
    if supernet.assembler.settings.order == "nested":
        sizes = [point.size_bytes for point in found]
        assert sizes == sorted(sizes) and found[-1].ratio == 1.0


@pytest.mark.parametrize("name", ["vit", "mobilenet", "bottleneck"])
def test_counts_without_slicing_are_those_of_sliced_models(name: str) -> None:
    torch.manual_seed(0)
    net, side = {
        "vit": (zoo.vit_cifar(2, width=16, depth=2, heads=2), 32),
        "mobilenet": (zoo.mobilenet_v2(2), 32),
        "bottleneck": (zoo.resnet(2, 3, (1, 1), 4, True, "cifar"), 16),
    }[name]
    graph = as_placed(capture(net.eval(), torch.rand(2, 3, side, side), prove=False), "wide")
    groups = placed(graph, "wide")
    table, rng = CostTable(graph, groups), np.random.default_rng(0)
    sizes = np.array([graph.analysis.group(group).size for group in groups])
    counts = np.stack([rng.integers(1, sizes + 1) for _ in range(3)] + [sizes])
    found = table.costs(counts, ["params", "flops", "size_bytes", "memory_bytes"])
    for row, given in enumerate(counts):
        kept = {group: tuple(range(n)) for group, n in zip(groups, given, strict=True)}
        exact = count(slice(graph, Selection(kept)))
        for limit, values in found.items():
            assert values[row] == getattr(exact, limit), (limit, given)


def test_a_generous_budget_does_not_open_what_tells_tasks_apart(supernet: Supernet) -> None:
    settings = supernet.assembler.settings.replace(most=0.4)
    capped = Assembler(len(SPACE.properties), supernet.layout, settings).eval()
    capped.load_state_dict(supernet.assembler.state_dict())
    net = Supernet(supernet.graph, SPACE, supernet.groups, capped)
    table = CostTable(net.graph, net.groups)
    generous = Budget(size_bytes=10 * count(net.graph).size_bytes)
    if settings.order == "paper":
        # Its gates follow the weights, whatever the limit: what is closed at every limit stays closed.
        code = torch.tensor([SPACE.code(TASK)]).float()
        assert torch.equal(capped.gates(code, torch.ones(1)), supernet.assembler.gates(code, torch.ones(1)))
        with torch.no_grad():
            for layer in capped.layers:
                layer.bias[::2] = -100.0  # type: ignore[index]
        gates = search(net, [TASK], generous, table).gates
        every = torch.stack([capped.gates(code, torch.tensor([limit / 100]))[0] for limit in range(12, 101)])
        assert 0.3 < float(gates.mean()) < 0.7 and not bool(gates[every.amax(0) == 0].any())
        return
    found = {task: search(net, [task], generous, table).gates for task in (TASK, OTHER)}
    for gates in found.values():
        assert 0.4 - 1 / capped.units < float(gates.mean()) <= 0.4
    assert not torch.equal(found[TASK], found[OTHER])
    points = curve(net, TASK, table, profiled=False)
    assert points[-1].ratio <= 0.4 and [p.ratio for p in points] == sorted(p.ratio for p in points)
    assert float(capped.gates(torch.tensor([SPACE.code(TASK)]).float(), torch.ones(1)).mean()) <= 0.4
