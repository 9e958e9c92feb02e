"""What README and the pages say is there, is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.schema import Case, Result
from benchmarks.table import BEGIN, END, table

#: Parts of addresses that hold on one machine or for one package index only; split, or they find themselves.
FORBIDDEN = tuple(
    "".join(parts)
    for parts in [
        ("/wor", "k/"),
        ("/roo", "t/"),
        ("/opt/", "wheels"),
        ("/opt/", "pypi"),
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("download.", "pytorch.org"),
        ("registry.", "npmjs"),
        ("extra-", "index-url"),
        ("--index", "-url"),
    ]
)
#: The one place that knows of a data folder beside the checkout.
KNOWS_THE_DATA_FOLDER = {".ci/run"}


def tracked(repository: Path) -> list[str]:
    """Paths of all files in git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (repository / name).is_file()]


def markdown(repository: Path) -> list[str]:
    return [name for name in tracked(repository) if name.endswith(".md")]


def test_every_make_target_that_a_page_names_exists(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    phony = set(" ".join(re.findall(r"^\.PHONY: (.+)$", makefile, re.M)).split())
    assert phony <= targets
    call = re.compile(r"(?:^|`|step \"[a-z ]+\" )make ([a-z][a-z-]*)", re.M)
    pages = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", ".ci/run")
    named = {
        (name, target)
        for name in pages
        for target in call.findall((repository / name).read_text(encoding="utf-8"))
    }
    assert {("README.md", "demo"), ("README.md", "test"), (".ci/run", "test")} <= named
    assert not sorted((name, target) for name, target in named if target not in targets)


def test_every_link_to_a_file_leads_to_one(repository: Path) -> None:
    broken = []
    for name in markdown(repository):
        text = (repository / name).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            place = link.partition("#")[0]
            if "://" not in link and place and not (repository / name).parent.joinpath(place).exists():
                broken.append(f"{name}: {link}")
    assert not broken


def test_the_index_names_every_decision(repository: Path) -> None:
    index = (repository / "docs" / "index.md").read_text(encoding="utf-8")
    notes = sorted(path.name for path in (repository / "docs" / "decisions").glob("*.md"))
    assert [int(name[:4]) for name in notes] == list(range(1, len(notes) + 1))
    assert not [name for name in notes if f"(decisions/{name})" not in index]


def test_no_file_names_a_place_that_only_one_machine_knows(repository: Path) -> None:
    found = []
    for name in tracked(repository):
        text = (repository / name).read_text(encoding="utf-8", errors="ignore")
        found += [f"{name}: {word}" for word in FORBIDDEN if word in text]
        if name not in KNOWS_THE_DATA_FOLDER and "../" + "shared" in text:
            found.append(f"{name}: names the data folder; read SARTO_DATA instead")
    assert not found


def test_every_benchmark_case_is_valid(repository: Path) -> None:
    cases = repository / "benchmarks" / "cases"
    paths = sorted(path for path in cases.rglob("*") if path.is_file())
    assert [path.suffix for path in paths] == [".yaml"] * len(paths)
    names = [path.stem for path in paths]
    assert [Case.read(path).name for path in paths] == names
    assert len(set(names)) == len(names), "results lie in one folder, whatever folder the case is in"


def test_the_table_of_results_is_that_of_the_result_files(repository: Path) -> None:
    folder = repository / "benchmarks" / "results"
    results = [Result.read(path) for path in folder.glob("*.json")]
    assert not [result.name for result in results if result.smoke], "smoke numbers are no results"
    text = (repository / "benchmarks" / "README.md").read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == table(folder), "run: python benchmarks/run.py --table"
