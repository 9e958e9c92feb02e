"""A worker seen from the process that started it: requests with a deadline, and clear errors when it dies or hangs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sarto.devices.runtimes.place import NEEDS, interpreter
from sarto.devices.timing import SECONDS, Timing, check_positive, summary
from sarto.errors import RequestError
from sarto.types import Precision, RuntimeName
from sarto.types.threads import VARIABLES

#: Seconds that an operation may take: the first import of a runtime, compiling a model, one batch.
DEADLINES: Mapping[str, float] = {
    "hello": 120.0,
    "load": 300.0,
    "run": 300.0,
    "time": 300.0,
    "memory": 600.0,
    "convert": 1_800.0,
    "close": 60.0,
}
#: The most bytes of an answer's JSON, and of all its arrays.
MAX_HEADER, MAX_ARRAYS = 64 << 20, 4 << 30
_LENGTH = struct.Struct(">Q")
_TICK, _CHUNK = 0.05, 1 << 20


class Refusal(RequestError):
    """The runtime refuses a model or its inputs; the worker lives.

    Attributes:
        reason: what the runtime said, with its causes, and what it wrote to its error stream meanwhile.
    """

    def __init__(self, detail: str, *, where: str, reason: str) -> None:
        super().__init__(detail, where=where)
        self.reason = reason


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a model in a runtime.

    Attributes:
        model_bytes: growth of the most resident bytes of a fresh process by loading the model and running it.
        runtime_bytes: what the process had before that: Python and the runtime.
    """

    model_bytes: int
    runtime_bytes: int


@dataclass(frozen=True)
class Loaded:
    """A model that a worker holds.

    Attributes:
        inputs: name, shape (None where a size is free) and type of each array that it takes.
    """

    number: int
    inputs: tuple[tuple[str, tuple[int | None, ...], str], ...]
    seconds: float


class Worker:
    """A process with one runtime; use it in a `with` block, which ends it.

    Attributes:
        runtime: its name.
        threads: threads that its models may use.
        version: version of the runtime.
    """

    def __init__(
        self,
        runtime: RuntimeName,
        *,
        threads: int = 1,
        python: Path | None = None,
        deadlines: Mapping[str, float] | None = None,
        max_memory_bytes: int | None = None,
        max_answer_bytes: int = MAX_ARRAYS,
        converting: bool = False,
    ) -> None:
        """Start the process.

        Args:
            python: the interpreter that has the runtime; None finds it.
            deadlines: seconds for operations, where they differ from `DEADLINES`.
            max_memory_bytes: resident bytes at which the process is ended; None sets no limit.
            max_answer_bytes: of the arrays of one answer; the process is ended where it sends more.
            converting: the interpreter must also be able to make files for the runtime.

        Raises:
            RequestError: the runtime is not installed, threads is not positive, or the process does not start.
        """
        check_positive(threads=threads, max_memory_bytes=max_memory_bytes, max_answer_bytes=max_answer_bytes)
        self.runtime, self.threads = runtime, threads
        self._deadlines = {**DEADLINES, **(deadlines or {})}
        self._max_memory_bytes, self._max_answer_bytes = max_memory_bytes, max_answer_bytes
        found = python if python is not None else interpreter(runtime, converting=converting)
        # The worker is this sarto's own file, whichever environment runs it.
        command = [str(found), "-P", "-W", "ignore", str(Path(__file__).with_name("worker.py")), runtime]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_environment(runtime, threads),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._errors.close()
            raise RequestError(
                f"no worker for {runtime}: {found} can't be run ({error})", where=runtime
            ) from error
        if max_memory_bytes is not None:
            # Where memory runs out before anybody looked, the system ends this process, not the one that started it.
            with contextlib.suppress(OSError):
                Path(f"/proc/{self._process.pid}/oom_score_adj").write_text("1000", encoding="ascii")
        pipes = (self._process.stdin, self._process.stdout)
        self._in, self._out = (pipe.fileno() for pipe in pipes if pipe is not None)
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self.version = str(self._ask("hello")[0]["version"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def load(self, path: Path, *, precision: Precision = "float32") -> Loaded:
        """A model that is ready to run.

        Raises:
            Refusal: the runtime can't load it.
            RequestError: the worker died or took too long.
        """
        said, _ = self._ask("load", path=str(path), threads=self.threads, precision=precision)
        inputs = tuple((str(name), tuple(shape), str(dtype)) for name, shape, dtype in said["inputs"])
        return Loaded(int(said["model"]), inputs, float(said["seconds"]))

    def run(self, model: Loaded, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of a model for a batch.

        Raises:
            Refusal: the arrays are not what it takes, or the runtime fails.
            RequestError: the worker died or took too long.
        """
        return self._ask("run", arrays, model=model.number)[1]

    def time(
        self,
        models: Sequence[Loaded],
        *,
        batch: int = 1,
        seconds: float = SECONDS,
        runs: int | None = None,
        warmup: int | None = None,
    ) -> tuple[Timing, ...]:
        """Time of each model on a random batch, in order; they take turns inside the worker.

        Raises:
            Refusal: a model takes no such batch, or the runtime fails.
            RequestError: a number is not positive, or the worker died or took too long.
        """
        times, warmed = self.times(models, batch=batch, seconds=seconds, runs=runs, warmup=warmup)
        return tuple(summary(taken, warmed) for taken in times)

    def times(
        self,
        models: Sequence[Loaded],
        *,
        batch: int = 1,
        seconds: float = SECONDS,
        runs: int | None = None,
        warmup: int | None = None,
    ) -> tuple[list[list[float]], int]:
        """Milliseconds of every measured run of each model, and how often each ran before; see `time`."""
        check_positive(batch=batch, seconds=seconds, runs=runs, warmup=warmup)
        if not models:
            raise RequestError("nothing to measure: give at least one model")
        numbers = [model.number for model in models]
        said, _ = self._ask(
            "time",
            spare=20 * seconds * len(models),
            models=numbers,
            batch=batch,
            seconds=seconds,
            runs=runs,
            warmup=warmup,
            threads=self.threads,
        )
        return said["times"], int(said["warmup"])

    def memory(
        self, path: Path, *, precision: Precision = "float32", batch: int = 1, runs: int = 3
    ) -> MemoryUse:
        """Memory that loading and running a model takes; ask a worker that has done nothing before.

        Raises:
            Refusal: the runtime can't load or run it.
            RequestError: the worker died or took too long.
        """
        check_positive(batch=batch, runs=runs)
        said, _ = self._ask(
            "memory", path=str(path), threads=self.threads, precision=precision, batch=batch, runs=runs
        )
        return MemoryUse(int(said["model_bytes"]), int(said["runtime_bytes"]))

    def convert(
        self,
        code: Path,
        arguments: Mapping[str, Any],
        arrays: Sequence[np.ndarray] = (),
        *,
        spare: float = 0.0,
    ) -> dict[str, Any]:
        """What the function `convert(arguments, arrays)` of a Python file returns, run in the worker.

        Args:
            spare: seconds beyond the deadline, for what the function imports.

        Raises:
            Refusal: it raised an error.
            RequestError: the worker died or took too long.
        """
        return self._ask("convert", arrays, spare=spare, code=str(code), arguments=dict(arguments))[0]

    def close(self, model: Loaded) -> None:
        """Let a model go."""
        self._ask("close", model=model.number)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process from another thread: what it is doing fails, and `end` is still to be called."""
        if self._process.returncode is None:
            _kill(self._process)

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process.poll() is None:
            _kill(self._process)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._errors.close()

    def _ask(
        self, op: str, arrays: Sequence[np.ndarray] = (), *, spare: float = 0.0, **fields: Any
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        if self._process.returncode is not None:
            raise RequestError(f"the {self.runtime} worker has ended; start another one", where=self.runtime)
        until = time.monotonic() + self._deadlines[op] + spare
        written = self._errors.seek(0, os.SEEK_END)
        whole = [np.ascontiguousarray(array).reshape(array.shape) for array in arrays]
        listed = [[array.dtype.str, list(array.shape)] for array in whole]
        text = json.dumps({"op": op, "arrays": listed, **fields}).encode()
        self._send(_LENGTH.pack(len(text)) + text, op, until)
        for array in whole:
            self._send(array.reshape(-1).view(np.uint8).data, op, until)
        (length,) = _LENGTH.unpack(self._receive(_LENGTH.size, op, until))
        self._limit(length, MAX_HEADER, op)
        said: dict[str, Any] = json.loads(self._receive(length, op, until))
        made = [(np.dtype(dtype), tuple(shape)) for dtype, shape in said.pop("arrays")]
        sizes = [dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for dtype, shape in made]
        self._limit(sum(sizes), self._max_answer_bytes, op)
        results = [
            np.frombuffer(self._receive(size, op, until), dtype).reshape(shape)
            for (dtype, shape), size in zip(made, sizes, strict=True)
        ]
        if "error" in said:
            reason = str(said["error"])
            first = next(iter(reason.splitlines()), said["kind"])[:300]
            what = f"{op} {Path(fields['path']).name}" if "path" in fields else op
            raise Refusal(
                f"{self.runtime} {self.version} can't {what}: {first}",
                where=self.runtime,
                reason=f"{reason}\n{self._chatter(written)}",
            )
        return said, results

    def _send(self, data: bytes | memoryview, op: str, until: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(op, until, writing=True)
            try:
                view = view[os.write(self._in, view[:_CHUNK]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._died(op) from None

    def _receive(self, size: int, op: str, until: float) -> bytearray:
        data = bytearray()
        while len(data) < size:
            self._wait(op, until)
            try:
                part = os.read(self._out, min(_CHUNK, size - len(data)))
            except BlockingIOError:
                continue
            if not part:
                raise self._died(op)
            data += part
        return data

    def _wait(self, op: str, until: float, *, writing: bool = False) -> None:
        """Until the pipe is ready; ends the worker where it takes too long or too much memory."""
        while True:
            reading = [] if writing else [self._out]
            ready = select.select(reading, [self._in] if writing else [], [], _TICK)
            if ready[0] or ready[1]:
                return
            if time.monotonic() > until:
                self.end()
                raise RequestError(
                    f"the {self.runtime} worker did not answer {op!r} in {self._deadlines[op]:g} seconds and was ended",
                    where=self.runtime,
                )
            used = _resident_bytes(self._process.pid) if self._max_memory_bytes is not None else 0
            if self._max_memory_bytes is not None and used > self._max_memory_bytes:
                self.end()
                raise RequestError(
                    f"the {self.runtime} worker took {used:,} bytes of memory at {op!r}, the limit is "
                    f"{self._max_memory_bytes:,}; it was ended",
                    where=self.runtime,
                )

    def _limit(self, size: int, limit: int, op: str) -> None:
        if size > limit:
            self.end()
            raise RequestError(
                f"the {self.runtime} worker answered {op!r} with {size:,} bytes, the limit is {limit:,}; it was ended",
                where=self.runtime,
            )

    def _chatter(self, since: int) -> str:
        """The end of what the worker wrote to its error stream since a place."""
        self._errors.seek(max(since, self._errors.seek(0, os.SEEK_END) - 20_000))
        return self._errors.read().decode("utf-8", "replace").strip()

    def _died(self, op: str) -> RequestError:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = None
        lines = self._chatter(0).splitlines()
        self.end()
        how = "closed its output" if code is None else f"ended with code {code}"
        if code is not None and code < 0:
            names = {member.value: member.name for member in signal.Signals}
            how = f"was ended by {names.get(-code, f'signal {-code}')}"
            how += " (memory ran out?)" if -code == signal.SIGKILL else ""
        last = f": {lines[-1][:300]}" if lines else ""
        return RequestError(f"the {self.runtime} worker {how} at {op!r}{last}", where=self.runtime)


def _environment(runtime: RuntimeName, threads: int) -> dict[str, str]:
    """The variables of this process, with the number of threads; sarto is found where its graphs must be read."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= dict.fromkeys(VARIABLES, str(threads))
    variables |= {"PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if NEEDS[runtime].extra is None:
        variables["PYTHONPATH"] = str(Path(__file__).parents[3])
    return variables


def _resident_bytes(pid: int) -> int:
    """Resident bytes of a process and 0 where the system does not say."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    if sys.platform == "win32":
        process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
