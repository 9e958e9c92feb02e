"""Writes the tables of docs/export.md from `exports` and `exports-int8`: python -m benchmarks.export_page"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.schema import Result

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "export.md", ROOT / "benchmarks" / "results"
#: Later ones take the place of earlier ones, precision by precision.
CASES = ("exports", "exports-int8")
BEGIN, END = "<!-- tables: written by `python -m benchmarks.export_page` -->", "<!-- end of tables -->"
TITLES = {
    "float32": "Single precision: time beside eager PyTorch's, and megabytes",
    "float16": "Half precision: time beside that of eager PyTorch in single precision, and megabytes",
    "int8": "int8: points of accuracy lost on the test images, time beside that of eager PyTorch, and megabytes",
}
Rows = Sequence[Mapping[str, Any]]


def results() -> list[Result]:
    """The results that there are."""
    return [Result.read(path) for case in CASES if (path := RESULTS / f"{case}.json").exists()]


def page(found: Sequence[Result]) -> str:
    """The page with the tables of results in place of those that it has."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    body = "\n".join(tables(found))
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def told_by(found: Sequence[Result]) -> dict[str, Result]:
    """Precision -> the last result that has rows of it."""
    return {str(row["precision"]): result for result in found for row in result.rows}


def tables(found: Sequence[Result]) -> Iterator[str]:
    """Lines of all tables: a model a row, a format a column."""
    by = told_by(found)
    for precision, title in TITLES.items():
        if precision not in by:
            continue
        result = by[precision]
        rows = [row for row in result.rows if row["precision"] == precision]
        formats = list(dict.fromkeys(str(row["format"]) for row in result.rows))
        there = [name for name in formats if any(row["format"] == name for row in rows)]
        yield f"**{title}**"
        yield ""
        yield f"| | {' | '.join(there)} |"
        yield "|---" * (len(there) + 1) + "|"
        for model in dict.fromkeys(row["model"] for row in rows):
            cells = {row["format"]: _cell(row) for row in rows if row["model"] == model}
            yield f"| {model} | {' | '.join(cells.get(name, '') for name in there)} |"
        yield ""
        yield f"([{result.name}](../benchmarks/results/{result.name}.json), {result.machine.processor}.)"
        yield from _told(precision, rows)


def _cell(row: Mapping[str, Any]) -> str:
    if not row["exported"]:
        return "not installed" if "not installed" in row["note"] else "refused"
    cell = f"{row['to_eager_ratio']:.2f}, {row['size_bytes'] / 1e6:.2f}"
    if row["precision"] != "int8":
        return cell
    return f"{row['lost_points']:+.2f}, {cell}" if row["lost_points"] is not None else cell


def _told(precision: str, rows: Rows) -> Iterator[str]:
    """What the table does not show: differences from eager, and why files were refused."""
    done = [row for row in rows if row["exported"]]
    if done and precision != "int8":
        worst = max(done, key=lambda row: row["max_difference"])
        yield (
            f"Largest difference from eager, relative to the largest output: {worst['max_difference']:.1g} "
            f"({worst['model']}, {worst['format']})."
        )
    elif done:
        worst = max(done, key=lambda row: row["lost_points"] or 0.0)
        yield (
            f"Calibrated on training images and judged on {worst['n_samples']:,} test images; most is lost by "
            f"{worst['model']} in {worst['format']}: {worst['lost_points']:.2f} points."
        )
    for row in rows:
        if not row["exported"] and "not installed" not in row["note"]:
            yield f"Refused: {row['note'].partition(';')[0]} ({row['model']})."
    yield ""


def main() -> None:
    PAGE.write_text(page(results()), encoding="utf-8")


if __name__ == "__main__":
    main()
