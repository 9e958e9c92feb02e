"""The page on NN-Factory: its space of one's own trains, and its descriptions are ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from sarto.types import FactoryConfig, TaskSpace
from tests.unit.cli.markets import run

PAGE = Path(__file__).parents[2] / "docs" / "nn-factory.md"


def files() -> dict[str, str]:
    """Name -> text of the blocks that begin with the name of a file."""
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"```(?:python|yaml)\n(?=# (\S+\.(?:py|yaml))\n)(.*?)```", text, re.DOTALL))


def test_a_space_of_ones_own_trains_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = files()
    for name in ("bars.py", "bars.yaml", "train-bars.yaml"):
        (tmp_path / name).write_text(held[name], encoding="utf-8")
    config = yaml.safe_load(held["train-bars.yaml"])
    config["joint"] |= {"steps": 2, "batch": 8}
    config["judging"] = {"limits": [0.5], "samples": 8}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run("market", "init", "market").exit_code == 0
    refused = run("factory", "train", "short.yaml", "-m", "market")
    assert refused.exit_code == 2 and "run with PYTHONPATH=." in refused.stderr
    monkeypatch.syspath_prepend(tmp_path)
    done = run("factory", "train", "short.yaml", "-m", "market", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["notes"] == [] and found["supernet"]["steps"] == 2
    assert {row["task"] for row in found["supernet"]["qualities"]} == {
        *("across+bright", "across+dark", "down+bright", "down+dark")
    }
    config["preprocessing"] |= {"mean": [0.485]}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump({**config, "name": "other"}), encoding="utf-8")
    other = run("factory", "train", "short.yaml", "-m", "market")
    assert other.exit_code == 2 and "is [0.485], the data of 'bars' draw with [0.5]" in other.stderr


def test_every_description_on_the_page_is_one() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    spaces = [TaskSpace.parse(block) for block in blocks if "groups" in block]
    trainings = [FactoryConfig.parse(block) for block in blocks if "backbone" in block]
    assert {space.name for space in spaces} >= {"beasts", "bars"}
    assert {training.name for training in trainings} >= {"digits", "bars", "objects"}
    assert {training.backbone.zoo for training in trainings if training.space == "attrod"} == {
        "centre_detector"
    }
