"""Orders that are killed go on: what was finished is not done again, and the model is the same."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from sarto import Artifact, StoreError

#: Reads an order and makes it, and kills itself at the n-th message that begins with the given words.
KILLED = """
import json, os, signal, sys
import torch
from sarto import Market, Request

torch.set_num_threads(1)
job, seen = json.load(sys.stdin), []

def progress(what, done, total):
    with open(job["log"], "a", encoding="utf-8") as log:
        print(what, file=log)
    seen.extend([what] * what.startswith(job["at"]))
    if len(seen) == job["times"]:
        os.kill(os.getpid(), signal.SIGKILL)

with Market.open(job["market"]) as market:
    market.make(Request.parse(job["request"]), job["out"], progress=progress)
"""


@pytest.mark.slow
def test_a_killed_order_goes_on_where_it_stopped(shop: Any) -> None:
    classes = ("red disc", "blue cross", "red bar")
    request = shop.order(*classes, budget={"params": 2_000}, engines=["slicepack"], heldout=None)
    shutil.copytree(shop.market.path, shop.folder / "calm")
    log = shop.folder / "log"
    job = {
        "market": str(shop.market.path),
        "out": str(shop.folder / "out"),
        "request": json.loads(request.to_json()),
        "log": str(log),
    }
    # Each process may slice the fragment anew that was under way before; the second one then begins another.
    for at, times in (("slicing", 2), ("slicing", 2), ("verifying", 1)):
        done = subprocess.run(
            [sys.executable, "-c", KILLED],
            input=json.dumps({**job, "at": at, "times": times}),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (shop.folder / "out" / "manifest.json").exists()
    told = Counter(text for text in log.read_text().splitlines() if text.startswith("slicing"))

    # What was announced when the kill came was not finished, and is sliced again; nothing else is.
    fragments = shop.fragments()
    assert sum(told.values()) == len(fragments) + 2
    artifact = shop.make(request)
    assert shop.sliced() == []
    assert "building and scoring" not in shop.said, "the scores were finished"
    assert set(fragments) < set(shop.fragments()), "the control's are added"
    assert artifact.damage() == [] and shop.market.verify() == []

    with type(shop.market).open(shop.folder / "calm") as calm:
        whole = calm.make(request, shop.folder / "whole")
        assert {f.key for f in calm.store.fragments()} == set(shop.fragments())
    for name in ("graph/graph.json", "graph/weights.safetensors"):
        assert artifact.manifest.files[name] == whole.manifest.files[name]
    assert artifact.plan == whole.plan
    assert [row.accuracy_loto for row in artifact.report.rows] == [
        row.accuracy_loto for row in whole.report.rows
    ]


def test_an_unfinished_folder_says_so_and_is_finished_by_the_same_order(shop: Any) -> None:
    request = shop.order("red disc", "blue cross", engines=["slicepack"], heldout=None)

    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("verifying"):
            raise StoppedError

    with pytest.raises(StoppedError):
        shop.market.make(request, shop.folder / "out", progress=stop)
    with pytest.raises(StoreError, match="unfinished; run the same `sarto make` again"):
        Artifact.read(shop.folder / "out")
    assert shop.make(request).damage() == []
    assert shop.sliced() == []


def test_a_damaged_result_is_delivered_again(shop: Any) -> None:
    request = shop.order("red disc", "blue cross", engines=["slicepack"], heldout=None)
    first = shop.make(request)
    (first.folder / "plan.json").write_text("{}")
    assert first.damage() == ["plan.json was changed: its hash is not the manifest's"]
    shop.said.clear()
    again = shop.make(request)
    assert again.damage() == []
    assert (
        again.manifest.files["graph/weights.safetensors"]
        == (first.manifest.files["graph/weights.safetensors"])
    )
    assert shop.sliced() == []
