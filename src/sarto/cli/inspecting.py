"""`sarto inspect`: channel groups, what is pinned and why, cut points, blocks with cost, and a picture of it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli.given import check_inputs, check_place, factory_arguments, together
from sarto.cli.output import Debug, Json, MarketPath, console, emit, told
from sarto.errors import RequestError, StoreError
from sarto.types.sources import KINDS, check_source

if TYPE_CHECKING:
    from rich.console import Console

    from sarto.graph import ModelGraph
    from sarto.pipeline.anatomy import Anatomy, Group

#: Rows of a table where `--all` is not given.
SHOWN = 16


def inspect(
    source: Annotated[
        str,
        typer.Argument(
            help="package.module:factory, timm:NAME, torchvision:NAME, a transformers or graph folder, .pt2, .onnx, a "
            "finished model, or a learnware."
        ),
    ],
    arg: Annotated[
        list[str] | None, typer.Option(help="Argument of the factory, key=value (JSON values).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights in a safetensors file.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="An input without its batch: 3,32,32, int64:32, or ids=int64:32; again for each further input.",
        ),
    ] = None,
    html: Annotated[str | None, typer.Option(help="Write a page with the picture and all tables.")] = None,
    svg: Annotated[str | None, typer.Option(help="Write the picture alone.")] = None,
    group: Annotated[str | None, typer.Option(help="Explain one channel group, by id or layer.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every row of the tables.")] = False,
    market: MarketPath = "market",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what can be sliced in a model, what can't and why, where it can be parted, and what it costs."""
    with told(as_json=as_json, debug=debug):
        arguments: dict[str, Any] = {}
        together(
            lambda: arguments.update(factory_arguments(arg or [])),
            lambda: check_inputs(inputs or []),
            lambda: check_model(source, arguments, weights, market),
            lambda: check_place("--html", html),
            lambda: check_place("--svg", svg),
        )
        graph, notes = graph_of(source, arguments, weights, inputs or [], market)
        from sarto.pipeline.anatomy import describe, explain, group_named

        found = describe(graph)
        chosen = group_named(found, group) if group is not None else None
        written = _write(found, Path(source).name if Path(source).exists() else source, html, svg)
        if as_json:
            emit((chosen or found).model_dump(mode="json"))
        elif chosen is not None:
            for word, text in explain(graph, found, chosen):
                typer.echo(f"{word:<10}{text}")
        else:
            _show(found, every=every)
            if not written:
                typer.echo("--html page.html draws it; --group ID explains one group")
        if not as_json:
            for path in written:
                typer.echo(f"wrote {path}")
        for note in notes:
            typer.echo(f"note: {note}", err=True)


def _write(found: Anatomy, name: str, html: str | None, svg: str | None) -> list[str]:
    """The files that were asked for, written; their paths."""
    from sarto.types.text import write_atomically

    if html is not None:
        from sarto.pipeline.anatomy.html import render_page

        write_atomically(html, render_page(found, name=name))
    if svg is not None:
        from sarto.pipeline.anatomy import draw

        write_atomically(svg, draw(found, title=f"The layers of {name}"))
    return [path for path in (html, svg) if path is not None]


def _show(found: Anatomy, *, every: bool) -> None:
    from sarto.pipeline.anatomy.words import counted, inputs_text, pin_sentence, shape_text, share_text

    screen, cost, names = console(), found.cost, found.names
    screen.print(
        f"{counted(found.n_nodes, 'operator')}; {cost.params:,} parameters, "
        f"{share_text(found.sliceable_share)} of them sliceable; {cost.flops:,} FLOPs "
        f"and {cost.memory_bytes:,} bytes of activations a sample"
    )
    screen.print(f"captured with {inputs_text(found.inputs)}")
    screen.print(
        f"{len(found.sliceable)} of {counted(found.n_groups, 'channel group')} sliceable; "
        f"{counted(len(found.cut_points), 'cut point')}, {counted(len(found.blocks), 'block')}"
    )
    hidden = _table(
        screen,
        "sliceable",
        ("channel group", "units are", "units", "made by", "read by", "parameters a unit", "FLOPs a unit"),
        (_sliceable(group, names) for group in found.sliceable),
        numbers=(2, 5, 6),
        every=every,
    )
    ends = {cut.value: cut for cut in found.cut_points}
    hidden += _table(
        screen,
        "blocks between cut points",
        ("block", "layers", "ends at", "shape there", "stride", "parameters", "FLOPs", "memory bytes"),
        (
            (
                str(number),
                block.name,
                block.end or "the output",
                shape_text(ends[block.end].shape) if block.end else "",
                str(ends[block.end].stride or "") if block.end else "",
                f"{block.params:,}",
                f"{block.flops:,}",
                f"{block.memory_bytes:,}",
            )
            for number, block in enumerate(found.blocks, 1)
        ),
        numbers=(0, 4, 5, 6, 7),
        every=every,
    )
    if found.pins:
        screen.print("pinned")
    for pin in found.pins:
        screen.print(f"  {pin_sentence(pin)}: {_few(pin.groups, 3)}")
    for op, nodes in found.unruled.items():
        screen.print(f"no rule for {op}, so it pins what it touches: {_few(nodes, 6)}")
    if hidden:
        screen.print(f"{counted(hidden, 'row')} left out; --all shows them")


def _table(
    screen: Console,
    title: str,
    heads: Sequence[str],
    rows: Iterable[tuple[str, ...]],
    *,
    numbers: Sequence[int],
    every: bool,
) -> int:
    """Print a table, shortened unless every row is wanted; how many rows were left out."""
    from rich.table import Table

    table, listed = Table(title=title, title_justify="left"), list(rows)
    if not listed:
        return 0
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place in numbers else "left", overflow="fold")
    # A table that is hardly too long is shown whole.
    shown = listed if every or len(listed) <= SHOWN + 3 else listed[:SHOWN]
    for row in shown:
        table.add_row(*row)
    screen.print(table)
    return len(listed) - len(shown)


def _sliceable(group: Group, names: Mapping[str, str]) -> tuple[str, ...]:
    return (
        group.id,
        group.kind,
        f"{group.size:,}",
        _few([names.get(node, node) for node in group.producers], 2),
        _few([names.get(node, node) for node in group.readers], 2),
        f"{group.params_per_unit:,}",
        f"{group.flops_per_unit:,}",
    )


def _few(names: Sequence[str], most: int) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def _is_finished(source: str) -> bool:
    return (Path(source) / "manifest.json").is_file()


def _is_learnware(source: str) -> bool:
    """Whether a text can only name a learnware: it is no path, and has no colon but that of an id."""
    return not Path(source).exists() and (":" not in source or source.startswith("sha256:"))


def check_model(source: str, arguments: Mapping[str, Any], weights: str | None, market: str) -> None:
    """Refuse what names no model, and options that it does not take, from names and first bytes."""
    if not _is_finished(source) and not (_is_learnware(source) and Path(market).is_dir()):
        try:
            check_source(source, arguments=arguments, weights=weights)
        except RequestError as error:
            if not _is_learnware(source):
                raise
            named = "/" not in source and not Path(source).suffix
            cure = f"; or name a learnware, with --market (there is no market in {market!r})" if named else ""
            raise RequestError(f"{error}{cure}") from None
        return
    what = "a finished model" if _is_finished(source) else "a learnware"
    problems = [
        f"{source} is {what}, which is read as it is: leave out {option}"
        for option, given in (("--arg", arguments), ("--weights", weights))
        if given
    ]
    if problems:
        raise RequestError(problems[0], problems=problems)


def graph_of(
    source: str, arguments: dict[str, Any], weights: str | None, inputs: list[str], market: str
) -> tuple[ModelGraph, tuple[str, ...]]:
    """The model's graph, and what the user should know about it."""
    from sarto.pipeline import Artifact, Market, load_source, read_input
    from sarto.pipeline.sources import check_captured

    specs = [read_input(text) for text in inputs]
    if _is_finished(source):
        graph = Artifact.read(source).graph
    elif _is_learnware(source):
        with Market.open(market) as opened:
            try:
                supernets = opened.store.supernets
                known = {name for found in supernets for name in (found.name, found.id)}
                graph = supernets.graph(source) if source in known else opened.store.graph(source)
            except StoreError as error:
                raise StoreError(f"{error}. A model from elsewhere is {KINDS}") from error
    else:
        found = load_source(source, arguments=arguments, weights=weights, inputs=specs)
        return found.graph, found.notes
    check_captured(graph, specs, source)
    return graph, ()
