"""`trim`: units of a stream that is normalised by its own statistics left out, and the norms fitted again.

Layer norm, RMS norm and their like divide by statistics over the units of the stream. Without some units the
statistics change, so the result is no longer what the source computes for zeroed units: `slice` refuses. `trim` takes
the statistics over the kept units, fits weight and bias of each norm to the source on samples, and says how far off the
result is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sarto.errors import ShapeError
from sarto.graph.analysis import Analysis, analyse
from sarto.graph.expressions import AxisExpr, kept_positions, units_in
from sarto.graph.model import Arg, ModelGraph, Node, Ref, TensorRef, leaves
from sarto.graph.run import check_inputs, evaluate, run_node
from sarto.graph.selection import Selection, settled
from sarto.graph.slice import slice

#: Norms that are one operator.
_FUSED = frozenset({"aten.layer_norm.default", "aten.rms_norm.default", "aten.group_norm.default"})
#: Statistics that a norm written out in single operators takes.
_STATISTICS = frozenset({"aten.mean.dim", "aten.var.correction", "aten.std.correction"})
#: What a norm written out in single operators does with a statistic, before it multiplies by its weight.
_ARITHMETIC = frozenset(
    f"aten.{name}"
    for name in (
        "add.Tensor",
        "add.Scalar",
        "sub.Tensor",
        "sub.Scalar",
        "mul.Tensor",
        "mul.Scalar",
        "div.Tensor",
        "div.Scalar",
        "pow.Tensor_Scalar",
        "sqrt.default",
        "rsqrt.default",
        "reciprocal.default",
        "clamp_min.default",
        "to.dtype",
    )
)


@dataclass(frozen=True)
class NormFit:
    """How far the output of a norm is from the source's, over the kept units; Frobenius norm, relative.

    Attributes:
        node: the node that makes the norm's output.
        distance_before: with the source's weight and bias in every norm.
        distance: in the trimmed graph.
    """

    node: str
    distance_before: float
    distance: float


@dataclass(frozen=True)
class Trimmed:
    """An approximately sliced graph and what the approximation costs on the samples.

    Attributes:
        graph: the trimmed graph.
        norms: the norms that lost units, in order.
        distance_before: of the outputs, with the source's weight and bias in every norm; relative.
        distance: of the outputs of `graph`; relative.
    """

    graph: ModelGraph
    norms: tuple[NormFit, ...]
    distance_before: float
    distance: float


def trim(graph: ModelGraph, selection: Selection, samples: Tensor | tuple[Tensor, ...]) -> Trimmed:
    """The graph that keeps the selected units also of normalised streams; not exact, so it comes with distances.

    Front to back, weight and bias of each norm that lost units are fitted so that its output in the trimmed graph is
    nearest to the source's on the samples: for each channel by itself, in closed form, with sums in float64. A norm
    without a bias gets none. The output mostly follows, but nothing forces it to: look at the distances.

    Args:
        selection: units kept, in the groups of `analyse(graph, follow_statistics=True)`.
        samples: one tensor per input of the graph, axis 0 is the batch; held in memory at once.

    Raises:
        GraphError: a group is unknown or pinned for another reason than a norm.
        ShapeError: the samples are none, or not what the graph reads.
    """
    given = samples if isinstance(samples, tuple) else (samples,)
    check_inputs(graph, given)
    if not len(given[0]):
        raise ShapeError("the norms are fitted on samples, and none were given; give at least two")
    analysis = analyse(graph, follow_statistics=True)
    selection = settled(graph, selection, analysis)
    small = slice(graph, selection, analysis=analysis)
    cut = {name for name, units in selection.kept.items() if len(units) < analysis.groups[name].size}
    norms = _norms(graph, analysis, cut)
    watched = {norm.output for norm in norms}
    outputs, values = evaluate(graph, given, watch=watched)
    wanted = {name: _kept(value, analysis.value_axes[name][0], selection) for name, value in values.items()}
    before = evaluate(small, given, watch=watched)
    fitted = _fitted(small, norms, wanted, given)
    after = evaluate(fitted, given, watch=watched)
    fits = tuple(
        NormFit(
            norm.output,
            _distance([before[1][norm.output]], [wanted[norm.output]]),
            _distance([after[1][norm.output]], [wanted[norm.output]]),
        )
        for norm in norms
    )
    return Trimmed(fitted, fits, _distance(before[0], outputs), _distance(after[0], outputs))


@dataclass(frozen=True)
class _Norm:
    """Where a norm multiplies by its weight and adds its bias.

    Attributes:
        scale: node and argument of the weight.
        shift: node and argument of the bias; None where there is none.
        output: the value that the norm makes.
    """

    scale: tuple[str, str]
    shift: tuple[str, str] | None
    output: str


def _norms(graph: ModelGraph, analysis: Analysis, cut: set[str]) -> tuple[_Norm, ...]:
    """The norms with a weight whose statistics run over a cut axis, in order."""
    found: list[_Norm] = []
    spread: set[str] = set()  # values that hold a statistic and still wait for their weight
    for node in graph.nodes:
        if node.op in _FUSED:
            if isinstance(node.args["weight"], TensorRef) and _cuts(_weight_axes(graph, analysis, node), cut):
                shift = (node.name, "bias") if isinstance(node.args.get("bias"), TensorRef) else None
                found.append(_Norm((node.name, "weight"), shift, node.name))
        elif node.op in _STATISTICS:
            if _cuts(_reduced(analysis, node), cut):
                spread.add(node.name)
        elif node.op in _ARITHMETIC and any(
            arg.name in spread for arg in leaves(node.args) if isinstance(arg, Ref)
        ):
            weight = next((name for name, arg in node.args.items() if _is_vector(analysis, arg, cut)), None)
            if node.op == "aten.mul.Tensor" and weight is not None:
                shift = _shift(graph, analysis, node, cut)
                found.append(_Norm((node.name, weight), shift, shift[0] if shift else node.name))
            else:
                spread.add(node.name)
    return tuple(found)


def _weight_axes(graph: ModelGraph, analysis: Analysis, node: Node) -> tuple[AxisExpr, ...]:
    weight = node.args["weight"]
    return analysis.tensor_axes[weight.name] if isinstance(weight, TensorRef) else ()


def _reduced(analysis: Analysis, node: Node) -> list[AxisExpr]:
    """The axes that a statistic is taken over."""
    source, dims = node.args["self"], node.args["dim"]
    exprs = analysis.value_axes[source.name][0] if isinstance(source, Ref) else ()
    listed = dims if isinstance(dims, tuple) else (dims,)
    return [exprs[dim] for dim in listed if isinstance(dim, int)]


def _cuts(exprs: Sequence[AxisExpr], cut: set[str]) -> bool:
    return any(units_in(expr) & cut for expr in exprs)


def _is_vector(analysis: Analysis, arg: Arg, cut: set[str]) -> bool:
    """Whether an argument is a stored vector along a cut axis."""
    if not isinstance(arg, TensorRef):
        return False
    exprs = analysis.tensor_axes[arg.name]
    return len(exprs) == 1 and _cuts(exprs, cut)


def _shift(graph: ModelGraph, analysis: Analysis, scale: Node, cut: set[str]) -> tuple[str, str] | None:
    """The addition of a stored vector that alone reads the scaled value."""
    readers = graph.readers.get(scale.name, ())
    node = graph.node(readers[0]) if len(readers) == 1 and scale.name not in graph.outputs else None
    if node is None or node.op != "aten.add.Tensor" or node.args["alpha"] != 1:
        return None
    bias = next((name for name, arg in node.args.items() if _is_vector(analysis, arg, cut)), None)
    return (node.name, bias) if bias is not None else None


def _kept(value: Tensor, exprs: Sequence[AxisExpr], selection: Selection) -> Tensor:
    for axis, expr in enumerate(exprs):
        if units_in(expr) & selection.kept.keys():
            positions = torch.from_numpy(kept_positions(expr, selection.kept))
            value = value.index_select(axis, positions.to(value.device))
    return value


def _fitted(
    graph: ModelGraph, norms: Sequence[_Norm], wanted: Mapping[str, Tensor], given: tuple[Tensor, ...]
) -> ModelGraph:
    """The graph with the norms fitted one after the other, each on what the fitted ones before it give."""
    scales = {norm.scale[0]: norm for norm in norms}
    tensors = dict(graph.tensors.items())
    parameters = set(graph.parameters)
    changed = {node.name: node for node in graph.nodes}
    whole, batch = replace(graph, tensors=tensors), given[0].shape[0]
    env = {entry.name: tensor for entry, tensor in zip(graph.inputs, given, strict=True)}
    last = {name: readers[-1] for name, readers in graph.readers.items()}
    with torch.no_grad():
        for node in graph.nodes:
            norm = scales.get(node.name)
            if norm is not None:
                for place, vector in _fit(whole, changed, norm, env, batch, wanted[norm.output]).items():
                    owner = changed[place[0]]
                    old = owner.args[place[1]]
                    if not isinstance(old, TensorRef):
                        continue
                    name = _own_name(graph, old.name, tensors)
                    if old.name in parameters:
                        parameters.add(name)
                    tensors[name] = vector.to(tensors[old.name])
                    changed[owner.name] = replace(owner, args={**owner.args, place[1]: TensorRef(name)})
            env[node.name] = run_node(whole, changed[node.name], env, batch)
            for name in [name for name in env if last.get(name) == node.name]:
                del env[name]
    used = {arg.name for node in changed.values() for arg in leaves(node.args) if isinstance(arg, TensorRef)}
    return replace(
        graph,
        nodes=tuple(changed.values()),
        tensors={name: tensor for name, tensor in tensors.items() if name in used},
        parameters=frozenset(parameters & used),
    )


def _own_name(graph: ModelGraph, name: str, tensors: Mapping[str, Tensor]) -> str:
    """The tensor's own name where one node reads it, else a new one."""
    users = sum(
        isinstance(arg, TensorRef) and arg.name == name for node in graph.nodes for arg in leaves(node.args)
    )
    fresh, count = name, 1
    while users > 1 and fresh in tensors:
        fresh, count = f"{name}_{count}", count + 1
    return fresh


def _fit(
    graph: ModelGraph,
    nodes: Mapping[str, Node],
    norm: _Norm,
    env: Mapping[str, Tensor],
    batch: int,
    wanted: Tensor,
) -> dict[tuple[str, str], Tensor]:
    """Weight and bias, channel by channel, that bring weight x normalised + bias nearest to what is wanted."""
    node = nodes[norm.scale[0]]
    old = node.args[norm.scale[1]]
    weight = graph.tensors[old.name] if isinstance(old, TensorRef) else torch.ones(())
    if node.op in _FUSED:
        plain = node.with_args(weight=None, **({"bias": None} if "bias" in node.args else {}))
        normalised = run_node(graph, plain, env, batch)
    else:
        (source,) = [arg for arg in node.args.values() if isinstance(arg, Ref)]
        normalised = env[source.name]
    if node.op == "aten.group_norm.default":
        normalised, wanted = normalised.movedim(1, -1), wanted.movedim(1, -1)
    x = normalised.to(torch.float64).reshape(-1, *weight.shape)
    y = wanted.to(torch.float64).reshape(-1, *weight.shape)
    mean_x, mean_y = x.mean(0), y.mean(0)
    if norm.shift is None:
        mean_x, mean_y = torch.zeros_like(mean_x), torch.zeros_like(mean_y)
    power = (x - mean_x).square().mean(0)
    shared = ((x - mean_x) * (y - mean_y)).mean(0)
    # A channel that does not move on the samples says nothing of its weight: the old one stays.
    still = power <= 1e-12 * (x.square().mean(0) + torch.finfo(torch.float64).tiny)
    slope = torch.where(still, weight.to(torch.float64), shared / power.clamp_min(1e-300))
    if norm.shift is None:
        return {norm.scale: slope}
    return {norm.scale: slope, norm.shift: mean_y - slope * mean_x}


def _distance(have: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """|have - want| / |want| over all tensors together, in float64."""
    gap = sum(
        float((a.to(torch.float64) - b.to(torch.float64)).square().sum())
        for a, b in zip(have, want, strict=True)
    )
    scale = sum(float(b.to(torch.float64).square().sum()) for b in want)
    return float((gap / max(scale, torch.finfo(torch.float64).tiny)) ** 0.5)


__all__ = ["NormFit", "Trimmed", "trim"]
