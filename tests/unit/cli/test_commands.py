from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from sarto.types import Plan
from sarto.zoo import vgg
from tests.unit.cli.markets import CLASSES, FACTORY, run, write_samples

ORDER = ("--classes", "cat,dog", "--engines", "slicepack")


def as_json(*args: object, code: int = 0) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    found = run(*args, "--json")
    assert found.exit_code == code, found.output
    assert len(found.stdout.splitlines()) == 1
    value = json.loads(found.stdout)
    assert isinstance(value, dict)
    return value


def test_the_command_line_loads_no_torch_before_a_command_runs() -> None:
    code = (
        "import sys, sarto.cli; print([m for m in ('torch', 'numpy', 'sarto.pipeline') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_help_names_every_command() -> None:
    found = run("--help")
    assert found.exit_code == 0
    for name in ("add", "ls", "show", "rm", "verify", "inspect", "plan", "make", "build", "export", "market"):
        assert f" {name} " in found.stdout
        assert run(*(["market", "init"] if name == "market" else [name]), "--help").exit_code == 0
    assert run("--version").stdout.startswith("sarto ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("make", "--max-parms", "3"), "No such option: --max-parms"),
        (("mak",), "No such command 'mak'"),
        (("plan", "--max-params", "many"), "Invalid value for '--max-params'"),
        (("rm",), "Missing argument"),
        (("plan",), "no order: give a request file, --classes a,b,c, or --task exactly_2+digit_7"),
        (("plan", "nowhere.yaml"), "nowhere.yaml"),
        (("plan", "--classes", "ship", "--runtime", "openvno"), "did you mean 'openvino'?"),
        (("plan", "--classes", "ship", "--runtime", "torch", "--precision", "int8"), "torch has no int8"),
        (("add",), "3 problems: SOURCE"),
        (
            ("add", "a:b", "--name", "x", "--classes", "c", "--size", "big"),
            "--size: 'big' is no list of numbers",
        ),
        (("inspect", "no.such.module:factory"), "can't import 'no.such.module'"),
        (("inspect", *FACTORY[:1], "--arg", "n_classes"), "write key=value"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(args: tuple[str, ...], words: str) -> None:
    found = run(*args)
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ") and len(found.stderr.splitlines()) == 1
    assert words in found.stderr
    error = as_json(*args, code=2)["error"]
    assert words in error["detail"] and set(error) >= {"type", "detail", "where", "problems"}


def test_a_missing_market_is_code_1(tmp_path: Path) -> None:
    found = run("ls", "--market", tmp_path / "none")
    assert found.exit_code == 1 and found.stderr.startswith("error: ")
    assert as_json("ls", "--market", tmp_path / "none", code=1)["error"]["type"] == "StoreError"
    assert "Traceback" in run("ls", "--market", tmp_path / "none", "--debug").stderr


def test_what_nobody_foresaw_is_one_line_too(monkeypatch: pytest.MonkeyPatch, market: Path) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("sarto.pipeline.Market.learnwares", broken)
    found = run("ls", "--market", market)
    assert found.exit_code == 1 and len(found.stderr.splitlines()) == 1
    assert "ZeroDivisionError: division by zero (this is a defect of sarto" in found.stderr


def test_the_market_is_listed_shown_and_verified(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SARTO_MARKET", str(market))
    (learnware,) = as_json("ls")["learnwares"]
    assert learnware["classes"] == list(CLASSES) and learnware["licence"] == "MIT"
    assert as_json("show", "tiny") == learnware
    assert "[red]ship" in run("ls").stdout
    assert "id: sha256:" in run("show", "tiny").stdout
    assert as_json("verify", market)["ok"] is True
    assert "every object is whole" in run("verify", market).stdout


def test_a_learnware_is_removed(tmp_path: Path) -> None:
    run("market", "init", tmp_path / "m")
    run("add", *FACTORY, "--name", "gone", "--classes", "a,b,c", "--size", "8,8", "--market", tmp_path / "m")
    assert as_json("rm", "gone", "--market", tmp_path / "m")["freed_bytes"] > 0
    assert as_json("ls", "--market", tmp_path / "m")["learnwares"] == []
    assert run("rm", "gone", "--market", tmp_path / "m").exit_code != 0


def test_a_card_says_what_to_add(tmp_path: Path) -> None:
    card = {
        "name": "carded",
        "factory": FACTORY[0],
        "arguments": {"widths": [4, "M"], "n_classes": 2},
        "classes": ["a", "b"],
        "preprocessing": {"size": [8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    }
    (tmp_path / "card.json").write_text(json.dumps(card))
    run("market", "init", tmp_path / "m")
    found = as_json("add", "--card", tmp_path / "card.json", "--market", tmp_path / "m")
    assert (found["name"], found["classes"]) == ("carded", ["a", "b"])
    assert found["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


def test_inspect_shows_groups_pins_and_costs(market: Path) -> None:
    found = as_json("inspect", *FACTORY, "--input", "3,8,8")
    by_id = {group["id"]: group for group in found["groups"]}
    first, last = by_id["features.0.weight:0"], by_id["classifier.weight:0"]
    assert (first["size"], first["pinned"], first["positions_per_unit"]) == (4, [], 1)
    assert first["params"] == 4 * 3 * 9 + 2 * 4 + 6 * 4 * 9
    assert last["size"] == 3 and any("output" in why for why in last["pinned"])
    assert found["cost"]["params"] == 4 * 3 * 9 + 8 + 6 * 4 * 9 + 12 + 3 * 7
    text = run("inspect", *FACTORY, "--input", "3,8,8").stdout
    assert "features.0.weight:0" in text and "pinned" in text
    stocked = as_json("inspect", "tiny", "--market", market)
    id_ = as_json("show", "tiny", "--market", market)["id"]
    assert stocked == as_json("inspect", id_, "--market", market)
    for one, two in zip(stocked["groups"], found["groups"], strict=True):
        assert {**one, "places": sorted(one["places"])} == {**two, "places": sorted(two["places"])}


def test_plans_are_listed_and_written(market: Path, tmp_path: Path) -> None:
    listed = as_json("plan", *ORDER, "--market", market, "-o", tmp_path / "plan.json", "--number", "2")[
        "plans"
    ]
    assert len(listed) > 1
    assert Plan.read(tmp_path / "plan.json").key() == listed[1]["key"]
    text = run("plan", *ORDER, "--market", market).stdout
    assert all(item["key"][7:19] in text for item in listed)
    refused = run("plan", *ORDER, "--market", market, "-o", tmp_path / "x.json", "--number", "999")
    assert refused.exit_code == 2 and "--number 999: there are" in refused.stderr


def test_flags_stand_above_the_file(market: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.yaml"
    order.write_text("task: {classes: [cat, dog]}\nbudget: {params: 1}\nengines: [slicepack]\n")
    error = as_json("plan", order, "--market", market, code=2)["error"]
    assert error["type"] == "InfeasibleError"
    assert error["floor"]["params"] > 1 and error["nearest"]["params"] > 1
    needed = int(error["nearest"]["params"])
    assert f"Floor: params {needed}" in run("plan", order, "--market", market).stderr
    plans = as_json("plan", order, "--max-params", needed, "--market", market)["plans"]
    assert [item for item in plans if not item["breaks"]]
    assert run("plan", order, "--max-params", needed - 1, "--market", market).exit_code == 2


def test_what_is_left_out_of_samples_is_told(tmp_path: Path) -> None:
    assert run("market", "init", tmp_path / "market").exit_code == 0
    samples = write_samples(tmp_path / "samples.npz")
    added = run(
        *("add", *FACTORY, "--name", "tiny", "--classes", "cat,dog,cow", "--size", "8,8"),
        *("--samples", samples, "--market", tmp_path / "market"),
    )
    assert added.exit_code == 0, added.output
    assert "note: samples of [red]ship are left out: tiny has no such class" in added.stderr
    assert "note: no samples of cow: " in added.stderr and "samples of every class" in added.stderr


def test_a_model_that_is_stocked_keeps_its_name_and_says_so(tmp_path: Path) -> None:
    weights, market = tmp_path / "weights.safetensors", tmp_path / "market"
    save_file(vgg(widths=[4, "M", 6, "M"], n_classes=3).state_dict(), weights)
    run("market", "init", market)
    stock = ("add", *FACTORY, "--weights", weights, "--size", "8,8", "--market", market)
    first = run(*stock, "--classes", "cat,dog,ship", "--name", "tiny")
    assert first.exit_code == 0 and "already stocked" not in first.stderr, first.output
    again = run(*stock, "--classes", "cat,dog,ship", "--name", "mine")
    assert again.exit_code == 0 and "stocked tiny" in again.stdout
    assert "note: already stocked as tiny; the name mine is not given" in again.stderr
    assert run(*stock, "--classes", "a,b,c", "--name", "other").exit_code == 0
    taken = run(*stock, "--classes", "cat,dog,ship", "--name", "other")
    assert taken.exit_code == 1 and "stocked already as 'tiny'" in taken.stderr
    assert "the name 'other' belongs to another learnware" in taken.stderr
    samples = ("--samples", write_samples(tmp_path / "samples.npz"))
    doubled = run(*stock, *samples, "--classes", "cat,cat,dog", "--name", "twice")
    assert doubled.exit_code == 2
    assert (
        "classes: 'cat' is named 2 times; each output needs a name of its own (--classes)" in doubled.stderr
    )


def test_verifying_what_is_not_there_names_both_things_that_could_be(tmp_path: Path) -> None:
    gone = run("verify", tmp_path / "p")
    assert gone.exit_code == 1 and "market init" not in gone.stderr
    assert f"no finished model and no market at {tmp_path / 'p'}: there is no such folder" in gone.stderr
    (tmp_path / "file").write_text("x")
    assert "that is a file" in run("verify", tmp_path / "file").stderr
