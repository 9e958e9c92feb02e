"""Orders for a task of a task space: plans of every supernet that covers it, and the artifact of the best one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from sarto.devices import count
from sarto.devices.measuring import check_agent
from sarto.engines.factory.search import Found
from sarto.engines.factory.subnets import EQUAL
from sarto.errors import InfeasibleError, RequestError, VerifyError, suggest
from sarto.export import export_onnx
from sarto.graph import ModelGraph
from sarto.graph.file import read_graph, write_graph
from sarto.market import Intake, Labelled, Store, read_samples
from sarto.pipeline.artifact import GRAPH, REQUIREMENT, Artifact, delivered_hashes, write_manifest, write_text
from sarto.pipeline.builder import count_params
from sarto.pipeline.choose import Listed
from sarto.pipeline.donor_rules import check_rules, meant, why_not
from sarto.pipeline.environment import environment
from sarto.pipeline.intakes import intake_of
from sarto.pipeline.job import Job
from sarto.pipeline.on_device import (
    device_checks,
    device_sentences,
    latency_on,
    leave_files,
    weighed,
)
from sarto.pipeline.page import render_card, render_page
from sarto.pipeline.predicting import measured_elsewhere, profile_of
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.reporting import budget_checks, supernet_donor
from sarto.pipeline.sentences import memory_sentences
from sarto.pipeline.subnets import (
    ENGINE,
    ReadySupernet,
    Subnets,
    Tasks,
    certificate_sentences,
    covering,
    covering_classes,
)
from sarto.pipeline.task_models import Built, Made, inputs_for, rounds_of
from sarto.types import (
    Budget,
    Certificate,
    Check,
    Cost,
    Part,
    Plan,
    Report,
    Request,
    Requirement,
    Row,
    StockedSupernet,
)

CERTIFICATE = "certificate.json"


@dataclass(frozen=True, eq=False)
class TaskPlans(Listed):
    """Plans of supernets for an order by task; the most accurate one as expected comes first."""

    request: Request
    feasible: tuple[Plan, ...]
    refused: tuple[tuple[Plan, tuple[str, ...]], ...] = ()


def plan_tasks(store: Store, request: Request) -> TaskPlans:
    """Plans for an order by task: of each supernet that covers it the largest subnet that fits, and smaller ones.

    Raises:
        RequestError: no supernet covers the task, or the order does not fit together.
        InfeasibleError: no subnet keeps the budget; names the floor and the nearest budget.
    """
    _check(request)
    held = Subnets(store, profile_of(request.device, store))
    return _plans(held, request, _digest(request))


def _plans(held: Subnets, request: Request, samples: str | None) -> TaskPlans:
    found: list[tuple[float, Plan]] = []
    refusals: list[InfeasibleError] = []
    for manifest, tasks in _covering(held.store, request):
        one = held.get(manifest.id)
        try:
            best = one.find(
                tasks, request.budget, _measuring(one, intake_of(held.store, one.manifest), request)
            )
        except InfeasibleError as error:
            refusals.append(error)
            continue
        classes = request.task.classes or one.classes(tasks)
        for subnet in (best, *one.smaller(tasks, best, request.budget)):
            sure = one.expected(tasks, subnet.ratio)
            found.append((-1.0 if sure is None else sure, one.plan(tasks, subnet, classes, samples)))
    if not found:
        raise min(refusals, key=lambda error: len(str(error)))
    # Of equal expectation the largest one comes first: it has the most of what was trained.
    found.sort(key=lambda item: (-round(item[0], 4), -(item[1].predicted.params if item[1].predicted else 0)))
    plans = {plan.key(): plan for _, plan in found}
    return TaskPlans(request, tuple(plans.values()))


def make_task(
    store: Store, request: Request, out: Path, *, plan: Plan | None = None, progress: Progress = silent
) -> Artifact:
    """Build the model of an order by task into a folder: no data, no training; verified and certified.

    Args:
        plan: build this plan instead of choosing one.

    Raises:
        RequestError: no supernet covers the task, or the folder holds something else.
        InfeasibleError: no subnet keeps the budget, as predicted or as measured.
        VerifyError: the model is not what was trained, or an export differs from it.
    """
    _check(request)
    job = Job(out, request, extra=plan.key() if plan is not None else "")
    if job.finished is not None:
        return job.finished
    check_agent(request.device)
    held = Subnets(store, profile_of(request.device, store))
    samples = _samples(request)
    begun = perf_counter()
    progress("planning", 0, 3)
    plans = (
        (plan,)
        if plan is not None
        else _plans(held, request, None if samples is None else samples.digest).feasible
    )
    job.record("planned", begun)
    write_text(job.folder / "plans.json", json.dumps([p.model_dump(mode="json") for p in plans]))
    tried: list[str] = []
    costs: list[Cost] = []
    for place, one in enumerate(plans):
        begun = perf_counter()
        progress("building and measuring", 1 + place, len(plans) + 2)
        with tempfile.TemporaryDirectory(prefix="sarto-", dir=job.folder) as folder:
            rounds = rounds_of(held, one, samples, request, Path(folder), given=plan is not None)
            job.record("verified", begun)
            for broken in (turn for turn in rounds if turn.over):
                costs.append(broken.cost)
                told = ", ".join(f"{n} {getattr(broken.cost, n):.6g}" for n in broken.over)
                tried.append(f"{broken.plan.note}: {told}")
            kept = [turn for turn in rounds if not turn.over]
            if not kept:
                continue
            best = max(kept, key=lambda turn: turn.cost.latency_ms or 0.0)
            best.built.path.rename(out / "model.onnx")
            leave_files(best.built.place, out)
        return _deliver(job, best.built, request, best.cost, samples, tuple(tried))
    limits = request.budget.limits()
    least = {name: min(float(getattr(cost, name)) for cost in costs) for name in limits}
    raise InfeasibleError(
        f"no subnet keeps the budget as measured: {'; '.join(tried)}",
        floor=least,
        nearest={name: max(float(limit), least[name]) for name, limit in limits.items()},
        where="budget",
    )


def _deliver(
    job: Job,
    built: Built,
    request: Request,
    cost: Cost,
    samples: Labelled | None,
    tried: tuple[str, ...],
) -> Artifact:
    made, out = built.made, job.out
    cost = weighed(
        cost,
        made.graph,
        request.device,
        out / "model.onnx",
        None if built.file is None else out / built.file.name,
        budget=request.budget,
        profile=made.held.profile,
    )
    manifest = made.held.manifest
    write_graph(made.graph, out / GRAPH)
    requirement = Requirement(
        request=request,
        offers=(),
        samples_digest=samples.digest if samples is not None else None,
        notes=tuple(measured_elsewhere(made.held.profile, request.device)),
    )
    certificate = made.held.certificate(
        made.node,
        made.gates,
        made.difference,
        found=_found(made, request.budget),
        budget=request.budget,
        measured=cost,
        predicted=made.plan.predicted,
        samples=len(samples) if samples is not None and made.node.samples is not None else 0,
    )
    checks = tuple(_checks(built, request, cost, out))
    report = Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        request=request,
        requirement=requirement,
        plan=made.plan,
        predicted=made.plan.predicted or count(made.graph),
        measured=cost,
        rows=(Row(name=made.plan.note or "subnet", role="pick", plan_key=made.plan.key(), cost=cost),),
        where_params=(
            Part(
                name=f"{manifest.name}: subnet",
                learnware=manifest.id,
                classes=made.classes,
                params=count_params(made.graph),
            ),
        ),
        checks=checks,
        lineage=(supernet_donor(manifest),),
        hashes=delivered_hashes(out, built.file),
        environment=environment(request.device.threads),
        seconds=dict(job.seconds),
        sentences=(
            *_sentences(certificate, cost, tried),
            *memory_sentences(cost),
            *requirement.notes,
            *device_sentences(built.file, request.device),
        ),
        certificate=certificate,
        device_file=built.file,
    )
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    if failed:
        report.write(job.folder / "report.json")
        raise VerifyError(f"{out} is not delivered", problems=failed, where=str(out))
    request.write(out / "request.json")
    requirement.write(out / REQUIREMENT)
    made.plan.write(out / "plan.json")
    certificate.write(out / CERTIFICATE)
    report.write(out / "report.json")
    write_text(out / "report.html", render_page(report))
    write_text(out / "README.md", render_card(report))
    return write_manifest(
        out,
        classes=made.classes,
        preprocessing=made.reads.preprocessing,
        plan_key=made.plan.key(),
        lineage=report.lineage,
    )


def _checks(built: Built, request: Request, cost: Cost, out: Path) -> Iterator[Check]:
    made = built.made
    yield from budget_checks(cost, request.budget, built.file)
    yield Check(
        name="subnet equals gated supernet",
        value=made.difference,
        limit=EQUAL,
        ok=made.difference <= EQUAL,
        detail="largest relative difference on random inputs"
        + ("; before batch norm statistics were taken anew" if made.node.samples else ""),
    )
    yield Check(
        name="ONNX Runtime equals eager",
        value=built.difference,
        limit=1e-5,
        ok=built.difference <= 1e-5,
        detail=f"largest relative difference; decisions agree on {built.agreement:.1%} of the inputs compared",
    )
    yield from device_checks(built.file, request.device)
    predicted = made.plan.predicted
    if predicted is not None:
        for name in ("params", "flops"):
            want, have = getattr(predicted, name), getattr(cost, name)
            yield Check(
                name=f"predicted {name} equal counted", value=float(have), limit=float(want), ok=want == have
            )
    stored = read_graph(out / GRAPH)
    same = all(torch.equal(tensor, stored.tensors[name]) for name, tensor in made.graph.tensors.items())
    yield Check(name="graph file equals the model in memory", ok=same, detail="tensors, bit for bit")


def _sentences(certificate: Certificate, cost: Cost, tried: tuple[str, ...]) -> Iterator[str]:
    yield from certificate_sentences(certificate).values()
    latency = f", {cost.latency_ms:.3g} ms a batch" if cost.latency_ms is not None else ""
    yield f"{cost.params:,} parameters, {cost.flops:,} FLOPs an image{latency}, {cost.size_bytes:,} bytes."
    yield "Made without data and without training: its units were trained together with those of all other tasks."
    for one in tried:
        yield f"Verified before and over the budget: {one}."


def _found(made: Made, budget: Budget) -> Found | None:
    """What the search said of these gates, where the same search finds them again."""
    if made.found is not None:
        return made.found
    if budget.latency_ms is not None and made.held.profile is None:
        return None
    try:
        found = made.held.find(made.held.tasks(made.node.tasks), budget)
    except InfeasibleError:
        return None
    return found if torch.equal(found.gates, made.gates) else None


def _measuring(one: ReadySupernet, reads: Intake, request: Request) -> Any:
    def measured(graph: ModelGraph) -> float:
        made = one.ready(graph)
        inputs = inputs_for(made, reads, request)
        with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
            path = Path(folder, "model.onnx")
            export_onnx(made, path)
            return latency_on(made, request.device, path, inputs).median_ms

    return measured


def by_supernet(store: Store, request: Request) -> bool:
    """Whether an order is one for supernets alone: by properties, or for classes that only supernets know."""
    if request.task.tasks:
        return True
    names = [cls for _, cls in request.task.wanted]
    known = {cls for learnware in store.learnwares() for cls in learnware.classes}
    return ENGINE in request.engines and not known & set(names) and bool(covering_classes(store, names))


def _covering(store: Store, request: Request) -> list[tuple[StockedSupernet, Tasks]]:
    """The supernets that cover the order and that its rules about donors allow.

    Raises:
        RequestError: none covers it, or none of those that do may be used; says why.
    """
    found = (
        covering(store, request.task) if request.task.tasks else covering_classes(store, request.task.classes)
    )
    rules, every = request.donors, [*store.learnwares(), *store.supernets]
    problems: list[str] = []
    check_rules(every, rules, problems)
    musts = {item.id for item in meant(every, rules.must)}
    if max(rules.least, len(musts)) > 1:
        problems.append("donors: a model for a task comes from one supernet, more are asked for; ask for one")
    kept = [(one, tasks) for one, tasks in found if why_not(one, rules) is None and musts <= {one.id}]
    if not kept and not problems:
        problems += [
            f"donors: supernet {one.name!r} covers the task, but {why_not(one, rules) or 'another must be used'}"
            for one, _ in found
        ]
    if problems:
        raise RequestError(problems[0], problems=problems, where="donors")
    return kept


def _check(request: Request) -> None:
    problems = []
    if ENGINE not in request.engines:
        problems.append(
            f"engines: an order by properties is for {ENGINE!r}, which is not named{suggest(ENGINE, request.engines)}"
        )
    if request.device.precision == "int8" and not request.samples:
        problems.append(
            "device.precision: int8 is calibrated on real samples, and the order has none: give samples (labels are "
            "not read), or take float32 or float16"
        )
    if request.heldout is not None:
        problems.append("heldout: an order by properties has no labelled images to report on; leave it out")
    if problems:
        raise RequestError(problems[0], problems=problems)


def _samples(request: Request) -> Labelled | None:
    return read_samples(Path(request.samples)) if request.recalibrate and request.samples else None


def _digest(request: Request) -> str | None:
    found = _samples(request)
    return found.digest if found is not None else None
