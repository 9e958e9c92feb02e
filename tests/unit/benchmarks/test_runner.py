"""The benchmark runner: what a result holds, and what is refused before or after a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import benchmarks
from benchmarks import runner
from benchmarks.place import data_folder, revision
from benchmarks.schema import Case, Result
from benchmarks.table import BEGIN, END, table, write_table
from sarto.errors import RequestError

TINY = """
    import numpy as np

    def add(x: float, *, times: int = 1, seed: int = 0):
        print("printed by the benchmark")
        return {"sum_ratio": np.float32(x) * times, "n_runs": np.int64(times), "n_seed": seed,
                "rows": [{"who": "a", "x": np.float64(x)}]}

    def unitless():
        return {"speed": 1.0, "Bad Name": 1, "error": float("nan"), "n_flags": True}

    def nothing():
        return None

    def empty():
        return {"rows": []}

    def broken():
        raise ZeroDivisionError("by design")

    def open_ended(**anything):
        return {"n_runs": 1}

    def _private():
        return {"n_runs": 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks with one module, `tiny`."""
    (tmp_path / "tiny.py").write_text(dedent(TINY))
    monkeypatch.setattr(runner, "HERE", tmp_path)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    for name in runner.THREAD_VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.delitem(sys.modules, "benchmarks.tiny", raising=False)
    return tmp_path


def write_case(folder: Path, **keys: object) -> Path:
    case = {"name": "adds", "kind": "cost", "run": "tiny:add", "parameters": {"x": 0.5, "times": 6}} | keys
    path = folder / f"{case['name']}.yaml"
    path.write_text(json.dumps(case))
    return path


def case(**keys: object) -> Case:
    return Case.parse({"name": "adds", "kind": "cost", "run": "tiny:add", **keys})


def test_a_run_writes_one_result_that_says_where_its_numbers_come_from(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_case(folder, seed=7, smoke={"times": 2})
    assert runner.main([str(path), "--out", str(folder / "out"), "--json"]) == 0
    result = Result.read(folder / "out" / "adds.json")
    assert result.numbers == {"sum_ratio": 3.0, "n_runs": 6, "n_seed": 7}
    assert result.rows == ({"who": "a", "x": 0.5},)
    assert result.parameters == {"x": 0.5, "times": 6}
    assert (result.seed, result.threads, result.smoke, result.kind) == (7, 1, False, "cost")
    assert result.machine.cores >= 1 and result.machine.processor
    assert result.python == sys.version.split()[0]
    assert result.torch is not None and 0 <= result.wall_seconds < 60
    printed, said = capfd.readouterr()
    assert Result.parse(printed) == result
    assert "printed by the benchmark" in said and "sum_ratio 3" in said


def test_a_smoke_run_is_small_and_leaves_no_result(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_case(folder, smoke={"times": 2})
    assert runner.main([str(path), "--smoke", "--json"]) == 0
    result = Result.parse(capfd.readouterr().out)
    assert result.smoke and result.numbers["n_runs"] == 2
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kid": 1}, r"kid.*unknown.*kind"),
        ({"kind": "cheap"}, "kind: .*quality"),
        ({"name": "Adds!"}, "name: "),
        ({"run": "../tiny:add"}, "run: "),
        ({"threads": 0}, "threads: "),
        ({"seed": -1}, "seed: "),
    ],
)
def test_a_case_with_an_odd_key_or_value_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        case(**keys)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("tyny:add", r"no module 'tyny' in benchmarks/ \(did you mean 'tiny'"),
        ("runner:main", "no module 'runner'"),
        ("tiny:ad", r"no function 'ad' in tiny \(did you mean 'add'"),
        ("tiny:_private", "no function '_private'"),
        ("tiny:np", "no function 'np'"),
    ],
)
def test_a_function_that_is_not_there_is_refused(folder: Path, run: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        runner.find_function(run)


def test_all_wrong_parameters_are_named_at_once(folder: Path) -> None:
    odd = case(parameters={"tims": 1, "seed": 3}, smoke={"y": 0})
    with pytest.raises(RequestError) as caught:
        runner.measure(odd)
    assert len(caught.value.problems) == 4
    assert "parameters.tims: tiny:add has no such parameter (did you mean 'times'?)" in str(caught.value)
    assert "write `seed:` in the case" in str(caught.value)
    assert "smoke.y: " in str(caught.value) and "parameters.x: tiny:add needs it" in str(caught.value)


def test_a_function_that_takes_anything_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"takes \*\*anything; name them one by one"):
        runner.measure(case(run="tiny:open_ended"))


@pytest.mark.parametrize(
    ("run", "messages"),
    [
        (
            "tiny:unitless",
            ["'speed' says no unit", "'Bad Name' is not a name", "'error' is nan", "'n_flags' is True"],
        ),
        ("tiny:empty", ["no number at all"]),
        ("tiny:nothing", ["gave NoneType; return a dict of numbers"]),
    ],
)
def test_numbers_without_name_unit_or_value_are_refused(folder: Path, run: str, messages: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        runner.measure(case(run=run))
    assert all(message in str(caught.value) for message in messages), str(caught.value)


def test_a_case_has_the_name_of_its_file(folder: Path) -> None:
    path = write_case(folder)
    moved = path.rename(folder / "other.yaml")
    with pytest.raises(RequestError, match=r"'adds' stands in other.yaml; .*adds\.yaml"):
        runner.read_case(moved)


def test_exit_codes_tell_a_bad_case_from_a_failed_run(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fails = write_case(folder, name="fails", run="tiny:broken", parameters={})
    assert runner.main([str(folder / "missing.yaml"), "--smoke"]) == 2
    assert runner.main([str(fails), "--smoke"]) == 1
    assert "ZeroDivisionError: by design" in capfd.readouterr().err


def test_several_cases_run_apart_and_one_bad_case_fails_them_all(repository: Path, tmp_path: Path) -> None:
    bad = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for path in bad:
        path.write_text("name: " + path.stem)
    command = [sys.executable, str(repository / "benchmarks" / "run.py"), *map(str, bad)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "0 cases passed, 2 failed" in done.stderr
    assert done.stderr.count("run: ") == 2


def test_of_small_cases_that_are_the_same_run_one_runs_and_all_are_checked(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [
        write_case(folder, name="large", smoke={"times": 1}),
        write_case(folder, name="larger", parameters={"x": 0.5, "times": 9}, smoke={"times": 1}),
        write_case(folder, name="other", smoke={"times": 2}),
        write_case(folder, name="misspelt", smoke={"times": 1, "y": 2}),
    ]
    ran: list[list[str]] = []

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runner.subprocess, "run", note)
    assert runner.main([*map(str, paths), "--smoke"]) == 0
    assert [path for given in ran for path in given if path != "--smoke"] == [
        str(path) for path in (paths[0], paths[2], paths[3])
    ]
    assert "larger (smoke): the same small run as large" in capfd.readouterr().err
    ran.clear()
    assert runner.main([str(path) for path in paths]) == 0
    assert len(ran) == 4, "runs of full size are all run"


def test_small_runs_share_processes_and_alone_tell_which_fails(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_case(folder, name=f"case{i}", smoke={"times": i}) for i in range(1, 10)]
    ran: list[list[str]] = []

    def note(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command[2:])
        return subprocess.CompletedProcess(command, 1 if str(paths[4]) in command else 0)

    with monkeypatch.context() as patched:
        patched.setattr(runner.subprocess, "run", note)
        assert runner.main([*map(str, paths), "--smoke"]) == 1
    said = capfd.readouterr().err
    assert "8 cases passed, 1 failed" in said and str(paths[4]) in said.split("failed")[1]
    together = [given for given in ran if "--together" in given]
    alone = [given for given in ran if "--together" not in given]
    assert sum(len(given) - 2 for given in together) == len(paths) and len(together) < len(paths)
    assert [str(paths[4]), "--smoke"] in alone and len(alone) < len(paths)
    assert runner.main([*map(str, paths[:2]), "--smoke", "--together"]) == 0
    with pytest.raises(SystemExit):
        runner.main([*map(str, paths[:2]), "--together"])


def test_revision_sees_changes_but_not_results(tmp_path: Path) -> None:
    assert revision(tmp_path) == (None, True)

    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
        done = subprocess.run(
            ["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", "code.py")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert revision(tmp_path) == (head, False)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "adds.json").write_text("{}")
    assert revision(tmp_path) == (head, False)
    (tmp_path / "code.py").write_text("x = 2\n")
    assert revision(tmp_path) == (head, True)


def test_the_table_has_one_row_a_result_and_keeps_the_text_around_it(folder: Path) -> None:
    out = folder / "out"
    for name in ("adds", "adds-more"):
        assert runner.main([str(write_case(folder, name=name, about="adds up")), "--out", str(out)]) == 0
    readme = folder / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(readme, out)
    text = readme.read_text()
    assert text == f"before\n{BEGIN}\n{table(out)}\n{END}\nafter\n"
    rows = text.splitlines()[4:6]
    assert [row.split("]")[0] for row in rows] == ["| [adds", "| [adds-more"]
    assert "n_runs 6; n_seed 0; sum_ratio 3" in rows[0] and "adds up" in rows[0]
    write_table(readme, out)
    assert readme.read_text() == text


def test_data_that_nobody_named_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SARTO_DATA", raising=False)
    with pytest.raises(RequestError, match="SARTO_DATA is not set: it names the folder of the data sets and"):
        data_folder()
    monkeypatch.setenv("SARTO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match=r"SARTO_DATA names .*nowhere, which is no folder"):
        data_folder()
    monkeypatch.setenv("SARTO_DATA", str(tmp_path))
    assert data_folder() == tmp_path
