"""Orders for a task of a task space: plans of every supernet that covers it, and the artifact of the best one."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from sarto.devices import count
from sarto.devices.measuring import check_agent
from sarto.engines.factory.subnets import EQUAL
from sarto.errors import InfeasibleError, RequestError, VerifyError, suggest
from sarto.export import export_onnx
from sarto.graph import ModelGraph
from sarto.graph.file import read_graph, write_graph
from sarto.market import Intake, Labelled, Store
from sarto.pipeline.artifact import GRAPH, REQUIREMENT, Artifact, delivered_hashes, write_manifest, write_text
from sarto.pipeline.builder import count_params
from sarto.pipeline.choose import Listed
from sarto.pipeline.closing import roomy
from sarto.pipeline.covering import covering, covering_classes, unnamed_task
from sarto.pipeline.donor_rules import Source, allowed, check_rules, meant, why_not
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
from sarto.pipeline.sentences import memory_sentences, speed_sentences
from sarto.pipeline.subnets import ENGINE, ReadySupernet, Subnets, Tasks, certificate_sentences
from sarto.pipeline.task_models import Built, inputs_for, rounds_of
from sarto.pipeline.task_samples import TaskScore, check_own, read_own, scored
from sarto.types import (
    Budget,
    Certificate,
    Check,
    ClassOffer,
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
    """Plans of supernets for an order by task; the most accurate one as expected comes first.

    Attributes:
        without: of each supernet that covers the task and has no plan: why, in words.
    """

    request: Request
    feasible: tuple[Plan, ...]
    refused: tuple[tuple[Plan, tuple[str, ...]], ...] = ()
    without: tuple[str, ...] = ()


def plan_tasks(store: Store, request: Request) -> TaskPlans:
    """Plans for an order by task: of each supernet that covers it the largest subnet that fits, and smaller ones.

    Raises:
        RequestError: no supernet covers the task, the order does not fit together, or of no supernet that covers the
            task is known what subnets take; all reasons at once.
        InfeasibleError: no subnet keeps the budget; names the floor and the nearest budget.
    """
    _check(request)
    held = Subnets(store, profile_of(request.device, store))
    samples = read_own(request) if request.recalibrate else None
    return _plans(held, request, None if samples is None else samples.digest)


def _plans(held: Subnets, request: Request, samples: str | None) -> TaskPlans:
    found: list[tuple[float, Plan]] = []
    refusals: list[InfeasibleError] = []
    without: list[str] = []
    for manifest, tasks in _covering(held.store, request):
        one = held.get(manifest.id)
        classes = request.task.classes or one.classes(tasks)
        try:
            best = one.find(tasks, request.budget, _measuring(one, intake_of(held.store, manifest), request))
            largest = one.expected(tasks, best.ratio).quality
            found.append((-1.0 if largest is None else largest, one.plan(tasks, best, classes, samples)))
            judged = min((quality.n_samples for quality in manifest.qualities), default=1)
            for subnet in one.smaller(tasks, best, request.budget):
                sure = beside_larger(one.expected(tasks, subnet.ratio).quality, largest, judged)
                found.append((-1.0 if sure is None else sure, one.plan(tasks, subnet, classes, samples)))
        except (InfeasibleError, RequestError) as error:
            refusals += [error] if isinstance(error, InfeasibleError) else []
            without.append(f"supernet {manifest.name!r}: {'; '.join(error.problems) or error.detail}")
    if not found and not refusals:
        raise RequestError(without[0], problems=without)
    if not found:
        raise _too_small(refusals, without, request.budget)
    # Of equal expectation the largest one comes first: it has the most of what was trained.
    found.sort(key=lambda item: (-round(item[0], 4), -(item[1].predicted.params if item[1].predicted else 0)))
    plans = {plan.key(): plan for _, plan in found}
    return TaskPlans(request, tuple(plans.values()), without=tuple(without))


def beside_larger(quality: float | None, larger: float | None, n_samples: int) -> float | None:
    """What a smaller subnet's expected quality counts as beside that of the largest one in the budget.

    It is better only by more than the standard error of what was judged: else it would go first by chance, and leave
    most of a budget unused.

    Args:
        quality: of the smaller one; None where it is not known.
        n_samples: on which each was judged.
    """
    if quality is None or larger is None:
        return quality
    error = math.sqrt(larger * (1 - larger) / max(1, n_samples))
    return quality if quality > larger + error else min(quality, larger)


def _too_small(
    refusals: Sequence[InfeasibleError], without: Sequence[str], budget: Budget
) -> InfeasibleError:
    """The budget that no supernet keeps: with the floors of all, and the nearest budget of the one that is nearest."""
    if len(without) == 1:
        return refusals[0]
    limits = budget.limits()
    floors = [dict(error.floor or {}) for error in refusals]
    nearest = min(
        (dict(error.nearest or {}) for error in refusals),
        key=lambda needs: max((value / limits[name] for name, value in needs.items()), default=math.inf),
    )
    return InfeasibleError(
        "no supernet has a subnet that keeps the budget",
        problems=without,
        floor={name: min(one[name] for one in floors if name in one) for name in set().union(*floors)},
        nearest=nearest,
        where="budget",
    )


def make_task(
    store: Store, request: Request, out: Path, *, plan: Plan | None = None, progress: Progress = silent
) -> Artifact:
    """Build the model of an order by task into a folder: no data, no training; verified and certified.

    Args:
        plan: build this plan instead of choosing one.

    Raises:
        RequestError: no supernet covers the task, the folder holds something else, the device's agent does not answer,
            or the samples can't be read.
        InfeasibleError: no subnet keeps the budget, as predicted or as measured.
        VerifyError: the model is not what was trained, or an export differs from it.
    """
    _check(request)
    job = Job(out, request, extra=plan.key() if plan is not None else "")
    if job.finished is not None:
        return job.finished
    check_agent(request.device)
    held = Subnets(store, profile_of(request.device, store))
    samples = read_own(request)
    begun = perf_counter()
    progress("planning", 0, 3)
    taken = samples.digest if samples is not None and request.recalibrate else None
    listed = TaskPlans(request, (plan,)) if plan is not None else _plans(held, request, taken)
    plans = listed.feasible
    check_own(store, plans[0], samples, request)
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
            kept = roomy(rounds, lambda turn: turn.cost, request.budget)
            if not kept:
                continue
            best = max(kept, key=lambda turn: turn.cost.latency_ms or 0.0)
            best.built.path.rename(out / "model.onnx")
            leave_files(best.built.place, out)
        score = scored(best.built.made, samples, request)
        return _deliver(job, best.built, request, best.cost, samples, score, tuple(tried), listed.without)
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
    score: TaskScore,
    tried: tuple[str, ...],
    without: tuple[str, ...],
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
        offers=tuple(
            ClassOffer(cls=cls, learnware=manifest.id, label=manifest.classes.index(cls))
            for cls in request.task.classes
        ),
        n_samples=score.counts,
        samples_digest=samples.digest if samples is not None else None,
        notes=(
            *measured_elsewhere(made.held.profile, request.device),
            *(f"left out: {reason}" for reason in without),
            *score.notes,
        ),
    )
    certificate = made.held.certificate(
        made.node,
        made.gates,
        made.difference,
        found=made.found
        or made.held.found_again(made.gates, made.held.tasks(made.node.tasks), request.budget),
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
        rows=(
            Row(
                name=made.plan.note or "subnet",
                role="pick",
                plan_key=made.plan.key(),
                accuracy_loto=score.accuracy,
                interval=score.interval,
                cost=cost,
                samples_used=0 if score.n else None,
                note="accuracy in single precision" if score.n and built.file is not None else "",
            ),
        ),
        per_class=score.per_class,
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
            *_sentences(certificate, cost, score, tried),
            *speed_sentences(built.raw_ms, cost.latency_ms or 0.0),
            *memory_sentences(cost),
            *requirement.notes,
            *device_sentences(built.file, request.device),
        ),
        certificate=certificate,
        device_file=built.file,
        latency_raw_ms=built.raw_ms,
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
    yield from budget_checks(cost, request.budget, built.file, raw_ms=built.raw_ms)
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


def _sentences(
    certificate: Certificate, cost: Cost, score: TaskScore, tried: tuple[str, ...]
) -> Iterator[str]:
    if score.accuracy is not None and score.interval is not None:
        yield (
            f"{score.accuracy:.1%} ({score.interval.low:.0%} to {score.interval.high:.0%}, nine times of ten) of your "
            f"{score.n} labelled samples are named right; no label chose anything."
        )
    yield from certificate_sentences(certificate).values()
    latency = f", {cost.latency_ms:.3g} ms a batch" if cost.latency_ms is not None else ""
    yield f"{cost.params:,} parameters, {cost.flops:,} FLOPs an image{latency}, {cost.size_bytes:,} bytes."
    yield "Made without data and without training: its units were trained together with those of all other tasks."
    for one in tried:
        yield f"Verified before and over the budget: {one}."


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
    """Whether an order is one for supernets alone: by properties, or for classes that learnwares can't do and one can.

    A learnware that is not allowed, or that has no samples of a class while the order brings none either, can't do it.

    Raises:
        RequestError: nobody but a supernet knows the classes, as answers to several tasks.
    """
    if request.task.tasks:
        return True
    wanted = request.task.wanted
    if ENGINE not in request.engines or any(whose is not None for whose, _ in wanted):
        return False
    names, every = {cls for _, cls in wanted}, list(store.learnwares())
    covered = [one for one, _ in covering_classes(store, request.task.classes)]
    if not names & {cls for item in every for cls in item.classes}:
        told = None if covered or request.samples is not None else unnamed_task(store, request.task.classes)
        if told is not None:
            raise RequestError(told, where="task")
        return bool(covered)  # where rules exclude the supernets, that is told
    rules = request.donors
    sampled = {
        cls
        for item in allowed(every, rules).values()
        for cls in item.classes
        if request.samples is not None or item.n_samples.get(cls)
    }
    both: list[Source] = [*every, *covered]
    musts = {item.id for item in meant(both, rules.must)}
    usable = [one for one in allowed(covered, rules) if musts <= {one}]
    return not names <= sampled and bool(usable) and max(rules.least, len(rules.must)) < 2


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
    if len(request.task.classes) == 1:
        problems.append(
            f"task.classes: {request.task.classes[0]!r} alone leaves nothing to tell apart; order at least two classes"
        )
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
        problems.append(
            "heldout: a supernet's model is chosen without samples, so that all labelled ones only report; give these "
            "as samples"
        )
    if problems:
        raise RequestError(problems[0], problems=problems)
