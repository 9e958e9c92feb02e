"""Workers: the same numbers as in this process, and a clear error when one dies, hangs, or takes too much."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sarto.devices import Worker, measure_memory, measure_models
from sarto.devices.probe import probe, probe_onnx
from sarto.devices.runtimes import Refusal, client, environment, home, interpreter, python_of
from sarto.errors import RequestError
from sarto.types import Device

GRAPH = probe(2, 8, 8)
#: What a converter does, as the text of its file.
HARMS = {
    "die": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "crash": "import os; os.write(2, b'something broke'); os._exit(3)",
    "hang": "import time; time.sleep(60)",
    "eat": "kept = [bytes(bytearray([1]) * (1 << 26)) for _ in range(64)]; import time; time.sleep(60)",
    "flood": "return {'text': 'x' * 2_000_000}",
    "chat": "print('hello'); import os; os.system('echo hello'); return {'answer': arguments['n'] + len(arrays)}",
    "fail": "raise ValueError('no') from KeyError('the cause')",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "probe.onnx"
    path.write_bytes(probe_onnx(2, 8, 8))
    return path


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker("onnxruntime") as started:
        yield started


def code(tmp_path: Path, harm: str) -> Path:
    path = tmp_path / "converter.py"
    path.write_text(f"def convert(arguments, arrays):\n    {HARMS[harm]}\n")
    return path


def test_a_worker_runs_and_times_several_models_at_once(worker: Worker, file: Path) -> None:
    one, two = worker.load(file), worker.load(file)
    assert one.inputs == (("x", (None, 8, 8, 8), "float32"),) and one.number != two.number
    for batch in (1, 3):
        x = torch.rand(batch, 8, 8, 8)
        (found,) = worker.run(two, [x.numpy()])
        np.testing.assert_allclose(found, GRAPH(x), rtol=1e-5, atol=1e-6)
    timings = worker.time([one, two], batch=2, seconds=0.02, runs=5, warmup=2)
    assert [timing.runs for timing in timings] == [5, 5] and timings[0].warmup == 2
    assert all(0 < timing.low_ms <= timing.median_ms <= timing.high_ms for timing in timings)
    worker.close(one)
    with pytest.raises(Refusal, match="there is no loaded model"):
        worker.time([one], runs=1)


def test_what_a_model_does_not_take_is_refused_and_the_worker_lives(worker: Worker, file: Path) -> None:
    model = worker.load(file)
    for arrays, words in (
        (
            [np.zeros((1, 3, 8, 8), np.float32)],
            r"must be float32 of shape \(free, 8, 8, 8\), got .* \(1, 3, 8, 8\)",
        ),
        ([np.zeros((1, 8, 8, 8))], "got float64"),
        ([], "takes 1 arrays, 0 were given"),
    ):
        with pytest.raises(Refusal, match=words):
            worker.run(model, arrays)
    with pytest.raises(Refusal, match=r"onnxruntime [\d.]+ can't load missing\.onnx"):
        worker.load(file.with_name("missing.onnx"))
    assert math.isfinite(worker.run(model, [np.zeros((1, 8, 8, 8), np.float32)])[0].sum())


def test_what_a_runtime_prints_is_no_answer_and_errors_keep_their_causes(
    worker: Worker, tmp_path: Path
) -> None:
    array = np.zeros(3)
    assert worker.convert(code(tmp_path, "chat"), {"n": 2}, [array, array]) == {"answer": 4}
    with pytest.raises(Refusal, match="can't convert: no") as caught:
        worker.convert(code(tmp_path, "fail"), {})
    assert "the cause" in caught.value.reason


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("die", r"was ended by SIGKILL \(memory ran out\?\) at 'convert'"),
        ("crash", "ended with code 3 at 'convert': something broke"),
        ("hang", r"did not answer 'convert' in 0\.5 seconds and was ended"),
        ("eat", r"took [\d,]+ bytes of memory at 'convert', the limit is 300,000,000; it was ended"),
        ("flood", r"answered 'convert' with 2,000,0\d\d bytes, the limit is 1,000,000; it was ended"),
    ],
)
def test_a_worker_that_dies_hangs_or_takes_too_much_is_an_error(
    harm: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_HEADER", 1_000_000)
    deadlines = {"convert": 0.5 if harm == "hang" else 20.0}
    begun = time.monotonic()
    with Worker("onnxruntime", deadlines=deadlines, max_memory_bytes=300_000_000) as started:
        pid = started._process.pid
        with pytest.raises(RequestError, match=words):
            started.convert(code(tmp_path, harm), {})
        with pytest.raises(RequestError, match="has ended; start another one"):
            started.convert(code(tmp_path, "chat"), {"n": 1})
    assert time.monotonic() - begun < 15
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_arrays_larger_than_a_pipe_arrive_whole(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "converter.py"
    path.write_text(
        "def convert(arguments, arrays):\n    return {'sums': [float(a.sum()) for a in arrays]}\n"
    )
    arrays = [np.arange(500_000, dtype=np.float64), np.ones((3, 0, 2)), np.ones((), np.int64)]
    assert worker.convert(path, {}, arrays) == {"sums": [float(array.sum()) for array in arrays]}


def test_models_are_measured_in_turns_and_rounds(file: Path) -> None:
    device = Device(runtime="onnxruntime", batch=2)
    found = measure_models([file, file], device, seconds=0.05, rounds=2)
    assert [(f.runtime, f.batch, f.threads, f.precision) for f in found] == 2 * [
        ("onnxruntime", 2, 1, "float32")
    ]
    assert found[0].runs == found[1].runs >= 30 and found[0].version
    with pytest.raises(RequestError, match="measured with onnxruntime on exported files"):
        measure_models([GRAPH], device)
    with pytest.raises(RequestError, match="give at least one model"):
        measure_models([], device)
    with pytest.raises(RequestError, match=r"the agent at http://pi:80 wants a token"):
        measure_models([file], Device(agent="http://pi:80"))


def test_memory_is_that_of_a_fresh_process_and_grows_with_the_model(tmp_path: Path) -> None:
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    small.write_bytes(probe_onnx(1, 8, 8))
    large.write_bytes(probe_onnx(2, 512, 32))
    device = Device()
    few, many = measure_memory(small, device), measure_memory(large, device)
    # Two convolutions of 512 x 512 x 3 x 3 weights take 19 MB.
    assert many.model_bytes - few.model_bytes > 19e6
    assert few.runtime_bytes > 10e6


def test_a_runtime_is_looked_for_here_and_in_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sarto.devices.runtimes import place
    from sarto.devices.runtimes.place import works_in

    assert interpreter("onnxruntime") == interpreter("torch") == Path(sys.executable)
    monkeypatch.setenv("SARTO_HOME", str(tmp_path))
    assert home() == tmp_path and environment("litert") == tmp_path / "environments" / "litert"
    monkeypatch.setattr(place, "_is_here", lambda name: False)
    with pytest.raises(RequestError, match=r"pip install 'sarto\[litert\]', or sarto device setup litert"):
        interpreter("litert")
    own = python_of(environment("litert"))
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    with pytest.raises(RequestError, match="sarto device setup litert"):
        interpreter("litert")  # it was begun, and never started
    works_in(environment("litert")).touch()
    assert interpreter("litert") == own
    monkeypatch.delenv("SARTO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert sys.platform != "linux" or home() == tmp_path / "cache" / "sarto"


def test_another_interpreter_runs_the_worker_without_sarto(file: Path, tmp_path: Path) -> None:
    with Worker("onnxruntime", python=Path(sys.executable)) as started:
        path = tmp_path / "converter.py"
        path.write_text(
            "def convert(arguments, arrays):\n    import sys\n    return {'seen': 'sarto' in sys.modules}\n"
        )
        started.load(file)
        assert started.convert(path, {}) == {"seen": False}
    with pytest.raises(RequestError, match="can't be run"):
        Worker("onnxruntime", python=tmp_path / "python")
