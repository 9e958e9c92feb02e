"""What a donor's readers read on the few samples: one pass, second moments for every class at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sarto.errors import GraphError, RequestError
from sarto.graph import Consumption, ModelGraph, evaluate, repairable
from sarto.graph.expressions import AxisExpr, Fixed, Product, Sum, Unit, is_batch, kept_size, units_in
from sarto.graph.model import Ref, TensorRef
from sarto.training import class_grams, position_stride

#: Positions of a feature map that enter the statistics of one sample; neighbours say nearly the same.
POSITIONS = 128


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear operator that reads sliceable units.

    Attributes:
        consumption: what it reads, and which units lie where.
        source: name of the value that it reads.
        weight: name of its stored weight; None where it has none.
        repairable: whether a linear map can be folded into it.
    """

    consumption: Consumption
    source: str
    weight: str | None
    repairable: bool

    @property
    def node(self) -> str:
        return self.consumption.node


@dataclass(frozen=True, eq=False)
class Readings:
    """A donor on its few samples.

    Attributes:
        graph: the whole donor, normalisation in front.
        inputs: the samples, float (n, channels, height, width) in [0, 1]; labels: (n,) in 0..n_classes-1.
        readers: every linear operator that reads sliceable units, in order.
        values: activations of what they read, and of what they give.
        grams: (reader, channel group) -> second moment of the group's units there, by class, float64 (classes, u, u).
    """

    graph: ModelGraph
    inputs: Tensor
    labels: Tensor
    n_classes: int
    readers: tuple[Reader, ...]
    values: Mapping[str, Tensor]
    grams: Mapping[tuple[str, str], Tensor]


def read_donor(graph: ModelGraph, inputs: Tensor, labels: Tensor, n_classes: int) -> Readings:
    """One pass of the samples; serves the slices of all classes.

    Raises:
        RequestError: a class without samples.
    """
    missing = sorted(set(range(n_classes)) - set(labels.tolist()))
    if missing:
        raise RequestError(f"every class of the donor needs at least one sample; classes {missing} have none")
    readers = tuple(_readers(graph))
    watch = {reader.source for reader in readers} | {reader.node for reader in readers if reader.repairable}
    _, values = evaluate(graph, inputs, watch=watch)
    grams: dict[tuple[str, str], Tensor] = {}
    for reader in readers:
        for group in sorted(units_in(reader.consumption.expr)):
            units = units_read(graph, reader, values[reader.source], group, {})
            grams[reader.node, group] = class_grams(units, labels, n_classes, stride=stride_of(units))
    return Readings(graph, inputs, labels, n_classes, readers, values, grams)


def units_of(x: Tensor, axis: int, expr: AxisExpr, group: str, counts: Mapping[str, int]) -> Tensor:
    """The units of one channel group as axis 1, shape (n, units, ...); everything else is a position.

    Args:
        x: activations, units somewhere on `axis`.
        counts: units that are left of each sliced group; others are whole.

    Raises:
        GraphError: the axis does not hold the group.
    """
    return _find(x.movedim(axis, 1), expr, group, counts)


def units_read(graph: ModelGraph, reader: Reader, x: Tensor, group: str, counts: Mapping[str, int]) -> Tensor:
    """The units of one channel group among what a reader reads, shape (samples, units, ...).

    Args:
        x: what it reads; the batch may be folded into an axis with others (windows), or stand behind tokens.
        counts: units that are left of each sliced group; others are whole.

    Raises:
        GraphError: no axis holds the batch, or the axis does not hold the group.
    """
    axes = graph.analysis.value_axes[reader.source][0]
    place = next((place for place, expr in enumerate(axes) if _batch_part(expr) is not None), None)
    if place is None:
        raise GraphError(f"what {reader.node!r} reads does not depend on the sample", where=reader.node)
    within = _batch_part(axes[place]) or 0
    axis = reader.consumption.axis
    sizes = [kept_size(part, counts) for part in _parts(axes[place])]
    sizes[within] = -1
    x = x.reshape(*x.shape[:place], *sizes, *x.shape[place + 1 :])
    axis += len(sizes) - 1 if axis > place else 0
    batch = place + within
    x = x.movedim(batch, 0)
    axis += 1 if axis < batch else 0
    return units_of(x, axis, reader.consumption.expr, group, counts)


def _parts(expr: AxisExpr) -> tuple[AxisExpr, ...]:
    return expr.parts if isinstance(expr, Product) else (expr,)


def _batch_part(expr: AxisExpr) -> int | None:
    """Place of the batch among the factors of an axis."""
    found = [
        place for place, part in enumerate(_parts(expr)) if isinstance(part, Fixed) and is_batch(part.size)
    ]
    return found[0] if found else None


def reader_weights(readings: Readings, reader: Reader, group: str) -> Tensor:
    """How strongly a reader reads each unit: squared norm of the weights on it, scaled to mean 1, shape (units,)."""
    size = readings.graph.analysis.groups[group].size
    if reader.weight is None or not reader.repairable:
        return torch.ones(size, dtype=torch.float64)
    weight = readings.graph.tensors[reader.weight].to(torch.float64)
    units = units_of(weight, 1, reader.consumption.expr, group, {})
    norms = units.square().transpose(0, 1).flatten(1).sum(1)
    return norms / norms.mean().clamp_min(torch.finfo(torch.float64).tiny)


def stride_of(units: Tensor) -> int:
    """Stride over positions that leaves about `POSITIONS` of them."""
    positions = tuple(units.shape[2:])
    return position_stride(positions, POSITIONS) if math.prod(positions) > POSITIONS else 1


def with_weights(graph: ModelGraph, tensors: Mapping[str, Tensor]) -> ModelGraph:
    """The graph with some stored tensors replaced by others of the same shape."""
    return replace(graph, tensors={**dict(graph.tensors.items()), **tensors})


def _readers(graph: ModelGraph) -> Iterator[Reader]:
    """Readers of computed values. What a recurrent layer reads inside itself can't be watched; its output can."""
    for consumption in graph.analysis.consumptions:
        node = graph.node(consumption.node)
        source, weight = node.argument(consumption.arg), node.args.get("weight")
        if units_in(consumption.expr) and isinstance(source, Ref):
            name = weight.name if isinstance(weight, TensorRef) else None
            yield Reader(consumption, source.name, name, repairable(graph, consumption) is None)


def _find(x: Tensor, expr: AxisExpr, group: str, counts: Mapping[str, int]) -> Tensor:
    if isinstance(expr, Unit) and expr.group == group:
        return x
    if isinstance(expr, Fixed | Unit) or group not in units_in(expr):
        raise GraphError(f"this axis does not hold the channel group {group!r}", where=group)
    if isinstance(expr, Sum):
        start = 0
        for part in expr.parts:
            length = kept_size(part, counts)
            if group in units_in(part):
                return _find(x.narrow(1, start, length), part, group, counts)
            start += length
    sizes = [kept_size(part, counts) for part in expr.parts]
    place = next(i for i, part in enumerate(expr.parts) if group in units_in(part))
    parted = x.reshape(x.shape[0], *sizes, *x.shape[2:])
    return _find(parted.movedim(1 + place, 1), expr.parts[place], group, counts)
