"""Orders whose device is another runtime: exported to it, compared with eager, measured there, delivered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from sarto.devices.runtimes import is_available
from sarto.errors import InfeasibleError, RequestError
from sarto.export import to_onnx
from sarto.graph import capture, read_pt2
from sarto.pipeline import Artifact, checking, verify_artifact
from sarto.pipeline.artifact import file_hash
from sarto.types import Check

CLASSES = ("red disc", "blue cross", "red bar")
ENGINES = ["slicepack", "baselines"]


def share_alike(made: Artifact, inputs: Tensor, said: Tensor) -> float:
    """Share of inputs on which the delivered model and what a file said decide alike."""
    return float((made.graph(inputs).argmax(1) == said.argmax(1)).float().mean())


def test_the_file_that_was_timed_is_delivered(shop: Any) -> None:
    device = {"runtime": "onnxruntime", "precision": "int8"}
    samples = shop.draw(CLASSES, 10, 5)
    shop.write_images(samples, shop.folder / "own")
    request = shop.order(
        *CLASSES,
        device=device,
        samples=str(shop.folder / "own"),
        budget={"memory_bytes": 10**9, "size_bytes": 10**9},
        baselines=[],
        engines=ENGINES,
    )
    made = shop.make(request)
    file, report = made.report.device_file, made.report
    assert file is not None and (file.name, file.format) == ("model.int8.onnx", "onnx")
    path: Path = made.folder / file.name
    assert path.stat().st_size == file.size_bytes < (made.folder / "model.onnx").stat().st_size
    assert {file.name, f"{file.name}.json"} <= set(made.manifest.files) and not made.damage()
    assert report.hashes[file.name] == made.manifest.files[file.name]
    # The file holds eight-bit numbers, and the classes that a reader of the file alone needs.
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(made.classes)
    assert b"QuantizeLinear" in path.read_bytes()
    # What the report says of the order's samples is what the file says of them.
    inputs = made.intake.tensor(samples)
    (said,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    alike = share_alike(made, inputs, torch.from_numpy(said))
    right = float((said.argmax(1) == samples.labels).mean())
    assert file.agreement == pytest.approx(alike) and file.n_samples == len(samples)
    assert file.accuracy == pytest.approx(right)
    (check,) = [check for check in report.checks if check.name == "onnxruntime in int8 against eager"]
    assert check.ok and check.value == pytest.approx(1 - alike)
    assert any(file.name in text and "timed" in text for text in report.sentences)
    # The limit of size holds for the file, and the page tells what was counted beside it.
    (size,) = [check for check in report.checks if check.name == "budget: size_bytes"]
    assert size.value == report.measured.size_bytes == file.size_bytes and "measured" in size.detail
    assert "(counted in single precision)" in (made.folder / "report.html").read_text()
    assert "(counted)" in (made.folder / "README.md").read_text().replace("\\", "")
    # Memory is limited, so a process of its own was watched; it holds at least the weights in eight bits.
    grown = report.measured.process_bytes
    assert grown is not None and grown >= report.measured.size_bytes / 4
    assert any(f"grew by {grown / 1e6:.3g} MB" in text for text in report.sentences)
    assert not list(made.folder.rglob("device-*")), "what was measured and not delivered is gone"


@pytest.mark.slow  # ten seconds and more
def test_the_file_of_the_device_is_run_again_when_a_model_is_verified(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = {"runtime": "onnxruntime", "precision": "int8"}
    shop.write_images(shop.draw(CLASSES, 10, 5), shop.folder / "own")
    own = str(shop.folder / "own")
    made = shop.make(shop.order(*CLASSES, device=device, samples=own, baselines=[], engines=ENGINES))

    def checked() -> Check:
        name = "onnxruntime in int8 against eager"
        return next(check for check in verify_artifact(made.folder) if check.name == name)

    (delivered,) = [check for check in made.report.checks if check.name == checked().name]
    assert checked().ok and checked().value == pytest.approx(delivered.value)
    assert "run here on the order's samples" in checked().detail
    with monkeypatch.context() as patched:
        patched.setattr(checking, "interpreter", _missing)
        assert (
            checked().ok and "model.int8.onnx was not run: runtime 'x' is not installed" in checked().detail
        )
    # Another model with the same inputs in place of the file, and a manifest that says so.
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, len(CLASSES))).eval()
    file = made.folder / "model.int8.onnx"
    file.write_bytes(to_onnx(capture(other, torch.rand(2, 3, 16, 16), prove=False)).SerializeToString())
    manifest = made.manifest.replace(files={**made.manifest.files, file.name: file_hash(file)})
    manifest.write(made.folder / "manifest.json")
    assert not checked().ok
    shutil.rmtree(own)
    assert checked().ok and "the order's are not in their place" in checked().detail


def _missing(runtime: str) -> Path:
    raise RequestError("runtime 'x' is not installed here")


@pytest.mark.slow  # ten seconds and more
def test_a_file_that_is_larger_than_the_limit_of_size_is_not_delivered(shop: Any) -> None:
    """An ONNX file of a few weights in eight bits is larger than these weights in single precision."""
    device = {"runtime": "onnxruntime", "precision": "int8"}
    given = {"device": device, "baselines": [], "engines": ["slicepack"]}
    plans = shop.market.plan(shop.order(*CLASSES, **given)).all
    least = min(plan.predicted.size_bytes for plan in plans if plan.predicted is not None)
    request = shop.order(*CLASSES, budget={"size_bytes": least + 100}, **given)
    with pytest.raises(
        InfeasibleError, match=r"as measured with onnxruntime.*size_bytes.*Raise size_bytes to"
    ):
        shop.make(request)


@pytest.mark.slow  # ten seconds and more
def test_what_a_process_takes_is_measured_and_held_against_its_limit(shop: Any) -> None:
    given = {"device": {"runtime": "onnxruntime"}, "baselines": [], "engines": ["slicepack"]}
    made = shop.make(shop.order(*CLASSES, budget={"process_bytes": 10**9}, **given))
    grown = made.report.measured.process_bytes
    (check,) = [check for check in made.report.checks if check.name == "budget: process_bytes"]
    assert check.ok and check.value == grown and "measured" in check.detail
    assert "memory of a process" in (made.folder / "report.html").read_text()
    assert "memory of a process" in (made.folder / "README.md").read_text()
    with pytest.raises(
        InfeasibleError, match=r"as measured.*process_bytes.*Raise process_bytes to"
    ) as caught:
        shop.make(shop.order(*CLASSES, budget={"process_bytes": 1000}, **given), "none")
    assert caught.value.floor is not None and caught.value.floor["process_bytes"] > 100_000


@pytest.mark.slow  # a minute where a processor has no half precision
def test_half_precision_in_torch_is_a_file_too(shop: Any) -> None:
    device = {"runtime": "torch", "precision": "float16"}
    made = shop.make(shop.order(*CLASSES, device=device, baselines=[], engines=ENGINES))
    file = made.report.device_file
    assert file is not None and file.name == "model.float16.pt2"
    assert made.report.measured.process_bytes is None, "nothing is asked of memory"
    inputs = made.intake.tensor(shop.draw(CLASSES, 20, 4321))
    assert share_alike(made, inputs, read_pt2(made.folder / file.name)(inputs).float()) >= 0.95


def test_single_precision_in_a_runtime_of_this_process_needs_no_other_file(made: Artifact) -> None:
    assert made.report.device_file is None
    assert not [name for name in made.manifest.files if name.startswith("model.") and name != "model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "package", "precision"),
    [
        ("openvino", "openvino", "float32"),
        ("openvino", "openvino", "int8"),
        ("litert", "ai_edge_litert", "float32"),
        ("executorch", "executorch", "float32"),
    ],
)
def test_an_order_is_delivered_in_its_runtime(shop: Any, runtime: str, package: str, precision: str) -> None:
    pytest.importorskip(package)
    if not is_available(runtime, converting=True):
        pytest.skip(f"extra not installed: {runtime}")
    device = {"runtime": runtime, "precision": precision}
    request = shop.order(*CLASSES, device=device, budget={"latency_ms": 1_000}, baselines=[], engines=ENGINES)
    report = shop.make(request).report
    assert report.request.device.runtime == runtime and report.request.device.precision == precision
    assert report.measured.latency_ms is not None and 0 < report.measured.latency_ms <= 1_000
    assert all(check.ok for check in report.checks)
    file = report.device_file
    assert file is not None and file.precision == precision and file.format == runtime
    assert (shop.folder / "out" / file.name).is_file()
    (kept,) = [check for check in report.checks if check.name == "budget: latency_ms"]
    assert kept.value == report.measured.latency_ms


@pytest.mark.slow
def test_a_budget_that_the_runtime_can_not_keep_says_what_was_measured_there(shop: Any) -> None:
    pytest.importorskip("openvino")
    request = shop.order(
        *CLASSES,
        device={"runtime": "openvino"},
        budget={"latency_ms": 0.000_5},
        baselines=[],
        engines=ENGINES,
    )
    with pytest.raises(InfeasibleError, match=r"as measured with openvino, 1 threads|Floor: latency_ms"):
        shop.make(request)
