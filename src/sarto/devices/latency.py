"""Measured latency: warm-up, many runs, median and spread, with the thread count stated."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from sarto.devices.session import OnnxModel, load_onnx
from sarto.devices.timing import SECONDS, Timing, check_positive, interleaved
from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.graph.model import size_at
from sarto.types import Device

#: Matrix product whose speed bounds every model's; the quickest of some runs counts.
PEAK_SIZE, PEAK_RUNS = 512, 12


@dataclass(frozen=True)
class Latency(Timing):
    """Time of one batch, and the conditions under which it was measured.

    Attributes:
        threads: threads that the runtime could use.
        batch: samples in one call.
        runtime: its name, with its version.
        processor: name of this machine's processor.
        precision: of the numbers that it computed with.
    """

    threads: int
    batch: int
    runtime: str
    version: str
    processor: str
    precision: str = "float32"


def measure(
    graph: ModelGraph, device: Device, *, onnx: Path | bytes | None = None, seconds: float = SECONDS
) -> Latency:
    """Latency of a graph in this process, in eager torch or ONNX Runtime; see `measure_models` for other runtimes.

    Args:
        onnx: the exported graph, or its file; ONNX Runtime needs it.
        seconds: how long to measure.

    Raises:
        RequestError: the runtime is ONNX Runtime and there is no exported graph, or it is another one or another
            precision, or the device is behind an agent.
    """
    if device.agent is not None:
        raise RequestError(
            f"the device behind {device.agent} can't be measured in this process; use measure_models",
            where="device",
        )
    if device.runtime not in ("torch", "onnxruntime") or device.precision != "float32":
        raise RequestError(
            f"{device.runtime} in {device.precision} is measured in a worker; use measure_models",
            where="device",
        )
    if device.runtime == "torch":
        return measure_torch(graph, threads=device.threads, batch=device.batch, seconds=seconds)
    if onnx is not None:
        return measure_onnxruntime(onnx, threads=device.threads, batch=device.batch, seconds=seconds)
    raise RequestError("latency in ONNX Runtime is measured on an exported file; export the graph first")


def measure_torch(
    graph: ModelGraph,
    *,
    threads: int = 1,
    batch: int = 1,
    seconds: float = SECONDS,
    runs: int | None = None,
    warmup: int | None = None,
) -> Latency:
    """Latency of a graph in eager PyTorch; the process's thread count is restored afterwards.

    Raises:
        RequestError: a number is not positive; all problems at once.
    """
    check_positive(threads=threads, batch=batch, seconds=seconds, runs=runs, warmup=warmup)
    with torch_threads(threads):
        (timing,) = interleaved(
            [torch_call(graph, batch=batch)], seconds=seconds, runs=runs, warmup=warmup, threads=threads
        )
    return _latency(timing, threads, batch, "torch", torch.__version__)


def measure_onnxruntime(
    source: str | Path | bytes,
    *,
    threads: int = 1,
    batch: int = 1,
    seconds: float = SECONDS,
    runs: int | None = None,
    warmup: int | None = None,
) -> Latency:
    """Latency of an ONNX file, or of its bytes, in ONNX Runtime on the processor; worker threads don't spin.

    Raises:
        RequestError: a number is not positive (all problems at once), the file can't be loaded, or it does not take
            such a batch.
    """
    check_positive(threads=threads, batch=batch, seconds=seconds, runs=runs, warmup=warmup)
    model = load_onnx(source, threads=threads)
    (timing,) = interleaved(
        [onnx_call(model, batch=batch)], seconds=seconds, runs=runs, warmup=warmup, threads=threads
    )
    return _latency(timing, threads, batch, "onnxruntime", model.version)


def torch_call(graph: ModelGraph, *, batch: int = 1) -> Callable[[], object]:
    """A function that runs a graph once in eager PyTorch, on the same random batch each time."""
    module = graph.module()
    inputs = tuple(
        torch.from_numpy(_filled(size_at(entry.shape, batch), np.float32)).to(getattr(torch, entry.dtype))
        for entry in graph.inputs
    )

    def call() -> object:
        with torch.inference_mode():
            return module(*inputs)

    return call


def onnx_call(model: OnnxModel, *, batch: int = 1) -> Callable[[], object]:
    """A function that runs an opened ONNX model once, on the same random batch each time.

    Raises:
        RequestError: a size besides the first is free, or the first is fixed to another batch.
    """
    problems = []
    for name, shape in zip(model.names, model.shapes, strict=True):
        first, *rest = shape or (batch,)
        if any(isinstance(size, str) for size in rest) or (isinstance(first, int) and first != batch):
            problems.append(
                f"input {name!r} of shape ({', '.join(map(str, shape))}) takes no batch of {batch}: the first size "
                "must be free or that batch, the others fixed"
            )
    if problems:
        raise RequestError(problems[0], problems=problems)
    feed = {
        name: _filled(tuple(map(int, (batch, *shape[1:]))) if shape else (), dtype)
        for name, shape, dtype in zip(model.names, model.shapes, model.dtypes, strict=True)
    }
    return lambda: model.session.run(None, feed)


def peak_flops_per_ms(threads: int) -> float:
    """FLOPs in a millisecond of a large matrix product: more than any model reaches, so a floor for its latency.

    Raises:
        RequestError: threads is not positive.
    """
    check_positive(threads=threads)
    one, two = torch.ones(PEAK_SIZE, PEAK_SIZE), torch.ones(PEAK_SIZE, PEAK_SIZE)
    with torch_threads(threads):
        times = []
        for _ in range(PEAK_RUNS):
            begun = time.perf_counter()
            torch.mm(one, two)
            times.append(1e3 * (time.perf_counter() - begun))
    return 2.0 * PEAK_SIZE**3 / min(times)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """So many threads for PyTorch inside; as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def processor() -> str:
    """Name of this machine's processor, as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown processor"


def _latency(timing: Timing, threads: int, batch: int, runtime: str, version: str) -> Latency:
    return Latency(
        **asdict(timing),
        threads=threads,
        batch=batch,
        runtime=runtime,
        version=version,
        processor=processor(),
    )


def _filled(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """The same numbers in [0, 1) each time; whole ones are 0."""
    return np.random.default_rng(0).random(shape).astype(dtype)
