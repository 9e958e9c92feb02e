"""Orders with random latency budgets on a profiled device: how many exceed them, and how much is left unused."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.export_models import MEAN, STD
from benchmarks.predictor import blocks_of, graph_of
from benchmarks.slicepack.donors import EXAMPLES
from benchmarks.slicepack.tasks import CIFAR10
from sarto import Market
from sarto.devices import open_runtime
from sarto.devices.profiling import Backbone, Wanted, measure_all, open_in
from sarto.export import write_for
from sarto.graph import ModelGraph
from sarto.market import Samples, read_samples
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import Plans, propose
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.profiles import measure_profile
from sarto.types import Device, Plan, Request, SliceNode
from sarto.types.profile import DeviceProfile

NAME = "desk"


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
    """For each budget the plan whose bound fills it most, built with random units of each group, measured.

    Which units are kept changes no latency, so nothing is chosen or repaired here. Orders are of two to four classes;
    budgets are uniform between the quickest and the slowest stocked pack. Numbers that end in `_corrected` are at the
    machine's speed when the profile was measured, by the reference that both were measured beside.

    Args:
        backbone: the donor, of `benchmarks.predictor`.
        n_blocks: built-in blocks of the profile, spread over all kinds.
        n_images: of each class, that the donor comes with.
        seconds: of measuring for each subnet and block of the profile.
        measured_seconds: of measuring each built model, in three passes.
        journal: file that keeps what the profile measured, to go on from there.
    """
    device = Device.parse({"runtime": runtime, "threads": threads, "profile": NAME})
    rng = np.random.default_rng(seed)
    with (
        tempfile.TemporaryDirectory(prefix="sarto-") as folder,
        Market.create(Path(folder, "market")) as market,
    ):
        scale = {"size": [32, 32], "channels": 3, "mean": list(MEAN), "std": list(STD)}
        market.add(
            graph_of(backbone), name="donor", classes=CIFAR10, preprocessing=scale, samples=_images(n_images)
        )
        graph = market.store.graph("donor")
        profile = measure_profile(
            NAME,
            device,
            backbones={backbone: graph},
            n_subnets=n_subnets,
            built_in=blocks_of(n_blocks),
            memory=False,
            journal=None if journal is None else Path(journal),
            seconds=seconds,
            seed=seed,
        )
        market.store.profiles.put(profile)
        builder = Builder(market.store, {})
        made = [_ordered(builder, device, rng) for _ in range(n_budgets)]
        times, level = _measured([graph for *_, graph in made], graph, device, measured_seconds)
    before = {row.chunk: row.reference_ms for row in profile.rows if row.what == "subnet"}
    drift = level / statistics.median(before.values())
    rows = [
        _row(plans, plan, limit, ms, drift) for (plans, plan, limit, _), ms in zip(made, times, strict=True)
    ]
    return {**_numbers(rows, profile), "drift_ratio": drift, "rows": rows}


def _images(n: int) -> Samples:
    found = read_samples(EXAMPLES / "images" / "samples")
    if not isinstance(found, Samples):
        raise TypeError("examples/images/samples holds no images")
    return found.take(n)


def _ordered(
    builder: Builder, device: Device, rng: np.random.Generator
) -> tuple[Plans, Plan, float, ModelGraph]:
    """A random order: its plans, the first one, the budget, and the built twin of that plan."""
    store = builder.store
    classes = [CIFAR10[place] for place in rng.permutation(10)[: rng.integers(2, 5)]]
    asked = {"task": {"classes": classes}, "engines": ["slicepack"], "baselines": []}
    request = Request.parse({**asked, "device": device.model_dump(mode="json")})
    free = propose(check_order(request, store)).all
    bounds = [cost.latency_high_ms for plan in free if (cost := plan.predicted) and cost.latency_high_ms]
    limit = float(rng.uniform(1.02 * min(bounds), 0.98 * max(bounds)))
    order = check_order(request.replace(budget=request.budget.replace(latency_ms=limit)), store)
    plans = propose(order)
    first = max(plans.feasible, key=lambda plan: (plan.predicted and plan.predicted.latency_high_ms) or 0.0)
    return plans, first, limit, _twin(builder, order, first)


def _twin(builder: Builder, order: Order, plan: Plan) -> ModelGraph:
    """The plan's model with random units of each group in place of the best ones."""
    nodes = {
        name: node.replace(select="random", repair=None, seed=place) if isinstance(node, SliceNode) else node
        for place, (name, node) in enumerate(plan.nodes.items())
    }
    known = (order.samples, *order.donor_samples.values())
    builder.samples = {**builder.samples, **{samples.digest: samples for samples in known}}
    return builder.build(plan.replace(nodes=nodes)).graph


def _measured(
    models: Sequence[ModelGraph], whole: ModelGraph, device: Device, seconds: float
) -> tuple[list[float], float]:
    """Milliseconds of each model, and those of the reference that they took turns with."""
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder, open_runtime(device) as worker:
        write = None if device.runtime == "torch" else write_for
        opener = open_in(worker, device, write=write, folder=Path(folder))
        wanted = [
            Wanted("subnet", f"order-{place}", {}, partial(_itself, graph))
            for place, graph in enumerate(models)
        ]
        rows = measure_all(wanted, opener, Backbone("donor", whole).half(), seconds=seconds)
    level = statistics.median({row.chunk: row.reference_ms for row in rows}.values())
    return [row.latency_ms for row in rows], level


def _itself(graph: ModelGraph) -> ModelGraph:
    return graph


def _row(plans: Plans, plan: Plan, limit: float, measured: float, drift: float) -> dict[str, Any]:
    cost = plan.predicted
    stocked = [
        other.predicted.latency_high_ms
        for other in plans.feasible
        if other.predicted is not None and other.predicted.latency_high_ms and "solved" not in other.note
    ]
    return {
        "n_classes": len(plans.order.classes),
        "budget_ms": limit,
        "predicted_low_ms": cost.latency_low_ms if cost is not None else None,
        "predicted_ms": cost.latency_ms if cost is not None else None,
        "predicted_high_ms": cost.latency_high_ms if cost is not None else None,
        "measured_ms": measured,
        "measured_ms_corrected": measured / drift,
        "unused_share": 1 - measured / limit,
        "unused_share_of_bound": 1 - ((cost.latency_high_ms if cost is not None else None) or 0.0) / limit,
        "unused_share_of_bound_stocked": 1 - max(stocked, default=0.0) / limit,
        "unused_share_corrected": 1 - measured / drift / limit,
        "over": measured > limit,
        "over_corrected": measured / drift > limit,
        "plan": plan.note,
    }


def _numbers(rows: Sequence[dict[str, Any]], profile: DeviceProfile) -> dict[str, Any]:
    unused = [row["unused_share"] for row in rows]
    return {
        "n_budgets": len(rows),
        "over_budget_share": statistics.fmean(row["over"] for row in rows),
        "over_budget_ratio_worst": max(row["measured_ms"] / row["budget_ms"] for row in rows),
        "over_budget_share_corrected": statistics.fmean(row["over_corrected"] for row in rows),
        "unused_share_mean": statistics.fmean(unused),
        "unused_share_mean_corrected": statistics.fmean(row["unused_share_corrected"] for row in rows),
        "unused_share_of_bound_mean": statistics.fmean(row["unused_share_of_bound"] for row in rows),
        "unused_share_of_bound_mean_stocked": statistics.fmean(
            row["unused_share_of_bound_stocked"] for row in rows
        ),
        "error_ratio_mean": statistics.fmean(
            abs(row["predicted_ms"] / row["measured_ms"] - 1) for row in rows
        ),
        "error_ratio_mean_corrected": statistics.fmean(
            abs(row["predicted_ms"] / row["measured_ms_corrected"] - 1) for row in rows
        ),
        "repeat_noise_ratio": profile.noise.repeat_share if profile.noise is not None else 0.0,
        "unit_step_count": profile.unit_step,
    }
