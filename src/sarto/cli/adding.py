"""`sarto add`: a model from anywhere, stocked in a market."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli.adding_text import known_words, text_options, whole_text
from sarto.cli.given import check_there, factory_arguments, together
from sarto.cli.output import Debug, Json, MarketPath, emit, names, numbers, progress, told
from sarto.errors import RequestError, StoreError
from sarto.types.inputs import input_parts
from sarto.types.sources import check_source, source_kind

if TYPE_CHECKING:
    from sarto.pipeline import Source
    from sarto.types import Learnware, Preprocessing


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
        str | None,
        typer.Option(
            help="A few labelled images (folders, sheets, .npz) or texts (.tsv, .csv, .jsonl, folders of .txt)."
        ),
    ] = None,
    given: Annotated[
        str,
        typer.Option(
            "--input",
            help="Channels,height,width of the images that the model reads, or int64:length; else the source's, else "
            "3,32,32.",
        ),
    ] = "",
    size: Annotated[str, typer.Option(help="Height,width alone, in place of --input.")] = "",
    mean: Annotated[
        str, typer.Option(help="Mean of each channel, on the scale 0..1; else the source's, else 0.")
    ] = "",
    std: Annotated[
        str, typer.Option(help="Standard deviation of each channel; else the source's, else 1.")
    ] = "",
    resize: Annotated[
        str, typer.Option(help="Images of another size: refuse or bilinear; else the source's, else refuse.")
    ] = "",
    vocabulary: Annotated[
        str | None,
        typer.Option(
            help="Tokens of a text model: one a line, JSON, or a tokenizer.json; the line is the id."
        ),
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens that a text model reads.")] = None,
    pad: Annotated[str, typer.Option(help="Token that fills up short texts; else the first one.")] = "",
    unknown: Annotated[str, typer.Option(help="Token for unknown words; else the second one.")] = "",
    side: Annotated[
        str, typer.Option("--pad-side", help="Where texts are filled up and cut: end or start.")
    ] = "",
    cased: Annotated[bool, typer.Option("--cased", help="Large letters stay large.")] = False,
    card: Annotated[
        str | None, typer.Option(help="JSON with name, factory, arguments, classes, preprocessing.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the model.")] = "",
    notes: Annotated[str, typer.Option(help="Anything worth knowing.")] = "",
    market: MarketPath = "market",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Stock a model: capture it, prove the graph, count its costs, measure its skill."""
    with told(as_json=as_json, debug=debug):
        described = _card(card) if card else {}
        source = source or str(described.get("factory", ""))
        wanted = names(classes) or list(described.get("classes", []))
        called = name or str(described.get("name", ""))
        weights = weights or _beside(card)
        _check_missing(source, called, wanted)
        said: dict[str, Any] = dict(described.get("preprocessing") or {})
        arguments: dict[str, Any] = dict(described.get("arguments", {}))
        together(
            lambda: said.update(_preprocessing(given, size, mean, std, resize)),
            lambda: arguments.update(factory_arguments(arg or [])),
            lambda: check_source(source, arguments=arguments, weights=weights),
            lambda: said.update(text_options(vocabulary, length, pad, unknown, side, cased)),
            lambda: check_there("--samples", samples),
            lambda: check_there("--vocabulary", vocabulary),
            lambda: _check_market(market),
        )
        from sarto.pipeline import InputSpec, Market, load_source
        from sarto.pipeline.stock import check_reads

        known = known_words(vocabulary, said)
        given = given or (f"int64:{said['length']}" if "length" in said else "")
        with Market.open(market) as opened, progress(quiet=as_json) as tell:
            tell("capturing", 0, 1)
            loaded = load_source(
                source,
                arguments=arguments,
                weights=weights,
                input_shape=None if given else _image_shape(source, said),
                inputs=[InputSpec(*input_parts(given))] if given else (),
            )
            wanted = wanted or list(loaded.classes)
            if not wanted:
                raise RequestError(f"can't add a model: {source} does not name its classes: give --classes")
            check_reads(loaded.graph)
            preprocessing, assumed = (
                _whole(loaded, said) if known is None else (whole_text(loaded.graph, said, known), [])
            )
            learnware = opened.add(
                loaded.graph,
                name=called,
                classes=wanted,
                preprocessing=preprocessing,
                samples=samples,
                vocabulary=known,
                licence=licence or str(described.get("licence", "")),
                notes=notes,
                origin=loaded.origin,
                progress=tell,
            )
        known_as = [f"already stocked as {learnware.name}; the name {called} is not given"]
        renamed = known_as if learnware.name != called else []
        for note in (*loaded.notes, *assumed, *(_left_out(samples, learnware) if samples else ()), *renamed):
            typer.echo(f"note: {note}", err=True)
        if as_json:
            emit(json.loads(learnware.to_json()))
        else:
            _show(learnware)


def _show(learnware: Learnware) -> None:
    each = "an image" if learnware.preprocessing.TAG == "image" else "a text"
    typer.echo(f"stocked {learnware.name} ({learnware.id[7:19]}): {', '.join(learnware.classes)}")
    typer.echo(f"  {learnware.cost.params:,} parameters, {learnware.cost.flops:,} FLOPs {each}")
    if learnware.skill:
        told_skill = ", ".join(f"{cls} {value:.0%}" for cls, value in learnware.skill.items())
        typer.echo(f"  recall on its samples: {told_skill}")
    else:
        typer.echo("  no samples: it can't be sliced by class from its own samples; orders must bring theirs")


def _left_out(samples: str, learnware: Learnware) -> list[str]:
    """What of a model's samples was not stocked, and which classes came without any."""
    from sarto.market import read_samples
    from sarto.pipeline.stock import unused_samples

    return list(unused_samples(learnware.name, learnware.classes, read_samples(samples)))


def _check_missing(source: str, called: str, wanted: Sequence[str]) -> None:
    # A factory says nothing about its classes; the others may.
    factory = not source or source_kind(source) == "factory"
    missing = [
        text
        for text, absent in (
            ("SOURCE: package.module:factory, a model folder or file (or --card)", not source),
            ("--name", not called),
            ("--classes", not wanted and factory),
        )
        if absent
    ]
    if missing:
        raise RequestError("can't add a model", problems=[f"{text} is missing" for text in missing])


def _check_market(path: str) -> None:
    if not Path(path).is_dir():
        raise StoreError(
            f"no market in {path}: there is no such folder. Make one with: sarto market init {path}",
            where=path,
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


def _preprocessing(given: str, size: str, mean: str, std: str, resize: str) -> dict[str, Any]:
    """The parts of preprocessing that were given as options."""
    said: dict[str, Any] = {}
    shape = input_parts(given)[0] if given else ()
    if size:
        said["size"] = [int(value) for value in numbers(size, "--size")]
        if len(said["size"]) != 2:
            raise RequestError(f"--size {size!r}: write height,width, for instance 224,224")
        if given and list(shape[1:]) != said["size"]:
            raise RequestError(f"--size {size} and --input {given} differ: leave out --size")
    if mean:
        said["mean"] = numbers(mean, "--mean")
    if std:
        said["std"] = numbers(std, "--std")
    if mean or std:
        said["channels"] = len(said.get("mean") or said["std"])
    if mean and std and len(said["mean"]) != len(said["std"]):
        raise RequestError(
            f"--mean has {len(said['mean'])} numbers and --std {len(said['std'])}: give one for each channel"
        )
    if len(shape) == 3:
        if said.get("channels", shape[0]) != shape[0]:
            raise RequestError(
                f"--input {given} has {shape[0]} channels, --mean and --std are for {said['channels']}: give one "
                "number for each channel"
            )
        said |= {"channels": shape[0], "size": list(shape[1:])}
    if resize and resize not in ("refuse", "bilinear"):
        raise RequestError(f"--resize {resize!r}: write refuse or bilinear")
    if resize:
        said["resize"] = resize
    return said


def _image_shape(source: str, said: dict[str, Any]) -> tuple[int, ...] | None:
    """The shape of one image where its size was said; a graph has a shape of its own, with which sizes are compared."""
    size = said.get("size")
    if not isinstance(size, list | tuple) or source_kind(source) in ("graph", "pt2"):
        return None
    return (said.get("channels", 3), *size)


def _whole(loaded: Source, said: dict[str, Any]) -> tuple[Preprocessing, list[str]]:
    """What was said, above what the source says, above the model's size and pixels in 0..1; and what was assumed."""
    from sarto.types import Preprocessing

    entry = loaded.graph.inputs[0]
    if len(entry.shape) != 4:
        raise RequestError(
            f"the model reads {entry.name} ({entry.dtype}, {list(entry.shape[1:])}), token ids and no images: give the "
            "tokens in the order of their ids with --vocabulary FILE"
        )
    channels, height, width = (int(size) for size in loaded.graph.inputs[0].shape[1:])  # type: ignore[arg-type]
    own = loaded.preprocessing.model_dump(mode="json") if loaded.preprocessing else {}
    whole = {"channels": channels, "size": [height, width], **own, **said}
    plain = {"mean": [0.0] * whole["channels"], "std": [1.0] * whole["channels"]}
    missing = [key for key in plain if key not in whole]
    assumed = []
    if missing:
        values = " and ".join({"mean": "mean 0", "std": "std 1"}[key] for key in missing)
        options = " and ".join(f"--{key}" for key in missing)
        assumed = [
            f"nothing says the {' and '.join(missing)} of the images, so {values} are assumed (pixels in 0..1): "
            f"if it was trained on others, add it again with {options}"
        ]
    return Preprocessing.parse({**plain, **whole}), assumed
