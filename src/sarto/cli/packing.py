"""sarto pack add|remove: one class more or less in a packed model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sarto.cli.orders import (
    DEFAULT,
    Heldout,
    MaxFlops,
    MaxLatency,
    MaxMemory,
    MaxParams,
    MaxProcess,
    MaxSize,
    Out,
    SamplesPath,
    delivered,
    limits,
    out_of,
)
from sarto.cli.output import Debug, Json, MarketPath, progress, told

Model = Annotated[str, typer.Argument(help="Folder of a packed model, as `sarto make` leaves it.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Leave out donors, baselines and random units beside it.")
]

NoHeldout = Annotated[
    bool, typer.Option("--no-heldout", help="Leave out the held-out samples of the model's order.")
]


def add(
    model: Model,
    cls: Annotated[str, typer.Argument(metavar="CLASS", help="class or learnware:class; the last output.")],
    out: Out = "",
    quick: Quick = False,
    samples: SamplesPath = None,
    heldout: Heldout = None,
    no_heldout: NoHeldout = False,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_memory: MaxMemory = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    max_process: MaxProcess = None,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A packed model with one class more; its other fragments stay as they are."""
    with told(as_json=as_json, debug=debug):
        _edit(model, out, market, as_json, locals(), add=cls)


def remove(
    model: Model,
    cls: Annotated[str, typer.Argument(metavar="CLASS", help="A class of the model.")],
    out: Out = "",
    quick: Quick = False,
    samples: SamplesPath = None,
    heldout: Heldout = None,
    no_heldout: NoHeldout = False,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_memory: MaxMemory = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    max_process: MaxProcess = None,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A packed model with one class less; its other fragments stay as they are."""
    with told(as_json=as_json, debug=debug):
        _edit(model, out, market, as_json, locals(), remove=cls)


def _edit(
    model: str,
    out: str,
    market: str | Path,
    as_json: bool,
    flags: dict[str, Any],
    *,
    add: str | None = None,
    remove: str | None = None,
) -> None:
    from sarto.pipeline import Artifact, Market
    from sarto.types import Budget

    changed = limits(flags)
    with Market.open(market) as opened, progress(quiet=as_json) as tell:
        artifact = opened.edit(
            Artifact.read(model),
            out_of(out),
            add=add,
            remove=remove,
            budget=Budget.parse(changed) if changed else None,
            samples=flags["samples"],
            heldout=flags["heldout"],
            without_heldout=flags["no_heldout"],
            compare=not flags["quick"],
            progress=tell,
        )
    delivered(artifact, as_json)
