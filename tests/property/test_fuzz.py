"""Damaged files by the thousand: each is read as what it says or refused with words; nothing else happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("count", "seed"),
    [(200, 0), pytest.param(2000, 1, marks=pytest.mark.slow)],
    ids=["quick", "slow"],
)
def test_damaged_files_are_read_as_they_say_or_refused(
    count: int, seed: int, tmp_path: Path, repository: Path
) -> None:
    command = [sys.executable, "-m", "tests.property.fuzz_graph_files", str(count), str(seed), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=600)
    assert done.returncode == 0, f"the interpreter ended with {done.returncode}: {done.stderr[-2000:]}"
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["read"] + report["refused"] == count
    assert report["read"] >= count // 50, "damage that no reader can accept shows little"
    assert report["refused"] >= count // 2
    assert report["slowest_s"] < 2
