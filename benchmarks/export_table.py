"""Zoo models in other runtimes: exported or why not, difference from eager, latency beside eager's, size, accuracy."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.export_models import Subject, subject
from sarto.devices import Worker
from sarto.devices.runtimes import is_available
from sarto.errors import SartoError
from sarto.export import TARGETS, Exported, TargetName, export
from sarto.graph import ModelGraph, write_graph

#: Turns that eager and the runtime take.
TURNS = 8


def exports(
    *,
    models: list[str],
    formats: list[TargetName],
    precisions: list[str],
    int8_models: list[str],
    n_samples: int,
    n_int8_samples: int,
    n_calibration: int,
    seconds: float,
    batch: int,
) -> dict[str, Any]:
    """A row for each model, format and precision.

    Args:
        formats: those whose runtime is not installed give a row that says so.
        precisions: of `models`.
        int8_models: models that are exported in int8 too, on so many labelled samples.
        n_calibration: samples that int8 is calibrated on.
        seconds: how long each latency is measured.
        batch: of files whose batch is fixed, where int8's accuracy is counted.
    """
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*models, *int8_models]):
        torch.manual_seed(0)
        found = subject(name, n_int8_samples if name in int8_models else n_samples, n_calibration)
        for to in formats:
            kinds = [kind for kind in precisions if name in models and kind in TARGETS[to].precisions]
            kinds += ["int8"] if name in int8_models and "int8" in TARGETS[to].precisions else []
            for precision in kinds:
                rows.append(row(name, found, to, precision, n_samples, seconds, batch))
                print(rows[-1], file=sys.stderr, flush=True)
    done = [entry for entry in rows if entry["exported"]]
    single = [entry["max_difference"] for entry in done if entry["precision"] == "float32"]
    lost = [entry["lost_points"] for entry in done if entry.get("lost_points") is not None]
    numbers: dict[str, Any] = {
        "n_exported": len(done),
        "n_refused": sum(not entry["exported"] and "not installed" not in entry["note"] for entry in rows),
        "n_not_installed": sum("not installed" in entry["note"] for entry in rows),
    }
    if single:
        numbers["float32_max_difference"] = max(single)
    if lost:
        numbers["int8_lost_points_max"] = max(lost)
    return {**numbers, "rows": rows}


def row(
    name: str, found: Subject, to: Any, precision: Any, n_samples: int, seconds: float, batch: int
) -> dict[str, Any]:
    """One export, measured at batch 1 beside eager in single precision, in turns."""
    target = TARGETS[to]
    made: dict[str, Any] = {"model": name, "format": to, "runtime": target.runtime, "precision": precision}
    if not is_available(target.runtime, converting=True):
        return {**made, "exported": False, "note": f"not installed: {target.runtime}"}
    int8 = precision == "int8"
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        path = Path(folder, f"model{target.suffix}")
        try:
            counted = _export(
                found, path, to, precision, len(found.inputs) if int8 else n_samples, batch if int8 else 1
            )
            if counted.batch not in (None, 1):
                path = Path(folder, f"single{target.suffix}")
                _export(found, path, to, precision, min(64, len(found.inputs)), 1)
            latency, eager, ratio = beside_eager(found.graph, path, target.runtime, precision, seconds)
        except SartoError as error:
            return {**made, "exported": False, "note": str(error)[:300]}
    lost = None
    if counted.accuracy is not None and counted.accuracy_eager is not None:
        lost = 100 * (counted.accuracy_eager - counted.accuracy)
    return {
        **made,
        "exported": True,
        "max_difference": counted.max_relative_difference,
        "agreement_share": counted.agreement,
        "accuracy": counted.accuracy,
        "accuracy_eager": counted.accuracy_eager,
        "lost_points": lost,
        "n_samples": counted.n_samples,
        "latency_ms": latency,
        "eager_ms": eager,
        "to_eager_ratio": ratio,
        "size_bytes": counted.size_bytes,
        "export_seconds": counted.seconds,
        "note": "any batch" if counted.dynamic_batch else "fixed batch",
    }


def beside_eager(
    graph: ModelGraph, path: Path, runtime: Any, precision: Any, seconds: float
) -> tuple[float, float, float]:
    """Median milliseconds of a file and of eager torch at batch 1, and the median of the ratios of all turns."""
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        write_graph(graph, Path(folder, "graph"))
        with Worker(runtime) as other, Worker("torch") as torch_worker:
            models = other.load(path, precision=precision), torch_worker.load(Path(folder, "graph"))
            mine: list[float] = []
            eager: list[float] = []
            for turn in range(TURNS + 1):
                times = [
                    worker.time([model], seconds=seconds / TURNS, warmup=1 if turn else 3)[0].median_ms
                    for worker, model in zip((other, torch_worker), models, strict=True)
                ]
                if turn:
                    mine.append(times[0])
                    eager.append(times[1])
    ratio = statistics.median(a / b for a, b in zip(mine, eager, strict=True))
    return statistics.median(mine), statistics.median(eager), ratio


def _export(found: Subject, path: Path, to: Any, precision: Any, n: int, batch: int) -> Exported:
    return export(
        found.graph,
        path,
        to=to,
        precision=precision,
        samples=found.inputs[:n],
        labels=None if found.labels is None else found.labels[:n],
        calibration=found.calibration,
        batch=batch,
    )
