"""Widths by a rate, a size or a budget: counts by enumeration, greedy steps by brute force."""

from __future__ import annotations

import pytest
import torch

from sarto.devices import count, flops_by_node
from sarto.engines.slicepack import Readings, allocate, allocate_within, propose, rate_widths, read_donor
from sarto.engines.slicepack.settings import LEAST
from sarto.engines.slicepack.widths import left_unexplained
from sarto.engines.slicepack.work import Work, flops_work, latency_work, params_work
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import ModelGraph, block, capture, features, leading, slice
from sarto.testing.pico import pico
from sarto.types import (
    ClassOffer,
    Cost,
    Learnware,
    Preprocessing,
    Request,
    Requirement,
    SliceNode,
    WidthCost,
)
from sarto.zoo import recurrent

NAMES = ["plain", "residual", "mobile", "dense", "text"]


def reading(name: str) -> Readings:
    model, x = pico(name)
    labels = torch.arange(3).repeat_interleave(6)
    inputs = torch.randn((18, *x.shape[1:]), generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    return read_donor(capture(model, x, prove=False), inputs, labels, 3)


def extractor(graph: ModelGraph, counts: dict[str, int]) -> ModelGraph:
    small = slice(graph, leading(counts))
    return block(small, end=features(small).value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_predicted_work_is_what_a_built_extractor_counts(name: str, ratio: float) -> None:
    graph = reading(name).graph
    counts = rate_widths(graph, ratio, streams=True)
    built = count(extractor(graph, counts))
    assert params_work(graph).cost(counts) == built.params
    assert flops_work(graph).cost(counts) == pytest.approx(built.flops)


def test_work_of_a_recurrent_layer_is_what_a_built_one_counts() -> None:
    model = recurrent(3, "gru", 30, 6, 8, layers=2, bidirectional=True, pool="mean").double().eval()
    graph = capture(model, torch.randint(1, 30, (2, 7)), prove=False)
    counts = rate_widths(graph, 0.5)
    built = extractor(graph, counts)
    assert params_work(graph).cost(counts) == count(built).params
    assert flops_work(graph).cost(counts) == pytest.approx(sum(flops_by_node(built).values()))


@pytest.mark.parametrize("objective", ["params", "flops", "latency_ms"])
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_widths_keep_their_share_of_each_objective_and_are_nested(name: str, objective: str) -> None:
    readings = reading(name)
    work = {"params": params_work, "flops": flops_work}.get(
        objective, lambda g: latency_work(g, readings.inputs[:1])
    )
    own = work(readings.graph)
    found = allocate(readings, (0.8, 0.5, 0.2), objective=objective, work=own)
    for share, counts in found.items():
        assert own.cost(counts) <= share * own.cost({}) * (1 + 1e-9)
    assert all(found[0.2][group] <= found[0.5][group] <= found[0.8][group] for group in found[0.5])


def test_each_step_is_the_cheapest_of_all() -> None:
    """The greedy search against one that prices every group anew at every step, with FLOPs as the price."""
    readings = reading("plain")
    work = flops_work(readings.graph)
    counts = {group.id: group.size for group in readings.graph.analysis.sliceable}
    sizes, curves = dict(counts), {name: left_unexplained(readings, name) for name in counts}
    while work.cost(counts) > 0.5 * work.cost({}):
        prices = {}
        for name in counts:
            fewer = counts[name] - max(1, round(sizes[name] / 32))
            if fewer >= max(1, LEAST * sizes[name]):
                saved = work.cost(counts) - work.cost({**counts, name: fewer})
                prices[(curves[name][fewer] - curves[name][counts[name]]) / saved, name] = fewer
        _, name = min(prices)
        counts[name] = prices[min(prices)]
    assert allocate(readings, (0.5,), objective="flops")[0.5] == counts


def test_streams_stay_whole_where_they_are_not_asked_for() -> None:
    readings = reading("residual")
    streams = {group.id for group in readings.graph.analysis.sliceable if group.kind == "stream"}
    assert streams
    assert not streams & allocate(readings, (0.7,), streams=False)[0.7].keys()
    assert streams <= allocate(readings, (0.7,))[0.7].keys()
    assert not streams & rate_widths(readings.graph, 0.5).keys()


def test_widths_within_several_limits_keep_all_of_them() -> None:
    readings = reading("plain")
    params, flops = params_work(readings.graph), flops_work(readings.graph)
    limits = {"params": 0.6 * params.cost({}), "flops": 0.3 * flops.cost({})}
    counts = allocate_within(readings, limits)
    assert params.cost(counts) <= limits["params"] and flops.cost(counts) <= limits["flops"]
    with pytest.raises(InfeasibleError, match=r"flops <= 1, the smallest is \d+.*another donor"):
        allocate_within(readings, {"flops": 1})


def test_a_cost_of_ones_own_decides() -> None:
    """Where only the first layer costs anything, only the first layer loses units."""
    readings = reading("plain")
    first = params_work(readings.graph).touched("conv1.weight:0")
    counts = allocate(readings, (0.5,), work=Work("cells", first))[0.5]
    assert counts["conv1.weight:0"] < 8
    sizes = {group.id: group.size for group in readings.graph.analysis.sliceable}
    assert all(
        counts[name] == sizes[name] for name in counts if name not in ("conv1.weight:0", "conv2.weight:0")
    )


def test_unknown_objectives_and_rates_are_refused() -> None:
    readings = reading("plain")
    with pytest.raises(RequestError, match=r"'flop' is no objective of widths.*flops"):
        allocate(readings, (0.5,), objective="flop")
    with pytest.raises(RequestError, match=r"must lie in \(0, 1\], got 0"):
        rate_widths(readings.graph, 0)


SHA = "sha256:" + 64 * "0"


def stocked(ratio: float, objective: str, units: int) -> WidthCost:
    return WidthCost.parse(
        {
            "ratio": ratio,
            "objective": objective,
            "keep": {"g": units},
            "params": int(1000 * ratio),
            "flops": 100 * units,
            "memory_bytes": 8,
            "output_bytes": 4,
            "size_bytes": 4000,
            "width": 1,
        }
    )


@pytest.mark.parametrize(
    ("budget", "widths"),
    [({}, {5}), ({"params": 700}, {5}), ({"flops": 700}, {5, 3}), ({"latency_ms": 1.0}, {5, 3})],
)
def test_a_budget_of_flops_or_milliseconds_gets_widths_solved_for_them(
    budget: dict[str, float], widths: set[int]
) -> None:
    donor = Learnware(
        id=SHA,
        name="donor",
        classes=("a", "b"),
        preprocessing=Preprocessing(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3),
        graph_hash=SHA,
        weights_hash=SHA,
        samples_hash=None,
        licence="",
        notes="",
        origin="",
        input_shape=(3, 8, 8),
        n_samples={"a": 3, "b": 3},
        skill=None,
        skill_basis=None,
        cost=Cost(params=1, flops=1, memory_bytes=1, size_bytes=1, basis="measured"),
        created="2026-01-01T00:00:00+00:00",
        widths=(stocked(1.0, "params", 8), stocked(0.5, "params", 5), stocked(0.5, "flops", 3)),
    )
    request = Request.parse({"task": {"classes": ["a"]}, "budget": budget})
    requirement = Requirement(
        request=request,
        offers=(ClassOffer(cls="a", learnware=SHA, label=0),),
        n_samples={"a": 3},
        samples_digest=SHA,
    )
    plans = propose(requirement, {SHA: donor}, {SHA: SHA})
    slices = [(plan, node) for plan in plans for node in plan.nodes.values() if isinstance(node, SliceNode)]
    assert {dict(node.keep)["g"] for _, node in slices} == widths
    for plan, node in slices:
        assert plan.predicted is not None and plan.predicted.flops == 100 * dict(node.keep)["g"] + 2
        assert plan.note.endswith("widths for FLOPs") == (dict(node.keep)["g"] == 3)


def test_a_share_below_one_unit_of_a_wide_group_ends_with_one_unit() -> None:
    # Of 50 units two go at a time, and from the last two only one can.
    model = torch.nn.Sequential(torch.nn.Linear(4, 50), torch.nn.ReLU(), torch.nn.Linear(50, 3)).double()
    inputs = torch.randn((6, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    readings = read_donor(capture(model.eval(), inputs[:2], prove=False), inputs, torch.arange(6) % 3, 3)
    (counts,) = allocate(readings, (0.001,)).values()
    assert set(counts.values()) == {1}
