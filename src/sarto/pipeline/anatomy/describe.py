"""The anatomy of a model: channel groups, what pins them, cut points, blocks and their cost. No weights are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import chain

from sarto.devices import UnitCost, params_by_tensor, unit_costs
from sarto.graph import ChannelGroup, ModelGraph
from sarto.graph.model import shapes_of, size_at
from sarto.pipeline.anatomy.parting import Costs, blocks_of, costs_of, cuts_of, ends_of
from sarto.pipeline.anatomy.reach import reach
from sarto.pipeline.anatomy.steps import steps_of
from sarto.pipeline.anatomy.units import positions_per_unit, sliceable_elements
from sarto.pipeline.anatomy.values import FIXED, Anatomy, Group, Pin, Reading
from sarto.types import Cost

_BY_NODE = re.compile(r"^(?P<rule>no rule for )?(?P<op>\S+) at (?P<node>\S+)$")
_QUOTED = re.compile(r"\s*'[^']*'")
_UNREAD = "no linear operator reads these units"
#: Reasons that name no operator -> what they say of all the groups together.
_WORDS = {"output": "outputs of the model", "input": "inputs of the model"}


def describe(graph: ModelGraph) -> Anatomy:
    """Everything that `sarto inspect` shows of a model."""
    found = reach(graph)
    costs = costs_of(graph, found)
    cuts = cuts_of(graph, costs)
    steps = steps_of(graph, found, costs, ends_of(graph, cuts, costs))
    layers = [(step.id, step.name) for step in steps if step.kind == "layer"]
    axes = graph.analysis.tensor_axes
    return Anatomy(
        inputs=tuple(
            Reading(name=entry.name, shape=size_at(entry.shape, 1)[1:], dtype=entry.dtype)
            for entry in graph.inputs
        ),
        n_nodes=len(graph.nodes),
        cost=_cost(graph, costs),
        sliceable_params=sum(sliceable_elements(axes[name]) for name in graph.parameters),
        groups=_groups(graph),
        pins=pins_of(graph.analysis.groups.values()),
        unruled=dict(graph.analysis.unruled),
        cut_points=cuts,
        blocks=blocks_of(graph, cuts, costs, layers),
        steps=steps,
    )


def _cost(graph: ModelGraph, costs: Costs) -> Cost:
    """The numbers of `sarto.devices.count`, from the sums that are there already."""
    shapes = shapes_of(graph.tensors).values()
    return Cost(
        params=sum(params_by_tensor(graph).values()),
        flops=costs.flops[-1],
        memory_bytes=max(costs.live),
        size_bytes=sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes),
        basis="measured",
    )


def pins_of(groups: Iterable[ChannelGroup]) -> tuple[Pin, ...]:
    """Why groups are pinned, reasons of one operator together, the one that pins most units first; no fixed factors.

    That nothing reads the units of a group is left out where the group has another reason: it follows from it.
    """
    table: dict[tuple[str, str], dict[str, dict[str, ChannelGroup]]] = {}
    for group in groups:
        if group.kind == FIXED:
            continue
        telling = [text for text in group.pinned if text != _UNREAD]
        for text in telling or group.pinned:
            named = _BY_NODE.match(text)
            if named:
                key, node = (named["op"], "it has no rule" if named["rule"] else ""), named["node"]
            else:
                plain = _QUOTED.sub("", text).partition(":")[0]
                key, node = ("", _WORDS.get(plain, plain)), ""
            table.setdefault(key, {}).setdefault(node, {})[group.id] = group
    pins = []
    for (op, reason), by_node in table.items():
        held = {name: group for found in by_node.values() for name, group in found.items()}
        pins.append(
            Pin(
                operator=op,
                reason=reason,
                nodes=tuple(node for node in by_node if node),
                groups=tuple(held),
                axes=len(set(chain.from_iterable(group.places for group in held.values()))),
                units=sum(group.size for group in held.values()),
            )
        )
    return tuple(sorted(pins, key=lambda pin: (-pin.units, pin.operator, pin.reason)))


def _groups(graph: ModelGraph) -> tuple[Group, ...]:
    analysis, shapes, carried = graph.analysis, shapes_of(graph.tensors), unit_costs(graph)
    found = []
    for group in analysis.groups.values():
        touched = {name for name, _ in group.places if name in graph.parameters}
        unit = carried.get(group.id, UnitCost(0, 0))
        found.append(
            Group(
                id=group.id,
                kind=group.kind,
                size=group.size,
                granularity=group.granularity,
                positions_per_unit=max(
                    (
                        positions_per_unit(analysis.tensor_axes[name][axis], group.id)
                        for name, axis in group.places
                    ),
                    default=0,
                ),
                pinned=group.pinned,
                producers=group.producers,
                readers=tuple(dict.fromkeys(consumption.node for consumption in group.consumptions)),
                places=tuple(f"{name}:{axis}" for name, axis in group.places),
                params=sum(math.prod(shapes[name][0]) for name in touched),
                params_per_unit=unit.params,
                flops_per_unit=unit.flops,
            )
        )
    return tuple(found)
