"""Export and measure plans in the order of their rank, until one keeps the budget as measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sarto.engines.factory.search import Found
from sarto.errors import GraphError, InfeasibleError, RequestError, SartoError, VerifyError
from sarto.export import Known, OnnxExport, export_onnx
from sarto.pipeline.builder import Assembly, Builder
from sarto.pipeline.choose import Plans, kind_of, ranked, show, titled
from sarto.pipeline.closing import closed, fullest, roomy
from sarto.pipeline.contest import Score, score_plan
from sarto.pipeline.donor_rules import broken_rules
from sarto.pipeline.exporting import texts_inside
from sarto.pipeline.filling_subnets import filled_by_measuring
from sarto.pipeline.on_device import OnDevice, measured_on, weighed
from sarto.pipeline.order import Order
from sarto.pipeline.progress import Progress
from sarto.pipeline.reference import Reference, reference_of
from sarto.pipeline.subnets import ReadySupernet, subnet_of
from sarto.types import Budget, Cost, DeviceFile, Plan, SubnetNode

#: Plans that are verified at most; a measured overrun takes the next one.
TRIES = 4
#: Plans that can't be exported, or compute something else, at most.
FAILURES = 8
#: Names of the delivered model's file, and of the folder of what the order's device runs, in the folder of a job.
FILE, ON_DEVICE = "model.onnx", "device"


@dataclass(frozen=True, eq=False)
class Verified:
    """A plan that was built, exported and measured, and keeps the budget.

    Attributes:
        difference: largest relative difference between ONNX Runtime and eager.
        agreement: share of the order's samples on which both decide alike.
        tried: what was verified before and broke a limit, in words.
        file: what the order's device runs, where that is neither the graph nor the ONNX file.
        raw_ms: milliseconds as they were, where the cost has them at the speed of the device's profile.
        failed: what was to be verified before, and could not be exported or computes something else there, in words.
        processor: on which it was measured.
        solved: of a subnet that was solved anew from what another took: its limit, and units that filled the budget.
    """

    score: Score
    cost: Cost
    difference: float
    agreement: float
    tried: tuple[str, ...]
    file: DeviceFile | None = None
    raw_ms: float | None = None
    failed: tuple[str, ...] = ()
    processor: str = ""
    solved: tuple[float, int] | None = None

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "score": self.score.to_plain(),
            "cost": self.cost.model_dump(mode="json"),
            "difference": self.difference,
            "agreement": self.agreement,
            "tried": list(self.tried),
            "file": None if self.file is None else self.file.model_dump(mode="json"),
            "raw_ms": self.raw_ms,
            "failed": list(self.failed),
            "processor": self.processor,
            "solved": self.solved,
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Verified:
        """What `to_plain` wrote."""
        return cls(
            Score.from_plain(data["score"]),
            Cost.parse(data["cost"]),
            data["difference"],
            data["agreement"],
            tuple(data["tried"]),
            None if data.get("file") is None else DeviceFile.parse(data["file"]),
            data.get("raw_ms"),
            tuple(data.get("failed", ())),
            data.get("processor", ""),
            None if data.get("solved") is None else tuple(data["solved"]),
        )


def verify(
    builder: Builder,
    plans: Plans,
    scores: Sequence[Score],
    given: Plan | None,
    folder: Path,
    progress: Progress,
) -> Verified:
    """The first plan in rank that keeps the budget as measured; its ONNX file is left in the folder.

    What the order's device runs is left there too, where it is another file. Where the device's profile has a
    reference, latency counts at the speed that the machine had for the profile.

    The rank is accuracy on the order's own samples, then fewer parameters. Where the device has a profile, the
    widths of the first pack are solved again from what it took, until it keeps a latency limit and fills it; of these
    the slowest of the wider ones goes that names at most one sample less right. Subnets before it get other numbers of
    units in the same way; without a profile too, once one took too long. After an
    overrun those come first whose FLOPs say that they should fit; where no built pack does, the largest that should is
    built and ranked with them. At most `TRIES` plans break a limit, besides those solved again. One that can't be
    exported, or computes something else on the device, gives way to the next too, which the report tells; a given plan
    does not.

    Raises:
        InfeasibleError: none of them keeps the budget; says what was measured.
        GraphError, VerifyError: none of them can be exported, or what is computes something else.
    """
    with reference_of(plans.order) as reference:
        bench = _Bench(builder, plans.order, folder, progress, reference)
        return _first_that_fits(bench, plans, scores, given)


def _first_that_fits(bench: _Bench, plans: Plans, scores: Sequence[Score], given: Plan | None) -> Verified:
    budget, builder = plans.order.request.budget, bench.builder
    built = [s for s in scores if s.plan is not None and s.row.role in ("plan", "donor", "probe", "ensemble")]
    if given is not None:
        queue = [score for score in built if score.plan is not None and score.plan.key() == given.key()]
    else:
        order = plans.order
        allowed = [
            s for s in built if s.plan and not broken_rules(s.plan, order.request.donors, order.sources)
        ]
        queue = _in_rank([s for s in allowed if s.row.cost is not None and not s.row.cost.over(budget)])
        # What was built to be compared with may be known to be too slow.
        refused = {plan.key() for plan, _ in plans.refused}
        queue = [s for s in queue if s.plan is not None and s.plan.key() not in refused] or queue
    known = {score.plan.key() for score in built if score.plan is not None}
    spare = [plan for plan in plans.feasible if plan.engine == "slicepack" and plan.key() not in known]
    spare.sort(key=lambda plan: -plan.predicted.params if plan.predicted is not None else 0)
    tried: list[tuple[Score, Cost]] = []
    failed: list[tuple[str, SartoError]] = []
    n_over = 0
    if not queue and given is None:
        # Counted exactly, everything that was built is over: go on from the one nearest to the budget.
        counted = [score.row.cost for score in built if score.row.cost is not None]
        nearest = min(counted, key=lambda cost: _excess(cost, plans.order), default=None)
        queue = _smaller(builder, plans.order, spare, nearest) if nearest is not None else []
    closing = given is None
    while queue and n_over < TRIES and len(failed) < FAILURES:
        score = queue.pop(0)
        try:
            # The first pack that can be measured says how wide others may be.
            found = bench.closed(score) if closing else [bench.measured(score)]
        except (GraphError, VerifyError) as error:
            if given is not None:
                raise
            failed.append((f"{score.row.name}: {error}", error))
            continue
        closing = closing and (score.plan is None or score.plan.engine != "slicepack")
        failed += bench.failed
        bench.failed = []
        kept = roomy(found, lambda one: one.cost, budget)
        tried += [(one.score, one.cost) for one in found if one.cost.over(budget)]
        if kept:
            best = _best(kept, plans.order)
            exported = bench.leave(best)
            told = tuple(_told(*item, budget) for item in tried)
            return Verified(
                best.score,
                bench.weighed_where_left(best),
                exported.max_relative_difference,
                exported.agreement,
                told,
                best.on_device.file,
                best.on_device.raw_ms,
                tuple(told for told, _ in failed),
                best.on_device.latency.processor,
                best.solved,
            )
        n_over += 1
        if given is None:
            queue = after_overrun(queue, builder, plans.order, spare, found[0].cost)
    if failed and not tried:
        raise failed[0][1]
    raise _overrun(plans.order, tried, [told for told, _ in failed])


@dataclass(frozen=True, eq=False)
class _Measured:
    """A plan's built model as it was measured, its ONNX file, and the folder of the file that the device runs.

    Attributes:
        solved: as in `Verified`.
    """

    score: Score
    cost: Cost
    on_device: OnDevice
    exported: OnnxExport
    file: bytes
    folder: Path
    solved: tuple[float, int] | None = None


@dataclass
class _Bench:
    """Exports and measures plans of one order."""

    builder: Builder
    order: Order
    folder: Path
    progress: Progress
    reference: Reference | None
    n: int = 0
    known: Known | None = None
    failed: list[tuple[str, SartoError]] = field(default_factory=list)

    def measured(self, score: Score) -> _Measured:
        """The model of a score's plan, exported and measured."""
        self.progress(f"verifying {score.row.name}", self.n, max(TRIES, self.n + 1))
        self.n += 1
        place = self.folder / f"{ON_DEVICE}-{self.n}"
        # What an interrupted call left is of no use: this one measures again.
        shutil.rmtree(place, ignore_errors=True)
        assembly, samples = self.assembly(score), self.order.samples
        exported = self.exported(assembly, self.known)
        self.known = Known(assembly.graph, exported.path.read_bytes())
        # What donors decided says nothing of what is right.
        own = assembly.classes == samples.classes and self.order.requirement.labelled_by == "order"
        found = measured_on(
            assembly.graph,
            self.order.request.device,
            exported.path,
            assembly.intake.tensor(samples),
            place,
            labels=torch.from_numpy(samples.labels.copy()) if own else None,
            metadata=_metadata(assembly),
            reference=self.reference,
        )
        cost, file = found.cost(assembly.graph), found.file
        if self.order.request.budget.process_bytes is not None:
            cost = self.weighed(cost, assembly, exported.path, None if file is None else place / file.name)
        return _Measured(score, cost, found, exported, self.known.data, place)

    def assembly(self, score: Score) -> Assembly:
        """The model of a score's plan."""
        if score.plan is None:
            raise RequestError("only a built plan can be delivered")
        return self.builder.build(score.plan)

    def exported(self, assembly: Assembly, like: Known | None) -> OnnxExport:
        """Its ONNX file, compared with eager."""
        inputs = assembly.intake.tensor(self.order.samples)
        path = self.folder / FILE
        return export_onnx(assembly.graph, path, metadata=_metadata(assembly), samples=inputs, like=like)

    def closed(self, score: Score) -> list[_Measured]:
        """A pack or a subnet, and those that were solved again from what it took; anything else alone."""
        found: list[_Measured] = []
        if score.plan is None:
            raise RequestError("only a built plan can be delivered")

        def cost(plan: Plan, searched: Found | None = None) -> Cost:
            own = score if not found else self.scored(plan)
            solved = None if searched is None else (searched.limit, searched.filled)
            found.append(replace(self.measured(own), solved=solved))
            return found[-1].cost

        try:
            subnet = subnet_of(score.plan)
            if subnet is not None and self.order.subnets is not None:
                self._filled_by(self.order.subnets.get(subnet.of), score.plan, subnet, cost)
            else:
                closed(self.order, score.plan, cost)
        except (GraphError, VerifyError) as error:
            # What was solved again and failed gives way to what it was solved from.
            if not found:
                raise
            self.failed.append((f"{score.row.name}, solved again: {error}", error))
        return found

    def _filled_by(
        self,
        held: ReadySupernet,
        plan: Plan,
        subnet: SubnetNode,
        cost: Callable[[Plan, Found | None], Cost],
    ) -> None:
        """Measure a subnet and those that are solved again from what it took."""
        filled_by_measuring(
            held,
            plan,
            held.tasks(subnet.tasks),
            self.order.request.budget,
            lambda one, searched: (None, cost(one, searched)),
            classes=self.order.classes,
            samples=subnet.samples,
        )

    def scored(self, plan: Plan) -> Score:
        """The score of a pack or a subnet that was solved again."""
        if plan.supernets:
            return score_plan(self.builder, plan, self.order.samples, "plan", plan.note)
        return score_plan(self.builder, plan, self.order.samples, "plan", titled(self.order, plan))

    def weighed(self, cost: Cost, assembly: Assembly, onnx: Path, file: Path | None) -> Cost:
        """A measured cost with the memory of a process, where that matters."""
        order = self.order
        profile = None if order.predictor is None else order.predictor.profile
        return weighed(
            cost,
            assembly.graph,
            order.request.device,
            onnx,
            file,
            budget=order.request.budget,
            profile=profile,
        )

    def weighed_where_left(self, found: _Measured) -> Cost:
        """The cost of the model whose files were left, with its memory where that matters."""
        file = found.on_device.file
        path = None if file is None else self.folder / ON_DEVICE / file.name
        return self.weighed(found.cost, self.assembly(found.score), self.folder / FILE, path)

    def leave(self, found: _Measured) -> OnnxExport:
        """Leave the files of a model in the folder, and those of no other; its ONNX file as the exporter writes it."""
        exported = found.exported
        if exported.resized:
            exported = self.exported(self.assembly(found.score), None)
        else:
            (self.folder / FILE).write_bytes(found.file)
        shutil.rmtree(self.folder / ON_DEVICE, ignore_errors=True)
        if found.folder.is_dir():
            found.folder.rename(self.folder / ON_DEVICE)
        for other in self.folder.glob(f"{ON_DEVICE}-*"):
            shutil.rmtree(other)
        return exported


def _best(kept: Sequence[_Measured], order: Order) -> _Measured:
    """The first in rank; where time is limited, of packs of its kind the one that uses most of it and is as good."""
    ranked_scores = _in_rank([one.score for one in kept])
    found = sorted(kept, key=lambda one: next(i for i, s in enumerate(ranked_scores) if s is one.score))
    plan, limit = found[0].score.plan, order.request.budget.latency_ms
    if limit is None or plan is None:
        return found[0]
    alike = [one for one in found if one.score.plan is not None and kind_of(one.score.plan) == kind_of(plan)]
    return fullest(
        alike, lambda one: one.cost, lambda one: float(one.score.correct.nan_to_num().sum()), limit
    )


def _excess(cost: Cost, order: Order) -> float:
    """The largest ratio of a known cost to its limit."""
    limits = order.request.budget.limits()
    known = {name: getattr(cost, name) for name in limits}
    return max((value / limits[name] for name, value in known.items() if value is not None), default=0.0)


def _in_rank(scores: list[Score]) -> list[Score]:
    zero = Cost(params=0, flops=0, memory_bytes=0, size_bytes=0, basis="predicted")
    return [
        scores[i]
        for i in ranked([(s.row.accuracy_loto, s.row.cost or zero, i) for i, s in enumerate(scores)])
    ]


def after_overrun(
    queue: list[Score], builder: Builder, order: Order, spare: list[Plan], over: Cost
) -> list[Score]:
    """What is tried after an overrun, those first that should fit."""
    allowed = _allowed(over, order)

    def should_fit(score: Score) -> bool:
        return score.row.cost is not None and score.row.cost.flops <= allowed

    if not any(should_fit(score) and score.row.role == "plan" for score in queue):
        queue = _in_rank([*queue, *_smaller(builder, order, spare, over)])
    return sorted(queue, key=lambda score: not should_fit(score))


def _allowed(over: Cost, order: Order) -> float:
    """FLOPs at which a cost that is over would fit, were every cost in proportion to FLOPs."""
    return over.flops / max(1e-9, _excess(over, order))


def _smaller(builder: Builder, order: Order, spare: list[Plan], cost: Cost) -> list[Score]:
    """The largest pack left that should fit when every cost shrinks like its FLOPs; the smallest where none should."""
    if not spare:
        return []
    allowed = _allowed(cost, order)
    fitting = [p for p in spare if p.predicted is not None and p.predicted.flops <= allowed]
    plan = fitting[0] if fitting else spare[-1]
    del spare[: spare.index(plan) + 1]
    return [score_plan(builder, plan, order.samples, "plan", titled(order, plan))]


def _metadata(assembly: Assembly) -> dict[str, str]:
    """What travels in a model's files."""
    return texts_inside(assembly.classes, assembly.intake, assembly.plan.key())


def _told(score: Score, cost: Cost, budget: Budget) -> str:
    names = dict.fromkeys(["params", "flops", "latency_ms", *cost.over(budget)])
    numbers = ", ".join(f"{name} {show(name, float(getattr(cost, name)))}" for name in names)
    return f"{score.row.name}: {numbers}"


def _overrun(
    order: Order, tried: Sequence[tuple[Score, Cost]], failed: Sequence[str] = ()
) -> InfeasibleError:
    limits, device = order.request.budget.limits(), order.request.device
    asked = ", ".join(f"{name} <= {show(name, value)}" for name, value in limits.items())
    if not tried:
        return InfeasibleError(f"no plan that was built keeps {asked}", where="budget")
    least = {name: min(float(getattr(cost, name)) for _, cost in tried) for name in limits}
    _, best = min(
        tried, key=lambda pair: max(float(getattr(pair[1], name)) / limits[name] for name in limits)
    )
    needs = {name: max(limit, float(getattr(best, name))) for name, limit in limits.items()}
    raised = ", ".join(
        f"{name} to {show(name, value)}" for name, value in needs.items() if value > limits[name]
    )
    return InfeasibleError(
        f"no plan keeps {asked} as measured with {device.runtime}, {device.threads} threads, batch {device.batch}. "
        f"Measured: {'; '.join(_told(*item, order.request.budget) for item in tried)}. Raise {raised}."
        + (f" Not measured, for it could not be exported: {'; '.join(failed)}." if failed else ""),
        floor=least,
        nearest=needs,
        where="budget",
    )
