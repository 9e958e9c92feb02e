"""Devices of benchmarks: profiles of few blocks, and models that are measured in turns with a profile's reference."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.predictor import blocks_of
from sarto.devices import open_runtime
from sarto.devices.profiling import Backbone, Wanted, measure_all, open_in
from sarto.graph import ModelGraph
from sarto.pipeline.profiles import measure_profile, writing_of
from sarto.types import Device
from sarto.types.profile import DeviceProfile, MeasuredRow


def journal_of(name: str) -> Path | None:
    """Where measurements of a profile are kept, to go on from them: in the folder SARTO_JOURNALS, where it is set."""
    folder = os.environ.get("SARTO_JOURNALS")
    return None if folder is None else Path(folder, f"{name}.journal")


def small_profile(
    device: Device,
    title: str,
    graph: ModelGraph,
    *,
    n_subnets: int,
    n_blocks: int,
    journal: Path | None,
    seconds: float,
    seed: int,
) -> DeviceProfile:
    """The profile that the device names, of one backbone and so many of the built-in blocks, spread over all kinds."""
    return measure_profile(
        str(device.profile),
        device,
        backbones={title: graph},
        n_subnets=n_subnets,
        built_in=blocks_of(n_blocks),
        memory=False,
        journal=journal,
        seconds=seconds,
        seed=seed,
    )


def measured_in_turns(
    models: Sequence[ModelGraph | Path], whole: ModelGraph, device: Device, seconds: float
) -> tuple[list[float], float]:
    """Milliseconds of each model or file, and the level of the reference (the whole at half its units) between them."""
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder, open_runtime(device) as worker:
        opener = open_in(worker, device, write=writing_of(device), folder=Path(folder))
        wanted = [
            Wanted("subnet", f"order-{place}", {}, partial(_itself, model))
            for place, model in enumerate(models)
        ]
        rows = measure_all(wanted, opener, Backbone("whole", whole).half(), seconds=seconds)
    return [row.latency_ms for row in rows], level(rows)


def level(rows: Iterable[MeasuredRow]) -> float:
    """Milliseconds of the reference while these subnets were measured: how fast the machine was."""
    return statistics.median({row.chunk: row.reference_ms for row in rows if row.what == "subnet"}.values())


def _itself(model: ModelGraph | Path) -> ModelGraph | Path:
    return model
