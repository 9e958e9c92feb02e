"""How well latency is predicted from few measured subnets, on several devices, beside the noise of the machine."""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sarto.devices import open_runtime
from sarto.devices.profiling import (
    Backbone,
    Compiled,
    Predictor,
    Wanted,
    measure_all,
    open_in,
    random_counts,
    terms_of,
)
from sarto.devices.profiling.blocks import Block, blocks
from sarto.devices.profiling.design import design
from sarto.devices.profiling.generic import places_of
from sarto.devices.profiling.making import describe, fit_rows, make_profile
from sarto.devices.profiling.run import noise_of, with_repeats
from sarto.devices.runtimes.place import NEEDS
from sarto.graph import ModelGraph
from sarto.pipeline import load_source, read_input
from sarto.pipeline.profiles import READ_ONNX, subnet_files, writing_of
from sarto.types import Device
from sarto.types.profile import DeviceProfile, MeasuredRow

#: Rounds in which the further subnets of the line take turns, in one pass.
LINE_ROUNDS = 5
#: Name -> factory, arguments, input, and weights below SARTO_DATA.
BACKBONES: dict[str, tuple[str, dict[str, Any], str, str | None]] = {
    "cifar-resnet56": (
        "sarto.zoo:cifar_resnet",
        {"n_classes": 10, "depth": 56, "shortcut": "pad"},
        "3,32,32",
        "weights/cifar10_resnet56-4bfd9763.safetensors",
    ),
    "cifar-resnet8": ("sarto.zoo:cifar_resnet", {"n_classes": 10, "depth": 8}, "3,32,32", None),
    "mobilenet-v2": ("sarto.zoo:mobilenet_v2_imagenet", {}, "3,224,224", None),
}


def predictor(
    *,
    backbone: str,
    devices: list[str],
    n_subnets: int,
    n_held: int,
    n_line: int,
    seconds: float,
    line_seconds: float,
    n_blocks: int,
    journals: str | None = None,
    seed: int,
) -> dict[str, Any]:
    """Errors on held-out subnets, measured in one shuffled run with those of the design.

    The line is the paper's: linear regression of latency on the unit counts of all layers, from random subnets. As many
    of these as the design has are measured in that run too, all others once each: their noise goes out in the fit.
    Rows of the kind `curve` tell the error from fewer subnets: the first ones of the design, or of the random ones.

    Args:
        backbone: one of `BACKBONES`.
        devices: runtime and threads, `onnxruntime-2`; a runtime that is not installed is skipped.
        n_subnets: measured to fit, chosen by the design.
        n_held: random subnets that nothing is fitted on.
        n_line: random subnets for the line, at least `n_subnets`; it is also fitted on the first `n_subnets` of them.
        seconds: of measuring for each subnet and block.
        line_seconds: of measuring for each further subnet of the line.
        n_blocks: built-in blocks that are measured before, spread over all kinds.
        journals: folder that keeps what was measured, to go on from there; None takes that of `SARTO_JOURNALS`, where
            it is set, and else keeps nothing.
    """
    graph = graph_of(backbone)
    numbers: dict[str, Any] = {"n_units": sum(group.size for group in graph.analysis.sliceable)}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = None
        for title in devices:
            runtime, _, threads = title.rpartition("-")
            device = Device.parse({"runtime": runtime, "threads": int(threads)})
            missing = [
                name for name in NEEDS[device.runtime].imports if importlib.util.find_spec(name) is None
            ]
            if missing:
                rows.append({"device": title, "note": f"skipped: not installed: {', '.join(missing)}"})
                continue
            if files is None and device.runtime in READ_ONNX:
                files = subnet_files(graph, Path(folder, "subnets"))
            home = Path(journals or os.environ.get("SARTO_JOURNALS") or folder)
            home.mkdir(parents=True, exist_ok=True)
            model = Backbone(backbone, graph, files if device.runtime in READ_ONNX else None)
            found = _measure_device(
                model,
                device,
                home / f"{backbone}-{title}.journal",
                Path(folder, title),
                n_subnets=n_subnets,
                n_held=n_held,
                n_line=n_line,
                seconds=seconds,
                line_seconds=line_seconds,
                n_blocks=n_blocks,
                seed=seed,
            )
            curve = found.pop("curve")
            rows += [{"device": title, **found}, *({"device": title, **point} for point in curve)]
            key = title.replace("-", "_")
            numbers |= {
                f"{key}_{name}": number for name, number in found.items() if isinstance(number, int | float)
            }
    return {**numbers, "rows": rows}


def _measure_device(
    model: Backbone,
    device: Device,
    journal: Path,
    files: Path,
    *,
    n_subnets: int,
    n_held: int,
    n_line: int,
    seconds: float,
    line_seconds: float,
    n_blocks: int,
    seed: int,
) -> dict[str, Any]:
    terms = terms_of(model.graph)
    rng = np.random.default_rng(seed + 1)
    chosen = blocks_of(n_blocks)
    with open_runtime(device) as worker:
        write = writing_of(device)
        opener = open_in(worker, device, write=write, folder=files)
        profile = make_profile(
            "blocks", device, worker.version, opener, built_in=chosen, journal=journal, seconds=seconds
        )
        base = np.array(profile.kinds.weights)[places_of(terms, profile.kinds.names)]
        groups = list(terms.groups)

        def wanted(counts: np.ndarray) -> list[Wanted]:
            found = [dict(zip(groups, map(int, row), strict=True)) for row in counts]
            return [Wanted("subnet", model.name, kept, partial(model.measurable, kept)) for kept in found]

        step = profile.unit_step
        designed = design(terms, n_subnets, base=base, seed=seed, step=step)
        held = random_counts(terms.groups, n_held, rng, step=step)
        line = random_counts(terms.groups, n_line, rng, step=step)
        few = line[:n_subnets]
        alike = with_repeats(wanted(np.concatenate([designed, held, few])), max(4, n_subnets // 8))
        order = rng.permutation(len(alike))
        about = {"device": describe(device, worker.version).model_dump(mode="json", exclude={"started"})}

        def measured(items: Sequence[Wanted], place: str, **how: Any) -> tuple[MeasuredRow, ...]:
            path = Path(f"{journal}-{place}")
            return measure_all(items, opener, model.half(), journal=path, about=about, progress=_told, **how)

        shuffled = measured([alike[place] for place in order], "subnets", seconds=seconds)
        found = [shuffled[place] for place in np.argsort(order)]
        level = statistics.median({row.chunk: row.reference_ms for row in shuffled}.values())
        rest = measured(
            wanted(line[n_subnets:]),
            "line",
            seconds=line_seconds,
            passes=1,
            rounds=LINE_ROUNDS,
            level_ms=level,
        )
    fitted = profile.replace(backbones=(fit_rows(model.name, terms, found[:n_subnets], base, step=step),))
    latencies = np.array([row.latency_ms for row in found])
    times = latencies[n_subnets : n_subnets + n_held]

    def error_of(told: np.ndarray) -> float:
        return float(np.abs(told / times - 1).mean())

    lined = np.append(latencies[n_subnets + n_held :][: len(few)], [row.latency_ms for row in rest])
    _, middle, high = Predictor(fitted).compiled(model.graph).latency_ms(held)
    alone = _of_blocks(profile, model.graph).latency_ms(held)[1]
    noise = noise_of(found)
    by_line = {n: _line(line[:n], lined[:n], held) for n in (n_subnets, n_line)}
    curve = [
        {
            "kind": "curve",
            "way": "line",
            "n_measured": n,
            "error_ratio_mean": error_of(_line(line[:n], lined[:n], held)),
        }
        for n in _some(n_line)
    ]
    for n in _some(n_subnets):
        few_rows = fit_rows(model.name, terms, found[:n], base, step=step)
        told = Predictor(profile.replace(backbones=(few_rows,))).compiled(model.graph).latency_ms(held)[1]
        curve.append({"kind": "curve", "way": "ours", "n_measured": n, "error_ratio_mean": error_of(told)})
    errors = np.abs(middle / times - 1)
    return {
        "runtime": f"{device.runtime} {profile.device.version}",
        "error_ratio_mean": float(errors.mean()),
        "error_ratio_worst": float(errors.max()),
        "repeat_noise_ratio": noise.repeat_share,
        "drift_ratio": noise.drift_share,
        "under_bound_share": float(np.mean(times <= high)),
        "bound_above_ratio_mean": float(np.mean(high / middle - 1)),
        "line_error_ratio_mean_few": error_of(by_line[n_subnets]),
        "line_error_ratio_mean_many": error_of(by_line[n_line]),
        "blocks_alone_error_ratio_mean": error_of(alone),
        "vector_width_count": fitted.backbones[0].vector_width,
        "unit_step_count": step,
        "latency_ms_least": float(times.min()),
        "latency_ms_most": float(times.max()),
        "curve": curve,
    }


def _some(most: int) -> list[int]:
    """Numbers of subnets to fit on: the most, and halves of it as long as they are even, five in all at most."""
    found = [most]
    while len(found) < 5 and found[-1] % 2 == 0 and found[-1] > 2:
        found.append(found[-1] // 2)
    return found[::-1]


def blocks_of(n: int) -> Sequence[Block]:
    """So many built-in blocks, spread over all kinds."""
    every = blocks()
    return every if n >= len(every) else [every[place * len(every) // n] for place in range(n)]


def _told(step: str, done: int, total: int) -> None:
    if done % 120 == 0 or done == total:
        print(f"{step}: {done} of {total}", file=sys.stderr)


def _of_blocks(profile: DeviceProfile, graph: ModelGraph) -> Compiled:
    """What blocks say of a backbone that was not measured."""
    return Predictor(profile).compiled(graph)


def _line(counts: np.ndarray, times: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Latencies by ordinary least squares on the unit counts."""
    terms = np.linalg.lstsq(np.c_[np.ones(len(counts)), counts], times, rcond=None)[0]
    return np.asarray(np.c_[np.ones(len(held)), held] @ terms)


def graph_of(backbone: str) -> ModelGraph:
    """A backbone with its published weights where SARTO_DATA has them, else with random ones."""
    factory, arguments, shape, weights = BACKBONES[backbone]
    data = os.environ.get("SARTO_DATA")
    path = Path(data, weights) if weights is not None and data else None
    with nullcontext() if path else torch.random.fork_rng():
        return load_source(factory, arguments=arguments, weights=path, inputs=[read_input(shape)]).graph
