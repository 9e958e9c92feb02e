"""Trunks: the front of a donor that its fragments share, cut alike for all of their classes, run and stored once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from sarto.devices import flops_by_node
from sarto.engines.slicepack.settings import TRUNKS
from sarto.graph import ModelGraph
from sarto.graph.expressions import units_in
from sarto.graph.model import Node, Ref, TensorRef, leaves, shapes_of, size_at
from sarto.types import TrunkCost


def trunk_costs(
    donor: ModelGraph, extractor: ModelGraph, groups: Iterable[str], depths: Sequence[float] = TRUNKS
) -> tuple[TrunkCost, ...]:
    """Cost of the fronts of a donor's extractor at one size, from short to long; exact, from shapes alone.

    A front ends before the first layer that makes units which its fragments choose for themselves.

    Args:
        extractor: the donor up to its features, cut to the size.
        groups: channel groups that the size cuts.
        depths: how many of the groups a front shares, as shares of all of them.
    """
    order = front_to_back(donor, groups)
    found = []
    for depth in sorted({round(share * len(order)) for share in depths}):
        if 0 < depth < len(order):
            shared = shared_nodes(donor, order[depth:])
            found.append(_cost(extractor, order[:depth], shared))
    return tuple(found)


def front_to_back(donor: ModelGraph, groups: Iterable[str]) -> tuple[str, ...]:
    """Channel groups in the order in which their units are first made."""
    place = {node.name: i for i, node in enumerate(donor.nodes)}
    known = donor.analysis.groups

    def first(group: str) -> int:
        return min((place[name] for name in known[group].producers), default=len(place))

    return tuple(sorted(groups, key=lambda group: (first(group), group)))


def shared_nodes(donor: ModelGraph, own: Iterable[str]) -> frozenset[str]:
    """Nodes that stay equal in all fragments whose selections differ in these groups alone."""
    apart = set(own)
    axes = donor.analysis.tensor_axes
    changed = {name for name, found in axes.items() if any(units_in(axis) & apart for axis in found)}
    own_nodes: set[str] = set()
    for node in donor.nodes:
        if _reads_any(node, own_nodes, changed):
            own_nodes.add(node.name)
    return frozenset(node.name for node in donor.nodes) - own_nodes


def _reads_any(node: Node, values: set[str], tensors: set[str]) -> bool:
    """Whether a node reads one of the values or of the stored tensors."""
    return any(
        (isinstance(leaf, Ref) and leaf.name in values)
        or (isinstance(leaf, TensorRef) and leaf.name in tensors)
        for leaf in leaves(node.args)
    )


def _cost(extractor: ModelGraph, groups: tuple[str, ...], shared: frozenset[str]) -> TrunkCost:
    front = [node for node in extractor.nodes if node.name in shared]
    made = {node.name for node in front}
    tensors, _ = _stored_and_read(front)
    _, read = _stored_and_read(node for node in extractor.nodes if node.name not in shared)
    stored = shapes_of(extractor.tensors)
    sizes = {name: math.prod(stored[name][0]) for name in tensors}
    flops = flops_by_node(extractor)
    return TrunkCost(
        groups=groups,
        params=sum(size for name, size in sizes.items() if name in extractor.parameters),
        flops=sum(flops.get(node.name, 0) for node in front),
        size_bytes=sum(size * stored[name][1].itemsize for name, size in sizes.items()),
        held_bytes=sum(_bytes(extractor.node(name)) for name in read & made),
    )


def _stored_and_read(nodes: Iterable[Node]) -> tuple[set[str], set[str]]:
    """Names of the stored tensors and of the values that nodes read."""
    found = [leaf for node in nodes for leaf in leaves(node.args)]
    return (
        {leaf.name for leaf in found if isinstance(leaf, TensorRef)},
        {leaf.name for leaf in found if isinstance(leaf, Ref)},
    )


def _bytes(node: Node) -> int:
    return sum(
        math.prod(size_at(shape, 1)) * getattr(torch, dtype).itemsize
        for shape, dtype in zip(node.shapes, node.dtypes, strict=True)
    )
