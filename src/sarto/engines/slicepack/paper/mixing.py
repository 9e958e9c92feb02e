"""Weights that read an axis through the layers l_i: differentiable, for any axis expression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import torch
from torch import Tensor

from sarto.graph.expressions import AxisExpr, Fixed, Product, Sum, Unit, full_size, kept_positions, units_in

#: Channel group -> its units that are kept.
Kept = Mapping[str, tuple[int, ...]]


def read_through(
    weight: Tensor, axis: int, expr: AxisExpr, kept: Kept, maps: Mapping[int, Tensor] | None = None
) -> Tensor:
    """A tensor whose axis holds all units, rewritten to read the kept ones alone.

    With w the weight on the units, S the kept and D the dropped ones, and L the map (dropped, kept):
    w'[s] = w[S_s] + sum_d L[d, s] w[D_d]. Without a map the dropped units are left out.

    Args:
        expr: which units lie where on the axis.
        maps: place of a group among the leaves of `expr` -> its map; the same group may lie there twice, with two maps.

    Reference:
        Slice-and-Pack, "fuse": our formula, since the paper's proof (appendix B) is not public.
    """
    if not units_in(expr) & kept.keys():
        return weight
    return _mixed(weight.movedim(axis, 0), expr, kept, maps or {}, count()).movedim(0, axis)


def dropped(size: int, kept: tuple[int, ...]) -> tuple[int, ...]:
    """The units of a group that are not kept, rising."""
    chosen = set(kept)
    return tuple(unit for unit in range(size) if unit not in chosen)


def held_positions(expr: AxisExpr, kept: Kept) -> Tensor:
    """Positions of an axis that hold kept units of these groups; what other groups put there is left out."""
    if not units_in(expr) & kept.keys():
        return torch.zeros(0, dtype=torch.int64)
    if not isinstance(expr, Sum):
        return torch.from_numpy(kept_positions(expr, kept).copy())
    found, offset = [], 0
    for part in expr.parts:
        found.append(held_positions(part, kept) + offset)
        offset += full_size(part)
    return torch.cat(found)


def places_of(expr: AxisExpr, group: str) -> tuple[int, ...]:
    """Places of a channel group among the leaves of an expression."""
    return tuple(place for place, leaf in enumerate(leaf_groups(expr)) if leaf == group)


def leaf_groups(expr: AxisExpr) -> Iterator[str]:
    """Channel groups at the leaves of an expression, in order; a group may lie there several times."""
    if isinstance(expr, Unit):
        yield expr.group
    elif isinstance(expr, Sum | Product):
        for part in expr.parts:
            yield from leaf_groups(part)


def units_at(x: Tensor, axis: int, expr: AxisExpr, group: str) -> list[Tensor]:
    """The units of a group, once for every place where they lie on the axis, each (samples, units, positions).

    Args:
        x: activations with the samples on axis 0.
    """
    return list(_found(x.movedim(axis, 1), expr, group))


def _mixed(
    weight: Tensor, expr: AxisExpr, kept: Kept, maps: Mapping[int, Tensor], places: Iterator[int]
) -> Tensor:
    """Axis 0 rewritten; leaves are counted in order."""
    if isinstance(expr, Fixed):
        return weight
    if isinstance(expr, Unit):
        place = next(places)
        units = kept.get(expr.group)
        if units is None:
            return weight
        held = weight.index_select(0, torch.tensor(units, device=weight.device))
        others = dropped(expr.size, units)
        if place not in maps or not others:
            return held
        rest = weight.index_select(0, torch.tensor(others, device=weight.device))
        return held + torch.tensordot(maps[place], rest, dims=([0], [0]))
    if isinstance(expr, Sum):
        parts = weight.split([full_size(part) for part in expr.parts])
        mixed = [
            _mixed(part, inner, kept, maps, places) for part, inner in zip(parts, expr.parts, strict=True)
        ]
        return torch.cat(mixed)
    rank = len(expr.parts)
    weight = weight.reshape(*(full_size(part) for part in expr.parts), *weight.shape[1:])
    for place, part in enumerate(expr.parts):
        weight = _mixed(weight.movedim(place, 0), part, kept, maps, places).movedim(0, place)
    return weight.flatten(0, rank - 1)


def _found(x: Tensor, expr: AxisExpr, group: str) -> Iterator[Tensor]:
    """Axis 1 parted until a leaf is the group."""
    if isinstance(expr, Unit):
        if expr.group == group:
            yield x.reshape(x.shape[0], x.shape[1], -1)
    elif isinstance(expr, Sum):
        for part, inner in zip(x.split([full_size(p) for p in expr.parts], 1), expr.parts, strict=True):
            yield from _found(part, inner, group)
    elif isinstance(expr, Product):
        x = x.reshape(x.shape[0], *(full_size(part) for part in expr.parts), *x.shape[2:])
        for place, part in enumerate(expr.parts):
            if group in units_in(part):
                yield from _found(x.movedim(1 + place, 1), part, group)
