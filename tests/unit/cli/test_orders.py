from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.unit.cli.markets import run, write_samples

ORDER = ("--classes", "cat,dog", "--engines", "slicepack", "--max-params", "100000")


@pytest.fixture(scope="module")
def made(market: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model made by the command line, and what it printed."""
    out = tmp_path_factory.mktemp("made") / "model"
    found = run("make", *ORDER, "--market", market, "-o", out)
    assert found.exit_code == 0, found.output
    assert found.stderr == ""
    return out, found.stdout


def test_make_says_what_was_delivered_and_where(made: tuple[Path, str]) -> None:
    out, text = made
    report = json.loads((out / "report.json").read_text())
    pick = next(row for row in report["rows"] if row["role"] == "pick")
    assert pick["name"] in text and f"{pick['accuracy_loto']:.1%}" in text
    assert f"{report['measured']['params']:,}" in text and " 100,000 " in text
    assert f"the page: {out / 'report.html'}" in text
    assert "<svg" in (out / "report.html").read_text()


def test_a_second_make_gives_the_same_model_as_json(made: tuple[Path, str], market: Path) -> None:
    out, _ = made
    found = run("make", *ORDER, "--market", market, "-o", out, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["report"] == json.loads((out / "report.json").read_text())
    other = run("make", *ORDER, "--seed", 1, "--market", market, "-o", out)
    assert other.exit_code == 2 and "holds another order" in other.stderr


def test_a_given_plan_is_built(made: tuple[Path, str], market: Path, tmp_path: Path) -> None:
    out, _ = made
    found = run(
        *("build", out / "plan.json", "--request", out / "request.json"),
        *("--market", market, "-o", tmp_path / "again", "--json"),
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["plan_key"] == json.loads((out / "manifest.json").read_text())["plan_key"]


def test_a_model_is_verified_inspected_and_exported(made: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = made
    checks = json.loads(run("verify", out, "--json").stdout)
    assert checks["ok"] is True and len(checks["checks"]) > 1
    assert json.loads(run("inspect", out, "--json").stdout)["cost"]["params"] > 0
    exported = run("export", out, "-o", tmp_path / "model.onnx", "--json")
    assert exported.exit_code == 0, exported.output
    assert (tmp_path / "model.onnx").stat().st_size == json.loads(exported.stdout)["size_bytes"]
    program = run("export", out, "--to", "pt2", "-o", tmp_path / "model.pt2")
    assert program.exit_code == 0, program.output
    costs = [json.loads(run("inspect", it, "--json").stdout)["cost"] for it in (out, tmp_path / "model.pt2")]
    assert costs[0]["params"] == costs[1]["params"] and costs[0]["flops"] == costs[1]["flops"]
    wrong = run("export", out, "--to", "onxx", "--precision", "int4", "--samples", tmp_path / "none")
    assert wrong.exit_code == 2
    for words in ("no format 'onxx' (did you mean 'onnx'?)", "no precision 'int4'", "no such file or folder"):
        assert words in wrong.stderr
    assert "int8 needs samples to calibrate on" in run("export", out, "--precision", "int8").stderr


def test_what_no_model_can_be_exported_to_is_refused_before_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SARTO_HOME", str(tmp_path))
    monkeypatch.setattr(
        "sarto.devices.runtimes.place._is_here", lambda name: name in ("torch", "onnxruntime")
    )
    nowhere = tmp_path / "nowhere"
    found = run(
        "export", nowhere, "--to", "litert", "--precision", "bfloat16", "-o", tmp_path / "no" / "x.onnx"
    )
    assert found.exit_code == 2
    for words in (
        "litert has no bfloat16; it has float32, float16, int8",
        "x.onnx: the name of a file for litert ends in .tflite",
        "runtime 'litert' is not installed here: pip install 'sarto[litert]'",
        "give a file in a folder that exists",
    ):
        assert words in found.stderr
    assert "nowhere" not in found.stderr
    missing = run("export", nowhere, "--to", "openvino")
    assert missing.exit_code == 2 and "sarto device setup openvino" in missing.stderr
    assert "nowhere" in run("export", nowhere).stderr, "what fits goes on to the model"


def test_an_export_is_compared_on_real_samples_and_carries_classes_and_preprocessing(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    out, samples = made[0], write_samples(tmp_path / "samples.npz", seed=1)
    target = tmp_path / "small.onnx"
    asked = ("export", out, "--precision", "int8", "--samples", samples, "-o", target)
    told = run(*asked)
    assert told.exit_code == 0, told.output
    for words in ("int8, any batch", "decides like eager on", "points lost", f"preprocessing: {target}.json"):
        assert words in told.stdout
    found = json.loads(run(*asked, "--json").stdout)
    assert found["n_samples"] > 0 and found["accuracy_eager"] > 0 and found["precision"] == "int8"
    assert found["n_calibrated"] == found["n_samples"]
    assert f"calibrated on {found['n_samples']} of these samples; give others" in told.stdout
    others = write_samples(tmp_path / "others.npz", seed=2)
    apart = run(*asked, "--calibration", others)
    assert apart.exit_code == 0 and "of these samples" not in apart.stdout, apart.output
    said = json.loads(Path(f"{target}.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    assert said["classes"] == manifest["classes"] and said["preprocessing"] == manifest["preprocessing"]


def test_a_changed_model_fails_and_says_which_file(made: tuple[Path, str], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made[0], copy)
    (copy / "plan.json").write_text("{}")
    found = run("verify", copy, "--json")
    assert found.exit_code == 1
    (check,) = json.loads(found.stdout)["checks"]
    assert not check["ok"] and "plan.json" in check["detail"]
    assert run("verify", copy).exit_code == 1


def test_samples_that_are_not_used_are_noted(market: Path, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples.npz", seed=2)
    found = run("plan", *ORDER, "--samples", samples, "--samples-per-class", 50, "--market", market)
    assert found.exit_code == 0, found.output
    first, second = found.stderr.splitlines()
    assert first == f"note: samples of [red]ship in {samples} are left out: the order is for cat, dog"
    assert second.startswith("note: 50 samples of each class were asked for, but cat has 6, dog has 6")
    refused = run("plan", *ORDER, "--samples", samples, "--heldout", samples, "--market", market)
    assert refused.exit_code == 2 and "12 of 12 held-out images equal images" in refused.stderr


def test_the_agent_of_an_order_is_asked_before_anything_is_built(
    market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SARTO_AGENT_TOKEN", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    on = (*ORDER, "--agent", address, "--market", market)
    planned = run("plan", *on, "--json")
    assert planned.exit_code == 0 and json.loads(planned.stdout)["plans"], planned.output
    asked = run("make", *on, "-o", tmp_path / "out")
    assert (
        asked.exit_code == 2
        and f"the agent at {address} wants a token; set SARTO_AGENT_TOKEN" in asked.stderr
    )
    monkeypatch.setenv("SARTO_AGENT_TOKEN", "0123456789abcdef")
    alone = run("make", *on, "-o", tmp_path / "out")
    assert alone.exit_code == 2 and f"the agent at {address} does not answer" in alone.stderr
    never = run("make", *on, "--runtime", "aotinductor", "-o", tmp_path / "never")
    assert never.exit_code == 2 and "an agent never has aotinductor" in never.stderr
    assert not list(tmp_path.rglob("scores.json")), "nothing was built"
    wrong = run("make", *ORDER, "--agent", "board", "--market", market, "-o", tmp_path / "wrong")
    assert wrong.exit_code == 2 and "device.agent" in wrong.stderr
