"""What `sarto factory` says while it trains where nobody looks, and the files that it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from sarto.cli.output import progress
from sarto.engines.factory.delta import apply_delta
from sarto.engines.factory.subnets import cut
from sarto.graph import normalise
from sarto.market import Store
from sarto.pipeline.factory import open_supernet
from tests.unit.cli.markets import run
from tests.unit.factory_assets import described


def test_a_training_tells_a_line_for_each_tenth_and_where_its_accuracy_lies(tmp_path: Path) -> None:
    market = ("-m", tmp_path / "market")
    assert run("market", "init", tmp_path / "market").exit_code == 0
    config = described(tmp_path, judging={"limits": [0.01, 0.2, 0.5], "samples": 20})
    config["joint"]["lowest"] = 0.02
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    done = run("factory", "train", tmp_path / "train.yaml", *market, "--json")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if " of 8: training" in line]
    assert len(lines) == 8 and "loss" in lines[0] and "20%: " in lines[-1], done.stderr
    # What was asked for below what groups keep is told.
    notes = " ".join(json.loads(done.stdout)["notes"])
    assert "not judged at 0.01: " in notes and "not to joint.lowest 0.02" in notes, notes
    looked = Path(json.loads(done.stdout)["accuracy"])
    assert looked.is_file() and looked.with_suffix(".svg").is_file()
    again = run("factory", "train", tmp_path / "train.yaml", *market)
    assert again.exit_code == 0 and f"{looked}, drawn in {looked.with_suffix('.svg')}" in again.output

    path = tmp_path / "delta.safetensors"
    orders = ("has+digit_7@0.3", "has+odd@0.6")
    told = run("factory", "delta", "few", *orders, *market, "--out", path, "--json")
    assert told.exit_code == 0, told.output
    said = json.loads(told.stdout)
    assert said["file_bytes"] == path.stat().st_size > said["download_bytes"] > 0
    with Store.open(tmp_path / "market") as store:
        manifest, net = open_supernet(store, "few")
        graphs = []
        for order in orders:
            task, _, limit = order.partition("@")
            code = torch.tensor([net.space.code(net.space.task(task))], dtype=torch.float32)
            gates = net.assembler.gates(code, torch.tensor([float(limit)]))[0]
            graphs.append(normalise(cut(net, gates), manifest.preprocessing.mean, manifest.preprocessing.std))
        made = apply_delta(graphs[0], path)
        assert made.tensors.keys() == graphs[1].tensors.keys()
        assert all(torch.equal(tensor, graphs[1].tensors[name]) for name, tensor in made.tensors.items())
    nowhere = run("factory", "delta", "few", *orders, *market, "--out", tmp_path / "none" / "x.safetensors")
    assert nowhere.exit_code == 2 and "there is no folder" in nowhere.stderr


def test_lines_are_few_however_many_steps_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True, lines=True) as tell:
        for step in range(1, 1001):
            tell("training", step, 1000)
    told = capsys.readouterr()
    assert told.out == "" and 10 <= len(told.err.splitlines()) <= 12
    assert told.err.splitlines()[0] == "1 of 1,000: training"
    with progress(quiet=True) as tell:
        tell("training", 1, 2)
    assert capsys.readouterr().err == ""
