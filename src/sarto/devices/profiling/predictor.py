"""Latency and memory of graphs on a profiled device, with bounds, and where the milliseconds go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sarto.devices.profiling.conformal import LEVEL, interval
from sarto.devices.profiling.counting import ByteCounter
from sarto.devices.profiling.features import Terms, terms_of
from sarto.devices.profiling.generic import FIXED, places_of
from sarto.devices.profiling.sizes import Counts, Floats, Size, monomials
from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.types import Cost
from sarto.types.profile import BackboneModel, DeviceProfile, KindModel, Residuals


class Estimate(NamedTuple):
    """A prediction: later measurements lie above `low`, and under `high`, each with the level that was asked for."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Share:
    """What one layer takes of a predicted latency.

    Attributes:
        layer: the weights that it computes with; the operators after it count with it. Empty for what the runtime
            takes whatever the model is.
        kinds: of its operators, the slowest first.
        units: of what it makes, where it is made of units.
    """

    layer: str
    kinds: tuple[str, ...]
    nodes: tuple[str, ...]
    latency_ms: float
    share: float


class Compiled:
    """The latency of one graph's subnets on one device, ready to be asked for many at once.

    Attributes:
        groups: sliceable groups with their units; the columns of a matrix of counts.
        of_backbone: whether the device was measured on subnets of this very backbone.
        step: counts of units between its multiples take as long as the next one, at least.
    """

    def __init__(
        self,
        terms: Terms,
        coefficients: Floats,
        fixed: Floats,
        width: int,
        residuals: Residuals,
        *,
        of_backbone: bool,
        step: int = 1,
    ) -> None:
        """Put the parts together; `Predictor.compiled` is the usual way.

        Args:
            coefficients: of each term, by the fit and by the fit without each part, shape (1 + parts, terms).
            fixed: what is added, shape (1 + parts,).
            step: unit counts are rounded up to multiples of it.
        """
        self.groups, self.of_backbone, self.step = terms.groups, of_backbone, step
        self._table, self._width = terms.table, width
        sizes: dict[tuple[int, ...], int] = {}
        place = np.array([sizes.setdefault(term.size.parts, len(sizes)) for term in terms.terms], np.int64)
        factors = np.array([term.size.factor for term in terms.terms])
        self._weights = np.zeros((len(sizes), len(coefficients)))
        np.add.at(self._weights, place, (coefficients * factors).T)
        self._places = monomials([Size(1.0, parts) for parts in sizes])[1]
        self._fixed = fixed
        self._part = np.array(residuals.part, np.int64)
        self._shares = np.array(residuals.shares, float)

    def rows(self, counts: Iterable[Counts]) -> Floats:
        """Unit counts as a matrix, shape (subnets, groups), for `latency_ms`.

        Raises:
            RequestError: a group is unknown, or a count is out of range.
        """
        return self._table.rows(list(counts))

    def latency_ms(
        self, counts: Sequence[Counts] | npt.NDArray[np.generic], *, level: float = LEVEL
    ) -> Floats:
        """Lower bound, prediction and upper bound in milliseconds, shape (3, subnets).

        The upper bound never falls when a unit is added, nor do the others.

        Args:
            counts: units kept of each group, or a matrix of shape (subnets, groups).
            level: share of later measurements on the right side of a bound.

        Raises:
            RequestError: a group is unknown, or a count is out of range; all problems at once.
        """
        rows = counts.astype(float) if isinstance(counts, np.ndarray) else self.rows(counts)
        found = self._table.evaluate(self._table.stepped(rows, self.step), self._width)
        values = found[self._places[:, 0]]
        for column in range(1, self._places.shape[1]):
            values = values * found[self._places[:, column]]
        every = values.T @ self._weights + self._fixed
        low, high = interval(every[:, 1:], self._part, self._shares, level=level)
        middle = every[:, 0]
        return np.stack([np.minimum(low, middle), middle, np.maximum(high, middle)])


class Predictor:
    """What a device profile says of models that were not measured."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile

    def predict(self, graph: ModelGraph, counts: Counts | None = None, *, level: float = LEVEL) -> Estimate:
        """Latency of a graph, or of its subnet with so many units, in milliseconds.

        Args:
            counts: units kept of each group; groups that are not named keep all.
            level: share of later measurements on the right side of a bound.

        Raises:
            RequestError: a group is unknown, or a count is out of range.
        """
        found = self.compiled(graph).latency_ms([counts or {}], level=level)[:, 0]
        return Estimate(*(float(number) for number in found))

    def compiled(self, graph: ModelGraph) -> Compiled:
        """The predictor of one graph's subnets; make it once and ask it often."""
        terms = terms_of(graph, batch=self.profile.device.batch)
        model = self._of_backbone(terms)
        coefficients, fixed = _coefficients(terms, model or self.profile.kinds)
        chosen: BackboneModel | KindModel = model or self.profile.kinds
        return Compiled(
            terms,
            coefficients,
            fixed,
            chosen.vector_width,
            chosen.residuals,
            of_backbone=model is not None,
            step=self.profile.unit_step,
        )

    def explain(self, graph: ModelGraph, counts: Counts | None = None) -> tuple[Share, ...]:
        """Where the predicted milliseconds go, layer by layer in the order of the graph; they add up to the middle.

        What subnets can't tell apart is divided as blocks of the same kinds of operators say.

        Raises:
            RequestError: a group is unknown, or a count is out of range.
        """
        terms = terms_of(graph, batch=self.profile.device.batch)
        model = self._of_backbone(terms)
        coefficients, fixed = _coefficients(terms, model or self.profile.kinds)
        width = (model or self.profile.kinds).vector_width
        values = coefficients[0] * terms.at([counts or {}], width=width, step=self.profile.unit_step)[0]
        total = float(values.sum() + fixed[0])
        layers: dict[str, dict[str, float]] = {}
        nodes: dict[str, dict[str, None]] = {}
        for term, value in zip(terms.terms, values, strict=True):
            kinds = layers.setdefault(term.layer, {})
            kinds[term.kind] = kinds.get(term.kind, 0.0) + float(value)
            nodes.setdefault(term.layer, {})[term.node] = None
        found = [
            Share(
                layer,
                tuple(sorted(kinds, key=lambda kind: -kinds[kind])),
                tuple(nodes[layer]),
                sum(kinds.values()),
                sum(kinds.values()) / total,
            )
            for layer, kinds in layers.items()
        ]
        if fixed[0] > 0:
            found.append(Share("", (FIXED,), (), float(fixed[0]), float(fixed[0]) / total))
        return tuple(found)

    def memory_bytes(self, graph: ModelGraph, counts: Counts | None = None) -> Estimate:
        """Bytes that a process grows by when it loads and runs a graph, or its subnet with so many units.

        Bytes of the tensors and of the activations that are alive at once are counted exactly; what a runtime makes of
        them was measured. The bounds are the largest errors that were met.

        Raises:
            RequestError: the profile holds no measured memory, a group is unknown, or a count is out of range.
        """
        counter = ByteCounter(graph, batch=self.profile.device.batch)
        low, middle, high = self.memory_of(counter.bytes_at([counts or {}]))[:, 0]
        return Estimate(float(low), float(middle), float(high))

    def memory_of(self, counted: Floats) -> Floats:
        """The same for many subnets, from what `ByteCounter.bytes_at` counts; shape (3, subnets).

        Raises:
            RequestError: the profile holds no measured memory.
        """
        model = self.profile.memory
        if model is None:
            raise RequestError(
                f"profile {self.profile.name!r} holds no measured memory; measure it again with --memory"
            )
        size, activations = counted
        middle = model.fixed_bytes + model.per_size_byte * size + model.per_activation_byte * activations
        return np.stack([middle * model.least_factor, middle, middle * model.most_factor])

    def weighed(self, counted: Cost) -> Cost:
        """A counted cost with what a process should grow by that loads and runs the model; as it is without memory."""
        if self.profile.memory is None:
            return counted
        activations = counted.memory_bytes * self.profile.device.batch
        low, middle, high = self.memory_of(np.array([[counted.size_bytes], [activations]]))[:, 0]
        return counted.replace(
            process_low_bytes=round(float(low)),
            process_bytes=round(float(middle)),
            process_high_bytes=round(float(high)),
        )

    def _of_backbone(self, terms: Terms) -> BackboneModel | None:
        found = self.profile.backbone(terms.skeleton)
        return found if found is not None and len(found.base_ms) == len(terms.terms) else None


def _coefficients(terms: Terms, model: BackboneModel | KindModel) -> tuple[Floats, Floats]:
    """Milliseconds for one of each term, shape (1 + parts, terms), and what is added, shape (1 + parts,)."""
    weights = np.array([model.weights, *model.residuals.folds], float)
    if isinstance(model, BackboneModel):
        base, column = np.array(model.base_ms), np.array(model.column, np.int64)
        return base * weights[:, column], np.zeros(len(weights))
    fixed: Mapping[str, int] = {name: place for place, name in enumerate(model.names)}
    return weights[:, places_of(terms, model.names)], weights[:, fixed[FIXED]]
