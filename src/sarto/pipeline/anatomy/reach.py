"""Where the data flows in a graph, and which operators on its way own the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sarto.graph import ModelGraph, Node, Ref, TensorRef
from sarto.graph.cuts import data_values
from sarto.graph.model import leaves


@dataclass(frozen=True)
class Reach:
    """The part of a graph that the data flows through.

    Attributes:
        data: values that carry data, the floating-point inputs among them; ids, masks and constants do not.
        inputs: node -> inputs that it reads beside the data, also through values that carry none.
        used: node of the data -> stored tensors that it reads, also through values that carry none.
        owned: node of the data -> the trainable ones among them that no node before it read.
    """

    data: frozenset[str]
    inputs: Mapping[str, tuple[str, ...]]
    used: Mapping[str, tuple[str, ...]]
    owned: Mapping[str, tuple[str, ...]]


def reach(graph: ModelGraph) -> Reach:
    """Which values carry data, and where on their way each trainable tensor comes in, by one walk."""
    data = data_values(graph)
    # Value without data -> stored tensors and inputs that it comes from.
    carried: dict[str, tuple[str, ...]] = {}
    sides: dict[str, tuple[str, ...]] = {entry.name: (entry.name,) for entry in graph.inputs}
    used: dict[str, tuple[str, ...]] = {}
    owned: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        side = [name for name in values_read(node) if name not in data]
        tensors = [arg.name for arg in leaves(node.args) if isinstance(arg, TensorRef)]
        tensors += [tensor for name in side for tensor in carried.get(name, ())]
        found = tuple(dict.fromkeys(tensors))
        sides[node.name] = tuple(dict.fromkeys(entry for name in side for entry in sides[name]))
        if node.name not in data:
            carried[node.name] = found
            continue
        used[node.name] = found
        owned[node.name] = tuple(name for name in found if name in graph.parameters and name not in taken)
        taken.update(owned[node.name])
    return Reach(data, sides, used, owned)


def values_read(node: Node) -> Iterator[str]:
    """Names of the values in the arguments of a node, in order."""
    return (leaf.name for leaf in leaves(node.args) if isinstance(leaf, Ref))
