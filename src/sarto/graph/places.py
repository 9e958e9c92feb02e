"""Where units lie in a graph, as a table made once: what slicing has to touch, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sarto.graph.expressions import AxisExpr, units_in

if TYPE_CHECKING:
    from sarto.graph.analysis import Analysis


@dataclass(frozen=True)
class NodePlaces:
    """Sizes of one node that follow units: entries name an expression by its place in the table.

    Attributes:
        shapes: (output, axis, expression) of its recorded shapes.
        args: (argument, entry of a list or None, expression) of its integer arguments.
    """

    shapes: tuple[tuple[int, int, int], ...]
    args: tuple[tuple[str, int | None, int], ...]


@dataclass(frozen=True)
class Places:
    """Every place of a graph that holds sliceable units.

    Attributes:
        exprs: the different expressions that hold units.
        units: of each expression, the channel groups on it.
        tensors: stored tensor -> (axis, expression) of the axes that hold units.
        nodes: node -> its sizes that follow units.
    """

    exprs: tuple[AxisExpr, ...]
    units: tuple[frozenset[str], ...]
    tensors: Mapping[str, tuple[tuple[int, int], ...]]
    nodes: Mapping[str, NodePlaces]


def find_places(analysis: Analysis) -> Places:
    """The table of an analysis."""
    table: dict[AxisExpr, int] = {}

    def entry(expr: AxisExpr) -> int:
        return table.setdefault(expr, len(table))

    tensors = {}
    for name, exprs in analysis.tensor_axes.items():
        found = tuple((axis, entry(expr)) for axis, expr in enumerate(exprs) if units_in(expr))
        if found:
            tensors[name] = found
    args: dict[str, list[tuple[str, int | None, int]]] = {}
    for rewrite in analysis.rewrites:
        if units_in(rewrite.expr):
            args.setdefault(rewrite.node, []).append((rewrite.arg, rewrite.index, entry(rewrite.expr)))
    nodes = {}
    for name, outputs in analysis.value_axes.items():
        shapes = tuple(
            (output, axis, entry(expr))
            for output, exprs in enumerate(outputs)
            for axis, expr in enumerate(exprs)
            if units_in(expr)
        )
        if shapes or name in args:
            nodes[name] = NodePlaces(shapes, tuple(args.get(name, ())))
    exprs = tuple(table)
    return Places(exprs, tuple(units_in(expr) for expr in exprs), tensors, nodes)
