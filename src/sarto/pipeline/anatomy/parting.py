"""Cut points as `sarto inspect` lists them, and the blocks between them with their cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from typing import cast

import torch

from sarto.devices import flops_by_node, timeline
from sarto.devices.count import params_by_tensor
from sarto.graph import ModelGraph, cut_points, main_cuts
from sarto.graph.cuts import LIGHT
from sarto.graph.model import Shape, elements, size_at
from sarto.pipeline.anatomy.reach import Reach
from sarto.pipeline.anatomy.values import Block, Cut, Layout


@dataclass(frozen=True)
class Costs:
    """Costs of the nodes of a graph, so that what lies between two of them is one subtraction.

    Attributes:
        places: node -> its place, from 1; inputs are at 0.
        params: sum over all nodes up to a place of the parameters that they own.
        flops: the same of FLOPs of one sample.
        live: activation bytes that are alive while the node at a place runs; at place 0 those of the inputs.
    """

    places: Mapping[str, int]
    params: Sequence[int]
    flops: Sequence[int]
    live: Sequence[int]


def costs_of(graph: ModelGraph, found: Reach) -> Costs:
    """Prefix sums over the nodes of a graph, in order."""
    sizes, flops = params_by_tensor(graph), flops_by_node(graph)
    owned = [sum(sizes[name] for name in found.owned.get(node.name, ())) for node in graph.nodes]
    inputs = sum(elements(entry.shape) * getattr(torch, entry.dtype).itemsize for entry in graph.inputs)
    return Costs(
        {node.name: place for place, node in enumerate(graph.nodes, 1)},
        list(accumulate(owned, initial=0)),
        list(accumulate((flops.get(node.name, 0) for node in graph.nodes), initial=0)),
        [inputs, *(moment.live_bytes for moment in timeline(graph))],
    )


def cuts_of(graph: ModelGraph, costs: Costs) -> tuple[Cut, ...]:
    """Every cut point and what lies before it, in order."""
    canonical = {cut.value for cut in main_cuts(graph)}
    return tuple(
        Cut(
            value=cut.value,
            shape=sample_shape(cut.shape),
            layout=cast(Layout, cut.layout),
            stride=cut.stride,
            canonical=cut.value in canonical,
            params=costs.params[costs.places[cut.value]],
            flops=costs.flops[costs.places[cut.value]],
        )
        for cut in cut_points(graph)
    )


def blocks_of(
    graph: ModelGraph, cuts: Sequence[Cut], costs: Costs, layers: Sequence[tuple[str, str]]
) -> tuple[Block, ...]:
    """The blocks between neighbouring canonical cuts, first to last.

    Args:
        layers: (node, name) of the layers that own weights.
    """
    bounds = ["", *(cut.value for cut in cuts if cut.canonical), ""]
    ends = ends_of(graph, cuts, costs)
    inside: list[list[str]] = [[] for _ in bounds[1:]]
    for node, name in layers:
        inside[block_at(costs.places[node], ends)].append(name)
    return tuple(
        Block(
            name=name or _operators(graph, first, last),
            start=start,
            end=end,
            layers=len(held),
            params=costs.params[last] - costs.params[first],
            flops=costs.flops[last] - costs.flops[first],
            memory_bytes=max(costs.live[first + bool(first) : last + 1], default=0),
        )
        for name, held, (start, end), (first, last) in zip(
            block_names(inside), inside, pairwise(bounds), pairwise(ends), strict=True
        )
    )


def ends_of(graph: ModelGraph, cuts: Sequence[Cut], costs: Costs) -> tuple[int, ...]:
    """Place of the last node of each block, with a 0 in front."""
    return (0, *(costs.places[cut.value] for cut in cuts if cut.canonical), len(graph.nodes))


def block_names(inside: Sequence[Sequence[str]]) -> list[str]:
    """A name for each block from the dotted names of its layers; empty where it has none.

    It is what they have in common; where several blocks have the same in common, the layers are named too.
    """
    common = [_common(names) for names in inside]
    found = []
    for name, names in zip(common, inside, strict=True):
        if len(names) > 1 and common.count(name) > 1:
            rest = list(dict.fromkeys(full.removeprefix(f"{name}.").partition(".")[0] for full in names))
            name = f"{name} ({', '.join(rest[:3])}{', ...' if len(rest) > 3 else ''})"
        found.append(name)
    return found


def block_at(place: int, ends: Sequence[int]) -> int:
    """Number of the block, from 0, that holds the node at a place, where block k ends at place `ends[k + 1]`."""
    return max(0, bisect_left(ends, place) - 1)


def sample_shape(shape: Shape) -> tuple[int, ...]:
    """A shape for one sample, without the batch axis."""
    sizes = size_at(shape, 1)
    return sizes[1:] if sizes and sizes[0] == 1 else sizes


def _operators(graph: ModelGraph, first: int, last: int) -> str:
    """Operators of a block without layers: what it does instead, such as `max_pool2d`."""
    heavy = [node.op.split(".")[1] for node in graph.nodes[first:last] if node.op not in LIGHT]
    return " ".join(dict.fromkeys(heavy))


def _common(names: Sequence[str]) -> str:
    """What dotted names have in common: `layer1.0` of `layer1.0.conv1` and `layer1.0.conv2`."""
    if len(names) < 2:
        return "".join(names)
    levels = zip(*(name.split(".") for name in names), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    if shared:
        return ".".join(shared)
    return f"{names[0]} to {names[-1]}"
