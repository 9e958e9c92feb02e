"""`sarto plan`, `make`, `build`: orders from a YAML file or from flags."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sarto.cli.output import Debug, Json, MarketPath, console, emit, names, progress, told
from sarto.errors import RequestError

if TYPE_CHECKING:
    from sarto.pipeline import Artifact
    from sarto.types import Interval, Request

DEFAULT = "market"

RequestFile = Annotated[str | None, typer.Argument(help="Order in YAML or JSON; flags change or replace it.")]
Classes = Annotated[str | None, typer.Option(help="Classes that the model must tell apart, with commas.")]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="A task of a stocked supernet by its properties, exactly_2+digit_7; again for more in one model.",
    ),
]
MaxParams = Annotated[int | None, typer.Option(help="Most trainable parameters.")]
MaxFlops = Annotated[int | None, typer.Option(help="Most FLOPs an image or text (2 per multiply-add).")]
MaxMemory = Annotated[
    int | None, typer.Option("--max-memory-bytes", help="Most activation memory an image or text.")
]
MaxSize = Annotated[int | None, typer.Option("--max-size-bytes", help="Most bytes of stored tensors.")]
MaxLatency = Annotated[float | None, typer.Option("--max-latency-ms", help="Most milliseconds a batch.")]
MaxProcess = Annotated[
    int | None,
    typer.Option(
        "--max-process-bytes", help="Most memory that a process grows by when it loads and runs the model."
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        help="Where latency counts: onnxruntime, torch, compile, aotinductor, openvino, litert or executorch."
    ),
]
Precision = Annotated[
    str | None, typer.Option(help="Of the model there: float32, float16, bfloat16 or int8.")
]
Agent = Annotated[
    str | None,
    typer.Option(help="Measure on the machine of this agent, http://host:port (SARTO_AGENT_TOKEN)."),
]
Profile = Annotated[
    str | None, typer.Option(help="Measured profile of the device: a name in the market, or a file.")
]
Threads = Annotated[int | None, typer.Option(help="Threads that the runtime may use.")]
Batch = Annotated[int | None, typer.Option(help="Images or texts in one measured call.")]
SamplesPath = Annotated[
    str | None,
    typer.Option(
        "--samples", help="The order's own images or texts, labelled; or a folder of images without labels."
    ),
]
Heldout = Annotated[str | None, typer.Option(help="Labelled images or texts that only the report reads.")]
PerClass = Annotated[
    int | None, typer.Option("--samples-per-class", help="Use the first k samples of each class.")
]
Engines = Annotated[
    str | None,
    typer.Option(help="Who proposes plans, with commas: slicepack, factory, reassembly, baselines."),
]
Baselines = Annotated[
    str | None,
    typer.Option(
        help="What is trained to compare with, with commas: finetune,camkd,netgraft,grail,student, or none."
    ),
]
Method = Annotated[str | None, typer.Option(help="How fragments are made: closed_form or paper.")]
Seed = Annotated[int | None, typer.Option(help="Of everything that is drawn.")]
MustUse = Annotated[
    str | None, typer.Option("--must-use", help="Learnwares that parts must come from, with commas.")
]
MustAvoid = Annotated[
    str | None, typer.Option("--must-avoid", help="Learnwares that no part may come from, with commas.")
]
MinDonors = Annotated[
    int | None, typer.Option("--min-donors", min=1, help="Fewest learnwares that parts come from.")
]
MaxDonors = Annotated[
    int | None, typer.Option("--max-donors", min=1, help="Most learnwares that parts come from.")
]
AllowLicences = Annotated[
    str | None, typer.Option("--allow-licences", help="The only licences of learnwares allowed, with commas.")
]
DenyLicences = Annotated[
    str | None,
    typer.Option("--deny-licences", help="Licences of learnwares that are not allowed, with commas."),
]
Differ = Annotated[
    int | None,
    typer.Option("--differ", min=1, help="Blocks in which each proposed chain differs from those before."),
]
Parts = Annotated[
    str | None,
    typer.Option(
        "--blocks", help="Blocks of each model of a zoo, or steady: as many as change least; else 4."
    ),
]
Skip = Annotated[
    float | None,
    typer.Option(
        "--skip", help="Let models skip blocks: the similarity, -1 to 1, that a skipped one counts."
    ),
]
Train = Annotated[
    int | None,
    typer.Option("--train", min=1, help="Train the best chain of blocks so many epochs; kept if it helps."),
]
TrainOn = Annotated[
    str | None,
    typer.Option(
        "--train-on",
        help="features (of the chain's last donor, labels unread) or labels; else labels with --samples.",
    ),
]
TrainScope = Annotated[
    str | None, typer.Option("--train-scope", help="What changes: stitches (default), frozen or full.")
]
Out = Annotated[str, typer.Option("--out", "-o", help="Folder of the finished model.")]


def plan(
    request: RequestFile = None,
    classes: Classes = None,
    task: TaskNames = None,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_memory: MaxMemory = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    max_process: MaxProcess = None,
    runtime: Runtime = None,
    precision: Precision = None,
    profile: Profile = None,
    agent: Agent = None,
    threads: Threads = None,
    batch: Batch = None,
    samples: SamplesPath = None,
    heldout: Heldout = None,
    samples_per_class: PerClass = None,
    engines: Engines = None,
    baselines: Baselines = None,
    method: Method = None,
    seed: Seed = None,
    must_use: MustUse = None,
    must_avoid: MustAvoid = None,
    min_donors: MinDonors = None,
    max_donors: MaxDonors = None,
    allow_licences: AllowLicences = None,
    deny_licences: DenyLicences = None,
    differ: Differ = None,
    blocks: Parts = None,
    skip: Skip = None,
    train: Train = None,
    train_on: TrainOn = None,
    train_scope: TrainScope = None,
    market: MarketPath = DEFAULT,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Write one plan to this file, for `sarto build`.")
    ] = None,
    number: Annotated[int, typer.Option(help="Which of the plans to write, counted from 1.")] = 1,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the plans for an order, from manifests alone; nothing is built."""
    with told(as_json=as_json, debug=debug):
        order = _request(request, locals())
        from sarto.pipeline import Market, Plans

        with Market.open(market) as opened:
            plans = opened.plan(order)
        if out is not None:
            if not 1 <= number <= len(plans.all):
                raise RequestError(f"--number {number}: there are {len(plans.all)} plans, counted from 1")
            plans.all[number - 1].write(out)
        notes = plans.order.requirement.notes if isinstance(plans, Plans) else plans.without
        _tell_notes(notes)
        if as_json:
            emit({"plans": plans.to_plain(), "notes": list(notes)})
            return
        from rich.table import Table

        listed = plans.to_plain()
        costs = [item["plan"]["predicted"] or {} for item in listed]
        timed = any(cost.get("latency_high_ms") is not None for cost in costs)
        weighed = any(cost.get("process_bytes") is not None for cost in costs)
        limit = order.budget.latency_ms
        table = Table(
            "",
            "engine",
            "plan",
            "parameters",
            "FLOPs",
            "memory",
            "size",
            *([f"ms (of {limit:.3g})" if limit is not None else "ms"] if timed else []),
            *(["process MB"] if weighed else []),
            "key",
            "breaks",
        )
        for place, (item, cost) in enumerate(zip(listed, costs, strict=True), 1):
            table.add_row(
                str(place),
                item["plan"]["engine"],
                item["plan"]["note"],
                *(
                    f"{cost[key]:,}" if key in cost else ""
                    for key in ("params", "flops", "memory_bytes", "size_bytes")
                ),
                *([_interval(cost, "latency_low_ms", "latency_ms", "latency_high_ms")] if timed else []),
                *(
                    [_interval(cost, "process_low_bytes", "process_bytes", "process_high_bytes", 1e-6)]
                    if weighed
                    else []
                ),
                item["key"][7:19],
                ", ".join(item["breaks"]),
            )
        console().print(table)


def make(
    request: RequestFile = None,
    out: Out = "",
    classes: Classes = None,
    task: TaskNames = None,
    max_params: MaxParams = None,
    max_flops: MaxFlops = None,
    max_memory: MaxMemory = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    max_process: MaxProcess = None,
    runtime: Runtime = None,
    precision: Precision = None,
    profile: Profile = None,
    agent: Agent = None,
    threads: Threads = None,
    batch: Batch = None,
    samples: SamplesPath = None,
    heldout: Heldout = None,
    samples_per_class: PerClass = None,
    engines: Engines = None,
    baselines: Baselines = None,
    method: Method = None,
    seed: Seed = None,
    must_use: MustUse = None,
    must_avoid: MustAvoid = None,
    min_donors: MinDonors = None,
    max_donors: MaxDonors = None,
    allow_licences: AllowLicences = None,
    deny_licences: DenyLicences = None,
    differ: Differ = None,
    blocks: Parts = None,
    skip: Skip = None,
    train: Train = None,
    train_on: TrainOn = None,
    train_scope: TrainScope = None,
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Build the model of an order into a folder, verified and explained; a call that was cut short goes on."""
    with told(as_json=as_json, debug=debug):
        order = _request(request, locals())
        from sarto.pipeline import Market

        with Market.open(market) as opened, progress(quiet=as_json) as tell:
            artifact = opened.make(order, out_of(out), progress=tell)
        delivered(artifact, as_json)


def build(
    plan: Annotated[str, typer.Argument(help="Plan in JSON or YAML, as `sarto plan -o` writes it.")],
    request: Annotated[str, typer.Option(help="Order that the plan is for (YAML or JSON).")],
    out: Out = "",
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Build a given plan instead of choosing one."""
    with told(as_json=as_json, debug=debug):
        from sarto.types import Plan, Request

        chosen, order = Plan.read(plan), Request.read(request)
        from sarto.pipeline import Market

        with Market.open(market) as opened, progress(quiet=as_json) as tell:
            artifact = opened.make(order, out_of(out), plan=chosen, progress=tell)
        delivered(artifact, as_json)


def rebuild(
    lock: Annotated[str, typer.Argument(help="Folder of a finished chain of blocks, or its lock.json.")],
    out: Out = "",
    market: MarketPath = DEFAULT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a chain of blocks again from its lock-file, and check that its tensors are the same, bit for bit."""
    with told(as_json=as_json, debug=debug):
        from sarto.pipeline import Market
        from sarto.pipeline.locking import read_lock
        from sarto.pipeline.rebuilding import rebuild as make_again

        held, folder = read_lock(Path(lock)), out_of(out)
        with Market.open(market) as opened, progress(quiet=as_json) as tell:
            artifact = make_again(opened.store, held, folder, progress=tell)
        if as_json:
            emit({"out": str(artifact.folder), "same": True, "weights_hash": held.weights_hash})
            return
        typer.echo(f"{artifact.folder}: every tensor is that of the lock ({held.weights_hash[7:19]})")


#: Field of a training -> the option that says it.
_TRAINING = {"epochs": "train", "towards": "train_on", "scope": "train_scope"}


def _request(path: str | None, flags: dict[str, Any]) -> Request:
    """The order of a file, with the flags that were given on top."""
    from sarto.types import Request

    given: dict[str, Any] = json.loads(Request.read(path).to_json()) if path is not None else {}
    if flags["classes"]:
        given["task"] = {"classes": names(flags["classes"])}
    if flags["task"]:
        first, *others = ([name.strip() for name in text.split("+")] for text in flags["task"])
        if not all(all(task) for task in (first, *others)):
            raise RequestError(
                f"--task {' '.join(map(repr, flags['task']))}: a task has properties with plus signs between them, for "
                "instance exactly_2+digit_7"
            )
        known = {
            key: value for key, value in (given.get("task") or {}).items() if key in ("space", "supernet")
        }
        given["task"] = {**known, "properties": first, "also": others}
    if not given.get("task"):
        raise RequestError("no order: give a request file, --classes a,b,c, or --task exactly_2+digit_7")
    device = {key: flags[key] for key in ("runtime", "precision", "profile", "agent", "threads", "batch")}
    for key, changes in (("budget", limits(flags)), ("device", device)):
        given[key] = {
            **given.get(key, {}),
            **{name: value for name, value in changes.items() if value is not None},
        }
    for key in ("samples", "heldout", "samples_per_class", "method", "seed"):
        if flags[key] is not None:
            given[key] = flags[key]
    if flags["engines"]:
        given["engines"] = names(flags["engines"])
    if flags["baselines"]:
        given["baselines"] = [] if flags["baselines"] == "none" else names(flags["baselines"])
    training = {key: flags[flag] for key, flag in _TRAINING.items() if flags[flag] is not None}
    if training:
        given["train"] = {**(given.get("train") or {}), **training}
        if "epochs" not in given["train"]:
            raise RequestError("--train-on and --train-scope say how to train; give --train EPOCHS too")
    parting = {
        key: value
        for key, value in (("blocks", _blocks(flags["blocks"])), ("skip", flags["skip"]))
        if value is not None
    }
    if parting:
        given["parting"] = {**(given.get("parting") or {}), **parting}
    donors = _donors(flags)
    if donors:
        given["donors"] = {**given.get("donors", {}), **donors}
    return Request.parse(given)


def _blocks(text: str | None) -> int | str | None:
    """How many blocks, as an order says it; another word is left for the order to refuse."""
    return int(text) if text is not None and text.isdecimal() else text


def _donors(flags: dict[str, Any]) -> dict[str, Any]:
    """What was asked of donors by options."""
    listed = {
        "must": flags["must_use"],
        "avoid": flags["must_avoid"],
        "allow_licences": flags["allow_licences"],
        "deny_licences": flags["deny_licences"],
    }
    counts = {"least": flags["min_donors"], "most": flags["max_donors"], "differ": flags["differ"]}
    said: dict[str, Any] = {key: names(text) for key, text in listed.items() if text}
    return said | {key: number for key, number in counts.items() if number is not None}


def limits(flags: dict[str, Any]) -> dict[str, float]:
    """The limits of a budget that were given as options."""
    said = {
        "params": flags["max_params"],
        "flops": flags["max_flops"],
        "memory_bytes": flags["max_memory"],
        "size_bytes": flags["max_size"],
        "latency_ms": flags["max_latency"],
        "process_bytes": flags["max_process"],
    }
    return {key: value for key, value in said.items() if value is not None}


def out_of(out: str) -> Path:
    """The folder for a finished model, which must be given."""
    if not out:
        raise RequestError("where to? give -o FOLDER")
    return Path(out)


def delivered(artifact: Artifact, as_json: bool) -> None:
    """Say what was made: a line for people, or the report as JSON."""
    report, requirement = artifact.report, artifact.requirement
    _tell_notes(requirement.notes if requirement is not None else ())
    if as_json:
        emit(
            {
                "out": str(artifact.folder),
                "plan_key": artifact.plan.key(),
                "report": json.loads(report.to_json()),
            }
        )
        return
    from rich.table import Table

    from sarto.pipeline.page.wording import ON_OWN

    pick = report.pick
    typer.echo(f"{pick.name}: {', '.join(artifact.classes)}")
    for accuracy, interval, basis in (
        (
            pick.accuracy_loto,
            pick.interval,
            f"{ON_OWN[report.requirement.labelled_by]}, {_basis(pick.interval)}",
        ),
        (pick.accuracy_heldout, pick.heldout_interval, f"on held-out {report.reads}s"),
    ):
        if accuracy is not None:
            span = f" ({interval.low:.0%} to {interval.high:.0%})" if interval is not None else ""
            typer.echo(f"  {accuracy:.1%}{span} {basis}")
    table = Table("cost", "budget", "predicted or counted", "measured", "kept")
    for line in report.cost_lines():
        over = line.budget is not None and line.measured is not None and line.measured > line.budget
        kept = "" if line.budget is None else "no" if over else "yes"
        predicted = _shown(line.predicted)
        if line.predicted is not None and line.basis != "predicted":
            predicted += f" ({line.basis})"
        elif (
            line.predicted is not None and line.predicted_low is not None and line.predicted_high is not None
        ):
            predicted += f" ({_shown(line.predicted_low)} to {_shown(line.predicted_high)})"
        table.add_row(line.name, _shown(line.budget), predicted, _shown(line.measured), kept)
    console().print(table)
    for sentence in report.sentences:
        typer.echo(f"- {sentence}")
    typer.echo(f"the page: {artifact.folder / 'report.html'}")


def _tell_notes(notes: Iterable[str]) -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _interval(cost: dict[str, Any], low: str, middle: str, high: str, factor: float = 1.0) -> str:
    """A predicted number with its bounds; nothing where they are not known."""
    if cost.get(middle) is None or cost.get(high) is None:
        return ""
    return f"{factor * cost[middle]:.3g} ({factor * cost[low]:.3g} to {factor * cost[high]:.3g})"


def _basis(interval: Interval | None) -> str:
    """How an accuracy on the order's samples was measured."""
    return interval.method.partition(", ")[2] if interval is not None else "none left out"


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{round(value):,}" if float(value).is_integer() else f"{value:,.4g}"
