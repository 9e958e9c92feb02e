"""`sarto market init`, `ls`, `show`, `rm`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sarto.cli.output import Debug, Json, MarketPath, console, emit, told
from sarto.cli.stocking import fragments_table

DEFAULT = "market"


def init(
    path: Annotated[str, typer.Argument(help="A new or empty folder.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an empty market."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.create(path) as market:
            if as_json:
                emit({"market": str(market.path)})
            else:
                typer.echo(f"made the market {market.path}; stock it with: sarto add -m {market.path} ...")


def ls(
    fragments: Annotated[bool, typer.Option("--fragments", help="List the stocked fragments.")] = False,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what the market holds."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.open(market) as opened:
            learnwares, found = opened.learnwares(), opened.fragments()
            supernets = list(opened.store.supernets)
        if as_json:
            emit(
                {
                    "learnwares": [json.loads(item.to_json()) for item in learnwares],
                    "n_fragments": len(found),
                    "supernets": [json.loads(item.to_json()) for item in supernets],
                    **({"fragments": found} if fragments else {}),
                }
            )
            return
        if fragments:
            fragments_table(found)
            typer.echo(f"{len(found)} fragments of {len(learnwares)} learnwares")
            return
        from rich.table import Table

        table = Table("name", "id", "classes", "samples", "parameters", "FLOPs", "licence")
        for item in learnwares:
            table.add_row(
                item.name,
                item.id[7:19],
                ", ".join(item.classes),
                str(sum(item.n_samples.values())),
                f"{item.cost.params:,}",
                f"{item.cost.flops:,}",
                item.licence,
            )
        console().print(table)
        more = (
            f", {len(supernets)} supernet{'s' * (len(supernets) > 1)} (sarto factory ls)" if supernets else ""
        )
        typer.echo(f"{len(learnwares)} learnwares, {len(found)} fragments{more}")


def show(
    which: Annotated[str, typer.Argument(help="Name, id, or the first 6 digits of the id.")],
    fragments: Annotated[bool, typer.Option("--fragments", help="List the fragments made from it.")] = False,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Everything that the market knows of a learnware."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.open(market) as opened:
            learnware = opened.get(which)
            found = opened.fragments(which) if fragments else []
        if as_json:
            emit({**json.loads(learnware.to_json()), **({"fragments": found} if fragments else {})})
        elif fragments:
            fragments_table(found)
            typer.echo(f"{len(found)} fragments of {learnware.name}")
        else:
            typer.echo(learnware.to_yaml().rstrip())


def rm(
    which: Annotated[str, typer.Argument(help="Name, id, or the first 6 digits of the id.")],
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take a learnware out of the market, with the fragments made from it."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.open(market) as opened:
            removed = opened.remove(which)
        if as_json:
            emit(
                {
                    "removed": removed.learnware.id,
                    "fragments": list(removed.fragments),
                    "freed_bytes": removed.freed_bytes,
                }
            )
        else:
            typer.echo(
                f"removed {removed.learnware.name} and {len(removed.fragments)} fragments made from it; "
                f"{removed.freed_bytes:,} bytes freed"
            )
