"""Labelled texts from files: tables with a label and a text, JSON lines, and folders of .txt files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sarto.errors import RequestError, suggest
from sarto.market.texts import TextSamples, decode_texts

#: Endings of files that hold texts with labels.
TABLES = (".tsv", ".csv", ".jsonl")
#: Largest file in bytes.
MAX_BYTES = 2**28
#: The two columns of a table.
COLUMNS = ("label", "text")

#: A text with its label and with where it stands, for messages.
_Row = tuple[str, str, str]


def read_texts(place: Path) -> TextSamples:
    """Samples from a table: .tsv, .csv or .jsonl, UTF-8.

    A table may begin with a line that names its two columns, `label` and `text`, in either order; without it the label
    comes first. JSON lines hold {"label": ..., "text": ...}.

    Raises:
        RequestError: not readable, not UTF-8, other columns, a line without label or text; all problems at once.
    """
    text, problems = read_utf8(place), list[str]()
    if place.suffix.lower() == ".jsonl":
        rows = list(_json_rows(text, problems))
    else:
        rows = list(_table_rows(text, "\t" if place.suffix.lower() == ".tsv" else ",", problems))
    return _samples(place, rows, problems)


def read_text_folder(place: Path, folders: Sequence[Path], listed: Sequence[Sequence[Path]]) -> TextSamples:
    """Samples from a folder with one sub-folder of .txt files a class, UTF-8, one text a file.

    Raises:
        RequestError: a file of another kind, one that is empty or not UTF-8; all problems at once.
    """
    rows, problems = list[_Row](), list[str]()
    for folder, files in zip(folders, listed, strict=True):
        if not files:
            problems.append(f"{folder.name}: no text in this class folder")
        for file in files:
            name = f"{folder.name}/{file.name}"
            if file.suffix.lower() != ".txt" or not file.is_file():
                problems.append(f"{name}: not a text; only .txt belongs here")
                continue
            try:
                rows.append((folder.name, read_utf8(file), name))
            except RequestError as error:
                problems.append(f"{name}: {error.detail}")
    return _samples(place, rows, problems)


def read_encoded_texts(path: Path) -> TextSamples:
    """Samples from a file that `TextSamples.encoded` wrote.

    Raises:
        RequestError: not such a file.
    """
    try:
        return decode_texts(path.read_bytes())
    except OSError as error:
        raise RequestError(f"samples {str(path)!r}: not readable ({error})", where=str(path)) from error
    except RequestError as error:
        raise RequestError(
            f"samples {str(path)!r}", where=str(path), problems=error.problems or (error.detail,)
        ) from None


def read_utf8(path: Path) -> str:
    """The text in a file.

    Raises:
        RequestError: not readable, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"more than {MAX_BYTES:,} bytes: give fewer texts (5-20 a class are enough)")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"not readable ({error.strerror or error})", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8", where=str(path)
        ) from error


def _table_rows(text: str, delimiter: str, problems: list[str]) -> Iterator[_Row]:
    # Tabs part the columns of a .tsv and quotes mean nothing there; a .csv follows the usual rules.
    lines = io.StringIO(text, newline="")
    if delimiter == "\t":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: Sequence[str] | None = None
    try:
        for cells in reader:
            line = f"line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                named = [cell.strip().lower() for cell in cells]
                columns = named if set(named) & set(COLUMNS) else COLUMNS
                if columns is named:
                    unfit = list(_column_problems(named))
                    if unfit:
                        problems.extend(f"{line}: {problem}" for problem in unfit)
                        return
                    continue
            if len(cells) != len(columns):
                kind = "tab" if delimiter == "\t" else "comma"
                problems.append(
                    f"{line}: {len(cells)} columns, label and text were expected, parted by one {kind}"
                )
                continue
            found = dict(zip(columns, cells, strict=True))
            yield found["label"].strip(), found["text"], line
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: {error}")


def _json_rows(text: str, problems: list[str]) -> Iterator[_Row]:
    for number, entry in enumerate(text.split("\n"), 1):
        if not entry.strip():
            continue
        try:
            found = json.loads(entry)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: not readable as JSON ({error})")
            continue
        if not isinstance(found, dict):
            problems.append(f'line {number}: {{"label": ..., "text": ...}} was expected')
            continue
        unfit = list(_column_problems(list(found)))
        unfit += [f"{name} must be text" for name in COLUMNS if not isinstance(found.get(name, ""), str)]
        problems.extend(f"line {number}: {problem}" for problem in unfit)
        if not unfit:
            yield found["label"].strip(), found["text"], f"line {number}"


def _column_problems(named: Sequence[str]) -> Iterator[str]:
    for name in named:
        if name not in COLUMNS:
            yield f"unknown column {name!r}{suggest(name, COLUMNS)}; only label and text are read"
    for name in COLUMNS:
        if named.count(name) != 1:
            yield f"column {name!r} is {'missing' if name not in named else 'there twice'}"


def _samples(place: Path, rows: Sequence[_Row], problems: list[str]) -> TextSamples:
    problems = problems + [f"{where}: the label is empty" for label, _, where in rows if not label]
    problems += [f"{where}: the text is empty: leave it out" for _, text, where in rows if not text.strip()]
    if not rows and not problems:
        problems = ["no text in it: give lines with a label and a text"]
    if problems:
        raise RequestError(f"samples {str(place)!r}", where=str(place), problems=problems)
    classes = tuple(sorted({label for label, _, _ in rows}))
    labels = np.array([classes.index(label) for label, _, _ in rows], dtype=np.int64)
    try:
        return TextSamples(tuple(text for _, text, _ in rows), labels, classes)
    except RequestError as error:
        raise RequestError(f"samples {str(place)!r}", where=str(place), problems=error.problems) from error
