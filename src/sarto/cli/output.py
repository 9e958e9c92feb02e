"""How commands speak: tables for people, one JSON object for machines, errors in one line."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

from sarto.errors import InfeasibleError, RequestError, SartoError, ShapeError

Json = Annotated[bool, typer.Option("--json", help="One JSON object to standard output, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
MarketPath = Annotated[
    str,
    typer.Option("--market", "-m", envvar="SARTO_MARKET", help="Folder of the market.", show_default=True),
]


def emit(value: Any) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(value, sort_keys=True, ensure_ascii=False))


@contextmanager
def told(*, as_json: bool, debug: bool) -> Iterator[None]:
    """Turn errors into one line (and one JSON object) and an exit code: 2 for a bad request, 1 for the rest."""
    try:
        yield
    except SartoError as error:
        if debug:
            traceback.print_exc()
        if as_json:
            emit({"error": error.to_json()})
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        bad = isinstance(error, RequestError | ShapeError | InfeasibleError)
        raise typer.Exit(2 if bad else 1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command again to go on", err=True)
        raise typer.Exit(130) from None


@contextmanager
def progress(
    *, quiet: bool, counted: bool = False, lines: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error; silent where nobody looks.

    Args:
        counted: show how many of how many are done, and the time left, in place of the time that went by.
        lines: for work of hours: where nobody looks, a line for each tenth of it.
    """
    if quiet or not sys.stderr.isatty():
        yield _tenths() if lines else lambda step, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [MofNCompleteColumn(), TimeRemainingColumn()] if counted else [TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def update(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        yield update


def _tenths() -> Callable[[str, int, int], None]:
    """A line on standard error at the first and the last of what is done, and after each tenth of it."""
    last = [""]

    def tell(step: str, done: int, total: int) -> None:
        place = f"{step.partition(' ')[0]} {10 * (done - 1) // max(1, total)}"
        if place != last[0] or done == total:
            typer.echo(f"{done:,} of {total:,}: {step}", err=True)
        last[0] = place

    return tell


def console() -> Console:
    """Standard output for tables; wide where it is no terminal, so that nothing is cut off in a file."""
    from rich.console import Console

    # Names come from users: square brackets in them are no markup.
    return Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)


def names(text: str | None) -> list[str]:
    """'a, b,c' -> ['a', 'b', 'c']."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def numbers(text: str, option: str) -> list[float]:
    """'0.5,0.5' -> [0.5, 0.5].

    Raises:
        RequestError: a part is no number.
    """
    try:
        return [float(part) for part in names(text)]
    except ValueError:
        raise RequestError(
            f"{option}: {text!r} is no list of numbers; write them with commas, 0.5,0.5,0.5"
        ) from None
