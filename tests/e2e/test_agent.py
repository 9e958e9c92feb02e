"""Two agents on this machine stand for two devices; whatever is sent to them, they live."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sarto.cli import app
from sarto.devices import measure_memory, measure_models, open_runtime
from sarto.devices.agent import RemoteWorker
from sarto.devices.agent.client import Line
from sarto.devices.profiling import open_in
from sarto.devices.profiling.run import turns
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import capture
from sarto.pipeline import Artifact
from sarto.types import Device
from tests.unit.devices.agent_models import TOKEN, endless, large_in_memory, linear

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
UPLOAD = 200_000
#: An agent that waits for nobody.
STRICT = f"""
import sys
from sarto.devices.agent import Limits
from sarto.devices.agent.server import serve
limits = Limits(upload_bytes={UPLOAD}, request_bytes=100_000, threads=1, memory_bytes=900_000_000, head_s=1.0,
                idle_s=1.0, waiting=1, wait_s=0.3, deadline_s=10.0)
serve({TOKEN!r}, limits=limits, runtimes=("onnxruntime",), ready=lambda address: print(address, flush=True))
"""
#: One from the command line, with more threads and another runtime.
WIDE = "from sarto.cli import main; main()"


def warm(address: str) -> None:
    asked = {"runtime": "onnxruntime", "model": upload(address, linear()[0])}
    assert post(address, "/v1/load", json=asked).status_code == 200


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Addresses of a strict agent with ONNX Runtime on one thread, and of one with torch on two."""
    wide = [
        "agent",
        "--port",
        "0",
        "--runtime",
        "torch",
        "--runtime",
        "onnxruntime",
        "--max-threads",
        "2",
        "--json",
    ]
    folder = tmp_path_factory.mktemp("agents")
    variables = {**os.environ, "SARTO_AGENT_TOKEN": TOKEN, "TMPDIR": str(folder)}
    started = [
        subprocess.Popen([sys.executable, "-c", *command], stdout=subprocess.PIPE, text=True, env=variables)
        for command in ([STRICT], [WIDE, *wide])
    ]
    try:
        lines = [process.stdout.readline() for process in started if process.stdout is not None]
        addresses = lines[0].strip(), json.loads(lines[1])["address"]
        # The first upload and the first look at the runtimes take seconds.
        first = [threading.Thread(target=warm, args=(address,)) for address in addresses]
        for thread in first:
            thread.start()
        for thread in first:
            thread.join()
        yield addresses
        for process in started:
            process.terminate()
        assert [process.wait(20) for process in started] == [0, 0]
        assert not list(folder.glob("sarto-agent-*"))
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def strict(agents: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The strict agent, which is asked afterwards whether it lives."""
    monkeypatch.setenv("SARTO_AGENT_TOKEN", TOKEN)
    yield agents[0]
    assert httpx.get(f"{agents[0]}/v1/device", headers=HEADERS, timeout=20).status_code == 200


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear()[0])
    return path


def post(address: str, path: str, **given: Any) -> Any:
    return httpx.post(f"{address}{path}", headers=HEADERS, timeout=30, **given)


def upload(address: str, data: bytes) -> str:
    answer = post(address, "/v1/models?kind=onnx", content=data)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def talk(address: str, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back for bytes on a connection until it is closed."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        for part in parts:
            line.sendall(part)
            time.sleep(pause)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := line.recv(1 << 16):
                found += part
    return found


def head(length: str) -> bytes:
    lines = ["POST /v1/models?kind=onnx HTTP/1.1", "Host: here", f"Authorization: Bearer {TOKEN}", length]
    return "\r\n".join([*lines, "", ""]).encode()


def test_two_agents_are_two_devices(agents: tuple[str, str], strict: str, model: Path) -> None:
    devices = [
        Device(agent=address, threads=threads) for address, threads in zip(agents, (1, 2), strict=True)
    ]
    found = [one for device in devices for one in measure_models([model, model], device, seconds=0.05)]
    assert [one.threads for one in found] == [1, 1, 2, 2]
    assert all(0 < one.low_ms <= one.median_ms <= one.high_ms for one in found)
    with pytest.raises(RequestError, match="it has no torch; it has onnxruntime; 2 threads are too many"):
        open_runtime(Device(agent=agents[0], runtime="torch", threads=2))


@pytest.mark.slow
def test_a_graph_is_measured_in_another_runtime_there(agents: tuple[str, str], strict: str) -> None:
    graph = capture(nn.Linear(4, 3).eval(), (torch.rand(2, 4),))
    device = Device(agent=agents[1], runtime="torch", threads=2)
    (found,) = measure_models([graph], device, seconds=0.05)
    assert (found.runtime, found.threads, found.version) == ("torch", 2, torch.__version__)
    assert found.median_ms > 0


def test_a_model_computes_there_what_it_computes_here(strict: str, model: Path) -> None:
    given = np.random.default_rng(1).random((5, 4), np.float32)
    with open_runtime(Device(agent=strict)) as worker:
        loaded = worker.load(model)
        assert loaded.inputs == (("x", (None, 4), "float32"),)
        (found,) = worker.run(loaded, [given])
        with pytest.raises(RequestError, match=r"input 'x' must be float32 of shape \(free, 4\)"):
            worker.run(loaded, [given[:, :3]])
    np.testing.assert_allclose(found, given @ linear()[1], rtol=1e-5)


def test_profiles_and_memory_come_from_there(strict: str, model: Path) -> None:
    device = Device(agent=strict)
    with open_runtime(device) as worker:
        opener = open_in(worker, device)
        models = [opener(model), opener(model)]
        assert np.array(turns(models, seconds=0.01, rounds=2)).shape == (2, 2)
        for one in models:
            one.close()
    used = measure_memory(model, device)
    assert used.runtime_bytes > 1e6
    assert 0 <= used.model_bytes < 9e8


def test_without_the_token_nothing_is_said(strict: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="the token is not the agent's: set SARTO_AGENT_TOKEN"):
        open_runtime(Device(agent=strict), token="another-token-of-some-length")
    monkeypatch.delenv("SARTO_AGENT_TOKEN")
    with pytest.raises(RequestError, match="set SARTO_AGENT_TOKEN to what"):
        open_runtime(Device(agent=strict))
    for path in ("/v1/device", "/openapi.json", "/nothing"):
        for headers in ({}, {"Authorization": TOKEN}, {"Authorization": "Bearer x"}):
            assert httpx.get(f"{strict}{path}", headers=headers).status_code == 401


def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RequestError, match=r"does not answer .* start it with `sarto agent`"):
        RemoteWorker(f"http://127.0.0.1:{port}", "torch", token=TOKEN)


def test_an_oversized_upload_is_refused_however_it_says_its_size(strict: str, tmp_path: Path) -> None:
    large = bytes(UPLOAD + 1)
    (tmp_path / "large.onnx").write_bytes(large)
    with (
        open_runtime(Device(agent=strict)) as worker,
        pytest.raises(RequestError, match="200,001 bytes, the agent takes at most 200,000"),
    ):
        worker.load(tmp_path / "large.onnx")
    # Refused before a byte of it came, while it comes, and where it says nothing of its size.
    assert b" 413 " in talk(strict, head("Content-Length: 99999999999"))
    parts = [b"10000\r\n" + bytes(0x10000) + b"\r\n"] * 4
    assert b" 413 " in talk(strict, head("Transfer-Encoding: chunked"), *parts)
    assert b" 400 " in talk(strict, head("Content-Length: -5"))
    assert post(strict, "/v1/time", content=large).status_code == 413


def test_a_client_that_hangs_is_left_alone(strict: str) -> None:
    begun = time.monotonic()
    answers: dict[str, bytes] = {}
    said = {
        "nothing": (b"",),
        "half a head": (b"POST /v1/models HTTP/1.1\r\nHost: h",),
        "half a body": (head("Content-Length: 100"), b"half"),
        "half a chunk": (head("Transfer-Encoding: chunked"), b"64\r\nhalf"),
    }
    clients = [
        threading.Thread(target=lambda name, parts: answers.update({name: talk(strict, *parts)}), args=item)
        for item in said.items()
    ]
    for client in clients:
        client.start()
    assert httpx.get(f"{strict}/v1/device", headers=HEADERS, timeout=5).status_code == 200
    for client in clients:
        client.join()
    assert time.monotonic() - begun < 8
    assert [answers["nothing"], answers["half a head"]] == [b"", b""]
    assert b" 408 " in answers["half a body"]
    assert b" 408 " in answers["half a chunk"]


def test_a_model_that_would_take_all_memory_ends_alone(strict: str, tmp_path: Path, model: Path) -> None:
    (tmp_path / "large.onnx").write_bytes(large_in_memory(1 << 29))
    with open_runtime(Device(agent=strict)) as worker:
        small, large = worker.load(model), worker.load(tmp_path / "large.onnx")
        with pytest.raises(
            RequestError, match=r"bytes of memory at 'time', the limit is 900,000,000; it was ended"
        ):
            worker.times([large], runs=1, warmup=1)
        assert worker.times([small], runs=3, warmup=1)[0][0]


@pytest.mark.slow
def test_a_model_that_never_ends_is_ended(strict: str, tmp_path: Path) -> None:
    (tmp_path / "endless.onnx").write_bytes(endless())
    with (
        open_runtime(Device(agent=strict)) as worker,
        pytest.raises(RequestError, match="took longer than 10 seconds, the limit, and was ended"),
    ):
        worker.run(worker.load(tmp_path / "endless.onnx"), [np.ones((1, 4), np.float32)])


@pytest.mark.parametrize("kind", ["graph", "onnx"])
def test_garbage_is_refused_in_words(strict: str, kind: str) -> None:
    answer = post(strict, f"/v1/models?kind={kind}", content=os.urandom(1000))
    assert answer.status_code == 422
    assert set(answer.json()) == {"type", "detail", "problems"}
    assert answer.json()["detail"].startswith(f"this {kind} file is refused: it is no")


def test_ids_are_never_paths(strict: str, tmp_path: Path) -> None:
    kept = upload(strict, linear()[0])
    for model in ("..%2F..%2Fetc%2Fpasswd", "%2Fetc", f"{kept}%2Fmodel.onnx", f"{kept}%00", "."):
        answer = httpx.delete(f"{strict}/v1/models/{model}", headers=HEADERS)
        assert answer.status_code in (404, 405), model
    for model in ("../../etc/passwd", f"{kept}/model.onnx", f"{kept}\n", ""):
        answer = post(strict, "/v1/load", json={"runtime": "onnxruntime", "model": model})
        assert (answer.status_code, answer.json()["type"]) == (422, "RequestError")
    assert httpx.delete(f"{strict}/v1/models/{kept}", headers=HEADERS).json() == {"id": kept}
    answer = post(strict, "/v1/load", json={"runtime": "onnxruntime", "model": kept})
    assert answer.status_code == 404
    assert "upload it again" in answer.json()["detail"]


def test_native_code_is_never_run(strict: str) -> None:
    with pytest.raises(RequestError, match="an agent never has aotinductor: its files are native code"):
        open_runtime(Device(agent=strict, runtime="aotinductor"))
    kept = upload(strict, linear()[0])
    answer = post(strict, "/v1/load", json={"runtime": "aotinductor", "model": kept})
    assert answer.status_code == 422


def test_measurements_queue_and_a_full_queue_says_so(strict: str) -> None:
    kept = upload(strict, large_in_memory(1 << 22))
    asked = {"runtime": "onnxruntime", "models": [kept], "seconds": 1.5}
    answers: list[Any] = []
    clients = [
        threading.Thread(target=lambda: answers.append(post(strict, "/v1/time", json=asked)))
        for _ in range(3)
    ]
    clients[0].start()
    time.sleep(0.5)
    for client in clients[1:]:
        client.start()
    for client in clients:
        client.join()
    assert sorted(answer.status_code for answer in answers) == [200, 429, 503]
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code != 200)


def test_an_order_is_measured_on_the_machine_of_its_agent(
    agents: tuple[str, str], shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SARTO_AGENT_TOKEN", TOKEN)
    asked: list[str] = []
    ask = Line.ask
    monkeypatch.setattr(Line, "ask", lambda line, *given: asked.append(given[1]) or ask(line, *given))
    out = shop.folder / "there"
    call = ["make", "--classes", "red disc,blue cross", "--agent", agents[1], "--engines", "slicepack"]
    done = CliRunner().invoke(app, [*call, "-m", str(shop.folder / "market"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    report = Artifact.read(out).report
    assert report.request.device.agent == agents[1] and report.measured.latency_ms is not None
    # First the agent is asked what it is; later models are timed there.
    assert asked[0] == "/v1/device" and "/v1/time" in asked


@pytest.mark.slow  # a minute, most of it measuring blocks and packs
def test_an_order_keeps_milliseconds_by_a_profile_that_its_agent_measured(
    agents: tuple[str, str], shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SARTO_AGENT_TOKEN", TOKEN)
    market, (_, address) = str(shop.folder / "market"), agents
    few = ["--subnets", "5", "--few-blocks", "--seconds", "0.01", "--no-memory"]
    few += ["-o", str(shop.folder / "there.json")]
    call = ["device", "measure", "there", "discs", "--agent", address, "-m", market, *few]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    profile = shop.market.store.profiles.get("there")
    assert [model.backbone for model in profile.backbones] == ["discs"]
    # The order names the device and its profile; plans are predicted, what is delivered was measured there.
    device = {"agent": address, "profile": "there"}
    asked = {"device": device, "engines": ["slicepack"], "baselines": []}
    free = shop.market.plan(shop.order("red disc", "green disc", **asked)).feasible
    limit = 3 * max(plan.predicted.latency_high_ms for plan in free if plan.predicted is not None)
    made = shop.make(shop.order("red disc", "green disc", budget={"latency_ms": limit}, **asked))
    assert made.report.predicted.latency_high_ms is not None
    assert made.report.measured.latency_ms is not None and made.report.measured.latency_ms <= limit
    with pytest.raises(InfeasibleError, match="Raise latency_ms to"):
        shop.make(shop.order("red disc", "green disc", budget={"latency_ms": 1e-6}, **asked))
