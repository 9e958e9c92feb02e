"""A process that loads models in one runtime, runs them and times them, for the process that started it.

`python -P worker.py RUNTIME` reads requests from standard input and answers on standard output: eight bytes with the
length of a JSON object, the object, then the raw bytes of the arrays that it lists. It needs numpy and the runtime, and
not sarto, so it runs in any environment. It ends when its input ends or its parent is gone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import struct
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

#: Runtime -> its file beside this one.
FILES = {
    "torch": "torch_eager",
    "compile": "torch_compile",
    "aotinductor": "aotinductor",
    "onnxruntime": "onnxruntime",
    "litert": "litert",
    "executorch": "executorch",
    "openvino": "openvino",
}
#: The most bytes of a request's JSON, and of all its arrays.
MAX_HEADER, MAX_ARRAYS = 1 << 20, 4 << 30
_LENGTH = struct.Struct(">Q")


class Refused(Exception):
    """A request that can't be answered, in words for the user."""


class Serving:
    """The loaded models, and what can be asked of them."""

    def __init__(self, runtime: str) -> None:
        self.name = runtime
        self.runtime: Any = _read_file(Path(__file__).with_name(f"{FILES[runtime]}.py"))
        self.models: dict[int, Any] = {}
        self.made = 0

    def hello(
        self, request: dict[str, Any], arrays: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        return {"version": self.runtime.version(), "python": sys.version.split()[0], "pid": os.getpid()}, []

    def load(
        self, request: dict[str, Any], arrays: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        begun = time.perf_counter()
        session = self._load(request)
        self.made += 1
        self.models[self.made] = session
        seconds = time.perf_counter() - begun
        return {"model": self.made, "inputs": session.inputs, "seconds": seconds}, []

    def run(
        self, request: dict[str, Any], arrays: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        session = self._model(request["model"])
        _check(session, arrays)
        return {}, session.run(arrays)

    def time(
        self, request: dict[str, Any], arrays: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        turns = _read_file(Path(__file__).parents[1] / "turns.py")
        sessions = [self._model(model) for model in request["models"]]
        feeds = [_filled(session, request["batch"]) for session in sessions]
        calls = [_call(session, feed) for session, feed in zip(sessions, feeds, strict=True)]
        times, warmed = turns.take_turns(
            calls,
            seconds=request["seconds"],
            runs=request.get("runs"),
            warmup=request.get("warmup"),
            threads=request.get("threads"),
        )
        return {"times": times, "warmup": warmed}, []

    def memory(
        self, request: dict[str, Any], arrays: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """How much the most resident bytes grow when the model is loaded and run; right in a fresh process only."""
        self.runtime.prepare()
        forget_peak()
        before, _ = resident_bytes()
        session = self._load(request)
        feed = _filled(session, request["batch"])
        for _ in range(request["runs"]):
            session.run(feed)
        _, peak = resident_bytes()
        return {"runtime_bytes": before, "model_bytes": max(0, peak - before)}, []

    def convert(
        self, request: dict[str, Any], arrays: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What the function `convert` of a file of the starting process makes of its arguments."""
        converter = _read_file(Path(request["code"]))
        return dict(converter.convert(request["arguments"], arrays)), []

    def close(
        self, request: dict[str, Any], arrays: list[np.ndarray]
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        self._model(request["model"]).close()
        del self.models[request["model"]]
        return {}, []

    def _model(self, number: int) -> Any:
        if number not in self.models:
            raise Refused(f"there is no loaded model {number}")
        return self.models[number]

    def _load(self, request: dict[str, Any]) -> Any:
        return self.runtime.load(request["path"], threads=request["threads"], precision=request["precision"])


#: What can be asked.
OPERATIONS = ("hello", "load", "run", "time", "memory", "convert", "close")


def main() -> None:
    """Answer requests until the input ends."""
    # Runtimes print what they like: their standard output is the error stream, and answers have one of their own.
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    serving = Serving(sys.argv[1])
    while True:
        request = receive(source)
        if request is None:
            return
        header, arrays = request
        try:
            if header.get("op") not in OPERATIONS:
                raise Refused(f"there is no operation {header.get('op')!r}")
            answer, results = getattr(serving, header["op"])(header, arrays)
        except Exception as error:
            traceback.print_exc()
            answer, results = {"error": told(error), "kind": type(error).__name__}, []
        send(target, answer, results)


def receive(source: BinaryIO) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """A JSON object and its arrays; None where there is no further one."""
    start = source.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(start)
    if length > MAX_HEADER:
        raise SystemExit(f"a request of {length:,} bytes; the limit is {MAX_HEADER:,}")
    header: dict[str, Any] = json.loads(source.read(length))
    listed = [(np.dtype(dtype), tuple(shape)) for dtype, shape in header.pop("arrays", [])]
    sizes = [dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for dtype, shape in listed]
    if sum(sizes) > MAX_ARRAYS:
        raise SystemExit(f"arrays of {sum(sizes):,} bytes; the limit is {MAX_ARRAYS:,}")
    arrays = []
    for (dtype, shape), size in zip(listed, sizes, strict=True):
        arrays.append(np.frombuffer(bytearray(source.read(size)), dtype).reshape(shape))
    return header, arrays


def send(target: BinaryIO, header: dict[str, Any], arrays: Sequence[np.ndarray]) -> None:
    """Write a JSON object and its arrays."""
    whole = [np.ascontiguousarray(array) for array in arrays]
    listed = [[array.dtype.str, list(given.shape)] for array, given in zip(whole, arrays, strict=True)]
    text = json.dumps({**header, "arrays": listed}).encode()
    target.write(_LENGTH.pack(len(text)) + text)
    for array in whole:
        target.write(array.reshape(-1).view(np.uint8).data)
    target.flush()


def told(error: BaseException) -> str:
    """The error and what caused it, shortened."""
    causes = [error]
    while causes[-1].__cause__ is not None and len(causes) < 8:
        causes.append(causes[-1].__cause__)
    texts = [str(cause).strip() or type(cause).__name__ for cause in causes]
    return "\n".join(text if len(text) <= 4_000 else f"{text[:2_000]} ... {text[-2_000:]}" for text in texts)


def resident_bytes() -> tuple[int, int]:
    """Resident bytes of this process now, and at most so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Vm")}
        return found["VmRSS"], found["VmHWM"]
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = most if sys.platform == "darwin" else most << 10
        return peak, peak


def forget_peak() -> None:
    """The most resident bytes count from now on, where the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _filled(session: Any, batch: int) -> list[np.ndarray]:
    """The same numbers in [0, 1) each time; whole ones are 0."""
    feed = []
    for name, shape, dtype in session.inputs:
        first, *rest = shape or [batch]
        if any(size is None for size in rest) or (first is not None and first != batch):
            told = ", ".join("free" if size is None else str(size) for size in shape)
            raise Refused(
                f"input {name!r} of shape ({told}) takes no batch of {batch}: the first size must be free or that "
                "batch, the others fixed"
            )
        full = (batch, *rest) if shape else ()
        feed.append(np.random.default_rng(0).random(full).astype(dtype))
    return feed


def _check(session: Any, arrays: Sequence[np.ndarray]) -> None:
    if len(arrays) != len(session.inputs):
        raise Refused(f"this model takes {len(session.inputs)} arrays, {len(arrays)} were given")
    for (name, shape, dtype), array in zip(session.inputs, arrays, strict=True):
        fits = len(shape) == array.ndim and all(
            want is None or want == have for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(dtype):
            told = ", ".join("free" if size is None else str(size) for size in shape)
            raise Refused(
                f"input {name!r} must be {dtype} of shape ({told}), got {array.dtype} of shape {array.shape}"
            )


def _call(session: Any, feed: list[np.ndarray]) -> Any:
    return lambda: session.run(feed)


def _read_file(path: Path) -> ModuleType:
    """The module in a file, under a name that hides no package."""
    spec = importlib.util.spec_from_file_location(f"_sarto_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise Refused(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
