"""How much of an axis can be sliced, from shapes alone."""

from __future__ import annotations

import math

from sarto.graph.expressions import AxisExpr, Fixed, Product, Unit, full_size, kept_size


def sliceable_elements(axes: tuple[AxisExpr, ...]) -> int:
    """Elements of a tensor that lie on at least one sliceable unit."""
    return math.prod(full_size(axis) for axis in axes) - math.prod(pinned_size(axis) for axis in axes)


def pinned_size(expr: AxisExpr) -> int:
    """Positions of an axis that lie on no sliceable unit."""
    if isinstance(expr, Fixed):
        return expr.size
    if isinstance(expr, Unit):
        return 0
    sizes = [pinned_size(part) for part in expr.parts]
    return math.prod(sizes) if isinstance(expr, Product) else sum(sizes)


def positions_per_unit(expr: AxisExpr, group: str) -> int:
    """Positions of an axis that one unit of a group takes, all its places there together."""
    size = _size(expr, group)
    return full_size(expr) - kept_size(expr, {group: size - 1}) if size else 0


def _size(expr: AxisExpr, group: str) -> int:
    if isinstance(expr, Unit):
        return expr.size if expr.group == group else 0
    return max((_size(part, group) for part in getattr(expr, "parts", ())), default=0)
