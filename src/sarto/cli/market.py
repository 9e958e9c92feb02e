"""`sarto market init`, `add`, `ls`, `show`, `rm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli.output import Debug, Json, MarketPath, console, emit, names, numbers, progress, told
from sarto.cli.stocking import fragments_table
from sarto.errors import RequestError

if TYPE_CHECKING:
    from sarto.pipeline import Source
    from sarto.types import Preprocessing

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
        str,
        typer.Argument(
            help="package.module:factory, timm:NAME, torchvision:NAME, a transformers or graph folder, .pt2, .onnx."
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the learnware.")] = "",
    classes: Annotated[
        str,
        typer.Option(help="Class names in the order of the outputs, with commas; else those of the source."),
    ] = "",
    arg: Annotated[
        list[str] | None, typer.Option(help="Argument of the factory, key=value (JSON values).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights in a safetensors file.")] = None,
    samples: Annotated[
        str | None, typer.Option(help="A few labelled images: a folder a class, sheets, or .npz.")
    ] = None,
    size: Annotated[
        str,
        typer.Option(help="Height,width of the images that the model reads; else the source's, else 32,32."),
    ] = "",
    mean: Annotated[
        str, typer.Option(help="Mean of each channel, on the scale 0..1; else the source's, else 0.")
    ] = "",
    std: Annotated[
        str, typer.Option(help="Standard deviation of each channel; else the source's, else 1.")
    ] = "",
    resize: Annotated[
        str, typer.Option(help="Images of another size: refuse or bilinear; else the source's, else refuse.")
    ] = "",
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
        said = described.get("preprocessing") or _preprocessing(size, mean, std, resize)
        weights = weights or _beside(card)
        # A factory says nothing about images and classes; the others may.
        factory = ":" in source and not source.startswith(("timm:", "torchvision:"))
        missing = [
            text
            for text, absent in (
                ("SOURCE: package.module:factory, a model folder or file (or --card)", not source),
                ("--name", not called),
                ("--classes", not wanted and (factory or not source)),
            )
            if absent
        ]
        if missing:
            raise RequestError("can't add a model", problems=[f"{text} is missing" for text in missing])
        from sarto.pipeline import Market, load_source
        from sarto.pipeline.stock import check_images

        with Market.open(market) as opened, progress(quiet=as_json) as tell:
            tell("capturing", 0, 1)
            loaded = load_source(
                source,
                arguments={**described.get("arguments", {}), **factory_arguments(arg or [])},
                weights=weights,
                input_shape=_image_shape(said, factory=factory),
            )
            wanted = wanted or list(loaded.classes)
            if not wanted:
                raise RequestError(f"can't add a model: {source} does not name its classes: give --classes")
            check_images(loaded.graph)
            plain = factory or (Path(source) / "graph.json").is_file()
            learnware = opened.add(
                loaded.graph,
                name=called,
                classes=wanted,
                preprocessing=_whole(loaded, said, plain=plain),
                samples=samples,
                licence=licence or str(described.get("licence", "")),
                notes=notes,
                origin=loaded.origin,
                progress=tell,
            )
        for note in loaded.notes:
            typer.echo(f"note: {note}", err=True)
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
        if as_json:
            emit(
                {
                    "learnwares": [json.loads(item.to_json()) for item in learnwares],
                    "n_fragments": len(found),
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
        typer.echo(f"{len(learnwares)} learnwares, {len(found)} fragments")


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


def _preprocessing(size: str, mean: str, std: str, resize: str) -> dict[str, Any]:
    """The parts of preprocessing that were given as options."""
    said: dict[str, Any] = {}
    if size:
        said["size"] = [int(value) for value in numbers(size, "--size")]
        if len(said["size"]) != 2:
            raise RequestError(f"--size {size!r}: write height,width, for instance 224,224")
    if mean:
        said["mean"] = numbers(mean, "--mean")
    if std:
        said["std"] = numbers(std, "--std")
    if mean or std:
        said["channels"] = len(said.get("mean") or said["std"])
    if resize:
        said["resize"] = resize
    return said


def _image_shape(said: dict[str, Any], *, factory: bool) -> tuple[int, ...] | None:
    """The shape of one image where it was said; where nothing else says it, a factory gets 32 by 32."""
    size = said.get("size") or ([32, 32] if factory else None)
    return (said.get("channels", 3), *size) if isinstance(size, list | tuple) else None


def _whole(loaded: Source, said: dict[str, Any], *, plain: bool) -> Preprocessing:
    """What was said, above what the source says, above (for plain modules) pixels in 0..1 at the model's size."""
    from sarto.types import Preprocessing

    channels, height, width = (int(size) for size in loaded.graph.inputs[0].shape[1:])  # type: ignore[arg-type]
    own = loaded.preprocessing.model_dump(mode="json") if loaded.preprocessing else {}
    whole = {"channels": channels, "size": [height, width], **own, **said}
    missing = [key for key in ("mean", "std") if key not in whole]
    if missing and not plain:
        raise RequestError(
            f"{loaded.origin} does not say the {' and '.join(missing)} of its images: give --mean and --std, for "
            "instance --mean 0,0,0 --std 1,1,1 where it reads pixels in 0..1",
            problems=[f"{key} is not known" for key in missing],
        )
    if missing:
        whole = {"mean": [0.0] * whole["channels"], "std": [1.0] * whole["channels"], **whole}
    return Preprocessing.parse(whole)


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
