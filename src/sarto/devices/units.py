"""What one unit of a channel group carries: what a model saves when it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sarto.devices.count import flops_by_node, params_by_tensor
from sarto.graph import ModelGraph, Selection, slice


@dataclass(frozen=True)
class UnitCost:
    """Parameters and FLOPs (one sample, 2 per multiply-add) that go with one unit, everything else kept."""

    params: int
    flops: int


def unit_costs(graph: ModelGraph) -> Mapping[str, UnitCost]:
    """Sliceable group -> what its last unit carries; no weights are read.

    Exact: the difference between the graph and the graph without that unit. Every unit of a group carries the same.
    Costs of units of different groups do not add up where the groups meet in one layer.
    """
    sketch = graph.sketch()
    params, flops = sum(params_by_tensor(sketch).values()), sum(flops_by_node(sketch).values())
    found: dict[str, UnitCost] = {}
    for group in graph.analysis.sliceable:
        less = slice(sketch, Selection({group.id: tuple(range(group.size - 1))}), analysis=graph.analysis)
        found[group.id] = UnitCost(
            params - sum(params_by_tensor(less).values()), flops - sum(flops_by_node(less).values())
        )
    return found
