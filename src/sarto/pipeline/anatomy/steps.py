"""The steps of a model that a picture can show: layers, norms, and where values meet; what lies between is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sarto.graph import ModelGraph, Node
from sarto.graph.expressions import full_size, units_in
from sarto.graph.model import BatchDim, Input, elements, is_floating, shapes_of
from sarto.pipeline.anatomy.parting import Costs, block_at, sample_shape
from sarto.pipeline.anatomy.reach import Reach, values_read
from sarto.pipeline.anatomy.units import pinned_size
from sarto.pipeline.anatomy.values import Step, StepKind

_NORMS = frozenset(["batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"])
_RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])
_PRODUCTS = frozenset(["linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "einsum"])
#: Operators whose second axis holds the channels, whatever the number of axes.
_SECOND = ("conv", "batch_norm", "instance_norm", "group_norm")
_LAST = _RECURRENT | {"linear", "embedding", "addmm", "mm", "layer_norm", "rms_norm"}


@dataclass(frozen=True)
class _Made:
    """What a step makes; `axes` are those that hold channels."""

    axes: tuple[int, ...]
    channels: int
    sliceable: int
    positions: int
    shape: tuple[int, ...]
    groups: frozenset[str]


@dataclass(frozen=True)
class _Draft:
    """A step before its neighbours are known."""

    id: str
    name: str
    op: str
    kind: StepKind
    made: _Made
    weight: tuple[int, ...]
    params: int
    flops: int
    reads: tuple[str, ...]
    place: int
    absorbed: tuple[str, ...] = ()


def steps_of(graph: ModelGraph, found: Reach, costs: Costs, ends: Sequence[int]) -> tuple[Step, ...]:
    """The steps of a graph in the order in which a picture shows them: branches one after the other, longest first.

    Args:
        ends: place of the last node of each block, with a 0 in front.
    """
    drafts, source = _drafts(graph, found, costs)
    read = {name for draft in drafts.values() for name in draft.reads}
    drafts, moved = _absorb({k: draft for k, draft in drafts.items() if draft.kind != "input" or k in read})
    outputs = [moved.get(source[name], source[name]) for name in graph.outputs if name in source]
    outputs = [name for name in outputs if name in drafts]
    return tuple(
        Step(
            id=draft.id,
            name=draft.name,
            op=draft.op,
            kind=draft.kind,
            channels=draft.made.channels,
            sliceable=draft.made.sliceable,
            positions=draft.made.positions,
            shape=draft.made.shape,
            groups=tuple(sorted(draft.made.groups)),
            weight=draft.weight,
            absorbed=draft.absorbed,
            params=draft.params,
            flops=draft.flops,
            reads=draft.reads,
            block=block_at(draft.place, ends),
        )
        for draft in _ordered(drafts, outputs)
    )


def _drafts(graph: ModelGraph, found: Reach, costs: Costs) -> tuple[dict[str, _Draft], dict[str, str]]:
    """The steps, and for each value the step that it comes from."""
    drafts = {entry.name: _input(graph, entry) for entry in graph.inputs}
    source = {name: name for name in drafts}
    stored = shapes_of(graph.tensors)
    for node in graph.nodes:
        if node.name not in found.data:
            continue
        read = [value for value in values_read(node) if value in found.data]
        # Ids that a look-up turns into data are what it reads; masks beside data are not shown.
        reads = tuple(dict.fromkeys(source[value] for value in read)) or found.inputs[node.name]
        place = costs.places[node.name]
        flops = costs.flops[place] - costs.flops[place - 1]
        used = found.used.get(node.name, ())
        kind = _kind(node, used, reads, flops, graph)
        if kind is None and reads:
            source[node.name] = reads[0]
            continue
        source[node.name] = node.name
        axes = _channel_axes(graph, node, [drafts[name].made for name in reads])
        weight = max((stored[name][0] for name in used), key=math.prod, default=())
        drafts[node.name] = _Draft(
            id=node.name,
            name=_layer_name(used, node) if kind != "join" else node.name,
            op=_op(node),
            kind=kind or "weights",
            made=_made(graph, node, axes),
            weight=weight,
            params=costs.params[place] - costs.params[place - 1],
            flops=flops,
            reads=reads,
            place=place,
        )
    return drafts, source


def _input(graph: ModelGraph, entry: Input) -> _Draft:
    readers = [_op(graph.node(name)) for name in graph.readers.get(entry.name, ())]
    rank = len(entry.shape)
    if not is_floating(entry.dtype) or rank < 2:
        axes: tuple[int, ...] = ()
    else:
        axes = (1,) if rank != 3 or any(op.startswith(_SECOND) for op in readers) else (2,)
    return _Draft(
        id=entry.name,
        name=entry.name,
        op="input",
        kind="input",
        made=_made(graph, entry, axes),
        weight=(),
        params=0,
        flops=0,
        reads=(),
        place=0,
    )


def _made(graph: ModelGraph, value: Node | Input, axes: tuple[int, ...]) -> _Made:
    exprs = [graph.analysis.value_axes[value.name][0][axis] for axis in axes]
    channels = math.prod(full_size(expr) for expr in exprs)
    return _Made(
        axes,
        channels,
        channels - math.prod(pinned_size(expr) for expr in exprs),
        elements(value.shape) // max(1, channels),
        sample_shape(value.shape),
        frozenset[str]().union(*(units_in(expr) for expr in exprs)),
    )


def _kind(
    node: Node, used: Sequence[str], reads: Sequence[str], flops: int, graph: ModelGraph
) -> StepKind | None:
    op = _op(node)
    if op in _NORMS:
        return "norm"
    known = op in _PRODUCTS or op in _RECURRENT or op == "embedding" or op.startswith("conv")
    if known and used and (flops or op == "embedding"):
        return "layer"
    if flops or len(reads) > 1:
        return "join"
    return "weights" if any(name in graph.parameters for name in used) else None


def _channel_axes(graph: ModelGraph, node: Node, before: Sequence[_Made]) -> tuple[int, ...]:
    """The axes of a node's first output that hold channels; the batch is never among them."""
    rank, op = len(node.shape), _op(node)
    if rank < 2:
        return ()
    if op.startswith(_SECOND):
        return (1,)
    if op in _LAST:
        return (rank - 1,)
    if op == "scaled_dot_product_attention":
        return (rank - 3, rank - 1) if rank > 3 else (rank - 1,)
    exprs = graph.analysis.value_axes[node.name][0]
    if op == "matmul" and rank > 3:
        # Heads, and what is inside them where the last axis holds that and not the tokens of a table of scores.
        inside = node.shape[-1] != node.shape[-2] or bool(units_in(exprs[-1]))
        return (rank - 3, rank - 1) if inside else (rank - 3,)
    groups = frozenset[str]().union(*(made.groups for made in before))
    sizes = {made.channels for made in before}
    if op == "cat":
        sizes.add(sum(made.channels for made in before))
    likely = {axis for made in before for axis in made.axes if len(made.shape) + 1 == rank}

    def score(axis: int) -> tuple[bool, bool, bool, int]:
        size = node.shape[axis]
        return (
            bool(units_in(exprs[axis]) & groups),
            size in sizes,
            axis in likely,
            axis if rank == 3 else -axis,
        )

    real = [axis for axis in range(1, rank) if not isinstance(node.shape[axis], BatchDim)]
    return (max(real, key=score),) if real else ()


def _absorb(drafts: Mapping[str, _Draft]) -> tuple[dict[str, _Draft], dict[str, str]]:
    """Norms and weights that read one layer, which nobody else reads, become part of it."""
    readers: dict[str, int] = {}
    for draft in drafts.values():
        for name in draft.reads:
            readers[name] = readers.get(name, 0) + 1
    kept: dict[str, _Draft] = {}
    moved: dict[str, str] = {}
    for draft in drafts.values():
        reads = tuple(dict.fromkeys(moved.get(name, name) for name in draft.reads))
        host = kept.get(reads[0]) if len(reads) == 1 else None
        if (
            host is not None
            and draft.kind in ("norm", "weights")
            and host.kind == "layer"
            and readers[draft.reads[0]] == 1
            and (host.made.channels, host.made.positions) == (draft.made.channels, draft.made.positions)
        ):
            moved[draft.id] = host.id
            kept[host.id] = replace(
                host,
                params=host.params + draft.params,
                flops=host.flops + draft.flops,
                absorbed=(*host.absorbed, draft.name),
            )
        else:
            kept[draft.id] = replace(draft, reads=reads)
    return kept, moved


def _ordered(drafts: Mapping[str, _Draft], outputs: Sequence[str]) -> list[_Draft]:
    """Every step behind what it reads, each branch in one piece, the longest branch first."""
    depth: dict[str, int] = {}
    for draft in drafts.values():
        depth[draft.id] = 1 + max((depth[name] for name in draft.reads), default=0)
    done: dict[str, _Draft] = {}
    waiting = [*reversed([*outputs, *drafts])]
    while waiting:
        name = waiting[-1]
        missing = [read for read in drafts[name].reads if read not in done] if name not in done else []
        if missing:
            waiting.append(max(missing, key=depth.__getitem__))
        else:
            done.setdefault(waiting.pop(), drafts[name])
    return list(done.values())


def _layer_name(used: Sequence[str], node: Node) -> str:
    """The module that holds the weights, or the tensor itself where it has no module."""
    names = [name for name in used if name.endswith((".weight", ".weight_ih_l0"))] or list(used)
    return names[0].rpartition(".")[0] or names[0] if names else node.name


def _op(node: Node) -> str:
    return node.op.split(".")[1] if "." in node.op else node.op
