"""Trainings that are killed, and trainings of several processes: what is stocked in the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.factory_assets import described

pytestmark = pytest.mark.slow

APP = "from sarto.cli import app; app()"
#: The same, and the hash of the parameters that this very process holds in the end, on standard error.
TOLD = """
import hashlib, sys
from sarto.pipeline import factory
real = factory.train_supernet
def told(*given, **more):
    done = real(*given, **more)
    learnt = [done.supernet.graph.tensors[name] for name in sorted(done.supernet.graph.parameters)]
    learnt += [parameter.detach() for parameter in done.supernet.assembler.parameters()]
    bits = b"".join(tensor.contiguous().numpy().tobytes() for tensor in learnt)
    print("parameters", hashlib.sha256(bits).hexdigest(), file=sys.stderr)
    return done
factory.train_supernet = told
"""


def command(*words: object, code: str = APP) -> list[str]:
    return [sys.executable, "-c", code, *(str(word) for word in words)]


def prepared(folder: Path, **joint: Any) -> Path:
    folder.mkdir()
    config = described(folder, joint={"steps": 60, "batch": 12, "save_every": 5, "lr": 0.01, **joint})
    config["data"] = {"folder": str(folder.parent)}
    config["space"] = str(folder.parent / "few.yaml")
    (folder / "train.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run(command("market", "init", folder / "market"), check=True, capture_output=True)
    return folder


def trained(folder: Path, code: str = APP, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("factory", "train", folder / "train.yaml", "-m", folder / "market", "--json", code=code),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_second_training_is_refused_and_a_killed_one_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    described(tmp_path)
    straight = outcome(trained(prepared(tmp_path / "straight")))
    folder = prepared(tmp_path / "killed")
    process = trained(folder)
    checkpoints = folder / "market.few.training"
    while process.poll() is None and not any(
        int(path.stem.partition("-")[2]) >= 10 for path in checkpoints.glob("step-*.safetensors")
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)  # held up, not done
    second = trained(folder)
    _, refused = second.communicate(timeout=300)
    assert second.returncode != 0
    assert f"process {process.pid} on " in refused and "trains in" in refused and "another folder" in refused
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    again = outcome(trained(folder))
    assert 10 <= again["resumed_from"] < 60 and straight["resumed_from"] == 0
    # The id is a hash of all weights of the backbone and the assembler.
    assert again["supernet"]["id"] == straight["supernet"]["id"]
    assert again["supernet"]["qualities"] == straight["supernet"]["qualities"]


def test_two_processes_train_one_supernet(tmp_path: Path) -> None:
    described(tmp_path)
    folder = prepared(tmp_path / "two", steps=6)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [
        trained(folder, TOLD + APP, **environment, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)
    ]
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    first = json.loads(said[0][0])
    assert first["stopped"] is None
    # What each process holds in its own memory, not what the first one stocked.
    hashes = [line for _, err in said for line in err.splitlines() if line.startswith("parameters ")]
    assert len(hashes) == 2 and hashes[0] == hashes[1]
    alone = outcome(trained(prepared(tmp_path / "alone", steps=6)))
    assert alone["supernet"]["id"] != first["supernet"]["id"], "the second process gave batches of its own"
