"""The table of results in README.md: one row a result, read from the result files."""

from __future__ import annotations

from pathlib import Path

from benchmarks.schema import Result

BEGIN = "<!-- results: written by `python benchmarks/run.py --table` -->"
END = "<!-- end of results -->"
#: Numbers of a result that stand in its row; the others are in its file.
SHOWN = 24


def table(results: Path) -> str:
    """Markdown rows of all results in a folder, by kind and name."""
    found = sorted((Result.read(path) for path in results.glob("*.json")), key=lambda r: (r.kind, r.name))
    lines = ["| case | kind | numbers | commit | machine |", "|---|---|---|---|---|"]
    lines += [_row(result) for result in found]
    return "\n".join(lines)


def write_table(readme: Path, results: Path) -> None:
    """Put the table between its two marks in a README."""
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


def _row(result: Result) -> str:
    numbers = list(result.numbers.items())
    shown = "; ".join(f"{name} {_show(number)}" for name, number in numbers[:SHOWN])
    if len(numbers) > SHOWN:
        shown += f"; {len(numbers) - SHOWN} more in the file"
    commit = f"`{result.commit[:9]}`" if result.commit else "none"
    commit += " with changes" if result.dirty else ""
    machine = result.machine
    place = f"{machine.processor}, {result.threads} of {machine.cores} threads, torch {result.torch}"
    name = f"[{result.name}](results/{result.name}.json)" + (f"<br>{result.about}" if result.about else "")
    return f"| {name} | {result.kind} | {shown} | {commit} | {place} |"


def _show(number: int | float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"
