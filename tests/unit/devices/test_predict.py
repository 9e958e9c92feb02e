"""Latency predicted from counts: exact on what is exactly linear, honest where it is not, and of one device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarto.devices import Latency, LatencyModel, calibrate, count, predict
from sarto.devices.predict import LEAST_FACTOR, MOST_FACTOR, PROBES, Measured
from sarto.devices.probe import probe
from sarto.errors import RequestError
from sarto.types import Cost, Device

NOWHERE = Latency(1.0, 1.0, 1.0, 9, 3, 1, 1, "onnxruntime", "9.9", "paper")


def measured(flops: int, nodes: int, ms: float) -> Measured:
    cost = Cost(params=1, flops=flops, memory_bytes=1, size_bytes=1, basis="measured")
    return cost, nodes, replace(NOWHERE, median_ms=ms, low_ms=ms, high_ms=ms)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every built-in graph takes 0.5 ms + 0.02 ms a million FLOPs + 0.01 ms a node."""

    def probed(device: Device, seconds: float) -> list[Measured]:
        graphs = [probe(*size) for size in PROBES]
        return [
            measured(count(g).flops, len(g.nodes), 0.5 + 0.02 * count(g).flops / 1e6 + 0.01 * len(g.nodes))
            for g in graphs
        ]

    monkeypatch.setitem(calibrate.__globals__, "_probed", probed)


@pytest.mark.usefixtures("machine")
def test_a_linear_machine_is_learnt_exactly() -> None:
    model = calibrate([measured(30_000_000, 70, 0.5 + 0.6 + 0.7)])
    assert (model.fixed_ms, model.ms_per_mflop, model.ms_per_node) == pytest.approx((0.5, 0.02, 0.01))
    assert (model.low_factor, model.high_factor) == pytest.approx((1 / LEAST_FACTOR, LEAST_FACTOR))
    cost = measured(10_000_000, 1, 1.0)[0]
    assert predict(model, cost, 40) == pytest.approx((1.1 / LEAST_FACTOR, 1.1, 1.1 * LEAST_FACTOR))
    assert "1 graphs of the market and 6 built-in ones" in model.basis
    assert "onnxruntime 9.9, 1 threads, batch 1, on paper" in model.basis


@pytest.mark.usefixtures("machine")
def test_one_slow_donor_widens_the_interval_upwards_so_that_it_lies_inside() -> None:
    slow = measured(30_000_000, 70, 6.0)
    model = calibrate([slow])
    low, middle, high = predict(model, slow[0], slow[1])
    assert low < middle < 6.0 <= high
    assert model.high_factor > calibrate().high_factor


@pytest.mark.usefixtures("machine")
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 400), st.floats(0.01, 1e4)), max_size=6))
def test_the_interval_covers_what_was_measured_unless_it_is_as_wide_as_it_gets(
    drawn: list[tuple[int, int, float]],
) -> None:
    donors = [measured(*each) for each in drawn]
    model = calibrate(donors)
    assert min(model.fixed_ms, model.ms_per_mflop, model.ms_per_node) >= 0
    assert 1 / MOST_FACTOR <= model.low_factor <= 1 / LEAST_FACTOR
    assert LEAST_FACTOR <= model.high_factor <= MOST_FACTOR * (1 + 1e-9)
    for cost, nodes, latency in donors:
        low, _, high = predict(model, cost, nodes)
        assert low <= latency.median_ms * (1 + 1e-9) or model.low_factor == pytest.approx(1 / MOST_FACTOR)
        assert high >= latency.median_ms * (1 - 1e-9) or model.high_factor == pytest.approx(MOST_FACTOR)


@pytest.mark.usefixtures("machine")
def test_latencies_of_another_device_or_of_no_time_are_refused_all_at_once() -> None:
    donors = [measured(1, 1, 1.0), measured(1, 1, 0.0)]
    with pytest.raises(RequestError) as caught:
        calibrate(donors, device=Device(threads=2))
    assert "3 problems" in str(caught.value)
    assert "measured[0] is a latency with onnxruntime, 1 threads, batch 1; wanted is onnxruntime, 2" in str(
        caught.value
    )
    assert "measured[1]: 0.0 ms for 1 nodes" in str(caught.value)
    with pytest.raises(RequestError, match="seconds must be above 0"):
        calibrate(seconds=0)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_machine_is_learnt_without_any_donor(runtime: str) -> None:
    model = calibrate(device=Device(runtime=runtime, batch=2), seconds=0.02)  # type: ignore[arg-type]
    assert isinstance(model, LatencyModel)
    assert f"0 graphs of the market and 6 built-in ones, measured with {runtime}" in model.basis
    assert "batch 2" in model.basis
    low, middle, high = predict(model, count(probe(4, 16, 8)), 14)
    assert 0 < low < middle < high and np.isfinite(high)
