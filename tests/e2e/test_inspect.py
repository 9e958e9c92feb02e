"""`sarto inspect` from the command line to the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sarto.cli import app

RESNET = ("inspect", "sarto.zoo:cifar_resnet", "--arg", "n_classes=10")
SMALL = (*RESNET, "--arg", "depth=8", "--arg", "width=4")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="sarto")


def test_tables_say_what_can_be_sliced_and_where_it_parts() -> None:
    found = run(*SMALL)
    assert found.exit_code == 0, found.output
    assert "channel groups sliceable" in found.stdout and "blocks between cut points" in found.stdout
    assert "layer1.0.conv1.weight:0" in found.stdout
    assert "outputs of the model: 2 axes (1 channel group, 10 units): linear.weight:0" in found.stdout
    assert "--html page.html draws it" in found.stdout


def test_long_tables_are_shortened_and_say_so() -> None:
    args = (
        "inspect",
        "sarto.zoo:vgg",
        "--arg",
        "n_classes=2",
        "--arg",
        f"widths={[2] * 24}",
        "--input",
        "3,8,8",
    )
    short, long = run(*args).stdout, run(*args, "--all").stdout
    assert "rows left out; --all shows them" in short and "left out" not in long
    assert len(long.splitlines()) > len(short.splitlines())


def test_the_machine_form_holds_everything() -> None:
    found = run(*SMALL, "--json")
    value = json.loads(found.stdout)
    assert set(value) >= {
        "blocks",
        "cost",
        "cut_points",
        "groups",
        "pins",
        "sliceable_params",
        "steps",
        "unruled",
    }
    assert sum(block["params"] for block in value["blocks"]) == value["cost"]["params"]
    one = json.loads(run(*SMALL, "--group", "layer1.0.conv1", "--json").stdout)
    assert one in value["groups"] and one["id"] == "layer1.0.conv1.weight:0"


def test_a_page_and_a_picture_are_written(tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "model.svg"
    found = run(*SMALL, "--html", page, "--svg", picture)
    assert found.exit_code == 0, found.output
    assert f"wrote {page}" in found.stdout and f"wrote {picture}" in found.stdout
    assert picture.read_text(encoding="utf-8").strip() in page.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.svg", "page.html"]
    missing = run(*SMALL, "--html", tmp_path / "no" / "page.html")
    assert missing.exit_code == 2 and "page.html" in missing.stderr


def test_one_group_is_explained() -> None:
    found = run(*SMALL, "--group", "linear")
    assert found.exit_code == 0, found.output
    assert "pinned    output 'linear'" in found.stdout
    assert "made by   linear (linear at node linear)" in found.stdout


def test_an_unknown_group_is_refused_with_a_suggestion() -> None:
    found = run(*SMALL, "--group", "layer1.0.conv9")
    assert found.exit_code == 2
    assert "no channel group 'layer1.0.conv9' in this model (did you mean 'layer1.0.conv1'?)" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_the_picture_of_the_docs_is_that_of_the_code(repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "inspect.md").read_text(encoding="utf-8")
    command = "sarto inspect sarto.zoo:cifar_resnet --arg n_classes=10 --svg docs/images/inspect-resnet20.svg"
    assert command in page and "](images/inspect-resnet20.svg)" in page
    assert run(*RESNET, "--svg", tmp_path / "now.svg").exit_code == 0
    kept = (repository / "docs" / "images" / "inspect-resnet20.svg").read_text(encoding="utf-8")
    if kept != (tmp_path / "now.svg").read_text(encoding="utf-8"):
        pytest.fail(f"the picture has changed; look at it, then run: {command}")
