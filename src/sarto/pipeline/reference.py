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
from sarto.devices.measuring import latency_of, processor_of
from sarto.devices.profiling import Backbone, open_in, skeleton
from sarto.devices.profiling.run import ROUNDS, turns
from sarto.devices.timing import SECONDS, summary
from sarto.graph import ModelGraph
from sarto.pipeline.order import Order
from sarto.pipeline.predicting import is_itself
from sarto.pipeline.profiles import writing_of
from sarto.pipeline.subnets import ReadySupernet
from sarto.types import Device
from sarto.types.profile import DeviceProfile

#: Times that a model is loaded and measured: one load, or one second of a machine that does other things too, may be
#: off by more than a budget leaves room for.
LOADS = 5


@dataclass(frozen=True)
class Reference:
    """The model that subnets of a donor were measured beside: the donor with half of its units.

    Attributes:
        model: its graph, or its file for the device.
        level_ms: what it took, the median over the whole profile.
        processor: that the profile was measured on.
    """

    model: ModelGraph | Path
    level_ms: float
    processor: str


@contextmanager
def reference_of(order: Order) -> Iterator[Reference | None]:
    """The reference of an order's device, its file written once.

    None where the device has no profile, none of the donors was measured for it (a network of the same operators in
    other sizes is another one), or the profile is of another processor than this one: what a model takes there can't
    be told from here.
    """
    found = _measured_donor(order)
    if found is None:
        yield None
        return
    with _written(*found, order.request.device) as reference:
        yield reference


def _measured_donor(order: Order) -> tuple[ModelGraph, float, str] | None:
    """The first donor that the profile holds subnets of, the level of their reference, and the processor."""
    predictor = order.predictor
    if predictor is None:
        return None
    required = order.requirement
    offered = (offer.learnware for offer in required.offers)
    for id_ in dict.fromkeys((*offered, *required.donors, *required.apart)):
        donor = predictor.donor(id_)
        level = _level(predictor.profile, order.request.device, donor.named) if donor.itself else None
        if level is not None:
            return predictor.store.graph(id_), level, predictor.profile.device.processor
    return None


@contextmanager
def reference_of_supernet(held: ReadySupernet, device: Device) -> Iterator[Reference | None]:
    """The reference of a supernet, as `reference_of`; None where its backbone was not measured."""
    graph, profile = held.supernet.graph, held.profile
    known = None if profile is None else profile.backbone(skeleton(graph))
    itself = known is not None and is_itself(known, graph)
    level = (
        None if profile is None or known is None or not itself else _level(profile, device, known.backbone)
    )
    if profile is None or level is None:
        yield None
        return
    with _written(graph, level, profile.device.processor, device) as found:
        yield found


@contextmanager
def _written(graph: ModelGraph, level_ms: float, chip: str, device: Device) -> Iterator[Reference]:
    half, write = Backbone("reference", graph).half(), writing_of(device)
    if write is None or isinstance(half, Path):
        yield Reference(half, level_ms, chip)
        return
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        yield Reference(write(half, device, Path(folder)), level_ms, chip)


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
    model: ModelGraph | Path, device: Device, reference: Reference, *, seconds: float = SECONDS / 2
) -> tuple[Latency, float | None]:
    """Latency at the speed that the machine had for the profile, and milliseconds as they were.

    The model is loaded anew `LOADS` times (what torch.compile compiles once, which takes most of a minute); each time
    it takes turns with the reference, as subnets of the profile did. In each turn its time over that of the reference
    counts: what slows the machine slows both. Where an agent turns out to run on another processor than the profile's,
    time counts as it is, and None is given for the second.

    Raises:
        RequestError: the worker can't load or run a model, dies, or takes too long; or nobody answers at the agent.
    """
    ratios: list[float] = []
    taken: list[float] = []
    loads = 1 if device.runtime == "compile" else LOADS
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder, open_runtime(device) as worker:
        opener = open_in(worker, device, write=writing_of(device), folder=Path(folder))
        beside = opener(reference.model)
        for _ in range(loads):
            running = opener(model)
            own, other = turns([running, beside], seconds=seconds, rounds=ROUNDS)
            running.close()
            taken += own
            ratios += [a / b for a, b in zip(own, other, strict=True)]
        beside.close()
        version, chip = worker.version, processor_of(worker)
    known = chip == reference.processor
    timing = summary([ratio * reference.level_ms for ratio in ratios] if known else taken, loads)
    return latency_of(timing, device, version, chip), statistics.median(taken) if known else None
