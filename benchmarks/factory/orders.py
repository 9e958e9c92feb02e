"""Orders by task with random latency budgets on profiled devices: how many are kept, and how much is left unused."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.profiled import journal_of, level, measured_in_turns, small_profile
from sarto import Market
from sarto.engines.factory.supernet import Supernet, assembler_for, placed
from sarto.errors import InfeasibleError
from sarto.graph import ModelGraph
from sarto.pipeline.backbones import backbone_graph
from sarto.pipeline.factory import read_space, stock_supernet
from sarto.pipeline.subnets import ReadySupernet
from sarto.types import Budget, Device, FactoryConfig, Request

NAME = "orders"


def orders(
    *,
    network: str,
    arguments: dict[str, Any],
    channels: int,
    side: int,
    devices: list[dict[str, Any]],
    n_orders: int,
    n_subnets: int,
    n_blocks: int,
    seconds: float,
    measured_seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Orders as a user gives them, half of them for each device, and their models measured once more, in turns.

    Tasks are drawn from all that can be ordered, trained or not; budgets are uniform between what the smallest subnet
    takes at most and what the largest one takes, as predicted. What counts is not the measurement by which an order was
    delivered but another one. Weights are random: no latency depends on them, and no task is expected to be done
    better by fewer units, so every order wants as many as the budget holds. With a folder in SARTO_JOURNALS profiles go
    on from what they had measured.

    Args:
        network: of the zoo.
        side: of the images, in pixels.
        n_blocks: built-in blocks of a profile, spread over all kinds.
        seconds: of measuring for each subnet and block of a profile.
        measured_seconds: of measuring each delivered model, in three passes.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    numbers: dict[str, Any] = {"n_devices": len(devices)}
    with (
        tempfile.TemporaryDirectory(prefix="sarto-") as folder,
        Market.create(Path(folder, "market")) as market,
    ):
        graph = _stocked(market, network, arguments, channels, side, seed)
        for place, given in enumerate(devices):
            device = Device.parse({**given, "profile": f"device-{place}"})
            profile = small_profile(
                device,
                NAME,
                graph,
                n_subnets=n_subnets,
                n_blocks=n_blocks,
                journal=journal_of(f"orders-{network}-{device.runtime}-{device.threads}"),
                seconds=seconds,
                seed=seed,
            )
            market.store.profiles.put(profile)
            held = ReadySupernet.open(market.store, NAME, profile)
            n = n_orders // len(devices) + (place < n_orders % len(devices))
            made = [_ordered(market, held, device, Path(folder, f"{place}-{i}"), rng) for i in range(n)]
            models = [one.graph for one in made if one.graph is not None]
            times, now = measured_in_turns(models, graph, device, measured_seconds)
            drift = now / level(profile.rows)
            found = _rows(made, times, device)
            key = device.runtime
            numbers |= {f"{name}_{key}": value for name, value in _numbers(found).items()}
            numbers[f"drift_ratio_{key}"] = drift
            rows += found
            print({name: value for name, value in numbers.items() if name.endswith(key)}, file=sys.stderr)
    return {**numbers, **_numbers(rows), "rows": rows}


@dataclass(frozen=True, eq=False)
class _Ordered:
    """An order, and what came of it.

    Attributes:
        graph: that was delivered; None where the order was refused.
        reported_ms: by which it was delivered.
        predicted_high_ms: of the first plan.
    """

    task: str
    seen: bool
    budget_ms: float
    graph: ModelGraph | None
    reported_ms: float | None
    predicted_high_ms: float | None
    ratio: float | None
    difference: float | None


def _stocked(
    market: Market, network: str, arguments: Mapping[str, Any], channels: int, side: int, seed: int
) -> ModelGraph:
    """Stocks a supernet of random weights; its backbone."""
    space = read_space("numvqa")
    config = FactoryConfig.parse(
        {
            "name": NAME,
            "space": "numvqa",
            "backbone": {"zoo": network, "arguments": dict(arguments)},
            "preprocessing": {
                "size": [side, side],
                "channels": channels,
                "mean": [0.5] * channels,
                "std": [0.5] * channels,
            },
        }
    )
    example = torch.rand(2, channels, side, side)
    graph, origin = backbone_graph(config.backbone, space, example, None)
    torch.manual_seed(seed)
    assembler = assembler_for(graph, placed(graph), space, config.assembler).eval()
    stock_supernet(market.store, Supernet(graph, space, placed(graph), assembler), config, origin)
    return market.store.supernets.graph(market.store.supernets.get(NAME).id)


def _ordered(
    market: Market, held: ReadySupernet, device: Device, out: Path, rng: np.random.Generator
) -> _Ordered:
    space = held.supernet.space
    tasks = (*space.seen, *space.kept_aside)
    task = tasks[rng.integers(len(tasks))]
    answers = held.classes((task,))
    least = held.cost((task,), held.smallest((task,)), answers)
    most = held.cost((task,), held.find((task,), Budget()), answers)
    low = 1.02 * float(least.latency_high_ms or 0.0)
    limit = float(rng.uniform(low, max(0.98 * float(most.latency_ms or 0.0), 1.03 * low)))
    request = Request.parse(
        {
            "task": {"properties": sorted(task), "space": space.name},
            "budget": {"latency_ms": limit},
            "device": device.model_dump(mode="json"),
        }
    )
    known: dict[str, Any] = {"task": space.named(task), "seen": task in space.seen, "budget_ms": limit}
    try:
        artifact = market.make(request, out)
    except InfeasibleError as error:
        print(f"refused: {error}", file=sys.stderr)
        return _Ordered(
            **known,
            graph=None,
            reported_ms=None,
            predicted_high_ms=None,
            ratio=None,
            difference=None,
        )
    report = artifact.report
    certificate = report.certificate
    return _Ordered(
        **known,
        graph=artifact.graph,
        reported_ms=report.measured.latency_ms,
        predicted_high_ms=report.predicted.latency_high_ms,
        ratio=None if certificate is None else certificate.ratio,
        difference=None if certificate is None else certificate.difference,
    )


def _rows(made: Sequence[_Ordered], times: Sequence[float], device: Device) -> list[dict[str, Any]]:
    rows, left = [], list(times)
    for one in made:
        taken = None if one.graph is None else left.pop(0)
        rows.append(
            {
                "runtime": device.runtime,
                "task": one.task,
                "seen": one.seen,
                "budget_ms": one.budget_ms,
                "delivered": taken is not None,
                "predicted_high_ms": one.predicted_high_ms,
                "reported_ms": one.reported_ms,
                "measured_ms": taken,
                "over": taken is not None and taken > one.budget_ms,
                "unused_share": None if taken is None else 1 - taken / one.budget_ms,
                "ratio": one.ratio,
                "difference": one.difference,
            }
        )
    return rows


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    delivered = [row for row in rows if row["delivered"]]
    numbers: dict[str, Any] = {"n_orders": len(rows), "n_delivered": len(delivered)}
    if delivered:
        numbers |= {
            "within_budget_share": statistics.fmean(not row["over"] for row in delivered),
            "over_budget_ratio_worst": max(row["measured_ms"] / row["budget_ms"] for row in delivered),
            "unused_share_mean": statistics.fmean(row["unused_share"] for row in delivered),
            "unused_share_mean_as_reported": statistics.fmean(
                1 - row["reported_ms"] / row["budget_ms"] for row in delivered
            ),
            "unused_share_mean_of_bound": statistics.fmean(
                1 - row["predicted_high_ms"] / row["budget_ms"] for row in delivered
            ),
            "equality_difference_worst": max(row["difference"] for row in delivered),
        }
    return numbers
