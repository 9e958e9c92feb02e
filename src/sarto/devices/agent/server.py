"""The agent's service: measures and runs uploaded models for those who have its token."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import uvicorn
from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from sarto.devices.agent import messages as m
from sarto.devices.agent.bench import Bench
from sarto.devices.agent.guard import Guard
from sarto.devices.agent.limits import Limits
from sarto.devices.agent.machine import this_machine
from sarto.devices.agent.shelf import BusyError, FullError, Shelf
from sarto.devices.agent.wire import from_wire, to_wire
from sarto.devices.runtimes import Worker, is_available
from sarto.errors import RequestError, SartoError, StoreError

#: Seconds between two looks at whether the worker rests.
REST_S = 5.0
#: What an upload looks like: its bytes, as they are.
_BYTES: dict[str, Any] = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
_WORDS = {
    400: "The request can't be understood.",
    401: "The token is missing or wrong.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    422: "The request is refused, or the model failed or was ended.",
    429: "Too many requests wait, or too many models come in.",
    503: "The agent is busy.",
    507: "There is no room for a further model.",
}


class Runtimes:
    """Runtimes of this machine with their versions; looked for once, when they are first asked for."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed, self._lock = allowed, threading.Lock()
        self._found: dict[str, str] | None = None

    def __call__(self) -> dict[str, str]:
        """Name -> version."""
        with self._lock:
            if self._found is None:
                found = {}
                for name in get_args(m.AgentRuntime):
                    if name in self._allowed and is_available(name):
                        with suppress(RequestError), Worker(name) as worker:
                            found[name] = worker.version
                self._found = found
            return self._found


def make_app(
    token: str,
    folder: Path,
    *,
    limits: Limits | None = None,
    runtimes: tuple[str, ...] = get_args(m.AgentRuntime),
) -> Guard:
    """The service as an ASGI application; `app` of it is the one without the guard.

    Args:
        token: what every request must bring.
        folder: where uploaded models are kept; what it holds goes when the service ends.
        runtimes: those that are offered, where they are installed.

    Raises:
        RequestError: the token is short.
    """
    bounds = limits or Limits()
    shelf, offered = Shelf(folder, bounds), Runtimes(runtimes)
    bench = Bench(shelf, bounds, offered)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        resting = asyncio.create_task(_rest(bench))
        try:
            yield
        finally:
            resting.cancel()
            bench.close()
            shelf.close()

    app = FastAPI(
        title="sarto agent",
        version=metadata.version("sarto"),
        description="Measures and runs models on this machine, for those who have the token.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))],
        responses={status: {"model": m.Problem, "description": words} for status, words in _WORDS.items()},
    )
    _tell_errors(app)

    @app.get("/v1/device")
    def device() -> m.Offer:
        """The processor, its cores, memory and runtimes, and what a request may take."""
        here = this_machine()
        return m.Offer(
            processor=here.processor,
            cores=here.cores,
            memory_bytes=here.memory_bytes,
            system=here.system,
            sarto=metadata.version("sarto"),
            runtimes=offered(),
            max_threads=bounds.threads,
            max_upload_bytes=bounds.upload_bytes,
            max_worker_bytes=bounds.memory_bytes,
        )

    @app.post("/v1/models", status_code=201, openapi_extra={"requestBody": _BYTES})
    async def upload(request: Request, kind: m.Kind) -> m.Uploaded:
        """Keep a model, after it was found to hold known operators alone."""
        with shelf.incoming() as incoming:
            try:
                with incoming.open("xb") as file:
                    async for part in request.stream():
                        file.write(part)
                kept = await run_in_threadpool(shelf.add, kind, incoming)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise FullError(f"the model could not be kept: {error.strerror}") from error
        return m.Uploaded(id=kept.id, kind=kind, size_bytes=kept.size_bytes)

    @app.delete("/v1/models/{model}")
    def delete(model: str) -> m.Deleted:
        """Forget a model."""
        shelf.remove(model)
        return m.Deleted(id=model)

    @app.post("/v1/load")
    def load(asked: m.LoadRequest) -> m.LoadAnswer:
        """Load a model, to see what it takes."""
        loaded, version = bench.load(asked.model, asked, fresh=asked.fresh)
        inputs = tuple(m.Input(name=name, shape=shape, dtype=dtype) for name, shape, dtype in loaded.inputs)
        return m.LoadAnswer(inputs=inputs, seconds=loaded.seconds, version=version)

    @app.post("/v1/time")
    def time(asked: m.TimeRequest) -> m.TimeAnswer:
        """Time models on random batches; they take turns."""
        times, warmup, version = bench.time(asked)
        return m.TimeAnswer(times=tuple(map(tuple, times)), warmup=warmup, version=version)

    @app.post("/v1/memory")
    def memory(asked: m.MemoryRequest) -> m.MemoryAnswer:
        """Bytes that a fresh process grows by when it loads and runs a model."""
        used = bench.memory(asked)
        return m.MemoryAnswer(model_bytes=used.model_bytes, runtime_bytes=used.runtime_bytes)

    @app.post("/v1/run")
    def run(asked: m.RunRequest) -> m.RunAnswer:
        """Outputs of a model for a batch."""
        arrays = [from_wire(sent) for sent in asked.arrays]
        return m.RunAnswer(arrays=tuple(map(to_wire, bench.run(asked.model, asked, arrays))))

    return Guard(app, token, bounds)


def serve(
    token: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: Limits | None = None,
    runtimes: tuple[str, ...] = get_args(m.AgentRuntime),
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until the process is asked to end; call it in the main thread.

    Args:
        port: 0 takes a free one.
        ready: is told the address, once it can be connected to.

    Raises:
        RequestError: the address can't be had, or the token is short.
    """
    bounds = limits or Limits()
    try:
        sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise RequestError(f"the agent can't listen at {host}:{port}: {error}", where="agent") from error
    with tempfile.TemporaryDirectory(prefix="sarto-agent-") as folder, sock:
        app = make_app(token, Path(folder), limits=bounds, runtimes=runtimes)
        config = uvicorn.Config(
            app,
            http=_protocol(bounds),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=4 * bounds.connections,
            h11_max_incomplete_event_size=16 << 10,
            timeout_graceful_shutdown=5,
        )
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{sock.getsockname()[1]}")
        # The server sends itself the signal that ended it once more, when all is closed: it ends this block.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[sock])
        finally:
            signal.signal(signal.SIGTERM, before)


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    """HTTP that hangs up on those who send no head, and on those who never take their answer."""
    longest = limits.head_s + 2 * limits.body_s + limits.wait_s + 2 * limits.deadline_s

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)

            def hang_up() -> None:
                if self.cycle is None:
                    transport.abort()

            self._clocks = [
                self.loop.call_later(limits.head_s, hang_up),
                self.loop.call_later(longest, transport.abort),
            ]

        def connection_lost(self, exc: Exception | None) -> None:
            for clock in self._clocks:
                clock.cancel()
            super().connection_lost(exc)

    return Impatient


async def _rest(bench: Bench) -> None:
    while True:
        await asyncio.sleep(REST_S)
        await run_in_threadpool(bench.rest)


def _tell_errors(app: FastAPI) -> None:
    """Every error is a JSON object with type, detail and problems."""

    def told(
        status: int, kind: str, detail: str, problems: tuple[str, ...] = (), wait: int = 0
    ) -> JSONResponse:
        content = m.Problem(type=kind, detail=detail, problems=problems).model_dump(mode="json")
        return JSONResponse(content, status, headers={"retry-after": str(wait)} if wait else None)

    @app.exception_handler(SartoError)
    def refused(_: Request, error: SartoError) -> JSONResponse:
        status, wait = 422, 0
        if isinstance(error, BusyError):
            status, wait = (503 if error.waited else 429), 5
        elif isinstance(error, FullError):
            status = 507
        elif isinstance(error, StoreError):
            status = 404
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "sarto.errors")
        return told(status, kind, error.to_json()["detail"], error.problems, wait)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = tuple(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"[:300] for one in error.errors()[:20]
        )
        return told(422, "RequestError", "the request is not what it has to be", problems)

    @app.exception_handler(HTTPException)
    def failed(_: Request, error: HTTPException) -> JSONResponse:
        answer = told(error.status_code, "RequestError", str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    def broken(_: Request, error: Exception) -> JSONResponse:
        return told(500, type(error).__name__, "the agent failed; its own output says where")
