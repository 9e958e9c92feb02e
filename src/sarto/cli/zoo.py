"""sarto zoo index|ls|map|rm: indexed zoos, the market objects that chains of blocks are chosen from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sarto.cli.given import check_place, check_there, together
from sarto.cli.output import Debug, Json, MarketPath, console, emit, names, progress, told
from sarto.errors import RequestError, suggest

if TYPE_CHECKING:
    from sarto.pipeline.zoo_front import Resource

DEFAULT = "market"
#: What a front can be drawn against.
COSTS: tuple[Resource, ...] = ("params", "flops", "size_bytes")
Name = Annotated[str, typer.Argument(help="Name of the index.")]
Blocks = Annotated[
    int | None, typer.Option("--blocks", "-k", min=2, max=64, help="Blocks of each model; else up to 4.")
]
Picture = Annotated[str | None, typer.Option("--out", "-o", help="An .svg or .png file for the picture.")]


def index(
    name: Name = "zoo",
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Only this learnware; give it again for more.")
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option(
            "--probes", help="Folder or file of images, labels unread; else a draw from the market."
        ),
    ] = None,
    n_probes: Annotated[int, typer.Option(min=4, max=100_000, help="Probe images of a new index.")] = 256,
    batch: Annotated[int, typer.Option(min=4, max=4_096, help="Probe images in one Gram matrix.")] = 64,
    cells: Annotated[int, typer.Option(min=1, max=16, help="Parts of the grid along each axis.")] = 1,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an index of the market's models, or add to it what it misses."""
    with told(as_json=as_json, debug=debug):
        check_there("--probes", probes)
        from sarto.market import read_unlabelled
        from sarto.pipeline import Market
        from sarto.pipeline.indexing import index_zoo

        held = read_unlabelled(Path(probes)) if probes is not None else None
        with Market.open(market) as opened, progress(quiet=as_json) as tell:
            done = index_zoo(
                opened.store,
                name,
                models or (),
                probes=held,
                n_probes=n_probes,
                batch=batch,
                cells=cells,
                progress=tell,
            )
        if as_json:
            skipped = [{"name": item, "why": why} for item, why in done.skipped]
            doubtful = [{"name": item, "why": why} for item, why in done.doubtful]
            emit(
                {
                    "index": name,
                    "added": list(done.added),
                    "known": list(done.known),
                    "skipped": skipped,
                    "doubtful": doubtful,
                    "notes": list(done.notes),
                }
            )
            return
        typer.echo(f"index {name}: {len(done.added)} models added, {len(done.known)} were there")
        for item, why in done.skipped:
            typer.echo(f"left out {item}: {why}")
        for item, why in done.doubtful:
            typer.echo(f"look at {item}: {why}")
        for note in done.notes:
            typer.echo(note)


def ls(market: MarketPath = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    """List the indexed zoos."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market
        from sarto.pipeline.indexing import indices

        with Market.open(market) as opened:
            found = indices(opened.store)
            listed = [(item := found.get(name), item.models()) for name in found.names()]
        if as_json:
            emit(
                {
                    "indices": [
                        {**item.about.model_dump(mode="json"), "models": [model.name for model in models]}
                        for item, models in listed
                    ]
                }
            )
            return
        from rich.table import Table

        table = Table("name", "models", "cut points", "probe images", "probe hash")
        for item, models in listed:
            places = sum(len(model.places) for model in models)
            about = item.about
            table.add_row(
                item.name, str(len(models)), str(places), str(about.n_probes), about.probe_hash[7:19]
            )
        console().print(table)


def show_map(
    name: Name = "zoo",
    blocks: Blocks = None,
    steady: Annotated[
        bool, typer.Option("--steady", help="As many blocks, 2 to 6, as change least with the probe images.")
    ] = False,
    skip: Annotated[
        float | None,
        typer.Option(
            min=-1.0,
            max=1.0,
            help="Let models skip sets: the similarity, -1 to 1, that a skipped one counts.",
        ),
    ] = None,
    out: Picture = None,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Dissect a zoo: which parts of its models are interchangeable, as a table, a picture, or JSON."""
    with told(as_json=as_json, debug=debug):
        together(
            lambda: check_place("--out", out),
            lambda: _one_number(blocks, steady),
        )
        from sarto.pipeline import Market
        from sarto.pipeline.indexed_zoo import steadiest, zoo_of
        from sarto.pipeline.indexing import indices
        from sarto.pipeline.zoo_map import similarity_map

        with Market.open(market) as opened:
            held = indices(opened.store).get(name)
            chosen = steadiest(zoo_of(opened.store, held)[0], held, skip=skip) if steady else blocks
            found = similarity_map(opened.store, held, chosen, skip=skip)
        if out is not None:
            from sarto.pipeline.zoo_picture import draw_map

            draw_map(found, Path(out))
        if as_json:
            emit(asdict(found))
            return
        from rich.table import Table

        table = Table("model", *(f"set {j + 1}" for j in range(found.k)))
        for model in found.models:
            spans = [f"{model.places[a]} .. {model.places[b]}" if a >= 0 else "-" for a, b in model.bounds]
            table.add_row(model.name, *spans)
        console().print(table)
        typer.echo(
            f"mean functional similarity of a block to its set: {found.mean_similarity:.3f}"
            + (f" +- {found.mean_error:.3f}" if found.mean_error is not None else "")
            + " (of at most 2)"
            + (f"; drawn in {out}" if out else "")
        )
        if found.errors_told:
            typer.echo(f"CKA of two places, leaving out each batch of probe images once: {found.errors_told}")
        for title, slack in found.widened:
            typer.echo(
                f"{title} can't be parted within the size limit: a block of it may hold {1 + slack:.2f} times an equal "
                "share of its parameters"
            )
        for note in found.notes:
            typer.echo(note)


def _one_number(blocks: int | None, steady: bool) -> None:
    if steady and blocks is not None:
        raise RequestError(
            f"--steady chooses the number of blocks, --blocks {blocks} says it: give one of them"
        )


def front(
    name: Name = "zoo",
    by: Annotated[str, typer.Option("--by", help="The cost: params, flops or size_bytes.")] = "params",
    classes: Annotated[
        str | None,
        typer.Option(help="Classes to tell apart, with commas; else those of whoever ends the chain."),
    ] = None,
    blocks: Blocks = None,
    most: Annotated[int, typer.Option(min=1, max=1_000, help="Points at most, the dearest ones.")] = 20,
    out: Picture = None,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The chains of blocks and the donors that nothing beats in value at no more of one cost; nothing is built."""
    with told(as_json=as_json, debug=debug):
        together(lambda: check_place("--out", out), lambda: _check_cost(by))
        from sarto.pipeline import Market
        from sarto.pipeline.indexing import indices
        from sarto.pipeline.zoo_front import draw_front, zoo_front

        with Market.open(market) as opened:
            held = indices(opened.store).get(name)
            wanted = names(classes)
            found = zoo_front(opened.store, held, _cost(by), classes=wanted, k=blocks, most=most)
        if out is not None:
            draw_front(found, Path(out))
        if as_json:
            emit(asdict(found))
            return
        from rich.table import Table

        table = Table(by, "value", "", "blocks of")
        for point in found.points:
            kind = "chain" if len(point.donors) > 1 else "donor as it is"
            beaten = "" if point.on_front else ", beaten"
            table.add_row(
                f"{point.cost:,}", f"{point.value:.3f}", f"{kind}{beaten}", " -> ".join(point.donors)
            )
        console().print(table)
        typer.echo(
            "value: mean skill of the donors less what joints should lose; sarto make builds and measures"
            + (f"; drawn in {out}" if out else "")
        )
        for note in found.notes:
            typer.echo(note)


def _check_cost(by: str) -> None:
    if by not in COSTS:
        raise RequestError(f"--by: {by!r} is no cost of a front{suggest(by, COSTS)}")


def _cost(by: str) -> Resource:
    return next(name for name in COSTS if name == by)


def rm(name: Name, market: MarketPath = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    """Take an index out; the models stay."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market
        from sarto.pipeline.indexing import indices

        with Market.open(market) as opened:
            found = indices(opened.store)
            found.get(name)
            found.remove(name)
        if as_json:
            emit({"removed": name})
        else:
            typer.echo(f"removed the index {name}; its models stay")
