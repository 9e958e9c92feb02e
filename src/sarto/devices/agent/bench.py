"""Where an agent runs models: one at a time, in a process that may die, hang or be ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from sarto.devices.agent.limits import NEVER, Limits
from sarto.devices.agent.messages import MemoryRequest, TimeRequest, Where
from sarto.devices.agent.shelf import BusyError, Kept, Shelf
from sarto.devices.runtimes import Loaded, MemoryUse, Refusal, Worker
from sarto.errors import RequestError
from sarto.types import PRECISIONS, RuntimeName

#: Runtime -> kinds of uploads that it loads.
LOADS: dict[str, tuple[str, ...]] = {
    "torch": ("graph", "pt2"),
    "compile": ("graph", "pt2"),
    "onnxruntime": ("onnx",),
    "litert": ("tflite",),
    "executorch": ("pte",),
    "openvino": ("openvino", "onnx"),
}

#: Seconds that ending waits for the work that it interrupted.
CLOSE_S = 5.0

Result = TypeVar("Result")


class Bench:
    """A worker that is kept from request to request, while the same runtime and threads are asked for."""

    def __init__(self, shelf: Shelf, limits: Limits, runtimes: Callable[[], dict[str, str]]) -> None:
        """
        Args:
            runtimes: those that are offered, with their versions.
        """
        self._shelf, self._limits, self._runtimes = shelf, limits, runtimes
        self._turn, self._count = threading.Lock(), threading.Lock()
        self._waiting = 0
        self._worker: Worker | None = None
        self._held: dict[tuple[str, str], Loaded] = {}
        self._used = time.monotonic()

    def load(self, model: str, where: Where, *, fresh: bool) -> tuple[Loaded, str]:
        """A model as the runtime loaded it, and the runtime's version.

        Raises:
            RequestError: the runtime is not offered, can't load the model, or the worker died.
            StoreError: there is no such model.
            BusyError: too many others wait.
        """
        kept = self._asked([model], where)
        with self._turns():
            return self._work(
                lambda worker: (self._loaded(worker, kept[0], where), worker.version), where, fresh
            )

    def time(self, asked: TimeRequest) -> tuple[list[list[float]], int, str]:
        """Milliseconds of every run of each model, runs before that, and the runtime's version; raises as `load`."""
        kept = self._asked(asked.models, asked)
        if asked.seconds * len(asked.models) > self._limits.deadline_s:
            raise RequestError(
                f"{len(asked.models)} models of {asked.seconds:g} seconds each take longer than the limit of "
                f"{self._limits.deadline_s:g} seconds"
            )

        def times(worker: Worker) -> tuple[list[list[float]], int, str]:
            loaded = [self._loaded(worker, entry, asked) for entry in kept]
            taken, warmed = worker.times(
                loaded, batch=asked.batch, seconds=asked.seconds, runs=asked.runs, warmup=asked.warmup
            )
            return taken, warmed, worker.version

        with self._turns():
            return self._work(times, asked, asked.fresh)

    def run(self, model: str, where: Where, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of a model for a batch; raises as `load`."""
        kept = self._asked([model], where)
        with self._turns():
            return self._work(lambda worker: worker.run(self._loaded(worker, kept[0], where), arrays), where)

    def memory(self, asked: MemoryRequest) -> MemoryUse:
        """Memory of a model in a process of its own; raises as `load`."""
        kept = self._asked([asked.model], asked)[0]
        with self._turns():
            # Two models at once would disturb each other.
            self._end()
            try:
                return self._work(
                    lambda worker: worker.memory(
                        kept.path, precision=asked.precision, batch=asked.batch, runs=asked.runs
                    ),
                    asked,
                )
            finally:
                self._end()

    def rest(self) -> None:
        """End the worker where it has had nothing to do."""
        if self._turn.acquire(blocking=False):
            try:
                if time.monotonic() - self._used > self._limits.rest_s:
                    self._end()
                    self._shelf.rest()
            finally:
                self._turn.release()

    def close(self) -> None:
        """End the worker, whatever it does."""
        worker = self._worker
        if worker is not None:
            worker.kill()
        # Those that wait for their turn may take it before; each is then ended by its deadline at the latest.
        if self._turn.acquire(timeout=CLOSE_S):
            try:
                self._end()
            finally:
                self._turn.release()

    def _asked(self, models: Sequence[str], where: Where) -> list[Kept]:
        """The models of a request that can be fulfilled."""
        problems = []
        if where.runtime not in self._runtimes():
            known = ", ".join(sorted(self._runtimes())) or "none"
            why = NEVER.get(where.runtime, f"offered are {known}")
            problems.append(f"this agent has no {where.runtime}: {why}")
        if where.threads > self._limits.threads:
            problems.append(f"{where.threads} threads are too many, the limit is {self._limits.threads}")
        if where.precision not in PRECISIONS[where.runtime]:
            problems.append(f"{where.runtime} has no {where.precision}")
        kept = [self._shelf.get(model) for model in models]
        for entry in kept:
            if entry.kind not in LOADS[where.runtime]:
                takes = " or ".join(LOADS[where.runtime])
                problems.append(f"{where.runtime} loads {takes}; {entry.id} is {entry.kind}")
        if problems:
            raise RequestError("the agent can't do that", problems=problems)
        return kept

    @contextmanager
    def _turns(self) -> Iterator[None]:
        with self._count:
            if self._waiting >= self._limits.waiting:
                raise BusyError(f"{self._waiting} requests wait here already; try again later", waited=False)
            self._waiting += 1
        try:
            got = self._turn.acquire(timeout=self._limits.wait_s)
        finally:
            with self._count:
                self._waiting -= 1
        if not got:
            raise BusyError(
                f"others took longer than {self._limits.wait_s:g} seconds; try again", waited=True
            )
        try:
            yield
        finally:
            self._used = time.monotonic()
            self._turn.release()

    def _work(self, do: Callable[[Worker], Result], where: Where, fresh: bool = False) -> Result:
        """What a worker gives within the deadline; one that died or hangs is ended."""
        late = threading.Event()
        try:
            worker = self._ready(where, fresh)
        except RequestError:
            self._end()
            raise

        def stop() -> None:
            late.set()
            worker.kill()

        clock = threading.Timer(self._limits.deadline_s, stop)
        clock.daemon = True
        clock.start()
        try:
            return do(worker)
        except Refusal:
            raise
        except RequestError as error:
            self._end()
            if late.is_set():
                raise RequestError(
                    f"this took longer than {self._limits.deadline_s:g} seconds, the limit, and was ended",
                    where=where.runtime,
                ) from error
            raise
        finally:
            clock.cancel()

    def _ready(self, where: Where, fresh: bool) -> Worker:
        worker = self._worker
        same = worker is not None and (worker.runtime, worker.threads) == (where.runtime, where.threads)
        if worker is None or fresh or not same or not worker.alive:
            self._end()
            limits = self._limits
            worker = Worker(
                cast(RuntimeName, where.runtime),
                threads=where.threads,
                max_memory_bytes=limits.memory_bytes,
                max_answer_bytes=limits.request_bytes,
                deadlines=dict.fromkeys(("load", "run", "time", "memory", "close"), limits.deadline_s),
            )
            self._worker = worker
        for key in [key for key in self._held if key[0] not in self._shelf]:
            worker.close(self._held.pop(key))
        return worker

    def _loaded(self, worker: Worker, kept: Kept, where: Where) -> Loaded:
        key = (kept.id, where.precision)
        if key not in self._held:
            if not Path(kept.path).exists():
                raise Refusal(f"model {kept.id} was deleted meanwhile", where=where.runtime, reason="deleted")
            self._held[key] = worker.load(kept.path, precision=where.precision)
        return self._held[key]

    def _end(self) -> None:
        self._held = {}
        if self._worker is not None:
            self._worker.end()
            self._worker = None
