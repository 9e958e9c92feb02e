"""The tables of docs/export.md say what the result files say."""

from __future__ import annotations

import pytest

from benchmarks.export_page import PAGE, page, results, tables, told_by
from benchmarks.schema import Result


@pytest.fixture(scope="module")
def found() -> list[Result]:
    return results()


def test_the_page_is_that_of_the_result_files(found: list[Result]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(found), "run: python -m benchmarks.export_page"


def test_every_row_has_a_cell_and_every_refusal_its_reason(found: list[Result]) -> None:
    lines, by = list(tables(found)), told_by(found)
    rows = [row for precision, result in by.items() for row in result.rows if row["precision"] == precision]
    assert rows and set(by) == {"float32", "float16", "int8"}
    cells = [
        cell.strip() for line in lines if line.startswith("| ") for cell in line.strip("|").split("|")[1:]
    ]
    refused = [row for row in rows if not row["exported"] and "not installed" not in row["note"]]
    assert cells.count("refused") == len(refused)
    assert sum("," in cell for cell in cells) == sum(row["exported"] for row in rows)
    for row in refused:
        assert any(line.startswith("Refused:") and row["model"] in line for line in lines)
