"""The donor with layers replaced, run with tensors that train: M(x; f~) repaired by l_i, and M(x; f-) by the donor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sarto.engines.slicepack.paper.layers import Donor, Layer, MapKey, Output
from sarto.engines.slicepack.paper.mixing import Kept, leaf_groups, read_through, units_at
from sarto.graph import Node, Ref, Selection, slice
from sarto.graph.expressions import Fixed, Product, full_size, is_batch, units_in
from sarto.graph.model import leaves
from sarto.graph.rules._context import BATCH
from sarto.graph.run import run_node

#: Stored tensors by name.
Tensors = Mapping[str, Tensor]
#: Values by node or input; several outputs of a node as a tuple.
Values = Mapping[str, Any]


def run(donor: Donor, nodes: Sequence[Node], tensors: Tensors, given: Values, batch: int) -> dict[str, Any]:
    """Every value of these nodes and the given ones; gradients flow where the tensors want them."""
    view = replace(donor.graph, tensors=tensors)
    values = dict(given)
    for node in nodes:
        values[node.name] = run_node(view, node, values, batch)
    return values


@torch.no_grad()
def advance(donor: Donor, values: Values, start: int, stop: int, batch: int) -> dict[str, Any]:
    """What the nodes from `stop` on still need, after the donor's own nodes start .. stop ran on the values."""
    view = replace(donor.graph, tensors=dict(donor.graph.tensors.items()))
    live = dict(values)
    later = _readers(donor.nodes[stop:]) | {donor.features.value}
    last: dict[str, int] = {}
    for place in range(start, stop):
        last.update(dict.fromkeys(_readers([donor.nodes[place]]), place))
    for place in range(start, stop):
        node = donor.nodes[place]
        live[node.name] = run_node(view, node, live, batch)
        for name in [name for name in live if name not in later and last.get(name, -1) <= place]:
            del live[name]
    return {name: value for name, value in live.items() if name in later}


def can_cache(donor: Donor, values: Values) -> bool:
    """Whether the samples of every value lie on an axis of their own, so that single samples can be taken."""
    return all(
        not any(is_batch(full_size(expr)) and expr != Fixed(BATCH) for expr in exprs)
        for name in values
        for exprs in donor.graph.analysis.value_axes[name]
    )


def rows_of(donor: Donor, values: Values, rows: Tensor) -> dict[str, Any]:
    """The values of some samples."""

    def taken(value: Tensor, exprs: Sequence[Any]) -> Tensor:
        axis = next((axis for axis, expr in enumerate(exprs) if expr == Fixed(BATCH)), None)
        return value if axis is None else value.index_select(axis, rows)

    axes = donor.graph.analysis.value_axes
    return {
        name: taken(value, axes[name][0])
        if isinstance(value, Tensor)
        else tuple(taken(one, exprs) for one, exprs in zip(value, axes[name], strict=True))
        for name, value in values.items()
    }


def sliced_nodes(donor: Donor, kept: Kept) -> tuple[Node, ...]:
    """The extractor's nodes with their sizes as the kept units leave them."""
    sliced = slice(donor.graph.sketch(), Selection(kept))
    return tuple(sliced.node(node.name) for node in donor.nodes)


def repaired_tensors(
    donor: Donor, tensors: Tensors, kept: Kept, maps: Mapping[MapKey, Tensor]
) -> dict[str, Tensor]:
    """All stored tensors of M(x; f~): layers without their dropped units, read through the maps l_i.

    Multiplying a map into the weight that reads it gives the same numbers as running it as a layer of its own, and
    is the fusion at the same time.
    """
    axes = donor.graph.analysis.tensor_axes
    changed = dict(tensors)
    for name in tensors:
        for axis, expr in enumerate(axes[name]):
            if units_in(expr) & kept.keys():
                here = {place: m for (held, at, place), m in maps.items() if (held, at) == (name, axis)}
                changed[name] = read_through(changed[name], axis, expr, kept, here)
    return changed


def repaired_features(donor: Donor, features: Tensor, kept: Kept, maps: Mapping[MapKey, Tensor]) -> Tensor:
    """Features of all units from those of the kept ones, shape (n, width): the repair of the last layer."""
    if not units_in(donor.axis) & kept.keys():
        return features
    here = {place: m for (held, at, place), m in maps.items() if (held, at) == (donor.classifier, 1)}
    identity = torch.eye(full_size(donor.axis), dtype=features.dtype, device=features.device)
    return features @ read_through(identity, 0, donor.axis, kept, here)


def layer_units(donor: Donor, layer: Layer, values: Values) -> list[Tensor]:
    """Z_i: the units of a layer in each value that holds them, shape (samples, units, positions)."""
    return [torch.cat(_units(donor, output, layer.group, values), 2) for output in layer.outputs]


def units_read(donor: Donor, output: Output, leaf: int, group: str, values: Values) -> Tensor:
    """The units of a layer at one leaf of an output's axis, shape (samples, units, positions)."""
    groups = list(leaf_groups(output.expr))
    return _units(donor, output, group, values)[groups[: leaf + 1].count(group) - 1]


def last_output(donor: Donor, layer: Layer) -> int:
    """Place after the last node that `layer_units` reads."""
    position = {node.name: place + 1 for place, node in enumerate(donor.nodes)}
    return max(position.get(output.value, 0) for output in layer.outputs)


def _units(donor: Donor, output: Output, group: str, values: Values) -> list[Tensor]:
    value = values[output.value]
    x = value if isinstance(value, Tensor) else value[0]
    exprs = donor.graph.analysis.value_axes[output.value][0]
    place = next(place for place, expr in enumerate(exprs) if is_batch(full_size(expr)))
    folded = exprs[place]
    parts = folded.parts if isinstance(folded, Product) else (folded,)
    within = next(k for k, part in enumerate(parts) if is_batch(full_size(part)))
    sizes = [full_size(part) for part in parts]
    sizes[within] = -1
    axis = output.axis + (len(parts) - 1 if output.axis > place else 0)
    x = x.reshape(*x.shape[:place], *sizes, *x.shape[place + 1 :]).movedim(place + within, 0)
    axis += 1 if axis < place + within else 0
    return units_at(x, axis, output.expr, group)


def _readers(nodes: Sequence[Node]) -> set[str]:
    return {arg.name for node in nodes for arg in leaves(node.args) if isinstance(arg, Ref)}
