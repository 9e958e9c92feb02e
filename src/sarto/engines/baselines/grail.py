"""GRAIL: units chosen by their weights, dropped ones given back by one Gram matrix that knows no classes, as a plan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sarto.engines.baselines.settings import GRAIL, GrailSettings
from sarto.errors import RequestError
from sarto.graph import ChannelGroup, ModelGraph, Ref, TensorRef, evaluate, uniform_counts
from sarto.graph.expressions import AxisExpr, full_size, kept_positions, units_in
from sarto.types import BlockNode, BranchNode, HeadNode, Plan, PlanNode, Repair, SliceNode, SourceNode


def grail_plan(
    donors: Mapping[str, ModelGraph],
    samples: Mapping[str, str],
    classes: tuple[str, ...],
    digest: str,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    settings: GrailSettings = GRAIL,
) -> Plan:
    """Every donor sliced and repaired with all classes alike, side by side under the head of packs.

    Args:
        donors: learnware id -> its graph.
        samples: learnware id -> content hash of the samples that its repair reads.
        classes: the wanted ones, in order; their head reads the samples of hash `digest`.
        inputs: learnware id -> these samples as its graph reads them; only `wanda` needs them.

    Reference:
        GRAIL, arXiv 2602.23795: Gram matrix of the whole model's activations, ridge map onto what is kept, folded into
        the readers. Differs: a donor keeps the same share of every layer; the head is ours, on the order's samples.
    """
    nodes: dict[str, PlanNode] = {}
    for place, (id_, graph) in enumerate(donors.items()):
        keep = largest_units(graph, settings, inputs[id_] if inputs is not None else None)
        nodes[f"donor_{place}"] = SourceNode(of=id_)
        nodes[f"slice_{place}"] = SliceNode(
            of=f"donor_{place}",
            keep=keep,
            repair=Repair(lam=settings.lam, sequential=False, towards="zero"),
            samples=samples[id_],
        )
        nodes[f"features_{place}"] = BlockNode(of=f"slice_{place}")
    nodes["pack"] = BranchNode(of=tuple(f"features_{place}" for place in range(len(donors))))
    nodes["head"] = HeadNode(of="pack", kind="ridge", classes=classes, samples=digest)
    note = f"GRAIL: {settings.selector} units, one Gram repair for all classes"
    return Plan(nodes=nodes, out="head", engine="baselines", note=note)


def largest_units(
    graph: ModelGraph,
    settings: GrailSettings = GRAIL,
    inputs: Tensor | None = None,
    *,
    counts: Mapping[str, int] | None = None,
) -> dict[str, tuple[int, ...]]:
    """The units of every channel group that GRAIL's selector keeps, sorted; of equal ones the first.

    Args:
        inputs: samples, (n, ...); `wanda` weighs units by their activations on them.
        counts: channel group -> units that stay; None: the settings' share of every group.
    """
    if settings.selector == "wanda" and inputs is None:
        raise RequestError(
            "the selector 'wanda' weighs units by activations: give samples, or select by 'l1'"
        )
    counts = uniform_counts(graph, settings.ratio) if counts is None else counts
    scores = _read_norms(graph, inputs) if inputs is not None and settings.selector == "wanda" else {}
    kept = {}
    for id_, count in counts.items():
        group = graph.analysis.groups[id_]
        score = scores.get(id_)
        score = _made_norms(graph, group) if score is None else score
        best = torch.argsort(score, descending=True, stable=True)[:count]
        kept[id_] = tuple(sorted(best.tolist()))
    return kept


def _made_norms(graph: ModelGraph, group: ChannelGroup) -> Tensor:
    """Sum of the absolute weights that make each unit, float64 (units,)."""
    score = torch.zeros(group.size, dtype=torch.float64)
    for name, axis in group.places:
        tensor = graph.tensors[name]
        if axis == 0 and tensor.ndim > 1:
            sums = tensor.detach().to("cpu", torch.float64).abs().flatten(1).sum(1)
            _add(score, sums, graph.analysis.tensor_axes[name][0], group)
    return score


def _read_norms(graph: ModelGraph, inputs: Tensor) -> dict[str, Tensor]:
    """Absolute weights that read each unit, times the norm of what they read; by group, summed over its readers."""
    reads = []
    for consumption in graph.analysis.consumptions:
        node = graph.node(consumption.node)
        source, weight = node.args.get("input"), node.args.get("weight")
        known = isinstance(source, Ref) and isinstance(weight, TensorRef) and node.args.get("groups", 1) == 1
        if consumption.arg == "input" and known and units_in(consumption.expr):
            reads.append((consumption, source, weight))
    watch = {source.name for _, source, _ in reads if isinstance(source, Ref)}
    _, values = evaluate(graph, inputs, watch=watch)
    scores: dict[str, Tensor] = {}
    for consumption, source, weight in reads:
        if not isinstance(source, Ref) or not isinstance(weight, TensorRef):
            continue
        value = values[source.name].to(torch.float64).movedim(consumption.axis, 0).flatten(1)
        matrix = graph.tensors[weight.name].detach().to(torch.float64).movedim(1, 0).flatten(1)
        if len(value) != len(matrix):
            continue
        sums = (value.norm(dim=1) * matrix.abs().sum(1)).cpu()
        for id_ in units_in(consumption.expr):
            group = graph.analysis.groups[id_]
            score = scores.setdefault(id_, torch.zeros(group.size, dtype=torch.float64))
            _add(score, sums, consumption.expr, group)
    return scores


def _add(score: Tensor, values: Tensor, expr: AxisExpr, group: ChannelGroup) -> None:
    """Add what stands at each position of an axis to the unit that lies there."""
    units = unit_of_positions(expr, group.id, group.size)
    inside = torch.from_numpy(np.flatnonzero(units >= 0))
    score.index_add_(0, torch.from_numpy(units)[inside], values[inside])


def unit_of_positions(expr: AxisExpr, group: str, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which unit of a group lies at each position of an axis; -1 where none does."""
    units = np.zeros(full_size(expr), dtype=np.int64)
    for bit in range(size.bit_length()):
        having = tuple(unit for unit in range(size) if unit >> bit & 1)
        units[kept_positions(expr, {group: having})] += 1 << bit
    units[kept_positions(expr, {group: ()})] = -1
    return units
