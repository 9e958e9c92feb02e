"""`sarto factory train`, `ls`, `show`, `curve`, `delta`, `rm`, `spaces`: supernets and what they offer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sarto.cli.device import read_profile
from sarto.cli.given import check_place, check_there, together
from sarto.cli.output import Debug, Json, MarketPath, console, emit, progress, told

if TYPE_CHECKING:
    from sarto.types import StockedSupernet

DEFAULT = "market"
Which = Annotated[
    str, typer.Argument(help="Name of a stocked supernet, its id, or the first 6 digits of it.")
]
Profile = Annotated[str | None, typer.Option(help="A device profile: its file, or its name in the market.")]


def train(
    config: Annotated[str, typer.Argument(help="What to train, in YAML or JSON.")],
    market: MarketPath = DEFAULT,
    checkpoints: Annotated[
        str | None, typer.Option(help="Folder of the checkpoints; else NAME.training beside the market.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or a GPU such as cuda:0.")] = "cpu",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a supernet and its assembler for a task space, judge it and stock it. Stopped, it goes on where it was."""
    with told(as_json=as_json, debug=debug):
        check_there("CONFIG", config)
        from sarto.types import FactoryConfig

        wanted = FactoryConfig.read(config)
        from sarto.pipeline import Market
        from sarto.pipeline.factory import LOOKED, train_factory

        notes: list[str] = []

        def noted(text: str) -> None:
            notes.append(text)
            typer.echo(f"note: {text}", err=True)

        # Of several processes that train as one, the first speaks.
        speaks = os.environ.get("RANK", "0") == "0"
        with Market.open(market) as opened, progress(quiet=as_json, counted=True, lines=speaks) as tell:
            folder = Path(checkpoints) if checkpoints else Path(f"{Path(market)}.{wanted.name}.training")
            done = train_factory(wanted, opened.store, folder, progress=tell, noted=noted, device=device)
        looked = folder / LOOKED
        if as_json:
            emit(
                {
                    "supernet": json.loads(done.manifest.to_json()),
                    "stopped": done.stopped,
                    "resumed_from": done.resumed_from,
                    "notes": notes,
                    "checkpoints": str(folder),
                    "accuracy": str(looked) if looked.is_file() else None,
                }
            )
            return
        if done.stopped is not None:
            typer.echo(f"training ended early: {done.stopped}", err=True)
        if done.resumed_from:
            typer.echo(f"went on from step {done.resumed_from:,}")
        _tell(done.manifest)
        if looked.is_file():
            typer.echo(f"the accuracy while it went on: {looked}, drawn in {looked.with_suffix('.svg')}")
        typer.echo(f"stocked it in {market}; the checkpoints in {folder} are no longer needed")


def ls(market: MarketPath = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    """List the supernets of a market."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.open(market) as opened:
            found = list(opened.store.supernets)
        if as_json:
            emit({"supernets": [json.loads(item.to_json()) for item in found]})
            return
        from rich.table import Table

        table = Table(
            "name", "id", "space", "tasks", "backbone", "steps", "order", "units", "parameters", "floor"
        )
        for item in found:
            table.add_row(
                item.name,
                item.id[7:19],
                item.space.name,
                f"{len(item.space.seen)} + {len(item.space.kept_aside)} unseen",
                item.backbone,
                _steps(item),
                item.assembler.order,
                f"{item.units:,}",
                f"{item.cost.params:,}",
                f"{item.floor.params:,}",
            )
        console().print(table)
        typer.echo(f"{len(found)} supernet{'' if len(found) == 1 else 's'}")


def show(which: Which, market: MarketPath = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    """What a supernet was made from, what it costs, and how well it does its tasks."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.open(market) as opened:
            found = opened.store.supernets.get(which)
        if as_json:
            emit(json.loads(found.to_json()))
            return
        _tell(found)
        if found.stopped:
            typer.echo(f"training ended early: {found.stopped}")


def rm(which: Which, market: MarketPath = DEFAULT, as_json: Json = False, debug: Debug = False) -> None:
    """Take a supernet out of the market."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market

        with Market.open(market) as opened:
            found, freed = opened.store.supernets.remove(which)
        if as_json:
            emit({"removed": found.id, "freed_bytes": freed})
        else:
            typer.echo(f"removed {found.name}; {freed:,} bytes freed")


def curve(
    which: Which,
    task: Annotated[str, typer.Argument(help="A task: its properties with plus signs, exactly_2+digit_7.")],
    profile: Profile = None,
    plot: Annotated[str | None, typer.Option(help="Draw it as an .svg or .png file.")] = None,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Cost against expected quality of a task, over all limits, in one call."""
    with told(as_json=as_json, debug=debug):
        together(lambda: check_place("--plot", plot))
        from sarto.pipeline import Market
        from sarto.pipeline.curves import cost_quality, draw_curve
        from sarto.pipeline.factory import open_supernet

        measured = read_profile(profile, market) if profile is not None else None
        with Market.open(market) as opened:
            manifest, supernet = open_supernet(opened.store, which)
            points, basis = cost_quality(manifest, supernet, task, measured)
        if plot is not None:
            draw_curve(points, Path(plot), title=f"{task} from {manifest.name}")
        if as_json:
            emit({"task": task, "basis": basis, "points": [point.to_plain() for point in points]})
            return
        from rich.table import Table

        table = Table(
            "limit", "units", "expected", "weights, bytes", "activations, bytes", "ms", "at most, ms"
        )
        shown = points[:: max(1, len(points) // 20)]
        for point in dict.fromkeys([*shown, points[-1]]):
            table.add_row(
                f"{point.limit:.1%}",
                f"{point.ratio:.1%}",
                "" if point.quality is None else f"{point.quality:.1%}",
                f"{point.size_bytes:,}",
                f"{point.memory_bytes:,}",
                "" if point.latency_ms is None else f"{point.latency_ms:.3g}",
                "" if point.latency_high_ms is None else f"{point.latency_high_ms:.3g}",
            )
        console().print(table)
        typer.echo(f"expected: {basis}")
        if plot is not None:
            typer.echo(f"wrote {plot}")


def delta(
    which: Which,
    old: Annotated[
        str,
        typer.Argument(
            help="What the device has: the folder of a delivered subnet, task@limit, or task@latency_ms=12."
        ),
    ],
    new: Annotated[str, typer.Argument(help="What it is to have, said in the same ways.")],
    profile: Profile = None,
    out: Annotated[
        str | None, typer.Option(help="Write what must be downloaded, as a .safetensors file.")
    ] = None,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a device must download when its task or its budget changes."""
    with told(as_json=as_json, debug=debug):
        together(lambda: check_place("--out", out))
        from sarto.engines.factory.delta import write_delta
        from sarto.pipeline import Market
        from sarto.pipeline.deltas import changed
        from sarto.pipeline.factory import open_supernet

        measured = read_profile(profile, market) if profile is not None else None
        with Market.open(market) as opened:
            manifest, supernet = open_supernet(opened.store, which)
            found = changed(manifest, supernet, old, new, measured)
        written = None if out is None else write_delta(found, Path(out))
        added = {group: len(units) for group, units in found.added.items()}
        dropped = {group: len(units) for group, units in found.dropped.items()}
        if as_json:
            emit(
                {
                    "added": added,
                    "dropped": dropped,
                    "download_bytes": found.download_bytes,
                    "whole_bytes": found.whole_bytes,
                    "file_bytes": written,
                }
            )
            return
        typer.echo(f"{sum(added.values())} units come, {sum(dropped.values())} go")
        share = found.download_bytes / max(1, found.whole_bytes)
        typer.echo(
            f"{found.download_bytes:,} bytes to download, {share:.0%} of the new subnet's {found.whole_bytes:,}"
        )
        if written is not None:
            typer.echo(f"wrote {out}, {written:,} bytes with the places of what is new")


def spaces(as_json: Json = False, debug: Debug = False) -> None:
    """The task spaces that ship."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline.factory import read_space, shipped_spaces

        found = [read_space(name) for name in shipped_spaces()]
        if as_json:
            emit({"spaces": [json.loads(space.to_json()) for space in found]})
            return
        from rich.table import Table

        table = Table("name", "kind", "properties", "tasks", "unseen", "answers")
        for space in found:
            table.add_row(
                space.name,
                space.kind,
                str(len(space.properties)),
                str(len(space.seen)),
                str(len(space.kept_aside)),
                ", ".join(space.answers[:6]) + (", ..." if len(space.answers) > 6 else ""),
            )
        console().print(table)


def _steps(found: StockedSupernet) -> str:
    """How many steps were trained; of how many, where training ended early."""
    done = "" if found.steps is None else f"{found.steps:,}"
    if not found.stopped or found.joint is None:
        return done
    return f"{done} of {found.joint.steps:,}, stopped"


def _tell(found: StockedSupernet) -> None:
    from rich.table import Table

    typer.echo(
        f"{found.name} ({found.id[7:19]}): {found.space.name}, {len(found.space.seen)} tasks trained, "
        f"{len(found.space.kept_aside)} kept aside; from {found.backbone}"
    )
    if found.steps is not None:
        typer.echo(f"steps: {_steps(found)}")
    typer.echo(
        f"{found.units:,} gated units in {len(found.groups)} groups ({found.placement} placement, "
        f"{found.assembler.order} order)"
    )
    typer.echo(
        f"whole: {found.cost.params:,} parameters, {found.cost.flops:,} FLOPs; smallest subnet: "
        f"{found.floor.params:,} parameters, {found.floor.flops:,} FLOPs"
    )
    if found.assembler.order == "nested" and found.assembler.most < 1:
        typer.echo(f"at most {found.assembler.most:.0%} of the units open, also at higher limits")
    if found.assembler.skips:
        typer.echo("blocks may be skipped whole")
    if found.space.combined:
        typer.echo(f"trained beside them: {len(found.space.combined)} further combinations of properties")
    if found.unjudged:
        typer.echo(
            f"{len(found.unjudged)} tasks were not judged, for want of test samples: {', '.join(found.unjudged)}"
        )
    if not found.qualities:
        typer.echo("not judged")
        return
    table = Table("limit", "trained tasks", "worst", "unseen tasks", "worst unseen", "largest ratio")
    for limit in sorted({row.limit for row in found.qualities}):
        cells = [f"{limit:.0%}"]
        for seen in (True, False):
            rows = [row.quality for row in found.qualities if row.limit == limit and row.seen == seen]
            cells += [f"{sum(rows) / len(rows):.1%}", f"{min(rows):.1%}"] if rows else ["", ""]
        cells.append(f"{max(row.ratio for row in found.qualities if row.limit == limit):.2%}")
        table.add_row(*cells)
    console().print(table)
