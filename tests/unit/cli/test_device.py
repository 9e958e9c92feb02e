"""`sarto device`: a small machine measured, listed, shown and explained from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sarto.devices.profiling.blocks import Block
from sarto.devices.profiling.blocks import blocks as every_block
from tests.unit.cli.markets import run

MODEL = ("sarto.zoo:vgg", "--arg", 'widths=[4,"M",6,"M"]', "--arg", "n_classes=3", "--input", "3,8,8")


def two_blocks() -> tuple[Block, ...]:
    names = ("convolution-32x16x6", "linear-64x8", "pool-16x32")
    return tuple(block for block in every_block() if block.name in names)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a market and the profile `desk.json`, measured in torch on a model's subnets."""
    folder = tmp_path_factory.mktemp("device")
    assert run("market", "init", folder / "market").exit_code == 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sarto.pipeline.profiles.blocks", two_blocks)
        done = run(
            *("device", "measure", "desk", *MODEL, "--runtime", "torch", "--subnets", 4, "--few-blocks"),
            *("--seconds", 0.01, "--no-memory", "-o", folder / "desk.json", "-m", folder / "market"),
        )
    assert done.exit_code == 0, done.output
    assert "mean error" in done.output and "any other graph" in done.output
    assert not (folder / "desk.json.journal").exists()
    return folder


def test_a_profile_is_a_file_and_stocked_in_the_market(measured: Path) -> None:
    listed = run("device", "ls", "-m", measured / "market", "--json")
    (found,) = json.loads(listed.output)["profiles"]
    assert found["name"] == "desk" and found["device"]["runtime"] == "torch"
    by_file = run("device", "show", measured / "desk.json", "--json")
    by_name = run("device", "show", "desk", "-m", measured / "market", "--json")
    assert by_file.output == by_name.output
    assert "1 device profiles" in run("device", "ls", "-m", measured / "market").output
    assert "desk: torch" in run("device", "show", measured / "desk.json").output


def test_a_finished_profile_is_not_measured_or_dated_again(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sarto.pipeline.profiles.blocks", two_blocks)
    path = measured / "desk.json"
    before = path.read_bytes()
    asked = ("device", "measure", "desk", *MODEL, "--runtime", "torch", "--subnets", 4, "--few-blocks")
    done = run(*asked, "--seconds", 0.01, "--no-memory", "-o", path)
    assert done.exit_code == 0, done.output
    assert "nothing was measured; --again measures anew" in done.output and path.read_bytes() == before
    more = run(*asked[:-2], 8, "--seconds", 0.01, "--no-memory", "-o", path, "--json")
    assert more.exit_code == 0, more.output
    assert json.loads(more.stdout)["measured"] is True
    had, has = json.loads(before), json.loads(path.read_bytes())
    assert has["device"]["started"] == had["device"]["started"]
    assert sum(row["what"] == "subnet" and not row["repeat"] for row in has["rows"]) == 8
    assert [row for row in has["rows"] if row["what"] == "block"] == [
        row for row in had["rows"] if row["what"] == "block"
    ]
    path.write_bytes(before)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_milliseconds_are_explained_layer_by_layer(measured: Path, suffix: str) -> None:
    picture = measured / f"shares{suffix}"
    done = run("device", "explain", measured / "desk.json", *MODEL, "--plot", picture, "--json")
    found = json.loads(done.output)
    assert found["of_backbone"] and found["latency_low_ms"] <= found["latency_ms"] <= found["latency_high_ms"]
    assert sum(layer["latency_ms"] for layer in found["layers"]) == pytest.approx(found["latency_ms"])
    start = picture.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in start
    text = run("device", "explain", measured / "desk.json", *MODEL).output
    assert "convolution" in text and "subnets of this model were measured" in text


def test_fewer_units_take_less(measured: Path) -> None:
    def latency(*options: object) -> float:
        done = run("device", "explain", measured / "desk.json", *MODEL, "--json", *options)
        return float(json.loads(done.output)["latency_ms"])

    whole, half, one = latency(), latency("--ratio", 0.5), latency("--keep", "features.0=1")
    assert half <= whole and one <= whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("measure", "desk", "--runtime", "onxruntime"), "did you mean 'onnxruntime'?"),
        (("measure", "desk", "nowhere:model", "--precision", "int9"), "--precision 'int9' is none"),
        (("show", "nowhere"), "'nowhere' is no file"),
        (("explain", "{profile}", *MODEL, "--keep", "features.0"), "write GROUP=COUNT"),
        (("explain", "{profile}", *MODEL, "--keep", "features.0=99"), "must be from 0 to 4, got 99"),
        (("explain", "{profile}", *MODEL, "--ratio", 2), "must lie in (0, 1]"),
        (("explain", "{profile}", *MODEL, "--plot", "x.gif"), "drawn as .svg or .png"),
    ],
)
def test_what_can_not_be_done_is_said_in_a_line(
    measured: Path, options: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(measured.parent)
    done = run(
        "device", *(str(option).replace("{profile}", str(measured / "desk.json")) for option in options)
    )
    assert done.exit_code == 2 and message in done.output and len(done.stderr.strip().splitlines()) == 1
