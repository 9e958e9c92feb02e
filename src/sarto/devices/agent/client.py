"""An agent seen from afar: a worker on another machine, with the operations of one here."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import numpy as np
from pydantic import ValidationError

from sarto.devices.agent.allowed import kind_of
from sarto.devices.agent.limits import NEVER
from sarto.devices.agent.machine import Machine
from sarto.devices.agent.messages import Array, Offer
from sarto.devices.agent.wire import from_wire, to_wire
from sarto.devices.runtimes.client import Loaded, MemoryUse, Refusal
from sarto.devices.timing import SECONDS, Timing, check_positive, summary
from sarto.errors import RequestError, SartoError
from sarto.types import Precision, RuntimeName

#: The variable that holds the token.
TOKEN = "SARTO_AGENT_TOKEN"
#: Seconds until an agent must have answered, and that a busy one is asked again.
ANSWER_S, PATIENCE_S = 1_800.0, 600.0
#: The most bytes of an answer.
MAX_ANSWER = 256 << 20
_BUSY = (429, 503)


class RemoteWorker:
    """A runtime behind an agent; use it in a `with` block, which deletes what was uploaded.

    Attributes:
        runtime: its name.
        threads: threads that its models may use.
        version: version of the runtime there.
        machine: the machine that the agent runs on.
        offer: what it says of itself, and its limits.
    """

    def __init__(
        self,
        address: str,
        runtime: RuntimeName,
        *,
        threads: int = 1,
        token: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Ask the agent what it offers.

        Args:
            address: http://host:port.
            token: the agent's; None takes it from the variable SARTO_AGENT_TOKEN.
            patience_s: seconds that a busy agent is asked again.

        Raises:
            RequestError: there is no token, nobody answers, the token is wrong, or the agent lacks the runtime.
        """
        check_positive(threads=threads)
        if runtime in NEVER:
            raise RequestError(f"an agent never has {runtime}: {NEVER[runtime]}", where="device.agent")
        self.runtime, self.threads = runtime, threads
        self._line = Line(address, token, patience_s)
        try:
            self.offer = Offer.model_validate_json(json.dumps(self._line.ask("GET", "/v1/device")))
        except ValidationError as error:
            raise RequestError(
                f"the agent at {address} is of another version of sarto: {error.errors()[0]['msg']}",
                where="device.agent",
            ) from error
        offer = self.offer
        self.machine = Machine(offer.processor, offer.cores, offer.memory_bytes, offer.system)
        problems = []
        if runtime not in offer.runtimes:
            offered = ", ".join(sorted(offer.runtimes)) or "none"
            problems.append(f"it has no {runtime}; it has {offered}")
        if threads > offer.max_threads:
            problems.append(f"{threads} threads are too many, its limit is {offer.max_threads}")
        if problems:
            raise RequestError(
                f"the agent at {address} is not the device", problems=problems, where="device.agent"
            )
        self.version = offer.runtimes[runtime]
        # The first model is loaded in a process without a past, as in a worker that was just started.
        self._fresh = True
        self._models: dict[int, tuple[str, Precision]] = {}

    @property
    def processor(self) -> str:
        """Name of the processor there."""
        return self.machine.processor

    def __enter__(self) -> RemoteWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def load(self, path: Path, *, precision: Precision = "float32") -> Loaded:
        """A model that was uploaded and loaded there.

        Raises:
            Refusal: the agent does not let it in, or the runtime can't load it.
            RequestError: the agent does not answer.
        """
        model = self._upload(path)
        try:
            said = self._ask("load", model=model, precision=precision, fresh=self._fresh)
        except SartoError:
            self._forget(model)
            raise
        self._fresh = False
        number = 1 + max(self._models, default=0)
        self._models[number] = (model, precision)
        inputs = tuple((entry["name"], tuple(entry["shape"]), entry["dtype"]) for entry in said["inputs"])
        return Loaded(number, inputs, float(said["seconds"]))

    def run(self, model: Loaded, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of a model for a batch; raises as `load`."""
        key, precision = self._models[model.number]
        sent = [to_wire(array).model_dump(mode="json") for array in arrays]
        said = self._ask("run", model=key, precision=precision, arrays=sent)
        return [from_wire(Array.model_validate_json(json.dumps(array))) for array in said["arrays"]]

    def time(
        self,
        models: Sequence[Loaded],
        *,
        batch: int = 1,
        seconds: float = SECONDS,
        runs: int | None = None,
        warmup: int | None = None,
    ) -> tuple[Timing, ...]:
        """Time of each model on a random batch, in order; they take turns there. Raises as `load`."""
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
        keys, precisions = zip(*(self._models[model.number] for model in models), strict=True)
        if len(set(precisions)) > 1:
            raise RequestError("models that take turns must have one precision")
        said = self._ask(
            "time",
            models=list(keys),
            precision=precisions[0],
            batch=batch,
            seconds=float(seconds),
            runs=runs,
            warmup=warmup,
        )
        return [[float(taken) for taken in times] for times in said["times"]], int(said["warmup"])

    def memory(
        self, path: Path, *, precision: Precision = "float32", batch: int = 1, runs: int = 3
    ) -> MemoryUse:
        """Memory that loading and running a model takes in a fresh process there; raises as `load`."""
        check_positive(batch=batch, runs=runs)
        model = self._upload(path)
        try:
            said = self._ask("memory", model=model, precision=precision, batch=batch, runs=runs)
        finally:
            self._forget(model)
        return MemoryUse(int(said["model_bytes"]), int(said["runtime_bytes"]))

    def close(self, model: Loaded) -> None:
        """Let a model go."""
        key, _ = self._models.pop(model.number)
        self._forget(key)

    def end(self) -> None:
        """Delete what was uploaded."""
        for key, _ in self._models.values():
            self._forget(key)
        self._models = {}

    def _ask(self, what: str, **fields: Any) -> dict[str, Any]:
        body = {"runtime": self.runtime, "threads": self.threads, **fields}
        return self._line.ask("POST", f"/v1/{what}", json.dumps(body).encode())

    def _upload(self, path: Path) -> str:
        kind = kind_of(path, self.runtime)
        with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
            file = packed(path, kind, Path(folder, "model.zip"))
            size, most = file.stat().st_size, self.offer.max_upload_bytes
            if size > most:
                raise RequestError(
                    f"{path.name} has {size:,} bytes, the agent takes at most {most:,}", where=str(path)
                )
            with file.open("rb") as body:
                said = self._line.ask("POST", f"/v1/models?kind={kind}", body, size)
        return str(said["id"])

    def _forget(self, model: str) -> None:
        # An agent that has gone, or has forgotten the model by itself, needs no telling.
        with contextlib.suppress(RequestError):
            self._line.ask("DELETE", f"/v1/models/{model}")


class Line:
    """Requests to an agent, one connection each; no redirects, so that the token goes nowhere else."""

    def __init__(self, address: str, token: str | None = None, patience_s: float = PATIENCE_S) -> None:
        given = token if token is not None else os.environ.get(TOKEN, "")
        if not given:
            raise RequestError(
                f"the agent at {address} wants a token; set {TOKEN} to what `sarto agent` shows",
                where="device.agent",
            )
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or parts.hostname is None or parts.username is not None:
            raise RequestError(
                f"{address!r} is no address of an agent; write http://host:port", where="device.agent"
            )
        self.address, self._parts, self._patience_s = address, parts, patience_s
        self._headers = {"Authorization": f"Bearer {given}", "Accept": "application/json"}

    def ask(
        self, method: str, path: str, body: bytes | BinaryIO | None = None, size: int | None = None
    ) -> dict[str, Any]:
        """The JSON object of an answer; a busy agent is asked again for a while.

        Raises:
            Refusal: the agent refuses what was asked, or could not do it.
            RequestError: nobody answers, no agent answers, the token is wrong, or the agent stays busy.
        """
        until = time.monotonic() + self._patience_s
        while True:
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            status, headers, text = self._once(method, path, body, size)
            if status not in _BUSY or time.monotonic() > until:
                break
            wait = headers.get("retry-after", "")
            time.sleep(min(30.0, float(wait)) if wait.isdigit() else 1.0)
        try:
            said = json.loads(text)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise RequestError(
                f"what answers at {self.address} is no agent of sarto (HTTP {status})", where="device.agent"
            )
        if status < 400:
            return cast(dict[str, Any], said)
        detail = str(said.get("detail", f"HTTP {status}"))[:2_000]
        told = f"the agent at {self.address} says: {detail}"
        if status == 422:
            raise Refusal(
                told, where="device.agent", reason="\n".join([detail, *map(str, said.get("problems", []))])
            )
        raise RequestError(told, where="device.agent")

    def _once(
        self, method: str, path: str, body: bytes | BinaryIO | None, size: int | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        line = kind(self._parts.hostname or "", self._parts.port, timeout=ANSWER_S)
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = (
                "application/json" if isinstance(body, bytes) else "application/octet-stream"
            )
            headers["Content-Length"] = str(len(body) if isinstance(body, bytes) else size)
        try:
            # An agent may answer before it has read everything: then sending fails, and the answer says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                line.request(method, f"{self._parts.path.rstrip('/')}{path}", body, headers)
            answer = line.getresponse()
            text = answer.read(MAX_ANSWER + 1)
            if len(text) > MAX_ANSWER:
                raise RequestError(
                    f"the agent at {self.address} answered with more than {MAX_ANSWER:,} bytes"
                )
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, text
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise RequestError(
                f"the agent at {self.address} does not answer ({said}); start it with `sarto agent`",
                where="device.agent",
            ) from error
        finally:
            line.close()


def packed(path: Path, kind: str, target: Path) -> Path:
    """The one file that is uploaded: zipped where a model is two files."""
    if kind == "graph":
        parts = {name: path / name for name in ("graph.json", "weights.safetensors")}
    elif kind == "openvino":
        parts = {"model.xml": path, "model.bin": path.with_suffix(".bin")}
    else:
        return path
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, source in parts.items():
            archive.write(source, name)
    return target
