"""Latency and memory of models in any runtime: in a worker of their own, in turns, over several rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sarto.devices.agent import RemoteWorker
from sarto.devices.latency import Latency, processor
from sarto.devices.runtimes.client import MemoryUse, Worker
from sarto.devices.timing import SECONDS, Timing, check_positive, summary
from sarto.errors import RequestError
from sarto.graph import ModelGraph, write_graph
from sarto.types import Device

#: Writes a graph for a device below a folder and gives the file; `sarto.export.write_for` is one.
Writing = Callable[[ModelGraph, Device, Path], Path]


def open_runtime(device: Device, *, token: str | None = None) -> Worker | RemoteWorker:
    """A worker with the runtime and the threads of a device: here, or on the machine of its agent.

    Args:
        token: of the agent; None takes it from the variable SARTO_AGENT_TOKEN.

    Raises:
        RequestError: the runtime is not installed here, or the agent does not answer, refuses the token or lacks it.
    """
    if device.agent is not None:
        return RemoteWorker(device.agent, device.runtime, threads=device.threads, token=token)
    return Worker(device.runtime, threads=device.threads)


def check_agent(device: Device, *, token: str | None = None) -> None:
    """Ask the agent of a device whether it is there and has the runtime; nothing where the device is this machine.

    Args:
        token: as for `open_runtime`.

    Raises:
        RequestError: there is no token, nobody answers, the token is wrong, or the agent lacks the runtime.
    """
    if device.agent is not None:
        with open_runtime(device, token=token):
            pass


def processor_of(worker: Worker | RemoteWorker) -> str:
    """Name of the processor that a worker measures on."""
    return worker.processor if isinstance(worker, RemoteWorker) else processor()


def measure_models(
    models: Sequence[ModelGraph | Path],
    device: Device,
    *,
    write: Writing | None = None,
    seconds: float = SECONDS,
    rounds: int = 1,
) -> list[Latency]:
    """Latency of each model on a device, in order; the models take turns, so that what slows the machine slows all.

    Args:
        models: graphs, or files of the device's runtime in its precision (a graph folder for torch and compile).
        write: writes the file of a graph; eager and compiled torch need none.
        seconds: how long to measure each model, over all rounds.
        rounds: workers that are started one after the other; quartiles are over the runs of all.

    Raises:
        RequestError: a number is not positive, a graph has no file and nothing to write one, or the worker can't load
            or run a model, dies, or takes too long.
    """
    check_positive(seconds=seconds, rounds=rounds)
    if not models:
        raise RequestError("nothing to measure: give at least one model")
    taken: list[list[float]] = [[] for _ in models]
    warmup, version, chip = 0, "", ""
    with files_of(models, device, write) as paths:
        for _ in range(rounds):
            with open_runtime(device) as worker:
                loaded = [worker.load(path, precision=device.precision) for path in paths]
                times, warmed = worker.times(loaded, batch=device.batch, seconds=seconds / rounds)
                version, chip, warmup = worker.version, processor_of(worker), warmup + warmed
            for all_runs, runs in zip(taken, times, strict=True):
                all_runs += runs
    return [latency_of(summary(runs, warmup), device, version, chip) for runs in taken]


def latency_of(timing: Timing, device: Device, version: str, chip: str) -> Latency:
    """A timing with the conditions under which it was measured: the device's, the runtime's version, the processor."""
    return Latency(
        **asdict(timing),
        threads=device.threads,
        batch=device.batch,
        runtime=device.runtime,
        version=version,
        processor=chip,
        precision=device.precision,
    )


def measure_memory(
    model: ModelGraph | Path, device: Device, *, write: Writing | None = None, runs: int = 3
) -> MemoryUse:
    """Memory that loading and running a model takes in a fresh worker.

    Raises:
        RequestError: as `measure_models` does.
    """
    with files_of([model], device, write) as paths, open_runtime(device) as worker:
        return worker.memory(paths[0], precision=device.precision, batch=device.batch, runs=runs)


@contextmanager
def files_of(
    models: Sequence[ModelGraph | Path], device: Device, write: Writing | None = None
) -> Iterator[list[Path]]:
    """Files of models for a device; those that had to be written are gone afterwards.

    Raises:
        RequestError: a graph has no file and nothing to write one.
    """
    plain = device.runtime in ("torch", "compile")
    if write is None and not plain and any(isinstance(model, ModelGraph) for model in models):
        raise RequestError(
            f"models are measured with {device.runtime} on exported files; export them first, or say what exports them"
        )
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        paths = []
        for place, model in enumerate(models):
            home = Path(folder, str(place))
            if isinstance(model, Path):
                paths.append(model)
            elif plain:
                write_graph(model, home)
                paths.append(home)
            elif write is not None:
                home.mkdir()
                paths.append(write(model, device, home))
        yield paths
