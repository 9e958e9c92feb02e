"""`sarto inspect`: channel groups, what is pinned and why, cut points, costs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli.market import factory_arguments
from sarto.cli.output import Debug, Json, MarketPath, console, emit, numbers, told
from sarto.errors import RequestError

if TYPE_CHECKING:
    from sarto.graph import ModelGraph
    from sarto.graph.analysis import AxisExpr


def inspect(
    source: Annotated[
        str, typer.Argument(help="package.module:factory, a graph folder, a finished model, or a learnware.")
    ],
    arg: Annotated[
        list[str] | None, typer.Option(help="Argument of the factory, key=value (JSON values).")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights in a safetensors file.")] = None,
    shape: Annotated[str, typer.Option("--input", help="Shape of one input, without the batch.")] = "3,32,32",
    market: MarketPath = "market",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what can be sliced in a model, what can't and why, where it can be parted, and what it costs."""
    with told(as_json=as_json, debug=debug):
        graph = _graph(
            source, factory_arguments(arg or []), weights, [int(n) for n in numbers(shape, "--input")], market
        )
        found = describe(graph)
        if as_json:
            emit(found)
            return
        from rich.table import Table

        screen = console()
        cost = found["cost"]
        screen.print(
            f"{found['n_nodes']} operators; {cost['params']:,} parameters; {cost['flops']:,} FLOPs, "
            f"{cost['memory_bytes']:,} bytes of activations an input; {len(found['cut_points'])} cut points"
        )
        table = Table(
            "channel group",
            "units",
            "positions a unit",
            "made by",
            "read by",
            "parameters",
            "a unit",
            title="sliceable",
        )
        for group in found["groups"]:
            if not group["pinned"]:
                table.add_row(
                    group["id"],
                    str(group["size"]),
                    str(group["positions_per_unit"]),
                    ", ".join(group["producers"]),
                    ", ".join(group["readers"]),
                    f"{group['params']:,}",
                    f"{group['params_per_unit']:,}",
                )
        screen.print(table)
        pinned = Table("channel group", "units", "why", title="pinned")
        for group in found["groups"]:
            if group["pinned"]:
                pinned.add_row(group["id"], str(group["size"]), "; ".join(group["pinned"]))
        if pinned.row_count:
            screen.print(pinned)
        for op, nodes in found["unruled"].items():
            screen.print(f"no rule for {op}, so it pins what it touches: {', '.join(nodes)}")


def describe(graph: ModelGraph) -> dict[str, Any]:
    """What `inspect` shows, as plain JSON values."""
    from sarto.devices import count
    from sarto.graph import cut_points
    from sarto.graph.model import shapes_of

    analysis = graph.analysis
    shapes = shapes_of(graph.tensors)
    groups = []
    for group in analysis.groups.values():
        touched = {name for name, _ in group.places if name in graph.parameters}
        params = sum(math.prod(shapes[name][0]) for name in touched)
        groups.append(
            {
                "id": group.id,
                "size": group.size,
                "pinned": list(group.pinned),
                "producers": list(group.producers),
                "readers": [consumption.node for consumption in group.consumptions],
                "places": [f"{name}:{axis}" for name, axis in group.places],
                "positions_per_unit": max(
                    (_positions(analysis.tensor_axes[name][axis], group.id) for name, axis in group.places),
                    default=0,
                ),
                "params": params,
                "params_per_unit": round(params / group.size),
            }
        )
    return {
        "n_nodes": len(graph.nodes),
        "groups": groups,
        "unruled": {op: list(nodes) for op, nodes in analysis.unruled.items()},
        "cut_points": [cut.value for cut in cut_points(graph)],
        "cost": count(graph).model_dump(mode="json"),
    }


def _positions(expr: AxisExpr, group: str) -> int:
    """Positions of an axis that one unit of a group takes, all its places there together."""
    from sarto.graph.analysis import full_size, kept_size

    return full_size(expr) - kept_size(expr, {group: _size(expr, group) - 1}) if _size(expr, group) else 0


def _size(expr: AxisExpr, group: str) -> int:
    from sarto.graph.analysis import Unit

    if isinstance(expr, Unit):
        return expr.size if expr.group == group else 0
    return max((_size(part, group) for part in getattr(expr, "parts", ())), default=0)


def _graph(
    source: str, arguments: dict[str, Any], weights: str | None, shape: list[int], market: str
) -> ModelGraph:
    from sarto.pipeline import Artifact, Market, load_source

    if (Path(source) / "manifest.json").is_file():
        return Artifact.read(source).graph
    if Path(source).exists() or (":" in source and not source.startswith("sha256:")):
        return load_source(source, arguments=arguments, weights=weights, input_shape=shape).graph
    if not Path(market).is_dir():
        raise RequestError(
            f"{source!r} is no model: give package.module:factory, a graph folder, or a learnware with --market"
        )
    with Market.open(market) as opened:
        graph = opened.store.graph(source)
        return graph
