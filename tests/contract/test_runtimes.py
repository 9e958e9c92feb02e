"""Every format and runtime that is installed: exported, proven there, timed and weighed by the same tests."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sarto.devices import measure_memory, measure_models
from sarto.devices.runtimes import Worker, is_available
from sarto.devices.runtimes.place import interpreter
from sarto.errors import GraphError, RequestError, VerifyError
from sarto.export import LIMITS, TARGETS, Exported, TargetName, export, write_for
from sarto.export.comparing import Compared, compare
from sarto.graph import ModelGraph, capture, read_pt2
from sarto.training import has_bfloat16
from sarto.types import PRECISIONS, Device, Precision, RuntimeName

#: What takes longer: a compiler most of a minute, and a worker with torch some seconds to start.
SLOW = {("aotinductor", precision) for precision in LIMITS} | {("pt2", "float16"), ("pt2", "bfloat16")}
KINDS = [
    pytest.param(to, precision, marks=[pytest.mark.slow] if (to, precision) in SLOW else [])
    for to, target in TARGETS.items()
    for precision in target.precisions
]
FLOATS = [
    pytest.param(to, "float32", marks=[pytest.mark.slow] if to in ("pt2", "aotinductor") else [])
    for to in TARGETS
]
METADATA = {
    "classes": json.dumps(["dark", "light", "other"]),
    "preprocessing": json.dumps({"size": [12, 12]}),
    "plan": "p",
}


class Shades(nn.Module):
    """Tells dark from light images by their mean, the rest by a convolution with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 3)
        with torch.no_grad():
            self.conv.weight.copy_(0.05 + 0.02 * self.conv.weight)
            self.norm.running_mean.fill_(0.5)
            self.head.weight.copy_(torch.tensor([[-1.0] * 8, [1.0] * 8, [0.0] * 8]) + 0.1 * self.head.weight)
            self.head.bias.copy_(torch.tensor([4.0, -4.0, -6.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def needs(to: TargetName) -> None:
    runtime = TARGETS[to].runtime
    if not is_available(runtime, converting=True):
        pytest.skip(f"extra not installed: {runtime}")


def refused_here(to: TargetName, precision: Precision) -> bool:
    """OpenVINO runs bfloat16 only where the processor computes in it."""
    return to == "openvino" and precision == "bfloat16" and not has_bfloat16()


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    torch.manual_seed(0)
    return capture(Shades().eval(), torch.zeros(2, 3, 12, 12), prove=False)


@pytest.fixture(scope="module")
def samples() -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(40, 1, 1, 1) + 0.2 * torch.rand(40, 3, 12, 12)).clamp(0, 1)


def made(to: TargetName, precision: Precision, graph: ModelGraph, samples: Tensor, folder: Path) -> Exported:
    labels = graph(samples).argmax(1)
    path = folder / f"model{TARGETS[to].suffix}"
    return export(
        graph, path, to=to, precision=precision, samples=samples, labels=labels, metadata=METADATA, batch=4
    )


@pytest.mark.parametrize(("to", "precision"), KINDS)
def test_a_file_computes_what_eager_computes_and_says_what_it_is(
    to: TargetName, precision: Precision, graph: ModelGraph, samples: Tensor, tmp_path: Path
) -> None:
    needs(to)
    if refused_here(to, precision):
        with pytest.raises(GraphError, match="this processor has no bfloat16"):
            made(to, precision, graph, samples, tmp_path)
        assert not list(tmp_path.iterdir())
        return
    target = TARGETS[to]
    found = made(to, precision, graph, samples, tmp_path)
    assert found.max_relative_difference <= LIMITS.get(precision, 0.2)
    assert found.agreement is not None and found.agreement >= 0.9
    assert found.accuracy_eager == 1.0 and found.accuracy is not None and found.accuracy >= 0.9
    assert found.n_samples == len(samples)
    assert found.dynamic_batch == target.batches[0], "a batch is fixed only where it can't be left free"
    # The same number by hand, through a worker: a free batch takes any size, a fixed one only its own.
    n = 4 if found.batch else 3
    if to == "pt2":
        outputs = np.asarray(read_pt2(found.path)(samples[:n]))
    else:
        with Worker(target.runtime) as worker:
            model = worker.load(found.path, precision=precision)
            (outputs,) = worker.run(model, [samples[:n].numpy()])
            if found.batch is not None:
                with pytest.raises(RequestError, match=r"of shape \(4, 3, 12, 12\), got float32"):
                    worker.run(model, [samples[:3].numpy()])
    want = graph(samples[:n]).numpy()
    assert outputs.dtype == np.float32 and outputs.shape == want.shape
    assert np.abs(outputs - want).max() / np.abs(want).max() <= LIMITS.get(precision, 0.2)
    said = json.loads(found.sidecar.read_text())
    assert (said["format"], said["precision"], said["runtime"]) == (to, precision, target.runtime)
    assert said["classes"] == ["dark", "light", "other"] and said["preprocessing"] == {"size": [12, 12]}
    assert said["inputs"] == [{"name": "x", "shape": [found.batch, 3, 12, 12], "dtype": "float32"}]
    assert said["outputs"] == [{"shape": [found.batch, 3], "dtype": "float32"}]
    assert said["checked"]["max_relative_difference"] == found.max_relative_difference
    files = sorted(path for path in tmp_path.iterdir() if path != found.sidecar)
    hashes = {path.name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files}
    assert said["files"] == hashes and sum(path.stat().st_size for path in files) == found.size_bytes


#: What prints the texts of a file, as docs/export.md tells it, in the environment of its runtime.
READERS: dict[TargetName, str] = {
    "onnx": "import onnxruntime as ort; made = ort.InferenceSession(path).get_modelmeta().custom_metadata_map",
    "pt2": "import torch; made = dict.fromkeys(wanted, ''); torch.export.load(path, extra_files=made)",
    "openvino": "import openvino; about = openvino.Core().read_model(path);"
    " made = {name: about.get_rt_info(['sarto', name]).astype(str) for name in wanted}",
    "executorch": "from executorch.runtime import Runtime; program = Runtime.get().load_program(path);"
    " made = json.loads(program.load_method('sarto_metadata').execute([])[0])",
    "litert": "import zipfile; made = json.loads(zipfile.ZipFile(path).read('sarto_metadata.json'))",
    "aotinductor": "import torch; made = torch._inductor.aoti_load_package(path).get_metadata()",
}


@pytest.mark.parametrize(("to", "precision"), [kind for kind in KINDS if not refused_here(*kind.values)])
def test_texts_travel_in_the_file(
    to: TargetName, precision: Precision, graph: ModelGraph, samples: Tensor, tmp_path: Path
) -> None:
    needs(to)
    texts = {**METADATA, "classes": json.dumps(["Grüße", 'a"b\n', "猫"], ensure_ascii=False)}
    path = tmp_path / f"model{TARGETS[to].suffix}"
    export(graph, path, to=to, precision=precision, samples=samples, metadata=texts, batch=4)
    script = (
        f"import json, sys; path, wanted = sys.argv[1], json.loads(sys.argv[2]); {READERS[to]};"
        " print('texts ' + json.dumps(made))"
    )
    python = interpreter(TARGETS[to].runtime, converting=True)
    told = subprocess.run(
        [python, "-W", "ignore", "-c", script, str(path), json.dumps(list(texts))],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = json.loads(next(line for line in told.splitlines() if line.startswith("texts "))[6:])
    assert {name: found[name] for name in texts} == texts


@pytest.mark.parametrize(("to", "precision"), FLOATS)
def test_a_file_is_measured_and_weighed_in_every_runtime(
    to: TargetName, precision: Precision, graph: ModelGraph, tmp_path: Path
) -> None:
    needs(to)
    device = Device(runtime=TARGETS[to].runtime, batch=2, precision=precision)
    file = write_for(graph, device, tmp_path)
    one, two = measure_models([file, file], device, seconds=0.05)
    assert 0 < one.low_ms <= one.median_ms <= one.high_ms and one.runs == two.runs
    assert (one.runtime, one.batch, one.threads, one.precision) == (device.runtime, 2, 1, "float32")
    assert measure_memory(file, device).runtime_bytes > 10e6


def test_every_runtime_that_reads_files_has_a_format_and_every_precision_of_it() -> None:
    for target in TARGETS.values():
        assert target.precisions == PRECISIONS[target.runtime]
    assert {target.runtime for target in TARGETS.values()} | {"compile"} == set(get_args(RuntimeName))


def test_until_a_file_is_proven_nothing_lies_where_it_goes(
    graph: ModelGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Path]] = []

    def watched(*args: Any, **kwargs: Any) -> Compared:
        seen.append(sorted(tmp_path.rglob("*")))
        return compare(*args, **kwargs)

    monkeypatch.setattr("sarto.export.exporting.compare", watched)
    found = export(graph, tmp_path / "model.onnx", to="onnx")
    assert seen == [[]]
    assert sorted(tmp_path.iterdir()) == [found.path, found.sidecar]


class Broken(nn.Module):
    """An operator that not every runtime has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y + torch.bucketize(y, torch.tensor([0.0, 0.5])).float()


@pytest.mark.parametrize("to", ["executorch", "litert"])
def test_what_a_runtime_has_not_is_refused_with_the_operators_name(to: TargetName, tmp_path: Path) -> None:
    needs(to)
    graph = capture(Broken().eval(), torch.rand(2, 4), prove=False)
    with pytest.raises(GraphError, match=rf"{to} [\d.]+: operator aten\.bucketize\.Tensor fails") as caught:
        export(graph, tmp_path / f"model{TARGETS[to].suffix}", to=to)
    assert caught.value.where == "aten.bucketize.Tensor" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["onnx", "openvino", "executorch", "litert"])
def test_int8_spans_what_the_rarest_calibration_sample_shows(
    to: TargetName, graph: ModelGraph, samples: Tensor, tmp_path: Path
) -> None:
    needs(to)
    # One sample of ten is bright; ranges that are averaged over samples would cut its outputs off.
    found = export(
        graph,
        tmp_path / f"model{TARGETS[to].suffix}",
        to=to,
        precision="int8",
        samples=samples,
        calibration=torch.cat([0.1 * samples[:36], samples[samples.mean((1, 2, 3)).argsort()[-4:]]]),
        batch=1,
    )
    assert found.max_relative_difference <= 0.2


@pytest.mark.parametrize("to", ["onnx", "openvino", "executorch", "litert"])
def test_an_int8_file_that_decides_otherwise_is_refused(
    to: TargetName, graph: ModelGraph, samples: Tensor, tmp_path: Path
) -> None:
    needs(to)
    # Calibrated on black images, every activation but the darkest is cut off. LiteRT does not even load the file.
    words = r"in int8 decides like eager on .*quantising broke this model|can't run the exported graph"
    with pytest.raises((VerifyError, GraphError), match=words):
        export(
            graph,
            tmp_path / f"model{TARGETS[to].suffix}",
            to=to,
            precision="int8",
            samples=samples,
            calibration=0.02 * samples,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_half_precision_pt2_file_is_a_graph_again(
    graph: ModelGraph, samples: Tensor, tmp_path: Path
) -> None:
    found = made("pt2", "bfloat16", graph, samples, tmp_path)
    again = read_pt2(found.path)
    assert {tensor.dtype for tensor in again.tensors.values()} == {torch.bfloat16}
    assert again.inputs[0].dtype == "float32" and math.isfinite(float(again(samples).sum()))
