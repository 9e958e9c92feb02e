"""Putting several graphs into one: names stay unique, equal tensors are stored once, equal calls may run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sarto.graph.model import Arg, Input, ModelGraph, Node, rename_refs


class Merger:
    """Collects the nodes and tensors of several graphs over one set of inputs."""

    def __init__(self, inputs: Sequence[Input], *, share: bool = False) -> None:
        """Args:
        share: run equal calls on equal values once (the common trunk of branches).
        """
        self.inputs = tuple(inputs)
        self.share = share
        self.nodes: dict[str, Node] = {}
        self.tensors: dict[str, Tensor] = {}
        self.parameters: set[str] = set()
        self.refused: dict[str, str] = {}
        self._calls: dict[tuple[str, tuple[tuple[str, Arg], ...]], str] = {}

    def add(self, graph: ModelGraph, values: Mapping[str, str]) -> dict[str, str]:
        """Append a graph's nodes; `values` maps its inputs to values already here.

        Returns:
            the graph's value names -> names in the merged graph.
        """
        renamed = dict(values)
        stored = {
            name: self._store(name, tensor, name in graph.parameters)
            for name, tensor in graph.tensors.items()
        }
        for node in graph.nodes:
            args = {name: rename_refs(arg, renamed, stored) for name, arg in node.args.items()}
            call = (node.op, tuple(args.items()))
            if self.share and call in self._calls:
                renamed[node.name] = self._calls[call]
                continue
            name = self.free(node.name)
            self.nodes[name] = replace(node, name=name, args=args)
            self._calls[call] = name
            renamed[node.name] = name
        for group, why in graph.refused.items():
            tensor, colon, place = group.rpartition(":")
            self.refused[f"{stored.get(tensor, tensor)}{colon}{place}"] = why
        return renamed

    def call(self, node: Node) -> str:
        """Append one node under a free name and return that name."""
        name = self.free(node.name)
        self.nodes[name] = replace(node, name=name)
        return name

    def store(self, name: str, tensor: Tensor, *, parameter: bool) -> str:
        """Keep a tensor under a free name (or under the name of an equal one) and return the name."""
        return self._store(name, tensor, parameter)

    def graph(self, outputs: Sequence[str]) -> ModelGraph:
        """The merged graph."""
        return ModelGraph(
            self.inputs,
            tuple(self.nodes.values()),
            tuple(outputs),
            self.tensors,
            frozenset(self.parameters),
            self.refused,
        )

    def free(self, wanted: str) -> str:
        """The wanted value name, or the next one that nobody has."""
        taken = {entry.name for entry in self.inputs}
        name, count = wanted, 1
        while name in self.nodes or name in taken:
            name, count = f"{wanted}_{count}", count + 1
        return name

    def _store(self, wanted: str, tensor: Tensor, parameter: bool) -> str:
        name, count = wanted, 1
        while name in self.tensors:
            if (name in self.parameters) == parameter and _same(self.tensors[name], tensor):
                return name
            name, count = f"{_stem(wanted)}_{count}{_leaf(wanted)}", count + 1
        self.tensors[name] = tensor
        if parameter:
            self.parameters.add(name)
        return name


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are the same object or hold the same values (never so for sketches)."""
    if one is two:
        return True
    if one.is_meta or two.is_meta or one.shape != two.shape or one.dtype != two.dtype:
        return False
    return torch.equal(one, two)


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _leaf(name: str) -> str:
    head, dot, leaf = name.rpartition(".")
    return dot + leaf if head else ""
