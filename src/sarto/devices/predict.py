"""Latency guessed from counts, for planning before anything is built. Rough; what is built is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sarto.devices.count import count
from sarto.devices.latency import Latency, measure_onnxruntime, measure_torch
from sarto.devices.probe import probe, probe_onnx
from sarto.devices.timing import check_positive
from sarto.errors import RequestError
from sarto.types import Cost, Device

#: A measured graph: its cost, the number of its nodes, and its latency.
Measured = tuple[Cost, int, Latency]

#: Layers, channels, image size and groups of the built-in graphs: little but overhead, many nodes, many products, large
#: images, depthwise.
PROBES = ((1, 8, 8, 1), (16, 8, 8, 1), (8, 32, 8, 1), (4, 64, 16, 1), (2, 16, 32, 1), (8, 64, 16, 64))
#: No interval is narrower than this factor, up and down: another day the same graph takes another time.
LEAST_FACTOR = 1.25
#: No interval is wider than this factor, up and down.
MOST_FACTOR = 20.0


@dataclass(frozen=True)
class LatencyModel:
    """Latency as a sum: fixed + ms_per_mflop x million FLOPs of a sample + ms_per_node x nodes.

    Attributes:
        low_factor: the low end of an interval is this times the sum.
        high_factor: the high end of an interval is this times the sum.
        basis: what was measured, in words.
    """

    fixed_ms: float
    ms_per_mflop: float
    ms_per_node: float
    low_factor: float
    high_factor: float
    basis: str


def predict(model: LatencyModel, cost: Cost, n_nodes: int) -> tuple[float, float, float]:
    """Low, middle and high latency in milliseconds of a graph with such a cost and so many nodes.

    The interval is as wide as the model erred on graphs that it was not fitted to, no more than that: operators that
    are slow for their FLOPs (depthwise convolutions, large activations) can lie outside. Refuse a plan by it only
    where even `low` is over the budget, and measure what is built.
    """
    middle = model.fixed_ms + model.ms_per_mflop * cost.flops / 1e6 + model.ms_per_node * n_nodes
    return model.low_factor * middle, middle, model.high_factor * middle


def calibrate(
    measured: Iterable[Measured] = (), *, device: Device | None = None, seconds: float = 0.3
) -> LatencyModel:
    """A latency model of this machine, from measured graphs and from a few small built-in ones, measured now.

    Non-negative least squares of relative errors. The interval covers every measured graph, both as fitted and as
    predicted from the others, with the logarithm of the largest error stretched by (n + 1) / (n - 1) because n is
    small.

    Args:
        measured: graphs of the market with their latency on the device.
        device: what the latencies are for.
        seconds: how long the built-in graphs are measured, all together.

    Raises:
        RequestError: a latency is not of this device, or is not positive; all problems at once.
    """
    check_positive(seconds=seconds)
    target, given = device or Device(), list(measured)
    _check(given, target)
    found = given + _probed(target, seconds)
    names = f"{len(given)} graphs of the market and {len(PROBES)} built-in ones"
    latency = found[-1][2]
    return _fit(
        found,
        f"{names}, measured with {latency.runtime} {latency.version}, {target.threads} threads, batch {target.batch}, "
        f"on {latency.processor}",
    )


def _fit(found: Sequence[Measured], basis: str) -> LatencyModel:
    rows = np.array([[1.0, cost.flops / 1e6, nodes] for cost, nodes, _ in found])
    times = np.array([latency.median_ms for *_, latency in found])
    terms = _solve(rows, times)
    errors = [float(np.log(times / (rows @ terms)).max()), float(np.log(times / (rows @ terms)).min())]
    for out in range(len(found)):
        kept = np.arange(len(found)) != out
        guess = float(rows[out] @ _solve(rows[kept], times[kept]))
        errors.append(math.log(times[out] / max(guess, times[out] / MOST_FACTOR)))
    stretch = (len(found) + 1) / (len(found) - 1)
    least, most = math.log(LEAST_FACTOR), math.log(MOST_FACTOR)
    low = math.exp(-min(most, max(least, -stretch * min(errors))))
    high = math.exp(min(most, max(least, stretch * max(errors))))
    fixed, per_mflop, per_node = (float(term) for term in terms)
    return LatencyModel(fixed, per_mflop, per_node, low, high, basis)


def _solve(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Non-negative terms whose sums come nearest to the times, relative to them."""
    from scipy.optimize import nnls

    terms, _ = nnls(rows / times[:, None], np.ones(len(times)))
    return np.asarray(terms)


def _probed(device: Device, seconds: float) -> list[Measured]:
    each = seconds / len(PROBES)
    found = []
    for size in PROBES:
        graph = probe(*size)
        if device.runtime == "torch":
            latency = measure_torch(graph, threads=device.threads, batch=device.batch, seconds=each, warmup=3)
        else:
            source = probe_onnx(*size)
            latency = measure_onnxruntime(
                source, threads=device.threads, batch=device.batch, seconds=each, warmup=3
            )
        found.append((count(graph), len(graph.nodes), latency))
    return found


def _check(measured: Sequence[Measured], device: Device) -> None:
    wanted = (device.runtime, device.threads, device.batch)
    problems = []
    for place, (_, nodes, latency) in enumerate(measured):
        have = (latency.runtime, latency.threads, latency.batch)
        if have != wanted:
            problems.append(
                f"measured[{place}] is a latency with {have[0]}, {have[1]} threads, batch {have[2]}; wanted is "
                f"{wanted[0]}, {wanted[1]} threads, batch {wanted[2]}"
            )
        if not latency.median_ms > 0 or not math.isfinite(latency.median_ms) or nodes < 1:
            problems.append(
                f"measured[{place}]: {latency.median_ms} ms for {nodes} nodes; both must be above 0"
            )
    if problems:
        raise RequestError("latency can't be predicted from these measurements", problems=problems)
