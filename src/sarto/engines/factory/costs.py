"""What subnets of one backbone cost, many at once, from their unit counts alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy

import numpy as np
import numpy.typing as npt

from sarto.devices import count
from sarto.devices.profiling import ByteCounter, Predictor
from sarto.engines.factory.products import ProductCounter
from sarto.errors import RequestError
from sarto.graph import ModelGraph, leading, slice, through_norms
from sarto.types import LIMITS, Budget, Cost

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class CostTable:
    """Costs of a backbone's subnets by the units of each gated group; make it once and ask it often.

    Latency and the memory of a process are upper bounds of a profile's predictor, so that a subnet within a budget
    stays there when it is measured; activations and size are counted exactly.

    Args:
        graph: the backbone.
        groups: the gated groups, the columns of the counts.
        predictor: of the device; without one nothing is known of latency and of a process's memory.
        level: of latency's upper bound.
    """

    def __init__(
        self,
        graph: ModelGraph,
        groups: Sequence[str],
        predictor: Predictor | None = None,
        *,
        level: float = 0.95,
    ) -> None:
        self._groups = tuple(groups)
        self._backbone = self._counted = _Counted(graph, self._groups)
        self._predictor = predictor
        self._latency = predictor.compiled(graph) if predictor is not None else None
        self._level = level

    def delivered(self, change: Callable[[ModelGraph], ModelGraph]) -> CostTable:
        """Costs of subnets as they are delivered: bytes, parameters and FLOPs with the change, latency as it is.

        Args:
            change: what is done to every subnet: normalisation in front, outputs cut off. Groups keep their names.
        """
        made = change(self._backbone.sketch)
        if self._backbone.analysis.follows_statistics:
            made = through_norms(made)
        found = copy(self)
        found._counted = _Counted(made, self._groups)
        return found

    def costs(self, counts: Counts, limits: Sequence[str]) -> Mapping[str, Floats]:
        """Limit -> cost of each subnet (n,).

        Args:
            counts: units of each gated group, shape (n, groups).
            limits: names of costs; see `Budget`.

        Raises:
            RequestError: latency or a process's memory is asked for and no profile knows it, or an unknown name.
        """
        counted = self._counted
        rows = counted.rows(counts)
        found: dict[str, Floats] = {}
        if {"memory_bytes", "size_bytes", "process_bytes"} & set(limits):
            size, activations = counted.bytes.bytes_at(rows)
            found |= {"size_bytes": size, "memory_bytes": activations}
        if "process_bytes" in limits:
            found["process_bytes"] = self._process_bytes(size, activations)
        if "latency_ms" in limits:
            found["latency_ms"] = self.latency_ms(counts)[2]
        for name in ("params", "flops"):
            if name in limits:
                found[name] = (
                    counted.products.at(rows.astype(float), name)
                    if name == "params" or counted.products.known
                    else np.array([float(getattr(cost, name)) for cost in counted.sliced(counts)])
                )
        unknown = [name for name in limits if name not in LIMITS]
        if unknown:
            raise RequestError(f"{unknown[0]!r} is no cost; known are {', '.join(LIMITS)}", problems=unknown)
        return {name: found[name] for name in limits}

    def latency_ms(self, counts: Counts) -> Floats:
        """Lower bound, prediction and upper bound (3, n).

        Raises:
            RequestError: there is no profile.
        """
        if self._latency is None:
            raise RequestError(
                "nothing is known of the latency on this device: measure it (`sarto device measure`), or give a budget "
                "of parameters, FLOPs or bytes"
            )
        return self._latency.latency_ms(self._backbone.rows(counts), level=self._level)

    def _process_bytes(self, size: Floats, activations: Floats) -> Floats:
        """What a process grows by at most, from bytes of tensors and of one sample's activations."""
        if self._predictor is None:
            raise RequestError(
                "nothing is known of a process's memory on this device: measure it (`sarto device measure`), or give a "
                "budget of memory_bytes or size_bytes"
            )
        batch = self._predictor.profile.device.batch
        return np.ceil(self._predictor.memory_of(np.stack([size, batch * activations]))[2])

    def fits(self, counts: Counts, budget: Budget) -> npt.NDArray[np.bool_]:
        """Which subnets (n,) keep every limit of a budget."""
        limits = budget.limits()
        found = self.costs(counts, list(limits))
        return np.all(
            [found[name] <= limit for name, limit in limits.items()] or [np.ones(len(counts), bool)], 0
        )


class _Counted:
    """Everything of a graph but latency, by the units of each gated group."""

    def __init__(self, graph: ModelGraph, groups: Sequence[str]) -> None:
        self.sketch, self.analysis = graph.sketch(), graph.analysis
        self.groups = groups
        sliceable = [group.id for group in self.analysis.sliceable]
        self._full = np.array([group.size for group in self.analysis.sliceable], np.int64)
        self._columns = np.array([sliceable.index(group) for group in groups], np.int64)
        self.bytes, self.products = ByteCounter(graph), ProductCounter(graph)

    def rows(self, counts: Counts) -> Counts:
        """Units of every sliceable group (n, sliceable): those without gates keep all."""
        rows = np.repeat(self._full[None], len(counts), 0)
        rows[:, self._columns] = counts
        return rows

    def sliced(self, counts: Counts) -> list[Cost]:
        """Costs of subnets that are sliced one by one, for operators that are counted in no other way."""
        named = [dict(zip(self.groups, map(int, row), strict=True)) for row in counts]
        return [count(slice(self.sketch, leading(kept), analysis=self.analysis)) for kept in named]
