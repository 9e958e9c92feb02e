"""Measured latency: warm-up, many runs, median and spread, with the thread count stated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.graph.model import size_at
from sarto.types import Device

#: Seconds of warm-up, and of measuring.
WARM_SECONDS, SECONDS = 0.15, 0.7
MIN_RUNS, MAX_RUNS = 15, 2_000
#: Matrix product whose speed bounds every model's; the quickest of some runs counts.
PEAK_SIZE, PEAK_RUNS = 512, 12


@dataclass(frozen=True)
class Latency:
    """Time of one call.

    Attributes:
        median_ms: half of the runs were quicker.
        low_ms, high_ms: quartiles.
        runs: measured ones; `warmup` others went before.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    warmup: int
    threads: int
    batch: int
    runtime: str
    version: str


def measure(
    graph: ModelGraph, device: Device, *, onnx: Path | None = None, seconds: float = SECONDS
) -> Latency:
    """Latency of a graph on this machine, in the runtime, with the threads and the batch of a device.

    Args:
        onnx: the exported graph, where it exists already; exported to a temporary file otherwise.
        seconds: how long to measure.
    """
    if device.runtime == "torch":
        return measure_torch(graph, threads=device.threads, batch=device.batch, seconds=seconds)
    if onnx is not None:
        return measure_onnxruntime(onnx, threads=device.threads, batch=device.batch, seconds=seconds)
    raise RequestError("latency in ONNX Runtime is measured on an exported file; export the graph first")


def measure_torch(
    graph: ModelGraph, *, threads: int = 1, batch: int = 1, seconds: float = SECONDS
) -> Latency:
    """Latency of a graph in eager PyTorch; the process's thread count is restored afterwards.

    Raises:
        RequestError: threads, batch or seconds are not positive.
    """
    _check(threads, batch, seconds)
    module = graph.module()
    inputs = [torch.zeros(size_at(e.shape, batch), dtype=getattr(torch, e.dtype)) for e in graph.inputs]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            times, warmup = _time(lambda: module(*inputs), seconds)
    finally:
        torch.set_num_threads(before)
    return _latency(times, warmup, threads, batch, "torch", torch.__version__)


def measure_onnxruntime(path: Path, *, threads: int = 1, batch: int = 1, seconds: float = SECONDS) -> Latency:
    """Latency of an ONNX file in ONNX Runtime on the processor; worker threads don't spin.

    Raises:
        RequestError: threads, batch or seconds are not positive.
    """
    import onnxruntime as ort

    _check(threads, batch, seconds)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {
        entry.name: np.zeros(
            [batch if isinstance(d, str) or d is None else d for d in entry.shape], _dtype(entry.type)
        )
        for entry in session.get_inputs()
    }
    times, warmup = _time(lambda: session.run(None, feed), seconds)
    return _latency(times, warmup, threads, batch, "onnxruntime", ort.__version__)


def peak_flops_per_ms(threads: int) -> float:
    """FLOPs in a millisecond of a large matrix product: more than any model reaches, so a floor for its latency."""
    _check(threads, 1, 1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        one, two = torch.ones(PEAK_SIZE, PEAK_SIZE), torch.ones(PEAK_SIZE, PEAK_SIZE)
        times = []
        for _ in range(PEAK_RUNS):
            begun = time.perf_counter()
            torch.mm(one, two)
            times.append(1e3 * (time.perf_counter() - begun))
    finally:
        torch.set_num_threads(before)
    return 2.0 * PEAK_SIZE**3 / min(times)


def _time(call: Callable[[], object], seconds: float) -> tuple[list[float], int]:
    warmup, begun = 0, time.perf_counter()
    while warmup < 3 or (time.perf_counter() - begun < WARM_SECONDS and warmup < MAX_RUNS):
        call()
        warmup += 1
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < MIN_RUNS or (time.perf_counter() - begun < seconds and len(times) < MAX_RUNS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times, warmup


def _latency(
    times: list[float], warmup: int, threads: int, batch: int, runtime: str, version: str
) -> Latency:
    low, _, high = statistics.quantiles(times, n=4)
    return Latency(statistics.median(times), low, high, len(times), warmup, threads, batch, runtime, version)


def _check(threads: int, batch: int, seconds: float) -> None:
    problems = [
        f"{name} must be above 0, got {value}"
        for name, value in (("threads", threads), ("batch", batch), ("seconds", seconds))
        if not value > 0
    ]
    if problems:
        raise RequestError("latency can't be measured", problems=problems)


def _dtype(kind: str) -> type[Any]:
    known: dict[str, type[Any]] = {
        "tensor(float)": np.float32,
        "tensor(double)": np.float64,
        "tensor(float16)": np.float16,
    }
    return known.get(kind, np.int64)
