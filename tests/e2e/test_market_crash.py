"""Killed in the middle of `add`, a market loses nothing and keeps nothing half; processes get along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sarto.market import Store
from sarto.testing.store_contract import key_of, pixels, scorer, stock

#: Reads [[code, argument], ...] and runs each in a fork of its own, all at once; prints [[status, output]].
FORKS = """
import json, os, signal, sys
from pathlib import Path
import torch
from sarto.market import Store, store
from sarto.testing.store_contract import pixels, stock

torch.set_num_threads(1)

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at(owner, name, call):
    real, calls = getattr(owner, name), []
    def trap(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            die()
        return real(*args, **kwargs)
    setattr(owner, name, trap)

def run(code, argument):
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    os.close(read)
    os.dup2(write, 1)
    os.dup2(write, 2)
    exec(code, {**globals(), "argument": argument})
    sys.stdout.flush()
    os._exit(0)

started = [run(code, argument) for code, argument in json.load(sys.stdin)]
output = [open(read).read() for _, read in started]
print(json.dumps([[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text]
                  for (pid, _), text in zip(started, output)]))
"""

CONNECTION = """
import sqlite3
real = sqlite3.connect
class Connection(sqlite3.Connection):
    def commit(self):
        {commit}
sqlite3.connect = lambda *args, **kwargs: real(*args, factory=Connection, **kwargs)
"""

#: More than the page cache holds: half of the transaction is in the file already when the process dies.
SPILL = (
    "self.execute('CREATE TABLE filler AS WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) SELECT i, randomblob(4000) FROM n')"
)

TRAPS = {
    "while the graph is written": "die_at(store, 'write_graph', 1)",
    "while samples are written": "Path.write_bytes = lambda p, data: die(p.open('wb', 0).write(data[:9]))",
    "before bytes are safe": "die_at(os, 'fsync', 2)",
    "before the index is written": "store.rows.enter = die",
    "before the first blob is published": "die_at(store.FolderBlobs, 'publish', 1)",
    "between two blobs": "die_at(store.FolderBlobs, 'publish', 2)",
    "before the commit": CONNECTION.replace("{commit}", "die()"),
    "in the commit": CONNECTION.replace("{commit}", SPILL + "; die()"),
    "after the commit": CONNECTION.replace("{commit}", "super().commit(); die()"),
    "after the add": "",
}
SURVIVES = ("after the commit", "after the add")

ADD = """
opened = Store.open(argument)
{trap}
stock(opened, "new", seed=1, samples=pixels())
os.write(1, b"added")
die()
"""

ADD_MANY = """
path, number = argument
with Store.open(path) as opened:
    for step in range(3):
        stock(opened, f"own-{number}-{step}", seed=number * 100 + step, samples=pixels())
        stock(opened, f"same-{step}", seed=1000 + step)
        stock(opened, f"gone-{number}", seed=2000 + number, samples=pixels())
        opened.remove(f"gone-{number}")
        opened.clean()
"""


def run_forks(jobs: list[tuple[str, object]]) -> list[tuple[int, str]]:
    """Exit status (minus the signal) and output of each job."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FORKS]
    done = subprocess.run(
        command,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(status, text) for status, text in json.loads(done.stdout)]


def files(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {"index.sqlite-journal"}  # one that was not needed may stay until the next write


def make_market(path: Path) -> Path:
    with Store.create(path) as store:
        learnware = stock(store, "old", samples=pixels(seed=5))
        store.put_fragment(key_of("a"), scorer(2), {"of": learnware.id})
    return path


@pytest.fixture(scope="module")
def wrecks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, set[str], int, str]]:
    """For each trap: the market that the killed process left, its files before, exit status and output."""
    markets = [make_market(tmp_path_factory.mktemp("crash") / "market") for _ in TRAPS]
    before = [files(market) for market in markets]
    jobs: list[tuple[str, object]] = [
        (ADD.replace("{trap}", trap), str(market))
        for trap, market in zip(TRAPS.values(), markets, strict=True)
    ]
    results = run_forks(jobs)
    return {
        name: (market, was, *result)
        for name, market, was, result in zip(TRAPS, markets, before, results, strict=True)
    }


@pytest.mark.parametrize("trap", TRAPS)
def test_a_killed_add_is_whole_or_absent(
    trap: str, wrecks: dict[str, tuple[Path, set[str], int, str]]
) -> None:
    market, before, status, output = wrecks[trap]
    assert (status, output) == (-signal.SIGKILL, "added" if trap == "after the add" else "")
    assert any(name.startswith("blobs/tmp/") for name in files(market))
    if trap == "in the commit":
        assert (market / "index.sqlite").stat().st_size > 1_000_000

    with Store.open(market) as store:
        names = ["old", "new"] if trap in SURVIVES else ["old"]
        assert [learnware.name for learnware in store.learnwares()] == names
        assert all(text.startswith("info: blob") for text in store.verify())
        assert not any(name.startswith("blobs/tmp/") for name in files(market))
        assert (market / "index.sqlite").stat().st_size < 100_000
        if trap not in SURVIVES:
            store.clean()
            assert files(market) == before
        added = stock(store, "new", seed=1, samples=pixels())
        assert store.samples(added.id) == pixels()
        assert store.samples("old") == pixels(seed=5)
        assert store.fragment(key_of("a")) is not None
        assert store.verify() == []


def test_processes_that_add_remove_and_clean_at_once_all_succeed(tmp_path: Path) -> None:
    market = make_market(tmp_path / "market")
    results = run_forks([(ADD_MANY, [str(market), number]) for number in range(2)])
    assert results == [(0, "")] * 2
    with Store.open(market) as store:
        names = {learnware.name for learnware in store.learnwares()}
        own = {f"own-{number}-{step}" for number in range(2) for step in range(3)}
        assert names == own | {f"same-{step}" for step in range(3)} | {"old"}
        assert all(store.samples(name) == pixels() for name in own)
        assert (store.verify(), store.clean()) == ([], ())
