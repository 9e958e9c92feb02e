"""Axis expressions: which units lie at which positions of an axis, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sarto.graph.rules._context import BATCH

Kept = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Fixed:
    """Positions that belong to no channel group: space, batch, kernel, pinned channels."""

    size: int


@dataclass(frozen=True, slots=True)
class Unit:
    """The positions are the units of a channel group."""

    group: str
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """Positions are pairs (outer, inner, ...), outermost first."""

    parts: tuple[AxisExpr, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """The parts lie end to end."""

    parts: tuple[AxisExpr, ...]


AxisExpr = Fixed | Unit | Product | Sum


def units_in(expr: AxisExpr) -> frozenset[str]:
    """Ids of the channel groups that an axis holds."""
    if isinstance(expr, Unit):
        return frozenset([expr.group])
    if isinstance(expr, Fixed):
        return frozenset()
    return frozenset().union(*(units_in(part) for part in expr.parts))


def full_size(expr: AxisExpr) -> int:
    """Number of positions before any slicing."""
    return kept_size(expr, {})


def kept_size(expr: AxisExpr, counts: Mapping[str, int]) -> int:
    """Number of positions when each group keeps that many units (all, where it is not named)."""
    if isinstance(expr, Fixed):
        return expr.size
    if isinstance(expr, Unit):
        return counts.get(expr.group, expr.size)
    sizes = [kept_size(part, counts) for part in expr.parts]
    return math.prod(sizes) if isinstance(expr, Product) else sum(sizes)


def kept_positions(expr: AxisExpr, kept: Kept) -> npt.NDArray[np.int64]:
    """Positions of an axis that stay when each group keeps those units (all, where it is not named)."""
    if isinstance(expr, Fixed):
        return np.arange(expr.size)
    if isinstance(expr, Unit):
        units = kept.get(expr.group)
        return np.arange(expr.size) if units is None else np.asarray(units, dtype=np.int64)
    if isinstance(expr, Sum):
        found, offset = [], 0
        for part in expr.parts:
            found.append(kept_positions(part, kept) + offset)
            offset += full_size(part)
        return np.concatenate(found)
    positions = np.zeros(1, dtype=np.int64)
    for part in expr.parts:
        positions = (positions[:, None] * full_size(part) + kept_positions(part, kept)[None, :]).reshape(-1)
    return positions


def is_batch(size: int) -> bool:
    """Whether an analysed size holds the batch axis."""
    return size % BATCH == 0
