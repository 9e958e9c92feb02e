"""How fast a machine is now, beside when its profile was measured: by what the profile was measured beside."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sarto.devices import Latency, open_runtime
from sarto.devices.latency import processor
from sarto.devices.measuring import processor_of
from sarto.devices.profiling import Backbone, open_in, skeleton
from sarto.devices.profiling.run import ROUNDS, turns
from sarto.devices.timing import SECONDS, summary
from sarto.graph import ModelGraph
from sarto.pipeline.order import Order
from sarto.pipeline.profiles import writing_of
from sarto.pipeline.subnets import ReadySupernet
from sarto.types import Device
from sarto.types.profile import DeviceProfile

#: Times that a model is loaded and measured: one load, or one second of a machine that does other things too, may be
#: off by more than a budget leaves room for.
LOADS = 3


@dataclass(frozen=True)
class Standard:
    """The model that subnets of a donor were measured beside: the donor with half of its units.

    Attributes:
        model: its graph, or its file for the device.
        level_ms: what it took, the median over the whole profile.
    """

    model: ModelGraph | Path
    level_ms: float


@contextmanager
def standard_of(order: Order) -> Iterator[Standard | None]:
    """The standard of an order's device, its file written once.

    None where the device has no profile, none of the donors was measured for it, or the profile is of another processor
    than this one: what a model takes there can't be told from here.
    """
    found = _measured_donor(order)
    if found is None:
        yield None
        return
    with _written(*found, order.request.device) as standard:
        yield standard


def _measured_donor(order: Order) -> tuple[ModelGraph, float] | None:
    """The first donor that the profile holds subnets of, and the level of their reference."""
    predictor = order.predictor
    if predictor is None:
        return None
    for offer in order.requirement.offers:
        name = predictor.donor(offer.learnware).named
        level = _level(predictor.profile, order.request.device, name)
        if level is not None:
            return predictor.store.graph(offer.learnware), level
    return None


@contextmanager
def standard_of_supernet(held: ReadySupernet, device: Device) -> Iterator[Standard | None]:
    """The standard of a supernet, as `standard_of`; None where its backbone was not measured."""
    graph, profile = held.supernet.graph, held.profile
    known = profile.backbone(skeleton(graph)) if profile is not None else None
    level = _level(profile, device, known.backbone) if profile is not None and known is not None else None
    if level is None:
        yield None
        return
    with _written(graph, level, device) as found:
        yield found


@contextmanager
def _written(graph: ModelGraph, level_ms: float, device: Device) -> Iterator[Standard]:
    half, write = Backbone("standard", graph).half(), writing_of(device)
    if write is None or isinstance(half, Path):
        yield Standard(half, level_ms)
        return
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        yield Standard(write(half, device, Path(folder)), level_ms)


def _level(profile: DeviceProfile, device: Device, backbone: str) -> float | None:
    """Milliseconds of a backbone's reference, the median of all chunks.

    None where the profile has no rows of it, or is of another processor.
    """
    if device.agent is None and profile.device.processor != processor():
        return None
    rows = [row for row in profile.rows if row.what != "block" and row.model == backbone]
    by_chunk = {row.chunk: row.reference_ms for row in rows}
    return statistics.median(by_chunk.values()) if by_chunk else None


def measured_beside(
    model: ModelGraph | Path, device: Device, standard: Standard, *, seconds: float = SECONDS / 2
) -> tuple[Latency, float]:
    """Latency at the speed that the machine had for the profile, and milliseconds as they were.

    The model is loaded anew `LOADS` times; each time it takes turns with the standard, as subnets of the profile did.
    In each turn its time over that of the standard counts: what slows the machine slows both.

    Raises:
        RequestError: the worker can't load or run a model, dies, or takes too long; or nobody answers at the agent.
    """
    ratios: list[float] = []
    taken: list[float] = []
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder, open_runtime(device) as worker:
        opener = open_in(worker, device, write=writing_of(device), folder=Path(folder))
        beside = opener(standard.model)
        for _ in range(LOADS):
            running = opener(model)
            own, other = turns([running, beside], seconds=seconds, rounds=ROUNDS)
            running.close()
            taken += own
            ratios += [a / b for a, b in zip(own, other, strict=True)]
        beside.close()
        version, chip = worker.version, processor_of(worker)
    timing = summary([ratio * standard.level_ms for ratio in ratios], LOADS)
    latency = Latency(
        **timing.__dict__,
        threads=device.threads,
        batch=device.batch,
        runtime=device.runtime,
        version=version,
        processor=chip,
        precision=device.precision,
    )
    return latency, statistics.median(taken)
