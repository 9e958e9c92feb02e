"""A market of one donor on a profiled device, random orders for it, and models that are measured once more."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.export_models import MEAN, STD
from benchmarks.predictor import graph_of
from benchmarks.profiled import journal_of, level, measured_in_turns, small_profile
from benchmarks.slicepack.donors import EXAMPLES
from benchmarks.slicepack.tasks import CIFAR10
from sarto import Market
from sarto.graph import ModelGraph
from sarto.market import Samples, read_samples
from sarto.pipeline.choose import propose
from sarto.pipeline.order import check_order
from sarto.types import Device, Learnware, Request
from sarto.types.profile import DeviceProfile

NAME = "desk"
#: Processes that measure all models at the end, one after the other: what one loads unluckily another does not.
AGAIN = 3
#: Budgets begin at so many times what the quickest pack should take: bounds lie about so far above.
LEAST = 1.2


@dataclass(frozen=True, eq=False)
class Desk:
    """A market that holds one donor, and a device whose profile is in it.

    Attributes:
        graph: of the donor.
    """

    market: Market
    device: Device
    graph: ModelGraph
    profile: DeviceProfile

    def drawn(self, rng: np.random.Generator, **asked: Any) -> tuple[Request, float]:
        """An order for two to four classes, and milliseconds for it.

        These are uniform from `LEAST` times what the quickest pack should take up to what the whole donor should: who
        has time for the whole donor needs no slice of it.
        """
        classes = [CIFAR10[place] for place in rng.permutation(10)[: rng.integers(2, 5)]]
        device = self.device.model_dump(mode="json")
        request = Request.parse({"task": {"classes": classes}, "device": device, **asked})
        free = propose(
            check_order(request.replace(engines=("slicepack", "baselines")), self.market.store)
        ).all
        times = [(plan, cost.latency_ms) for plan in free if (cost := plan.predicted) and cost.latency_ms]
        least = LEAST * min(taken for _, taken in times)
        most = max(taken for plan, taken in times if plan.engine == "baselines")
        return request, float(rng.uniform(least, max(most, 1.05 * least)))

    def measured(
        self, models: Mapping[str, ModelGraph | Path], seconds: float
    ) -> tuple[dict[str, float], float]:
        """Milliseconds of each model as they are now, and how much slower the machine is than for its profile."""
        runs: Sequence[tuple[list[float], float]] = [
            measured_in_turns(list(models.values()), self.graph, self.device, seconds / AGAIN)
            for _ in range(AGAIN)
        ]
        now = statistics.fmean(found[1] for found in runs)
        times = {
            key: now * statistics.median(found[place] / beside for found, beside in runs)
            for place, key in enumerate(models)
        }
        return times, now / level(self.profile.rows)


@contextmanager
def open_desk(
    folder: Path,
    *,
    backbone: str,
    runtime: str,
    threads: int,
    n_subnets: int,
    n_blocks: int,
    n_images: int,
    seconds: float,
    journal: str | None,
    seed: int,
) -> Iterator[Desk]:
    """A desk in a folder; its profile goes on from what a journal holds."""
    device = Device.parse({"runtime": runtime, "threads": threads, "profile": NAME})
    with Market.create(folder / "market") as market:
        add_donor(market, backbone, n_images)
        graph = market.store.graph("donor")
        profile = small_profile(
            device,
            backbone,
            graph,
            n_subnets=n_subnets,
            n_blocks=n_blocks,
            journal=Path(journal)
            if journal is not None
            else journal_of(f"budgets-{backbone}-{runtime}-{threads}"),
            seconds=seconds,
            seed=seed,
        )
        market.store.profiles.put(profile)
        yield Desk(market, device, graph, profile)


def add_donor(market: Market, backbone: str, n_images: int) -> Learnware:
    """A donor of ten classes with so many of the examples' images of each, stocked under the name `donor`."""
    scale = {"size": [32, 32], "channels": 3, "mean": list(MEAN), "std": list(STD)}
    images = images_of(n_images)
    return market.add(graph_of(backbone), name="donor", classes=CIFAR10, preprocessing=scale, samples=images)


def images_of(n: int) -> Samples:
    """So many of the examples' images of each class."""
    found = read_samples(EXAMPLES / "images" / "samples")
    if not isinstance(found, Samples):
        raise TypeError("examples/images/samples holds no images")
    return found.take(n)
