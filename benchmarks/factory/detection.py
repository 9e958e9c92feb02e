"""AttrOD (generated): precision of boxes under latency and memory budgets, beside what one would do without a factory.

The paper's Table 3, and with the seconds of the same run its Table 4.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.factory.detectors import (
    Scarce,
    Setting,
    judged,
    maps_of,
    of_kinds,
    plain,
    pruned,
    shared_detector,
    told,
    tuned_alone,
)
from benchmarks.profiled import journal_of, measured_in_turns, small_profile
from sarto import Artifact, Market, zoo
from sarto.devices import count
from sarto.engines.factory.spaces.attrod import drawn
from sarto.engines.factory.spaces.detection import boxes_of
from sarto.engines.factory.supernet import placed
from sarto.engines.factory.training import train_supernet
from sarto.errors import InfeasibleError
from sarto.export import to_onnx
from sarto.graph import ModelGraph, capture
from sarto.pipeline.backbones import backbone_graph
from sarto.pipeline.factory import read_space, stock_supernet
from sarto.pipeline.on_device import latency_on
from sarto.pipeline.subnets import ReadySupernet
from sarto.training import draws, has_bfloat16
from sarto.types import AssemblerSettings, Device, FactoryConfig, Request, TaskSpace

NAME = "attrod"


def detection(
    *,
    width: int,
    depths: list[int],
    side: int,
    steps: int,
    steps_shared: int,
    steps_each: int,
    batch: int,
    lr: float,
    devices: list[dict[str, Any]],
    shares: list[list[float]],
    n_tasks: int,
    n_few: int,
    few_samples: int,
    many_samples: int,
    n_test: int,
    n_subnets: int,
    n_blocks: int,
    seconds: float,
    train_on: str,
    seed: int,
) -> dict[str, Any]:
    """Precision (average precision at an overlap of one half) of each task's model under its budget, by four ways.

    Every task has a budget of latency and memory on one of the devices. Ours is an order through the whole pipeline:
    the subnet for the task that fills the budget as measured. Beside it:

    - shared: one detector with maps of all twenty kinds of objects, whole: it keeps no budget.
    - retrain: the whole network, trained for the task alone; it keeps no budget either, as in the paper.
    - retrain small: the widest network of the same kind that keeps the budget as measured, trained for the task alone.
    - prune and tune: the shared detector cut by Torch-Pruning to that width, then tuned on the task.

    All of them see the same images of each task. Seconds are those of a processor, or with a GPU those on the wall.

    Args:
        shares: of the span from the smallest subnet to the whole network that budgets allow, of latency and of memory.
        n_few: so many of the tasks have `few_samples` training images, all others `many_samples`.
        train_on: "cpu" or "cuda".
    """
    space = read_space("attrod", {"side": side})
    tasks = space.seen[:: max(1, len(space.seen) // n_tasks)][:n_tasks]
    few = tasks[:: max(1, len(tasks) // max(1, n_few))][:n_few]
    data = Scarce(drawn(side), space, dict.fromkeys(few, few_samples), many_samples, seed)
    clock = time.process_time if train_on == "cpu" else time.perf_counter
    setting = Setting(data, width, tuple(depths), batch, lr, train_on, seed, clock)
    numbers: dict[str, Any] = {
        "n_tasks": len(tasks),
        "n_tasks_few": len(few),
        "few_samples_count": few_samples,
    }
    with (
        tempfile.TemporaryDirectory(prefix="sarto-") as folder,
        Market.create(Path(folder, "market")) as market,
    ):
        begun = clock()
        graph = _trained(setting, space, market, steps)
        numbers["prepare_seconds_ours"] = clock() - begun
        begun = clock()
        shared = shared_detector(setting, steps_shared)
        numbers["prepare_seconds_shared"] = clock() - begun
        wholes = [
            _held(market, given, place, graph, n_subnets, n_blocks, seconds, seed)
            for place, given in enumerate(devices)
        ]
        rows, delivered = list[dict[str, Any]](), dict[int, ModelGraph]()
        for place, task in enumerate(tasks):
            held, device = wholes[place % len(devices)]
            budget = _budget(held, graph, task, shares[(place // len(devices)) % len(shares)])
            row = {"task": space.named(task), "runtime": device.runtime, "few": task in few, **budget}
            begun = setting.clock()
            made = _ordered(market, device, task, budget, Path(folder, f"order-{place}"))
            row |= {"delivered": made is not None, "customise_seconds_ours": setting.clock() - begun}
            if made is not None:
                delivered[place] = made.graph
                row |= _ours(setting, made, task, n_test)
            row |= _others(setting, shared, held, device, task, budget, steps_each, n_test)
            print(row, file=sys.stderr)
            rows.append(row)
        for place, (_, device) in enumerate(wholes):
            _measured_again(rows, delivered, range(place, len(rows), len(devices)), graph, device, seconds)
    return {**numbers, **_numbers(rows), "rows": rows}


def _measured_again(
    rows: Sequence[dict[str, Any]],
    delivered: Mapping[int, ModelGraph],
    places: Iterable[int],
    graph: ModelGraph,
    device: Device,
    seconds: float,
) -> None:
    """Put what the delivered models of a device take, measured once more and in turns, into their rows."""
    there = [place for place in places if place in delivered]
    if not there:
        return
    times, _ = measured_in_turns([delivered[place] for place in there], graph, device, seconds)
    for place, taken in zip(there, times, strict=True):
        rows[place]["latency_ms_ours"] = taken


def _trained(setting: Setting, space: TaskSpace, market: Market, steps: int) -> ModelGraph:
    """Trains and stocks the supernet; its backbone."""
    example = setting.data.draw(space.seen[:2], "train", draws(setting.seed, 0, 9))[0]
    config = FactoryConfig.parse(
        {
            "name": NAME,
            "space": "attrod",
            "backbone": {
                "zoo": "centre_detector",
                "arguments": {"depths": list(setting.depths), "width": setting.width},
            },
            "preprocessing": {
                "size": [setting.side, setting.side],
                "channels": 3,
                "mean": [0.5] * 3,
                "std": [0.5] * 3,
            },
            "joint": {
                "steps": steps,
                "batch": setting.batch,
                "lr": setting.lr,
                "precision": "bfloat16" if has_bfloat16(setting.device) else "float32",
                "lowest": 0.05,
                "seed": setting.seed,
            },
        }
    )
    graph, origin = backbone_graph(config.backbone, space, example, None)
    work = os.environ.get("SARTO_FACTORY_WORK")
    trained = train_supernet(
        graph,
        placed(graph),
        space,
        setting.data,
        assembler=AssemblerSettings(),
        joint=config.joint,
        folder=None if work is None else Path(work, "attrod"),
        told=lambda step, loss: told("supernet", step, loss),
        device=setting.device,
    )
    stock_supernet(market.store, trained.supernet, config, origin)
    return trained.supernet.graph


def _held(
    market: Market,
    given: Mapping[str, Any],
    place: int,
    graph: ModelGraph,
    n_subnets: int,
    n_blocks: int,
    seconds: float,
    seed: int,
) -> tuple[ReadySupernet, Device]:
    device = Device.parse({**given, "profile": f"device-{place}"})
    profile = small_profile(
        device,
        NAME,
        graph,
        n_subnets=n_subnets,
        n_blocks=n_blocks,
        journal=journal_of(f"attrod-{device.runtime}"),
        seconds=seconds,
        seed=seed,
    )
    market.store.profiles.put(profile)
    return ReadySupernet.open(market.store, NAME, profile), device


def _budget(
    held: ReadySupernet, graph: ModelGraph, task: frozenset[str], shares: Sequence[float]
) -> dict[str, Any]:
    """Latency and memory that the task's model may take."""
    least = held.cost((task,), held.smallest((task,)), held.classes((task,)))
    units = np.array([[stop - start for start, stop in held.supernet.layout.values()]])
    whole_ms, whole = float(held.table.latency_ms(units)[1, 0]), count(held.ready(graph))
    floor_ms = 1.02 * float(least.latency_high_ms or 0.0)
    memory = least.memory_bytes + shares[1] * (whole.memory_bytes - least.memory_bytes)
    return {
        "budget_ms": floor_ms + shares[0] * max(0.0, whole_ms - floor_ms),
        "budget_memory_bytes": round(memory),
    }


def _ordered(
    market: Market, device: Device, task: frozenset[str], budget: Mapping[str, Any], out: Path
) -> Artifact | None:
    """What an order through the whole pipeline delivers; None where it is refused."""
    request = Request.parse(
        {
            "task": {"properties": sorted(task), "space": NAME},
            "budget": {"latency_ms": budget["budget_ms"], "memory_bytes": budget["budget_memory_bytes"]},
            "device": device.model_dump(mode="json"),
        }
    )
    try:
        return market.make(request, out)
    except InfeasibleError as error:
        print(f"refused: {error}", file=sys.stderr)
        return None


def _ours(setting: Setting, made: Artifact, task: frozenset[str], n_test: int) -> dict[str, Any]:
    graph, measured = made.graph, made.report.measured
    return {
        "map_ours": judged(
            setting, task, lambda images: boxes_of(maps_of(graph, images), setting.side), n_test
        ),
        "reported_ms_ours": measured.latency_ms,
        "memory_bytes_ours": measured.memory_bytes,
    }


def _others(
    setting: Setting,
    shared: zoo.CentreDetector,
    held: ReadySupernet,
    device: Device,
    task: frozenset[str],
    budget: Mapping[str, Any],
    steps_each: int,
    n_test: int,
) -> dict[str, Any]:
    whole = _costs(setting, held, device, shared)
    row: dict[str, Any] = {
        "map_shared": judged(setting, task, lambda images: of_kinds(setting, shared, task, images), n_test),
        "latency_ms_shared": whole[0],
        "memory_bytes_shared": whole[1],
    }
    small, costs = _widest(setting, held, device, budget)
    whole = _costs(setting, held, device, setting.net(setting.width))
    for way, width, found in (("retrain", setting.width, whole), ("retrain_small", small, costs)):
        begun = setting.clock()
        alone = tuned_alone(setting, setting.net(width), task, steps_each)
        row |= {
            f"customise_seconds_{way}": setting.clock() - begun,
            f"map_{way}": judged(setting, task, plain(setting, alone), n_test),
            f"latency_ms_{way}": found[0],
            f"memory_bytes_{way}": found[1],
            f"keeps_{way}": found[0] <= budget["budget_ms"] and found[1] <= budget["budget_memory_bytes"],
        }
    if importlib.util.find_spec("torch_pruning") is not None:
        begun = setting.clock()
        tuned = tuned_alone(setting, pruned(setting, shared, small), task, steps_each)
        row["customise_seconds_prune_tune"] = setting.clock() - begun
        found = _costs(setting, held, device, tuned)
        row |= {
            "map_prune_tune": judged(setting, task, plain(setting, tuned), n_test),
            "latency_ms_prune_tune": found[0],
            "memory_bytes_prune_tune": found[1],
            "keeps_prune_tune": found[0] <= budget["budget_ms"] and found[1] <= budget["budget_memory_bytes"],
        }
    return row


def _widest(
    setting: Setting, held: ReadySupernet, device: Device, budget: Mapping[str, Any]
) -> tuple[int, tuple[float, int]]:
    """The widest network that keeps a budget as measured (else the narrowest one), and its latency and memory."""
    low, high = 2, setting.width
    found = low, _costs(setting, held, device, setting.net(low).eval())
    while low < high:
        middle = (low + high + 1) // 2
        costs = _costs(setting, held, device, setting.net(middle).eval())
        if costs[0] <= budget["budget_ms"] and costs[1] <= budget["budget_memory_bytes"]:
            low, found = middle, (middle, costs)
        else:
            high = middle - 1
    return found


def _costs(setting: Setting, held: ReadySupernet, device: Device, net: nn.Module) -> tuple[float, int]:
    """Measured latency in milliseconds, and bytes of activations."""
    example = torch.rand(2, 3, setting.side, setting.side)
    graph = held.ready(capture(net.eval(), example, prove=False))
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        path = Path(folder, "model.onnx")
        if device.runtime != "torch":
            path.write_bytes(to_onnx(graph).SerializeToString())
        return latency_on(graph, device, path, example[:1]).median_ms, count(graph).memory_bytes


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over all tasks; those of ours, and what is compared with them, over the delivered ones."""
    there = [row for row in rows if row["delivered"]]
    numbers: dict[str, Any] = {"n_delivered": len(there)}
    if there:
        numbers |= {
            "within_latency_share": statistics.fmean(
                row["latency_ms_ours"] <= row["budget_ms"] for row in there
            ),
            "unused_latency_share_mean": statistics.fmean(
                1 - row["latency_ms_ours"] / row["budget_ms"] for row in there
            ),
            "latency_shared_to_ours_times": statistics.fmean(
                row["latency_ms_shared"] / row["latency_ms_ours"] for row in there
            ),
            "latency_retrain_to_ours_times": statistics.fmean(
                row["latency_ms_retrain"] / row["latency_ms_ours"] for row in there
            ),
            "memory_shared_to_ours_times": statistics.fmean(
                row["memory_bytes_shared"] / row["memory_bytes_ours"] for row in there
            ),
        }
    for way in ("ours", "shared", "retrain", "retrain_small", "prune_tune"):
        known = [row for row in there if f"map_{way}" in row]
        if not known:
            continue
        numbers[f"map_share_mean_{way}"] = statistics.fmean(row[f"map_{way}"] for row in known)
        some = [row[f"map_{way}"] for row in known if row["few"]]
        if some:
            numbers[f"map_share_mean_few_{way}"] = statistics.fmean(some)
        if f"customise_seconds_{way}" in known[0]:
            numbers[f"customise_seconds_{way}"] = statistics.median(
                row[f"customise_seconds_{way}"] for row in known
            )
    return numbers
