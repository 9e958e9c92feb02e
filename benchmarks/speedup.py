"""What slices save in a real runtime: their time beside their FLOPs, as shares of the whole model."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.predictor import BACKBONES, graph_of
from sarto.devices import count, open_runtime
from sarto.devices.profiling import Backbone, open_in
from sarto.devices.profiling.run import turns
from sarto.devices.profiling.steps import step_counts
from sarto.export import FORMATS, write_for
from sarto.graph import ModelGraph, capture, slice
from sarto.graph.selection import leading, uniform_counts
from sarto.pipeline.profiles import READ_ONNX, subnet_files
from sarto.types import Device
from sarto.zoo.vgg import VGG16, vgg


def speedup(
    *,
    models: list[str],
    percents: list[int],
    runtime: str,
    threads: int,
    seconds: float,
    rounds: int,
    step: int,
) -> dict[str, Any]:
    """Median time of each slice over that of the whole model, in turns in one run; every group is cut alike.

    Each percentage gives two rows: the counts as they are, and rounded up to multiples of `step`.

    Args:
        models: of `benchmarks.predictor`, or `vgg16` (CIFAR) and `vgg-tiny`.
        percents: of the units of each group that are kept.
        seconds: how long each model runs.
    """
    device = Device.parse({"runtime": runtime, "threads": threads})
    rows: list[dict[str, Any]] = []
    numbers: dict[str, Any] = {"n_models": len(models), "step_count": step}
    for name in models:
        for found in _rows(name, device, percents, seconds, rounds, step):
            rows.append({"model": name, **found})
            if found["kept_percent"] < 100:  # rounded up, where that differs
                key = f"{name}_{found['kept_percent']}".replace("-", "_")
                numbers[f"{key}_time_ratio"] = found["time_ratio"]
                numbers[f"{key}_flops_ratio"] = found["flops_ratio"]
    return {**numbers, "rows": rows}


def _rows(
    name: str, device: Device, percents: list[int], seconds: float, rounds: int, step: int
) -> list[dict[str, Any]]:
    graph = _graph(name)
    sizes = {group.id: group.size for group in graph.analysis.sliceable}
    cuts: list[tuple[int, str, dict[str, int]]] = [(100, "whole", {})]
    for percent in percents:
        counts = uniform_counts(graph, percent / 100)
        cuts.append((percent, "as they are", counts))
        stepped = step_counts(counts, sizes, step)
        if stepped != counts:
            cuts.append((percent, f"multiples of {step}", stepped))
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder, open_runtime(device) as worker:
        files = subnet_files(graph, Path(folder, "subnets")) if device.runtime in READ_ONNX else None
        write = write_for if device.runtime in FORMATS and device.runtime != "torch" else None
        opener = open_in(worker, device, write=write, folder=Path(folder, "files"))
        backbone = Backbone(name, graph, files)
        models = [opener(backbone.measurable(counts)) for _, _, counts in cuts]
        times = turns(models, seconds=seconds, rounds=rounds)
    whole = times[0]
    flops = count(graph).flops
    found = []
    for (percent, how, counts), taken in zip(cuts, times, strict=True):
        cost = count(slice(graph.sketch(), leading(counts)) if counts else graph)
        found.append(
            {
                "kept_percent": percent,
                "counts": how,
                "latency_ms": statistics.median(taken),
                "time_ratio": statistics.median(a / b for a, b in zip(taken, whole, strict=True)),
                "flops_ratio": cost.flops / flops,
                "params": cost.params,
            }
        )
    return found


def _graph(name: str) -> ModelGraph:
    if name in BACKBONES:
        return graph_of(name)
    torch.manual_seed(0)
    widths: list[int | str] = [8, "M", 12, "M"] if name == "vgg-tiny" else list(VGG16)
    return capture(vgg(10, widths).eval(), torch.rand(2, 3, 32, 32), prove=False)
