"""Runs cases: checks them, measures them in one process each, writes the results."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import importlib
import inspect
import json
import numbers
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.place import revision, this_machine, version
from benchmarks.schema import Case, Result
from benchmarks.table import write_table
from sarto.errors import RequestError, SartoError, suggest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: Files of this folder that hold no benchmarks.
MACHINERY = frozenset({"place", "run", "runner", "schema", "table"})
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
#: Processes, for each that runs at once, which small runs share.
SHARED = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when every case gave a valid result, 2 for a bad case or call, 1 for a failed run."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description="run benchmark cases")
    parser.add_argument("cases", nargs="*", type=Path, help="case files; each runs in a process of its own")
    parser.add_argument("--smoke", action="store_true", help="run small, with the changes under `smoke`")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--json", action="store_true", help="print each result as one line on stdout")
    parser.add_argument("--jobs", type=int, default=1, help="cases that run at once; speeds need 1")
    parser.add_argument(
        "--together", action="store_true", help="small runs in one process, one after the other"
    )
    parser.add_argument("--table", action="store_true", help="write the table in benchmarks/README.md")
    options = parser.parse_args(argv)
    if not options.cases and not options.table:
        parser.error("name at least one case file, or --table")
    code = 0
    if options.together and not options.smoke:
        parser.error("--together is for --smoke: a real run has a process of its own")
    if options.together:
        codes = [run_one(path, smoke=True, out=options.out, as_json=options.json) for path in options.cases]
        code = max(codes, default=0)
    elif len(options.cases) == 1:
        code = run_one(options.cases[0], smoke=options.smoke, out=options.out, as_json=options.json)
    elif options.cases:
        code = _run_each(options)
    if options.table and code == 0:
        write_table(HERE / "README.md", options.out or HERE / "results")
    return code


def run_one(path: Path, *, smoke: bool = False, out: Path | None = None, as_json: bool = False) -> int:
    """Run one case and write its result; the exit code."""
    try:
        with contextlib.ExitStack() as stack:
            folder = out or HERE / "results"
            if smoke and out is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            case = read_case(path)
            _say(f"{case.name}{' (smoke)' if smoke else ''}: {case.run} on {case.threads} thread(s)")
            result = measure(case, smoke=smoke)
            folder.mkdir(parents=True, exist_ok=True)
            result.write(folder / f"{result.name}.json")
    except SartoError as error:
        _say(f"{path}: {error}")
        return 2 if isinstance(error, RequestError) else 1
    except Exception:
        _say(f"{path}: the benchmark failed\n{traceback.format_exc()}")
        return 1
    shown = ", ".join(f"{name} {number:.6g}" for name, number in result.numbers.items())
    _say(f"{result.name}: {result.wall_seconds:.1f} s, {shown}")
    if as_json:
        print(result.to_json(), flush=True)
    return 0


def read_case(path: Path) -> Case:
    """The case in a file; a path may also be given from this folder.

    Raises:
        RequestError: it is no case, or not named as its file.
    """
    case = Case.read(path if path.exists() or not (HERE / path).exists() else HERE / path)
    if case.name != path.stem:
        raise RequestError(
            f"name: {case.name!r} stands in {path.name}; name the file {case.name}.yaml", where=str(path)
        )
    return case


def measure(case: Case, *, smoke: bool = False) -> Result:
    """The result of one case, run in this process.

    What the function prints goes to stderr.

    Raises:
        RequestError: the case names no function, or parameters that it does not take.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = str(case.threads)
    function = find_function(case.run)
    parameters = case.effective(smoke)
    check_parameters(function, case)
    arguments = dict(parameters)
    if "seed" in inspect.signature(function).parameters:
        arguments["seed"] = case.seed
    _seed(case)
    commit, dirty = revision(ROOT)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    begun = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        found = function(**arguments)
    wall_seconds = time.perf_counter() - begun
    if not isinstance(found, Mapping):
        raise RequestError(
            f"{case.run} gave {type(found).__name__}; return a dict of numbers, and optionally 'rows'",
            where=case.name,
        )
    numbers_found = {str(name): _plain(number) for name, number in found.items() if name != "rows"}
    rows = [{str(name): _plain(cell) for name, cell in row.items()} for row in found.get("rows", ())]
    return Result.parse(
        {
            "name": case.name,
            "kind": case.kind,
            "about": case.about,
            "smoke": smoke,
            "commit": commit,
            "dirty": dirty,
            "machine": this_machine().model_dump(),
            "threads": case.threads,
            "python": version("python"),
            "torch": version("torch"),
            "seed": case.seed,
            "started": started,
            "wall_seconds": round(wall_seconds, 3),
            "parameters": parameters,
            "numbers": numbers_found,
            "rows": rows,
        }
    )


def find_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names, in a module of this folder.

    Raises:
        RequestError: no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    place = HERE.joinpath(*module_name.split(".")).with_suffix(".py")
    if not place.is_file() or module_name in MACHINERY:
        found = [".".join(file.relative_to(HERE).with_suffix("").parts) for file in HERE.rglob("[a-z]*.py")]
        known = set(found) - MACHINERY
        raise RequestError(f"run: no module {module_name!r} in benchmarks/{suggest(module_name, known)}")
    module = importlib.import_module(f"benchmarks.{module_name}")
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and not key.startswith("_") and value.__module__ == module.__name__
    }
    if function_name not in own:
        near = suggest(function_name, own)
        raise RequestError(f"run: no function {function_name!r} in {module_name}{near}")
    return own[function_name]


def check_parameters(function: Callable[..., Any], case: Case) -> None:
    """Nothing, when the function takes exactly what the case gives.

    Raises:
        RequestError: names every parameter that is unknown or missing.
    """
    taken = inspect.signature(function).parameters
    plain = {name: p for name, p in taken.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    problems = [
        f"{case.run} takes {taken[name]}; name them one by one" for name in taken.keys() - plain.keys()
    ]
    known = plain.keys() - {"seed"}
    for section, given in (("parameters", case.parameters), ("smoke", case.smoke)):
        for name in given:
            if name == "seed":
                problems.append(f"{section}.seed: the seed has a key of its own; write `seed:` in the case")
            elif name not in known:
                problems.append(f"{section}.{name}: {case.run} has no such parameter{suggest(name, known)}")
    for name in sorted(known - case.parameters.keys()):
        if plain[name].default is inspect.Parameter.empty:
            problems.append(f"parameters.{name}: {case.run} needs it")
    if problems:
        raise RequestError(problems[0], problems=problems)


def _run_each(options: argparse.Namespace) -> int:
    """Run every case in a process of its own, so that none warms or burdens the next; the worst exit code.

    Small runs share a few processes, since starting takes longer than running; where one of a process fails, each of
    its cases runs alone. Of small cases that are the same run, one is run and the others are only checked.
    """
    flags = ["--smoke"] * options.smoke + ["--json"] * options.json
    flags += ["--out", str(options.out)] if options.out is not None else []
    twins = _twins(options.cases) if options.smoke else {}
    for path, first in twins.items():
        _say(f"{path.stem} (smoke): the same small run as {first.stem}")
    left = [path for path in options.cases if path not in twins]
    size = -(-len(left) // (SHARED * max(1, options.jobs))) if options.smoke else 1
    groups = [left[start : start + size] for start in range(0, len(left), max(1, size))]

    def started(paths: Sequence[Path], *more: str) -> int:
        command = [sys.executable, str(HERE / "run.py"), *map(str, paths), *flags, *more]
        return subprocess.run(command, check=False).returncode

    def run(paths: Sequence[Path]) -> dict[Path, int]:
        if len(paths) > 1 and started(paths, "--together") == 0:
            return dict.fromkeys(paths, 0)
        return {path: started([path]) for path in paths}

    codes = dict.fromkeys(twins, 0)
    with concurrent.futures.ThreadPoolExecutor(max(1, options.jobs)) as pool:
        for found in pool.map(run, groups):
            codes |= found
    failed = [f"\n  {path}" for path, code in codes.items() if code != 0]
    _say(f"{len(codes) - len(failed)} cases passed, {len(failed)} failed{''.join(failed)}")
    return max(abs(code) for code in codes.values())


def _twins(paths: Sequence[Path]) -> dict[Path, Path]:
    """Cases that are sound and whose small run is that of an earlier one -> that one."""
    first: dict[str, Path] = {}
    twins: dict[Path, Path] = {}
    for path in paths:
        try:
            case = read_case(path)
            check_parameters(find_function(case.run), case)
        except SartoError:
            continue  # its own run says what is wrong
        run = json.dumps([case.run, case.effective(True), case.seed, case.threads], sort_keys=True)
        if run in first:
            twins[path] = first[run]
        first.setdefault(run, path)
    return twins


def _seed(case: Case) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(case.threads)
    random.seed(case.seed)
    np.random.seed(case.seed)
    torch.manual_seed(case.seed)


def _plain(value: Any) -> Any:
    """Numbers of numpy as numbers of Python; everything else as it is."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
