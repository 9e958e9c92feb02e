"""Orders with random latency budgets on a profiled device: how many exceed them, and how much is left unused."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.desk import Desk, open_desk
from sarto.devices import count
from sarto.export import Known, to_onnx
from sarto.export.resizing import resized_onnx
from sarto.graph import ModelGraph
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import Plans, kind_of, propose
from sarto.pipeline.closing import ROUNDS, UNUSED, Round, closed, roomy
from sarto.pipeline.on_device import latency_on
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.reference import reference_of
from sarto.types import BranchNode, Budget, Cost, Plan, SliceNode
from sarto.types.profile import DeviceProfile


def budgets(
    *,
    backbone: str,
    runtime: str,
    threads: int,
    n_budgets: int,
    n_subnets: int,
    n_blocks: int,
    n_images: int,
    seconds: float,
    measured_seconds: float,
    journal: str | None = None,
    seed: int,
) -> dict[str, Any]:
    """For each budget the slowest plan whose bound keeps it, and what is delivered in its place once it was measured.

    As in an order: a plan is measured, and its widths are solved again from what it took until one keeps the budget
    and fills it. Models have random units of each group: which are kept changes no latency, so nothing is chosen or
    repaired here. What counts is another measurement of what was delivered, and of the first plan, all in turns. Where
    no plan keeps the budget nothing is delivered, as in an order of one kind of pack.

    Orders are of two to four classes; budgets are uniform from a fifth above what the quickest pack should take up to
    what the whole donor should: a pack of several fragments may take longer than its donor, and nobody needs it. Times
    are at the machine's speed when the profile was measured, by the reference that all were measured beside, as in an
    order; those that end in `_raw` are as they were when everything was measured at the end.
    A row is `widest` where the delivered pack leaves room that no wider pack of its kind can take, because no pack is
    larger than its donors; numbers that end in `_filled` leave these out.

    Args:
        backbone: the donor, of `benchmarks.predictor`.
        n_blocks: built-in blocks of the profile, spread over all kinds.
        n_images: of each class, that the donor comes with.
        seconds: of measuring for each subnet and block of the profile.
        measured_seconds: of measuring each built model, in three processes of three passes.
        journal: file that keeps what the profile measured, to go on from there; None takes one in the folder of
            `SARTO_JOURNALS`, where it is set.
    """
    rng = np.random.default_rng(seed)
    with (
        tempfile.TemporaryDirectory(prefix="sarto-") as folder,
        open_desk(
            Path(folder),
            backbone=backbone,
            runtime=runtime,
            threads=threads,
            n_subnets=n_subnets,
            n_blocks=n_blocks,
            n_images=n_images,
            seconds=seconds,
            journal=journal,
            seed=seed,
        ) as desk,
    ):
        builder, files = Builder(desk.market.store, {}), Path(folder, "models")
        files.mkdir()
        made = [_ordered(builder, desk, rng, files) for _ in range(n_budgets)]
        models = {key: model for order in made for key, model in order.models.items()}
        times, drift = desk.measured(models, measured_seconds)
    rows = [_row(order, times, drift) for order in made]
    return {**_numbers(rows, desk.profile), "drift_ratio": drift, "rows": rows}


@dataclass(frozen=True, eq=False)
class _Ordered:
    """A random order.

    Attributes:
        rounds: plans that were measured, the first choice first.
        delivered: the one that keeps the budget and fills it most; None where none keeps it.
        models: built twins of the first and the delivered plan, or their files for the device, by key.
    """

    plans: Plans
    rounds: tuple[Round, ...]
    delivered: Plan | None
    models: dict[str, ModelGraph | Path]


def _ordered(builder: Builder, desk: Desk, rng: np.random.Generator, files: Path) -> _Ordered:
    """A random order: its first plan measured, and its widths solved again from that as in an order."""
    store, device = builder.store, desk.device
    request, limit = desk.drawn(rng, engines=["slicepack"], baselines=[])
    order = check_order(request.replace(budget=request.budget.replace(latency_ms=limit)), store)
    plans = propose(order)
    first = max(plans.feasible, key=lambda plan: (plan.predicted and plan.predicted.latency_ms) or 0.0)
    models: dict[str, ModelGraph | Path] = {}
    known: list[Known] = []

    def measured(plan: Plan) -> Cost:
        graph = _twin(builder, order, plan)
        path = files / f"{plan.key().removeprefix('sha256:')}.onnx"
        if device.runtime == "onnxruntime":
            # Random units without repair compute nothing worth comparing.
            made = resized_onnx(known[-1], graph) if known else None
            path.write_bytes((made or to_onnx(graph)).SerializeToString())
            known.append(Known(graph, path.read_bytes()))
        models[plan.key()] = path if device.runtime == "onnxruntime" else graph
        latency = latency_on(graph, device, path, order.intake.tensor(order.samples), reference)
        return count(graph).replace(latency_ms=latency.median_ms, basis="measured")

    with reference_of(order) as reference:
        rounds = closed(order, first, measured)
    best = _fullest(rounds, limit)
    kept = {first.key()} | ({best.plan.key()} if best is not None else set())
    return _Ordered(
        plans,
        rounds,
        None if best is None else best.plan,
        {key: model for key, model in models.items() if key in kept},
    )


def _fullest(rounds: Sequence[Round], limit: float) -> Round | None:
    """The one that takes longest of those that keep the budget, with room where one leaves some; None: none does."""
    kept = roomy(rounds, lambda one: one.cost, Budget(latency_ms=limit))
    return max(kept, key=lambda one: one.cost.latency_ms or 0.0, default=None)


def _twin(builder: Builder, order: Order, plan: Plan) -> ModelGraph:
    """The plan's model with random units of each group in place of the best ones."""
    nodes = {
        name: node.replace(select="random", repair=None, seed=place) if isinstance(node, SliceNode) else node
        for place, (name, node) in enumerate(plan.nodes.items())
    }
    known = (order.samples, *order.donor_samples.values())
    builder.samples = {**builder.samples, **{samples.digest: samples for samples in known}}
    return builder.build(plan.replace(nodes=nodes)).graph


def _row(order: _Ordered, times: Mapping[str, float], drift: float) -> dict[str, Any]:
    first, limit = order.rounds[0].plan, order.plans.order.request.budget.latency_ms or 0.0
    cost = first.predicted
    stocked = [
        other.predicted.latency_high_ms
        for other in order.plans.feasible
        if other.predicted is not None and other.predicted.latency_high_ms and "solved" not in other.note
    ]
    raw = None if order.delivered is None else times[order.delivered.key()]
    delivered = None if raw is None else raw / drift
    taken = times[first.key()] / drift
    return {
        "n_classes": len(order.plans.order.classes),
        "n_parts": _n_parts(first),
        "budget_ms": limit,
        "predicted_low_ms": cost.latency_low_ms if cost is not None else None,
        "predicted_ms": cost.latency_ms if cost is not None else None,
        "predicted_high_ms": cost.latency_high_ms if cost is not None else None,
        "first_measured_ms": taken,
        "first_over": taken > limit,
        "first_unused_share": 1 - taken / limit,
        "first_under_bound": taken <= ((cost.latency_high_ms if cost is not None else None) or 0.0),
        "n_rounds": len(order.rounds),
        "widest": _is_widest(order.rounds, limit),
        "rounds_ms": ", ".join(f"{one.cost.latency_ms:.4g}" for one in order.rounds),
        "delivered_ms": delivered,
        "delivered_raw_ms": raw,
        "delivered_over": delivered is not None and delivered > limit,
        "delivered_unused_share": None if delivered is None else 1 - delivered / limit,
        "unused_share_of_bound": 1 - ((cost.latency_high_ms if cost is not None else None) or 0.0) / limit,
        "unused_share_of_bound_stocked": 1 - max(stocked, default=0.0) / limit,
        "plan": first.note,
        "delivered": "" if order.delivered is None else order.delivered.note,
    }


def _is_widest(rounds: Sequence[Round], limit: float) -> bool:
    """Whether the budget has more room than any pack of the delivered kind takes: none is larger than its donors."""
    best = _fullest(rounds, limit)
    if best is None or (best.cost.latency_ms or 0.0) >= (1 - UNUSED) * limit:
        return False
    own = [one for one in rounds if kind_of(one.plan) == kind_of(best.plan)]
    return best is own[-1] and len(own) < ROUNDS


def _n_parts(plan: Plan) -> int:
    """Extractors side by side."""
    return max((len(node.of) for node in plan.nodes.values() if isinstance(node, BranchNode)), default=1)


def _numbers(rows: Sequence[dict[str, Any]], profile: DeviceProfile) -> dict[str, Any]:
    delivered = [row for row in rows if row["delivered_ms"] is not None]
    numbers = {
        "n_budgets": len(rows),
        "n_delivered": len(delivered),
        "n_rounds_mean": statistics.fmean(row["n_rounds"] for row in rows),
        "first_over_budget_share": statistics.fmean(row["first_over"] for row in rows),
        "first_under_bound_share": statistics.fmean(row["first_under_bound"] for row in rows),
        "first_unused_share_mean": statistics.fmean(row["first_unused_share"] for row in rows),
        "first_error_ratio_mean": statistics.fmean(
            abs(row["predicted_ms"] / row["first_measured_ms"] - 1) for row in rows
        ),
        "unused_share_of_bound_mean": statistics.fmean(row["unused_share_of_bound"] for row in rows),
        "unused_share_of_bound_mean_stocked": statistics.fmean(
            row["unused_share_of_bound_stocked"] for row in rows
        ),
        "repeat_noise_ratio": profile.noise.repeat_share if profile.noise is not None else 0.0,
        "unit_step_count": profile.unit_step,
        "off_step_ratio": profile.off_step_ratio,
    }
    packs = profile.backbones[0].packs
    if packs is not None:
        numbers |= {"share_per_part": packs.share_per_part, "pack_error_ratio_mean": packs.error_share}
    filled = [row["delivered_unused_share"] for row in delivered if not row["widest"]]
    if filled:
        numbers |= {"n_filled": len(filled), "unused_share_mean_filled": statistics.fmean(filled)}
    if delivered:
        numbers |= {
            "over_budget_share": statistics.fmean(row["delivered_over"] for row in delivered),
            "over_budget_share_raw": statistics.fmean(
                row["delivered_raw_ms"] > row["budget_ms"] for row in delivered
            ),
            "over_budget_ratio_worst": max(row["delivered_ms"] / row["budget_ms"] for row in delivered),
            "unused_share_mean": statistics.fmean(row["delivered_unused_share"] for row in delivered),
        }
    return numbers
