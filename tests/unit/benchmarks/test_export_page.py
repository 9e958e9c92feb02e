"""The tables of docs/export.md say what the result file says."""

from __future__ import annotations

import pytest

from benchmarks.export_page import PAGE, RESULT, page, tables
from benchmarks.schema import Result


@pytest.fixture(scope="module")
def result() -> Result:
    return Result.read(RESULT)


def test_the_page_is_that_of_the_result_file(result: Result) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(result), "run: python -m benchmarks.export_page"


def test_every_row_has_a_cell_and_every_refusal_its_reason(result: Result) -> None:
    lines = list(tables(result))
    cells = [
        cell.strip() for line in lines if line.startswith("| ") for cell in line.strip("|").split("|")[1:]
    ]
    refused = [row for row in result.rows if not row["exported"] and "not installed" not in row["note"]]
    assert cells.count("refused") == len(refused)
    assert sum("," in cell for cell in cells) == sum(row["exported"] for row in result.rows)
    for row in refused:
        assert any(line.startswith("Refused:") and row["model"] in line for line in lines)
