"""Models that are ready to be timed, in this process or in a worker: what a profile is measured with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sarto.devices.agent import RemoteWorker
from sarto.devices.latency import onnx_call, torch_call
from sarto.devices.measuring import Writing, files_of
from sarto.devices.runtimes import Worker
from sarto.devices.session import load_onnx
from sarto.devices.turns import taken_ms
from sarto.errors import RequestError
from sarto.graph import ModelGraph, graph_hash
from sarto.types import Device


class Running(Protocol):
    """A loaded model."""

    def times_ms(self, runs: int) -> list[float]:
        """Milliseconds of so many runs, one after the other, after one that does not count."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


#: Loads a graph, or a file for the device, on the device; the caller closes what it gives.
Opener = Callable[[ModelGraph | Path], Running]


@dataclass
class _Here:
    """A model as a call in this process."""

    call: Callable[[], object] | None
    threads: int

    def times_ms(self, runs: int) -> list[float]:
        if self.call is None:
            raise RequestError("this model was closed; open it again")
        self.call()
        return [taken_ms(self.call, self.threads) for _ in range(runs)]

    def close(self) -> None:
        self.call = None


def open_here(device: Device, *, to_onnx: Callable[[ModelGraph], Path | bytes] | None = None) -> Opener:
    """Loads graphs in this process, in torch or ONNX Runtime.

    Threads of torch are those of the process; see `torch_threads`.

    Args:
        to_onnx: writes a graph as an ONNX file (or its bytes); ONNX Runtime needs it.

    Raises:
        RequestError: the runtime does not run in this process, or it is ONNX Runtime and nothing writes its files.
    """
    if device.runtime not in ("torch", "onnxruntime"):
        raise RequestError(f"{device.runtime} can't be opened in this process; measure it through a worker")
    if device.runtime == "onnxruntime" and to_onnx is None:
        raise RequestError("ONNX Runtime takes ONNX files; give to_onnx, which writes them")

    def opener(model: ModelGraph | Path) -> Running:
        if isinstance(model, ModelGraph) and to_onnx is None:
            return _Here(torch_call(model, batch=device.batch), device.threads)
        source = to_onnx(model) if isinstance(model, ModelGraph) and to_onnx is not None else model
        if isinstance(source, ModelGraph):
            raise RequestError("torch opens graphs, ONNX Runtime what to_onnx makes of them")
        return _Here(onnx_call(load_onnx(source, threads=device.threads), batch=device.batch), device.threads)

    return opener


class _There:
    """A model in a worker."""

    def __init__(self, worker: Worker | RemoteWorker, path: Path, device: Device, files: ExitStack) -> None:
        self._worker, self._batch, self._files = worker, device.batch, files
        self._model = worker.load(path, precision=device.precision)

    def times_ms(self, runs: int) -> list[float]:
        times, _ = self._worker.times([self._model], batch=self._batch, runs=runs, warmup=1)
        return times[0]

    def close(self) -> None:
        self._worker.close(self._model)
        self._files.close()


def open_in(
    worker: Worker | RemoteWorker,
    device: Device,
    *,
    write: Writing | None = None,
    folder: Path | None = None,
) -> Opener:
    """Loads graphs in a worker, in any runtime.

    Args:
        write: writes the file of a graph; eager and compiled torch need none.
        folder: where written files stay, so that a graph that is opened again is not written again.
    """
    written: dict[str, Path] = {}

    def opener(model: ModelGraph | Path) -> Running:
        if isinstance(model, ModelGraph) and folder is not None and write is not None:
            key = graph_hash(model)
            if key not in written:
                home = folder / key.removeprefix("sha256:")
                home.mkdir(parents=True)
                written[key] = write(model, device, home)
            model = written[key]
        with ExitStack() as files:
            (path,) = files.enter_context(files_of([model], device, write))
            return _There(worker, path, device, files.pop_all())

    return opener
