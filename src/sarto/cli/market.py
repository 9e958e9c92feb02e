"""`sarto market init`, `add`, `ls`, `show`, `rm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sarto.cli.output import Debug, Json, MarketPath, console, emit, names, numbers, progress, told
from sarto.errors import RequestError

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


def add(
    source: Annotated[
        str, typer.Argument(help="package.module:factory, or a folder with a graph file.")
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the learnware.")] = "",
    classes: Annotated[str, typer.Option(help="Class names in the order of the outputs, with commas.")] = "",
    arg: Annotated[
        list[str] | None, typer.Option(help="Argument of the factory, key=value (JSON values).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights in a safetensors file.")] = None,
    samples: Annotated[
        str | None, typer.Option(help="A few labelled images: a folder a class, sheets, or .npz.")
    ] = None,
    size: Annotated[str, typer.Option(help="Height,width of the images that the model reads.")] = "32,32",
    mean: Annotated[str, typer.Option(help="Mean of each channel, on the scale 0..1.")] = "0,0,0",
    std: Annotated[str, typer.Option(help="Standard deviation of each channel.")] = "1,1,1",
    resize: Annotated[str, typer.Option(help="Images of another size: refuse or bilinear.")] = "refuse",
    card: Annotated[
        str | None, typer.Option(help="JSON with name, factory, arguments, classes, preprocessing.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the model.")] = "",
    notes: Annotated[str, typer.Option(help="Anything worth knowing.")] = "",
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Stock a model: capture it, prove the graph, count its costs, measure its skill."""
    with told(as_json=as_json, debug=debug):
        described = _card(card) if card else {}
        source = source or str(described.get("factory", ""))
        wanted = names(classes) or list(described.get("classes", []))
        called = name or str(described.get("name", ""))
        missing = [
            text
            for text, value in (
                ("SOURCE: package.module:factory or a graph folder (or --card)", source),
                ("--name", called),
                ("--classes", wanted),
            )
            if not value
        ]
        if missing:
            raise RequestError("can't add a model", problems=[f"{text} is missing" for text in missing])
        preprocessing = described.get("preprocessing") or {
            "size": [int(value) for value in numbers(size, "--size")],
            "channels": len(numbers(mean, "--mean")),
            "mean": numbers(mean, "--mean"),
            "std": numbers(std, "--std"),
            "resize": resize,
        }
        weights = weights or _beside(card)
        from sarto.pipeline import Market, load_source
        from sarto.types import Preprocessing

        checked = Preprocessing.parse(preprocessing)
        shape = (checked.channels, *(checked.size or (32, 32)))
        with Market.open(market) as opened, progress(quiet=as_json) as tell:
            tell("capturing", 0, 1)
            loaded = load_source(
                source,
                arguments={**described.get("arguments", {}), **factory_arguments(arg or [])},
                weights=weights,
                input_shape=shape,
            )
            learnware = opened.add(
                loaded.graph,
                name=called,
                classes=wanted,
                preprocessing=checked,
                samples=samples,
                licence=licence or str(described.get("licence", "")),
                notes=notes,
                origin=loaded.origin,
                progress=tell,
            )
        if as_json:
            emit(json.loads(learnware.to_json()))
            return
        typer.echo(f"stocked {learnware.name} ({learnware.id[7:19]}): {', '.join(learnware.classes)}")
        typer.echo(f"  {learnware.cost.params:,} parameters, {learnware.cost.flops:,} FLOPs an image")
        if learnware.skill:
            told_skill = ", ".join(f"{cls} {value:.0%}" for cls, value in learnware.skill.items())
            typer.echo(f"  recall on its samples: {told_skill}")
        else:
            typer.echo(
                "  no samples: it can't be sliced by class from its own samples; orders must bring theirs"
            )


def ls(market: MarketPath = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    """List what the market holds."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.open(market) as opened:
            learnwares, fragments = opened.learnwares(), opened.store.fragments()
        if as_json:
            emit(
                {
                    "learnwares": [json.loads(item.to_json()) for item in learnwares],
                    "n_fragments": len(fragments),
                }
            )
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
        typer.echo(f"{len(learnwares)} learnwares, {len(fragments)} fragments")


def show(
    which: Annotated[str, typer.Argument(help="Name, id, or the first 6 digits of the id.")],
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Everything that the market knows of a learnware."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.open(market) as opened:
            learnware = opened.get(which)
        if as_json:
            emit(json.loads(learnware.to_json()))
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


def _card(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"can't read the card {path}: {error}", where=path) from None
    if not isinstance(found, dict):
        raise RequestError(f"the card {path} is no JSON object", where=path)
    return found


def _beside(card: str | None) -> str | None:
    path = Path(card).with_suffix(".safetensors") if card else None
    return str(path) if path is not None and path.is_file() else None


def factory_arguments(given: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise RequestError(f"--arg {text!r}: write key=value, for instance n_classes=10")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
