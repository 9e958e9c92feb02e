"""`sarto stock`: fragments ahead of orders; and the list of those that are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli.output import Debug, Json, MarketPath, console, emit, names, numbers, progress, told
from sarto.errors import RequestError

if TYPE_CHECKING:
    from sarto.pipeline.stocking import Pruned, Stocking

DEFAULT = "market"


def stock(
    which: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Learnwares; else all that have samples.")
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Shares of the donor's extractor, with commas; else 0.8,0.4.")
    ] = "",
    classes: Annotated[str, typer.Option(help="Only these classes, with commas; else all.")] = "",
    samples_per_class: Annotated[
        int | None, typer.Option(help="Slice with the first k samples of each class, for orders that do so.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="How many may work at once; 1: none beside this; else one a core.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Slice what this order (YAML or JSON) builds: its sizes, and fronts that classes share.",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Slice and replace also what is stocked.")] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Slice nothing: remove fragments of removed learnwares and older settings."
        ),
    ] = False,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Slice every class of every learnware ahead of orders; only what is missing is made."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        given = {
            "--sizes": sizes,
            "--classes": classes,
            "--samples-per-class": samples_per_class,
            "--processes": processes,
        }
        if prune:
            _check_needless("--prune slices nothing", {**given, "--again": again, "--for": order})
            with Market.open(market) as opened:
                _tell_pruned(opened.prune_fragments(*(which or ())), as_json=as_json)
            return
        if order is not None:
            from sarto.types import Request

            _check_needless("--for: the order says what is sliced", {"NAME": which, **given})
            request = Request.read(order)
            with Market.open(market) as opened, progress(quiet=as_json, counted=True) as tell:
                done = opened.stock_order(request, again=again, progress=tell)
            _end(done, as_json=as_json)
            return
        shares = {"sizes": numbers(sizes, "--sizes")} if sizes else {}
        with Market.open(market) as opened, progress(quiet=as_json, counted=True) as tell:
            done = opened.stock_fragments(
                which or (),
                **shares,
                classes=names(classes),
                samples_per_class=samples_per_class,
                processes=processes,
                again=again,
                progress=tell,
            )
        _end(done, as_json=as_json)


def _check_needless(why: str, given: Mapping[str, object]) -> None:
    needless = [option for option, value in given.items() if value not in ("", None, False, [])]
    if needless:
        raise RequestError(f"{why}; leave out {', '.join(needless)}")


def fragments_table(found: Iterable[dict[str, Any]]) -> None:
    """Print fragments, one a row."""
    from rich.table import Table

    table = Table("learnware", "classes", "share", "parameters", "samples", "seconds", "created", "key")
    for item in found:
        table.add_row(
            str(item["name"]),
            ", ".join(item["classes"]) or "all alike",
            "" if item["share"] is None else f"{item['share']:.1%}",
            "" if item["params"] is None else f"{item['params']:,}",
            str(item["samples"] or "")[7:15],
            "" if item["seconds"] is None else f"{item['seconds']:.2f}",
            item["created"][:19],
            item["key"][7:19],
        )
    console().print(table)


def _end(done: Stocking, *, as_json: bool) -> None:
    """Say what was stocked; the exit code tells whether something failed."""
    if as_json:
        emit(done.to_plain())
    else:
        typer.echo(
            f"stocked {len(done.made)} fragments in {done.seconds:.1f} s; {len(done.present)} were there already"
        )
    for reason in done.skipped:
        typer.echo(f"note: {reason}", err=True)
    for failed in done.failed:
        piece = failed.piece
        size = "" if piece.share is None else f" at {piece.share:.1%}"
        typer.echo(f"error: {piece.cls} of {piece.name}{size}: {failed.reason}", err=True)
    for line in _left(done):
        typer.echo(line, err=True)
    if done.failed:
        raise typer.Exit(1)


def _left(done: Stocking) -> list[str]:
    """What the fragments that failed leave behind, a line for each case."""
    missing = [failed for failed in done.failed if failed.left == "missing"]
    older = [failed for failed in done.failed if failed.left == "older"]
    gone = dict.fromkeys(failed.piece.name for failed in done.failed if failed.left == "removed")
    lines = [
        f"learnware {name!r} was removed meanwhile: its fragments are not needed any more" for name in gone
    ]
    if older:
        lines.append(
            f"{len(older)} fragments could not be replaced; none is missing: the older ones are still there"
        )
    if missing:
        lines.append(
            f"{len(missing)} fragments are missing; run the same command again to try them once more"
        )
    return lines


def _tell_pruned(done: Pruned, *, as_json: bool) -> None:
    if as_json:
        emit(done.to_plain())
        return
    for key, reason in done.removed:
        typer.echo(f"  {key[7:19]}: {reason}")
    typer.echo(f"removed {len(done.removed)} fragments; {done.freed_bytes:,} bytes freed")
