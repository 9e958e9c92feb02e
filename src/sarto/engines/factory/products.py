"""Parameters and FLOPs of many subnets at once, from unit counts; nothing is sliced."""

from __future__ import annotations

from sarto.devices.flops import RULES
from sarto.devices.profiling.sizes import Floats, Size, SizeTable, monomials
from sarto.graph import ModelGraph
from sarto.graph.expressions import AxisExpr
from sarto.graph.model import Arg, Node, Ref, TensorRef

_CONVOLUTIONS = frozenset(
    {
        "aten.conv1d.default",
        "aten.conv1d.padding",
        "aten.conv2d.default",
        "aten.conv2d.padding",
        "aten.conv3d.default",
    }
)
#: Operator -> the factor over whose last axis its products sum.
_PRODUCTS = {
    "aten.linear.default": "input",
    "aten.matmul.default": "self",
    "aten.mm.default": "self",
    "aten.bmm.default": "self",
    "aten.addmm.default": "mat1",
}
_ATTENTION = "aten.scaled_dot_product_attention.default"


class ProductCounter:
    """Counts parameters and FLOPs of one graph's subnets; make it once and ask it often.

    The same numbers as `count` of the sliced graph, for graphs of convolutions, matrix products and attention; `known`
    says whether this graph is one.
    """

    def __init__(self, graph: ModelGraph) -> None:
        analysis = graph.analysis
        self._table = SizeTable({group.id: group.size for group in analysis.sliceable})
        self.known = all(
            node.op not in RULES or node.op in _CONVOLUTIONS or node.op in _PRODUCTS or node.op == _ATTENTION
            for node in graph.nodes
        )
        params = [self._table.elements(analysis.tensor_axes[name]) for name in graph.parameters]
        flops = [size for node in graph.nodes for size in self._flops(graph, node)] if self.known else []
        self._sizes = {"params": monomials(params), "flops": monomials(flops or [Size(0.0)])}

    def at(self, rows: Floats, name: str) -> Floats:
        """Parameters or FLOPs of each subnet (n,), at unit counts (n, groups)."""
        found = self._table.evaluate(rows, 1)
        factors, places = self._sizes[name]
        exact: Floats = (factors[:, None] * found[places].prod(axis=1)).sum(axis=0)
        return exact

    def _flops(self, graph: ModelGraph, node: Node) -> list[Size]:
        table, analysis = self._table, graph.analysis

        def axes(arg: Arg) -> tuple[AxisExpr, ...]:
            if isinstance(arg, Ref):
                return tuple(analysis.value_axes[arg.name][0])
            return tuple(analysis.tensor_axes[arg.name]) if isinstance(arg, TensorRef) else ()

        if node.op in _CONVOLUTIONS:
            made = table.elements(analysis.value_axes[node.name][0])
            return [made.times(table.elements(axes(node.args["weight"])[1:])).scaled(2.0)]
        if node.op in _PRODUCTS:
            made = table.elements(analysis.value_axes[node.name][0])
            return [made.times(table.axis(axes(node.args[_PRODUCTS[node.op]])[-1])).scaled(2.0)]
        if node.op == _ATTENTION:
            *outer, width = axes(node.args["query"])
            keys = table.axis(axes(node.args["key"])[-2])
            pairs = table.elements(outer).times(keys)
            return [
                pairs.times(table.axis(width)).scaled(2.0),
                pairs.times(table.axis(axes(node.args["value"])[-1])).scaled(2.0),
            ]
        return []
