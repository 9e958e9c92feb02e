"""Orders with random latency budgets from end to end: how many are exceeded, and how much is left unused."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.desk import Desk, open_desk
from sarto.errors import InfeasibleError
from sarto.pipeline import Artifact
from sarto.types import Budget


def kept_orders(
    *,
    backbone: str,
    runtime: str,
    threads: int,
    n_orders: int,
    n_subnets: int,
    n_blocks: int,
    n_images: int,
    seconds: float,
    measured_seconds: float,
    journal: str | None = None,
    seed: int,
) -> dict[str, Any]:
    """Orders as a user gives them, without baselines beside, and their models measured again.

    Unlike `budgets.budgets` this is all of an order: packs and whole donors, fragments selected and repaired, ranked by
    accuracy on the donor's images, exported, compared with eager, measured on the device. Budgets are as there. One may
    be left unused because a quicker model is as accurate on the images.

    What counts is not the measurement by which a model was delivered but another one, of all in turns, at the machine's
    speed for the profile; those that end in `_raw` are as they were then.

    Args:
        backbone: the donor, of `benchmarks.predictor`.
        n_blocks: built-in blocks of the profile, spread over all kinds.
        n_images: of each class, that the donor comes with.
        seconds: of measuring for each subnet and block of the profile.
        measured_seconds: of measuring each delivered model, in three processes of three passes.
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
        made = [_made(desk, rng, Path(folder, f"order-{place}")) for place in range(n_orders)]
        models = {
            str(place): one.artifact.folder / "model.onnx"
            if desk.device.runtime == "onnxruntime"
            else one.artifact.graph
            for place, one in enumerate(made)
            if one.artifact is not None
        }
        times, drift = desk.measured(models, measured_seconds)
        rows = [_row(one, times.get(str(place)), drift) for place, one in enumerate(made)]
    return {**_numbers(rows), "drift_ratio": drift, "rows": rows}


@dataclass(frozen=True, eq=False)
class _Made:
    """An order and what came of it.

    Attributes:
        artifact: None where the order was refused.
    """

    n_classes: int
    budget_ms: float
    artifact: Artifact | None
    seconds: float


def _made(desk: Desk, rng: np.random.Generator, out: Path) -> _Made:
    request, limit = desk.drawn(rng, baselines=[])
    begun = perf_counter()
    try:
        artifact = desk.market.make(request.replace(budget=Budget(latency_ms=limit)), out)
    except InfeasibleError as error:
        print(f"refused: {error}", file=sys.stderr)
        artifact = None
    return _Made(len(request.task.classes), limit, artifact, perf_counter() - begun)


def _row(one: _Made, raw_ms: float | None, drift: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "n_classes": one.n_classes,
        "budget_ms": one.budget_ms,
        "seconds": one.seconds,
        "is_delivered": one.artifact is not None,
    }
    if one.artifact is None or raw_ms is None:
        return row
    report = one.artifact.report
    taken = raw_ms / drift
    return {
        **row,
        "engine": report.plan.engine,
        "plan": report.plan.note,
        "predicted_ms": report.predicted.latency_ms,
        "predicted_high_ms": report.predicted.latency_high_ms,
        "reported_ms": report.measured.latency_ms,
        "measured_ms": taken,
        "measured_raw_ms": raw_ms,
        "over": taken > one.budget_ms,
        "unused_share": 1 - taken / one.budget_ms,
        "accuracy": report.pick.accuracy_loto,
        "params": report.measured.params,
    }


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    delivered = [row for row in rows if row["is_delivered"]]
    numbers: dict[str, Any] = {
        "n_orders": len(rows),
        "n_delivered": len(delivered),
        "order_seconds_median": statistics.median(row["seconds"] for row in rows),
    }
    if delivered:
        numbers |= {
            "over_budget_share": statistics.fmean(row["over"] for row in delivered),
            "over_budget_ratio_worst": max(row["measured_ms"] / row["budget_ms"] for row in delivered),
            "unused_share_mean": statistics.fmean(row["unused_share"] for row in delivered),
            "unused_share_median": statistics.median(row["unused_share"] for row in delivered),
            "unused_share_mean_as_reported": statistics.fmean(
                1 - row["reported_ms"] / row["budget_ms"] for row in delivered
            ),
            "reported_error_ratio_mean": statistics.fmean(
                abs(row["reported_ms"] / row["measured_ms"] - 1) for row in delivered
            ),
            "accuracy_mean": statistics.fmean(row["accuracy"] for row in delivered),
        }
    return numbers
