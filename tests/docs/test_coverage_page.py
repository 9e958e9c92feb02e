"""The page on coverage says what the result files say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.coverage_page import page
from benchmarks.schema import Result


def test_the_page_is_that_of_the_result_files(repository: Path) -> None:
    results = repository / "benchmarks" / "results"
    coverage, speed = (Result.read(results / f"{name}.json") for name in ("coverage", "surgery-speed"))
    text = (repository / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert text == page(coverage, speed), "run: python benchmarks/coverage_page.py"


def test_every_row_stands_on_the_page_once(repository: Path) -> None:
    coverage = Result.read(repository / "benchmarks" / "results" / "coverage.json")
    ours = (repository / "docs" / "coverage.md").read_text(encoding="utf-8").partition("## Torch-Pruning")[0]
    for row in coverage.rows:
        assert ours.count(f"\n| {row['architecture']} | ") == (row["outcome"] != "skipped"), row
        reason = " ".join(str(row["reason"]).split()).replace("|", "/").replace("<", "&lt;")
        assert reason in ours


def test_the_index_names_the_page(repository: Path) -> None:
    assert "(coverage.md)" in (repository / "docs" / "index.md").read_text(encoding="utf-8")
