"""`sarto device measure`, `ls`, `show`, `explain`: profiles of machines, and where a model's milliseconds go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sarto.cli.given import check_inputs, check_place, factory_arguments, together
from sarto.cli.inspecting import check_model, graph_of
from sarto.cli.output import Debug, Json, console, emit, progress, told
from sarto.errors import RequestError, suggest
from sarto.types.device import Device, Precision, RuntimeName

if TYPE_CHECKING:
    from sarto.devices.profiling import Share
    from sarto.graph import ModelGraph
    from sarto.types.profile import DeviceProfile

#: Rows of the table of layers where `--all` is not given.
SHOWN = 30

Market = Annotated[
    str | None, typer.Option("--market", "-m", envvar="SARTO_MARKET", help="Folder of a market.")
]
Arg = Annotated[list[str] | None, typer.Option(help="Argument of the factory, key=value (JSON values).")]
Weights = Annotated[str | None, typer.Option(help="Weights in a safetensors file.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", help="An input without its batch: 3,32,32 or ids=int64:32; again for each."),
]
Profile = Annotated[str, typer.Argument(help="A profile's file, or its name in the market.")]


def measure(
    name: Annotated[str, typer.Argument(help="Name of the device, for instance desk-ort-1.")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model whose subnets to measure too: what `sarto inspect` takes, or a learnware."
        ),
    ] = None,
    runtime: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(RuntimeName))}.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one call.")] = 1,
    precision: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Precision))}.")] = "float32",
    subnets: Annotated[int, typer.Option(min=4, help="Subnets of the model that are measured.")] = 64,
    seconds: Annotated[float, typer.Option(help="Seconds of measuring for each of them.")] = 0.6,
    agent: Annotated[
        str | None,
        typer.Option(help="Measure the machine of this agent, http://host:port (SARTO_AGENT_TOKEN)."),
    ] = None,
    few: Annotated[
        bool, typer.Option("--few-blocks", help="One built-in block of each kind: quick, and rough.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure memory too, in processes of their own.")] = True,
    again: Annotated[
        bool, typer.Option("--again", help="Measure everything anew, in place of adding to the profile.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="The profile's file; else NAME.json.")
    ] = None,
    arg: Arg = None,
    weights: Weights = None,
    inputs: Inputs = None,
    market: Market = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure this machine or an agent's: built-in blocks, subnets of a model. Stopped, it goes on where it was."""
    with told(as_json=as_json, debug=debug):
        path = Path(out or f"{name}.json")
        arguments: dict[str, Any] = {}
        together(
            lambda: _check_words(runtime, precision),
            lambda: arguments.update(factory_arguments(arg or [])),
            lambda: check_inputs(inputs or []),
            lambda: check_place("--out", str(path)),
            *([lambda: check_model(str(model), arguments, weights, market or "market")] if model else []),
        )
        device = Device.parse(
            {"runtime": runtime, "threads": threads, "batch": batch, "precision": precision, "agent": agent}
        )
        from sarto.pipeline.profiles import measure_profile
        from sarto.types.profile import DeviceProfile

        onto = DeviceProfile.read(path) if path.exists() and not again else None
        backbones: dict[str, ModelGraph] = {}
        if model:
            graph, notes = graph_of(model, arguments, weights, inputs or [], market or "market")
            backbones[_title(model, arguments)] = graph
            for note in notes:
                typer.echo(f"note: {note}", err=True)
        journal = path.with_name(f"{path.name}.journal")
        with progress(quiet=as_json, counted=True) as tell:
            found = measure_profile(
                name,
                device,
                backbones=backbones,
                n_subnets=subnets,
                few_blocks=few,
                onto=onto,
                memory=memory,
                journal=journal,
                seconds=seconds,
                progress=tell,
            )
        finished = onto is not None and found == onto
        if not finished:
            found.write(path)
        journal.unlink(missing_ok=True)
        if market is not None:
            from sarto.pipeline import Market as Opened

            with Opened.open(market) as opened:
                opened.store.profiles.put(found)
        if as_json:
            emit({"profile": str(path), "market": market, "measured": not finished, **_summary(found)})
        else:
            _tell(found)
            told_of = f"{path} holds all of this: nothing was measured; --again measures anew"
            stocked = f" and stocked it in {market}" if market is not None else ""
            typer.echo((told_of if finished else f"wrote {path}") + stocked)


def ls(market: Market = None, as_json: Json = False, debug: Debug = False) -> None:
    """List the device profiles of a market."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market as Opened

        with Opened.open(market or "market") as opened:
            found = list(opened.store.profiles)
        if as_json:
            emit({"profiles": [_summary(profile) for profile in found]})
            return
        from rich.table import Table

        table = Table(
            "name", "runtime", "threads", "batch", "precision", "processor", "models", "error", "noise"
        )
        for profile in found:
            device = profile.device
            table.add_row(
                profile.name,
                f"{device.runtime} {device.version}",
                str(device.threads),
                str(device.batch),
                device.precision,
                device.processor,
                ", ".join(model.backbone for model in profile.backbones) or "blocks alone",
                ", ".join(f"{model.residuals.error_share:.1%}" for model in profile.backbones)
                or f"{profile.kinds.residuals.error_share:.0%}",
                f"{profile.noise.repeat_share:.1%}" if profile.noise else "",
            )
        console().print(table)
        typer.echo(f"{len(found)} device profiles")


def show(profile: Profile, market: Market = None, as_json: Json = False, debug: Debug = False) -> None:
    """What a profile is of, how well it predicts, and how steady the machine was."""
    with told(as_json=as_json, debug=debug):
        found = read_profile(profile, market)
        if as_json:
            emit(json.loads(found.to_json()))
        else:
            _tell(found)


def explain(
    profile: Profile,
    model: Annotated[str, typer.Argument(help="What `sarto inspect` takes, or a learnware of the market.")],
    ratio: Annotated[float, typer.Option(help="Share of the units that every group keeps.")] = 1.0,
    keep: Annotated[
        list[str] | None, typer.Option(help="Units that a group keeps, GROUP=COUNT; again for each.")
    ] = None,
    plot: Annotated[str | None, typer.Option(help="Draw it as an .svg or .png file.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every layer.")] = False,
    arg: Arg = None,
    weights: Weights = None,
    inputs: Inputs = None,
    market: Market = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Where a model's milliseconds go on a device, layer by layer."""
    with told(as_json=as_json, debug=debug):
        arguments: dict[str, Any] = {}
        together(
            lambda: arguments.update(factory_arguments(arg or [])),
            lambda: check_inputs(inputs or []),
            lambda: check_model(model, arguments, weights, market or "market"),
            lambda: check_place("--plot", plot),
        )
        known = read_profile(profile, market)
        graph, _ = graph_of(model, arguments, weights, inputs or [], market or "market")
        from sarto.devices.profiling import Predictor, draw_shares

        counts = _counts(graph, ratio, keep or [])
        predictor = Predictor(known)
        estimate, shares = predictor.predict(graph, counts), predictor.explain(graph, counts)
        measured = predictor.compiled(graph).of_backbone
        if plot is not None:
            title = f"{_title(model, arguments)} on {known.name}: {estimate.middle:.3g} ms"
            draw_shares(shares, Path(plot), title=title)
        if as_json:
            emit(
                {
                    "latency_ms": estimate.middle,
                    "latency_low_ms": estimate.low,
                    "latency_high_ms": estimate.high,
                    "of_backbone": measured,
                    "layers": [
                        {
                            "layer": share.layer,
                            "kinds": share.kinds,
                            "nodes": share.nodes,
                            "latency_ms": share.latency_ms,
                            "share": share.share,
                        }
                        for share in shares
                    ],
                }
            )
            return
        _tell_shares(shares, every=every)
        basis = (
            "subnets of this model were measured" if measured else "from blocks alone: measure its subnets"
        )
        typer.echo(
            f"{estimate.middle:.4g} ms, between {estimate.low:.4g} and {estimate.high:.4g} ms ({basis})"
        )
        if plot is not None:
            typer.echo(f"wrote {plot}")


def read_profile(which: str, market: str | None) -> DeviceProfile:
    """A profile from its file, or from a market by name.

    Raises:
        RequestError: it is no file and there is no market, or the file holds no profile.
        StoreError: the market does not have it.
    """
    from sarto.types.profile import DeviceProfile

    if Path(which).is_file():
        return DeviceProfile.read(which)
    folder = market or "market"
    if not Path(folder).is_dir():
        raise RequestError(
            f"{which!r} is no file, and there is no market in {folder!r}; give a profile's file, or its name and "
            "--market"
        )
    from sarto.pipeline import Market as Opened

    with Opened.open(folder) as opened:
        return opened.store.profiles.get(which)


def _check_words(runtime: str, precision: str) -> None:
    for option, word, known in (
        ("--runtime", runtime, get_args(RuntimeName)),
        ("--precision", precision, get_args(Precision)),
    ):
        if word not in known:
            raise RequestError(f"{option} {word!r} is none{suggest(word, known)}")


def _title(model: str, arguments: Mapping[str, Any]) -> str:
    name = Path(model).name if Path(model).exists() else model.rpartition(":")[2] or model
    said = ",".join(f"{key}={value}" for key, value in arguments.items())
    return f"{name}({said})"[:200] if said else name[:200]


def _counts(graph: ModelGraph, ratio: float, keep: Sequence[str]) -> dict[str, int]:
    from sarto.graph.selection import uniform_counts

    if not 0 < ratio <= 1:
        raise RequestError(f"--ratio {ratio:g}: a share of kept units must lie in (0, 1]")
    counts = uniform_counts(graph, ratio) if ratio != 1.0 else {}
    for text in keep:
        group, equals, count = text.rpartition("=")
        if not equals or not count.strip().isdigit():
            raise RequestError(f"--keep {text!r}: write GROUP=COUNT, for instance conv1.weight:0=8")
        counts[graph.analysis.group(group.strip()).id] = int(count)
    return counts


def _summary(profile: DeviceProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "device": profile.device.model_dump(mode="json"),
        "n_measured": len(profile.rows),
        "unit_step": profile.unit_step,
        "noise": profile.noise.model_dump(mode="json") if profile.noise else None,
        "error_share": profile.kinds.residuals.error_share,
        "backbones": {model.backbone: model.residuals.error_share for model in profile.backbones},
        "notes": list(profile.notes),
    }


def _tell(profile: DeviceProfile) -> None:
    device = profile.device
    typer.echo(
        f"{profile.name}: {device.runtime} {device.version}, {device.precision}, {device.threads} of {device.cores} "
        f"cores, batch {device.batch}, on {device.processor}"
    )
    typer.echo(f"{len(profile.rows)} measurements, begun {device.started}")
    for model in profile.backbones:
        own = [row for row in profile.rows if row.model == model.backbone and not row.repeat]
        n = sum(row.what == "subnet" for row in own)
        typer.echo(
            f"{model.backbone}: mean error {model.residuals.error_share:.1%} on subnets left out, from {n} subnets; "
            f"its time rises in stairs of {model.vector_width} channels"
        )
        if model.packs is not None:
            typer.echo(
                f"{model.backbone}: subnets side by side take {model.packs.share_per_part:.1%} longer for each after "
                f"the first, mean error {model.packs.error_share:.1%} on packs left out, from {len(own) - n} packs"
            )
    typer.echo(
        f"any other graph: mean error {profile.kinds.residuals.error_share:.0%} on families of blocks left out"
    )
    if profile.unit_step > 1:
        typer.echo(
            f"below a multiple of {profile.unit_step} channels a layer is no quicker, or slower; orders round widths "
            "up to it"
        )
    if profile.noise is not None:
        typer.echo(
            f"noise: the same model again differs by {profile.noise.repeat_share:.1%} ({profile.noise.n_repeats} "
            f"times), chunks drift by {profile.noise.drift_share:.1%}"
        )
    if profile.memory is not None:
        memory = profile.memory
        typer.echo(
            f"memory: {memory.fixed_bytes / 1e6:.1f} MB + {memory.per_size_byte:.2f} x weights + "
            f"{memory.per_activation_byte:.2f} x activations"
        )
    for note in profile.notes:
        typer.echo(f"note: {note}")


def _tell_shares(shares: Sequence[Share], *, every: bool) -> None:
    from rich.table import Table

    table = Table(show_edge=False)
    for head, side in (("layer", "left"), ("operators", "left"), ("ms", "right"), ("share", "right")):
        table.add_column(head, justify=side, overflow="fold")  # type: ignore[arg-type]
    floor = 0.0 if every or len(shares) <= SHOWN else sorted(s.latency_ms for s in shares)[-SHOWN]
    shown = [share for share in shares if share.latency_ms >= floor]
    for share in shown:
        kinds = ", ".join(share.kinds)
        table.add_row(share.layer or "the runtime", kinds, f"{share.latency_ms:.4f}", f"{share.share:.1%}")
    console().print(table)
    if len(shown) < len(shares):
        rest = sum(share.latency_ms for share in shares) - sum(share.latency_ms for share in shown)
        typer.echo(f"{len(shares) - len(shown)} quicker layers take {rest:.4f} ms; --all shows them")
