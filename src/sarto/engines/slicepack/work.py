"""What a model's layers cost, as sums of products of sizes: the price of each width without building anything."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sarto.devices import flops_by_node
from sarto.graph import ModelGraph, features
from sarto.graph.expressions import AxisExpr, kept_size, units_in
from sarto.graph.model import Arg, Node, TensorRef
from sarto.graph.run import run_node


@dataclass(frozen=True, eq=False)
class Term:
    """One addend: a factor times the sizes of some axes.

    Attributes:
        factor: what one unit of the product costs.
        axes: axes whose kept sizes are multiplied.
    """

    factor: float
    axes: tuple[AxisExpr, ...]

    def cost(self, counts: Mapping[str, int]) -> float:
        return self.factor * math.prod(kept_size(axis, counts) for axis in self.axes)


@dataclass(frozen=True, eq=False)
class Work:
    """A cost of a feature extractor as a function of the units that it keeps.

    Attributes:
        unit: what is counted: parameters, FLOPs or milliseconds.
        terms: the addends.
    """

    unit: str
    terms: tuple[Term, ...]

    def cost(self, counts: Mapping[str, int]) -> float:
        """The whole cost; groups that are not named keep all units."""
        return sum(term.cost(counts) for term in self.terms)

    def touched(self, group: str) -> tuple[Term, ...]:
        """The terms that a group's width changes."""
        return tuple(term for term in self.terms if any(group in units_in(axis) for axis in term.axes))


def params_work(graph: ModelGraph) -> Work:
    """Trainable parameters of the extractor; exact."""
    classifier = graph.node(features(graph).classifier)
    head = {arg.name for arg in classifier.args.values() if isinstance(arg, TensorRef)}
    axes = graph.analysis.tensor_axes
    return Work("params", tuple(Term(1.0, axes[name]) for name in sorted(graph.parameters - head)))


def flops_work(graph: ModelGraph) -> Work:
    """FLOPs of the extractor for one sample; exact for layers with weights.

    Products of two activations (attention) follow the sizes of what they give.
    """
    counted = flops_by_node(graph)
    return Work("flops", tuple(_by_node(graph, {name: float(flops) for name, flops in counted.items()})))


def latency_work(graph: ModelGraph, sample: Tensor, *, repeats: int = 5) -> Work:
    """Milliseconds of the extractor on one sample, measured now, node by node; the best of some runs.

    A node's time is taken to follow its work: the FLOPs of layers with weights, the size of what others give.
    """
    best: dict[str, float] = {}
    with torch.no_grad():
        for _ in range(max(1, repeats) + 1):
            env: dict[str, Any] = {graph.inputs[0].name: sample}
            for node in graph.nodes:
                begun = time.perf_counter()
                env[node.name] = run_node(graph, node, env, len(sample))
                best[node.name] = min(best.get(node.name, math.inf), 1e3 * (time.perf_counter() - begun))
    return Work("latency_ms", tuple(_by_node(graph, best)))


def _by_node(graph: ModelGraph, costs: Mapping[str, float]) -> Iterator[Term]:
    """Terms that give each node its cost in the whole graph, and less where its sizes shrink."""
    classifier = features(graph).classifier
    for node in graph.nodes:
        cost = costs.get(node.name, 0.0)
        if cost <= 0:
            continue
        if node.name == classifier:
            return
        found = list(_products(graph, node))
        total = sum(math.prod(kept_size(axis, {}) for axis in axes) for axes in found)
        yield from (Term(cost / total, axes) for axes in found if total > 0)


def _products(graph: ModelGraph, node: Node) -> Iterator[tuple[AxisExpr, ...]]:
    weights = [name for arg in node.args.values() for name in _matrices(graph, arg)]
    if weights:
        yield from (graph.analysis.tensor_axes[name] for name in weights)
    else:
        yield graph.analysis.value_axes[node.name][0]


def _matrices(graph: ModelGraph, arg: Arg) -> Iterator[str]:
    for inner in arg if isinstance(arg, tuple) else (arg,):
        if isinstance(inner, TensorRef) and len(graph.analysis.tensor_axes[inner.name]) > 1:
            yield inner.name
