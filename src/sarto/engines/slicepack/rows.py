"""What a reader reads, as rows of units: the sample first, the axis of the units second, positions last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sarto.engines.slicepack.settings import POSITIONS
from sarto.errors import GraphError
from sarto.graph import ModelGraph
from sarto.graph.expressions import AxisExpr, Fixed, Product, Sum, Unit, is_batch, kept_size, units_in
from sarto.training import position_stride


def terms_of(expr: AxisExpr) -> Iterator[AxisExpr]:
    """The parts of an axis that lie end to end; one part where it is no concatenation."""
    if isinstance(expr, Sum):
        for part in expr.parts:
            yield from terms_of(part)
    else:
        yield expr


def rows_of(
    graph: ModelGraph, source: str, axis: int, x: Tensor, counts: Mapping[str, int], *, every: bool = False
) -> Tensor:
    """A value as (samples, axis, positions), about `POSITIONS` of the positions.

    Args:
        source: whose value it is; says where the batch lies (it may be folded into an axis with others, or stand
            behind tokens).
        axis: the axis that holds the units.
        counts: units that are left of each sliced group; others are whole.
        every: all positions.

    Raises:
        GraphError: no axis holds the batch.
    """
    axes = graph.analysis.value_axes[source][0]
    place = next((place for place, expr in enumerate(axes) if _batch_part(expr) is not None), None)
    if place is None:
        raise GraphError(
            f"the value {source!r}, which a layer reads, does not depend on the sample", where=source
        )
    within = _batch_part(axes[place]) or 0
    sizes = [kept_size(part, counts) for part in _parts(axes[place])]
    sizes[within] = -1
    x = x.reshape(*x.shape[:place], *sizes, *x.shape[place + 1 :])
    axis += len(sizes) - 1 if axis > place else 0
    batch = place + within
    x = x.movedim(batch, 0)
    axis += 1 if axis < batch else 0
    return thinned(x.movedim(axis, 1), every=every)


def thinned(x: Tensor, *, every: bool = False) -> Tensor:
    """(samples, units, positions) of (samples, units, ...); about `POSITIONS` positions, the same in every sample."""
    grid = tuple(x.shape[2:])
    flat = x.flatten(2) if grid else x.unsqueeze(2)
    if every or math.prod(grid) <= POSITIONS:
        return flat
    return flat[:, :, :: position_stride(grid, POSITIONS)].contiguous()


def term_rows(rows: Tensor, expr: AxisExpr, place: int, counts: Mapping[str, int]) -> Tensor:
    """The part of the rows (n, axis, positions) that belongs to one term of an axis."""
    start = 0
    for index, term in enumerate(terms_of(expr)):
        length = kept_size(term, counts)
        if index == place:
            return rows.narrow(1, start, length)
        start += length
    raise GraphError(f"an axis of {index + 1} terms has no term {place}")


def units_of(x: Tensor, axis: int, expr: AxisExpr, group: str, counts: Mapping[str, int]) -> Tensor:
    """The units of one channel group as axis 1, shape (n, units, ...); everything else is a position.

    Args:
        x: activations, units somewhere on `axis`.
        counts: units that are left of each sliced group; others are whole.

    Raises:
        GraphError: the axis does not hold the group.
    """
    return _find(x.movedim(axis, 1), expr, group, counts)


def _find(x: Tensor, expr: AxisExpr, group: str, counts: Mapping[str, int]) -> Tensor:
    if isinstance(expr, Unit) and expr.group == group:
        return x
    if isinstance(expr, Fixed | Unit) or group not in units_in(expr):
        raise GraphError(f"this axis does not hold the channel group {group!r}", where=group)
    if isinstance(expr, Sum):
        found, start = [], 0
        for part in expr.parts:
            length = kept_size(part, counts)
            if group in units_in(part):
                found.append(_find(x.narrow(1, start, length), part, group, counts))
            start += length
        # A group that lies there more than once (both directions of a recurrent layer) has more positions.
        return found[0] if len(found) == 1 else torch.cat([part.flatten(2) for part in map(_deep, found)], 2)
    sizes = [kept_size(part, counts) for part in expr.parts]
    place = next(i for i, part in enumerate(expr.parts) if group in units_in(part))
    parted = x.reshape(x.shape[0], *sizes, *x.shape[2:])
    return _find(parted.movedim(1 + place, 1), expr.parts[place], group, counts)


def _deep(x: Tensor) -> Tensor:
    return x if x.ndim > 2 else x.unsqueeze(2)


def _parts(expr: AxisExpr) -> tuple[AxisExpr, ...]:
    return expr.parts if isinstance(expr, Product) else (expr,)


def _batch_part(expr: AxisExpr) -> int | None:
    """Place of the batch among the factors of an axis."""
    found = [
        place for place, part in enumerate(_parts(expr)) if isinstance(part, Fixed) and is_batch(part.size)
    ]
    return found[0] if found else None
