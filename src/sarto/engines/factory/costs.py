"""What subnets of one backbone cost, many at once, from their unit counts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sarto.devices import count
from sarto.devices.profiling import ByteCounter, Predictor
from sarto.engines.factory.products import ProductCounter
from sarto.errors import RequestError
from sarto.graph import ModelGraph, leading, slice
from sarto.types import LIMITS, Budget, Cost

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class CostTable:
    """Costs of a backbone's subnets by the units of each gated group; make it once and ask it often.

    Latency is the upper bound of a profile's predictor, so that a subnet within a budget stays there when it is
    measured; memory and size are counted exactly.

    Args:
        graph: the backbone.
        groups: the gated groups, the columns of the counts.
        predictor: of the device; without one nothing is known of latency.
        level: of the upper bound.
    """

    def __init__(
        self,
        graph: ModelGraph,
        groups: Sequence[str],
        predictor: Predictor | None = None,
        *,
        level: float = 0.95,
    ) -> None:
        self._sketch, self._analysis = graph.sketch(), graph.analysis
        self._groups = tuple(groups)
        sliceable = [group.id for group in graph.analysis.sliceable]
        self._full = np.array([group.size for group in graph.analysis.sliceable], np.int64)
        self._columns = np.array([sliceable.index(group) for group in self._groups], np.int64)
        self._bytes, self._products = ByteCounter(graph), ProductCounter(graph)
        self._latency = predictor.compiled(graph) if predictor is not None else None
        self._level = level

    def costs(self, counts: Counts, limits: Sequence[str]) -> Mapping[str, Floats]:
        """Limit -> cost of each subnet (n,).

        Args:
            counts: units of each gated group, shape (n, groups).
            limits: names of costs; see `Budget`.

        Raises:
            RequestError: latency is asked for without a profile, or an unknown name.
        """
        rows = np.repeat(self._full[None], len(counts), 0)
        rows[:, self._columns] = counts
        found: dict[str, Floats] = {}
        if {"memory_bytes", "size_bytes"} & set(limits):
            size, activations = self._bytes.bytes_at(rows)
            found |= {"size_bytes": size, "memory_bytes": activations}
        if "latency_ms" in limits:
            found["latency_ms"] = self.latency_ms(counts)[2]
        for name in ("params", "flops"):
            if name in limits:
                found[name] = (
                    self._products.at(rows.astype(float), name)
                    if self._vectorised(name)
                    else np.array([float(getattr(cost, name)) for cost in self._sliced(counts)])
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
        rows = np.repeat(self._full[None], len(counts), 0)
        rows[:, self._columns] = counts
        return self._latency.latency_ms(rows, level=self._level)

    def fits(self, counts: Counts, budget: Budget) -> npt.NDArray[np.bool_]:
        """Which subnets (n,) keep every limit of a budget."""
        limits = budget.limits()
        found = self.costs(counts, list(limits))
        return np.all(
            [found[name] <= limit for name, limit in limits.items()] or [np.ones(len(counts), bool)], 0
        )

    def _vectorised(self, name: str) -> bool:
        return name == "params" or self._products.known

    def _sliced(self, counts: Counts) -> list[Cost]:
        """Costs of subnets that are sliced one by one, for operators that are counted in no other way."""
        return [
            count(slice(self._sketch, leading(self._named(row)), analysis=self._analysis)) for row in counts
        ]

    def _named(self, row: Counts) -> dict[str, int]:
        return {group: int(units) for group, units in zip(self._groups, row, strict=True)}
