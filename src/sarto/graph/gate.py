"""`gate`: the model with one more input that switches units on and off, for each sample by itself.

A gate stands where the linear operators read: after the activation, batch norm or pool that could turn a zero into
something else. So a gate of zero is exactly a removed unit, and a pattern of zeros and ones is exactly a selection.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from sarto.errors import GraphError
from sarto.graph.analysis import Analysis, ChannelGroup, Consumption, analyse
from sarto.graph.expressions import AxisExpr, Fixed, Product, Sum, Unit, full_size, is_batch, units_in
from sarto.graph.model import (
    Arg,
    BatchDim,
    Constant,
    Input,
    ModelGraph,
    Node,
    Ref,
    Shape,
    TensorRef,
    is_floating,
    shapes_of,
)
from sarto.graph.operators import default_args
from sarto.graph.rules._context import BATCH

#: Operators that take statistics over axes; a layer norm over one axis can take them over the open units alone.
_NORM = "aten.layer_norm.default"
_STATISTICS = frozenset(
    {
        "aten.rms_norm.default",
        "aten.group_norm.default",
        "aten.mean.dim",
        "aten.var.correction",
        "aten.std.correction",
    }
)
#: Name of the extra input; numbered where the graph has a value of that name.
GATES = "gates"

Layout = Mapping[str, tuple[int, int]]


def through_norms(graph: ModelGraph) -> ModelGraph:
    """The same graph, read so that the streams that layer norms normalise are channel groups too.

    `slice` then takes the statistics of the kept units, which is no longer what the source computes when dropped units
    read zero; it is exactly what `gate` of this reading computes, whose norms take the statistics of the open units.

    Reference:
        Docs, decision 9. NN-Factory, arXiv 2308.15003, section 3.1, gates hidden units of transformers alone.
    """
    found = replace(graph)
    # A cached property: what is put there is what the graph says of itself from now on.
    found.__dict__["analysis"] = analyse(graph, follow_statistics=True)
    return found


def gateable(graph: ModelGraph, group: ChannelGroup) -> str | None:
    """Why the units of a group can't be gated sample by sample; None where they can."""
    if group.pinned:
        return f"it can't be sliced: {'; '.join(group.pinned)}"
    found = [_obstacle(graph, consumption) for consumption in group.consumptions]
    if graph.analysis.follows_statistics:
        found += [_statistic(graph, node, group) for node in graph.nodes]
    return next((why for why in found if why is not None), None)


def gate_layout(graph: ModelGraph, groups: Iterable[str] | None = None) -> Layout:
    """Group id -> (start, stop) of its units on axis 1 of the input that `gate` adds, in the order of the graph.

    Args:
        groups: ids (or module names) of the groups to gate; None for all that can be gated.

    Raises:
        GraphError: a group is unknown or can't be gated, or no group is left.
    """
    analysis = graph.analysis
    if groups is None:
        chosen = {group.id for group in analysis.sliceable if gateable(graph, group) is None}
    else:
        asked = [analysis.group(name) for name in groups]
        refusals = [(group.id, gateable(graph, group)) for group in asked]
        problems = [f"group {name!r} can't be gated: {why}" for name, why in refusals if why is not None]
        if problems:
            raise GraphError(problems[0], problems=problems)
        chosen = {group.id for group in asked}
    if not chosen:
        raise GraphError(
            f"there is nothing to gate: none of the {len(analysis.groups)} channel groups was asked for and can be "
            "gated. `gateable` says why a group can't."
        )
    layout: dict[str, tuple[int, int]] = {}
    start = 0
    for group in analysis.groups.values():
        if group.id in chosen:
            layout[group.id] = (start, start + group.size)
            start += group.size
    return MappingProxyType(layout)


def gate(graph: ModelGraph, groups: Iterable[str] | None = None) -> ModelGraph:
    """The graph that multiplies each unit by its gate wherever a linear operator reads it; the source is unchanged.

    The gates are one more input, the last one, of shape (batch, units); `gate_layout` says which columns belong to
    which group. Ones give the source, zeros remove units exactly, values between fade them; gradients flow through.
    Each value is multiplied once, however many operators read it.

    Args:
        groups: ids (or module names) of the groups to gate; None for all that can be gated.

    Raises:
        GraphError: a group is unknown or can't be gated: it is pinned, or an operator reads its units through a
            parameter (a recurrent layer) or where the samples can't be told apart.

    Reference:
        NN-Factory (arXiv:2308.15003), equations 3 and 5.
        Differs: the gate stands where the units are read, not where they are made, so that it is exact also behind
        a depthwise convolution with batch norm and for activations that do not map zero to zero. Layer norms over
        gated units (see `through_norms`) take the statistics of the open ones.
    """
    layout = gate_layout(graph, groups)
    edits: dict[str, dict[str, dict[int, AxisExpr]]] = {}
    for consumption in graph.analysis.consumptions:
        if units_in(consumption.expr) & layout.keys():
            at_node = edits.setdefault(consumption.node, {})
            at_node.setdefault(consumption.arg, {})[consumption.axis] = consumption.expr
    writer = _Writer(graph, layout)
    for node in graph.nodes:
        for arg, places in edits.get(node.name, {}).items():
            value = _argument(node, arg)
            if isinstance(value, Ref):  # `gate_layout` has refused the others
                node = _with_argument(node, arg, Ref(writer.gated(value.name, places)))
        if node.op == _NORM and _normed(graph, node) & layout.keys():
            writer.norm(node)
        else:
            writer.nodes.append(node)
    return writer.graph()


@dataclass(frozen=True)
class _BatchPlace:
    """Where the samples lie in a value: on `axis`, whose positions are (outer, sample, inner)."""

    axis: int
    outer: tuple[AxisExpr, ...]
    inner: tuple[AxisExpr, ...]


def _batch_place(exprs: Sequence[AxisExpr]) -> _BatchPlace | str:
    """Where the samples lie in a value with these axes, or why that is not known."""
    for axis, expr in enumerate(exprs):
        if not is_batch(full_size(expr)):
            continue
        parts = expr.parts if isinstance(expr, Product) else (expr,)
        for place, part in enumerate(parts):
            if part == Fixed(BATCH):
                return _BatchPlace(axis, parts[:place], parts[place + 1 :])
        return f"axis {axis} mixes the samples with other positions in an unknown order"
    return "it does not depend on the sample"


def _obstacle(graph: ModelGraph, consumption: Consumption) -> str | None:
    """Why what this operator reads can't be gated sample by sample; None where it can."""
    node = graph.node(consumption.node)
    reader = f"{node.op} at {node.name}"
    arg = _argument(node, consumption.arg)
    if not isinstance(arg, Ref):
        what = f"the stored tensor {arg.name!r}" if isinstance(arg, TensorRef) else repr(consumption.arg)
        return f"{reader} reads its units through {what}, which is the same for all samples"
    place = _batch_place(graph.analysis.value_axes[arg.name][0])
    if isinstance(place, str):
        return f"{reader} reads the value {arg.name!r}: {place}"
    if place.axis == consumption.axis:
        return f"{reader} sums over the samples of the value {arg.name!r}"
    return None


def _normed(graph: ModelGraph, node: Node) -> frozenset[str]:
    """Groups whose units lie on the axes that a norm takes its statistics over."""
    exprs = _read_axes(graph, node)
    shape = node.args.get("normalized_shape")
    n_axes = len(shape) if isinstance(shape, tuple) else 1
    return frozenset().union(*(units_in(expr) for expr in exprs[-n_axes:]))


def _statistic(graph: ModelGraph, node: Node, group: ChannelGroup) -> str | None:
    """Why the statistics that a node takes can't be those of the open units of a group alone; None where they can."""
    if node.op == _NORM:
        shape = node.args["normalized_shape"]
        if group.id in _normed(graph, node) and not (isinstance(shape, tuple) and len(shape) == 1):
            return f"{node.op} at {node.name} normalises several axes at once"
        return None
    if node.op not in _STATISTICS:
        return None
    exprs = _read_axes(graph, node)
    if "dim" in node.args:
        dims = node.args["dim"]
        listed = dims if isinstance(dims, tuple) else (dims,)
        exprs = tuple(
            exprs[dim] for dim in listed if isinstance(dim, int) and -len(exprs) <= dim < len(exprs)
        )
    if any(group.id in units_in(expr) for expr in exprs):
        return f"{node.op} at {node.name} takes statistics over its units; gates know how for layer norm"
    return None


def _read_axes(graph: ModelGraph, node: Node) -> tuple[AxisExpr, ...]:
    source = node.args.get("input", node.args.get("self"))
    return tuple(graph.analysis.value_axes[source.name][0]) if isinstance(source, Ref) else ()


def _argument(node: Node, path: str) -> Arg:
    """An argument of a node, or one entry of a list argument (`tensors.1`)."""
    name, _, place = path.partition(".")
    arg = node.args[name]
    return arg[int(place)] if place and isinstance(arg, tuple) else arg


def _with_argument(node: Node, path: str, value: Arg) -> Node:
    """The node with that argument, or that entry of it, replaced."""
    name, _, place = path.partition(".")
    arg = node.args[name]
    if place and isinstance(arg, tuple):
        value = (*arg[: int(place)], value, *arg[int(place) + 1 :])
    return replace(node, args={**node.args, name: value})


class _Writer:
    """The nodes of the gated graph as they are written; equal gate vectors and equal products are written once."""

    def __init__(self, graph: ModelGraph, layout: Layout) -> None:
        self.source = graph
        self.axes: Analysis = graph.analysis
        self.layout = layout
        self.units = max(stop for _, stop in layout.values())
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.taken = {*graph.index, *(entry.name for entry in graph.inputs)}
        self.stored = set(shapes_of(graph.tensors))
        self.specs: dict[str, tuple[Shape, str]] = {
            **{entry.name: (entry.shape, entry.dtype) for entry in graph.inputs},
            **{node.name: (node.shape, node.dtypes[0]) for node in graph.nodes},
        }
        read = [
            self.specs[arg.name][1]
            for c in graph.analysis.consumptions
            if units_in(c.expr) & layout.keys()
            and isinstance(arg := _argument(graph.node(c.node), c.arg), Ref)
        ]
        given = [entry.dtype for entry in graph.inputs if is_floating(entry.dtype)]
        # The precision of the first floating-point input, or of the first value that is multiplied.
        self.dtype = (given + read)[0]
        self.entry = self._free(GATES)
        self.specs[self.entry] = ((BatchDim(1), self.units), self.dtype)
        self.vectors: dict[AxisExpr, str | None] = {}
        self.products: dict[tuple[str, int, AxisExpr], str] = {}

    def graph(self) -> ModelGraph:
        entry = Input(self.entry, (BatchDim(1), self.units), self.dtype)
        given = self.source.tensors
        return replace(
            self.source,
            inputs=(*self.source.inputs, entry),
            nodes=tuple(self.nodes),
            tensors={**given, **self.tensors} if self.tensors else given,
        )

    def gated(self, value: str, places: Mapping[int, AxisExpr]) -> str:
        """The value multiplied by the gates that lie on these axes of it."""
        exprs = self.axes.value_axes[value][0]
        for axis, expr in sorted(places.items()):
            key = (value, axis, expr)
            if key not in self.products:
                shape, dtype = self.specs[value]
                factor = self._factor(exprs, axis)
                args: dict[str, Arg] = {"self": Ref(value), "other": Ref(self._as(factor, dtype))}
                self.products[key] = self._call("mul.Tensor", args, shape, dtype, stem=f"{value}_gated")
            value = self.products[key]
        return value

    def norm(self, node: Node) -> None:
        """A layer norm over the last axis, written out, with the statistics of the open units alone.

        y = (x - m) g / sqrt(v + eps) w + b, with m = sum(g x) / sum(g) and v = sum(g (x - m)^2) / sum(g).
        """
        source = node.args["input"]
        if not isinstance(source, Ref):
            raise GraphError(f"{node.op} at {node.name} reads no computed value", where=node.name)
        shape, dtype = self.specs[source.name]
        exprs = self.axes.value_axes[source.name][0]
        factor = self._as(self._factor(exprs, len(shape) - 1), dtype)
        one: Shape = (*shape[:-1], 1)
        number: Shape = (*self.specs[factor][0][:-1], 1)
        n_open = self._sum(factor, number, dtype)

        def mean(value: str) -> str:
            args: dict[str, Arg] = {"self": Ref(self._sum(value, one, dtype)), "other": Ref(n_open)}
            return self._call("div.Tensor", args, one, dtype)

        def by(value: str, other: Arg) -> str:
            return self._call("mul.Tensor", {"self": Ref(value), "other": other}, shape, dtype)

        middle = mean(by(source.name, Ref(factor)))
        apart = self._call("sub.Tensor", {"self": source, "other": Ref(middle)}, shape, dtype)
        apart = by(apart, Ref(factor))
        spread = mean(by(apart, Ref(apart)))
        wide = self._call("add.Scalar", {"self": Ref(spread), "other": node.args["eps"]}, one, dtype)
        made = by(apart, Ref(self._call("rsqrt.default", {"self": Ref(wide)}, one, dtype)))
        weight, bias = node.args.get("weight"), node.args.get("bias")
        if isinstance(weight, TensorRef):
            made = by(made, weight)
        last: dict[str, Arg] = {"self": Ref(made), "other": bias if isinstance(bias, TensorRef) else 0.0}
        op = "aten.add.Tensor" if isinstance(bias, TensorRef) else "aten.add.Scalar"
        self.nodes.append(Node(node.name, op, {**default_args(op), **last}, node.shapes, node.dtypes))

    def _sum(self, name: str, shape: Shape, dtype: str) -> str:
        args: dict[str, Arg] = {"self": Ref(name), "dim": (len(shape) - 1,), "keepdim": True}
        return self._call("sum.dim_IntList", args, shape, dtype)

    def _factor(self, exprs: Sequence[AxisExpr], axis: int) -> str:
        """The gates of one axis of a value, shaped to be multiplied with it."""
        place = _batch_place(exprs)
        vector = self._vector(exprs[axis])
        if isinstance(place, str) or vector is None:
            raise GraphError(f"there is no gate for axis {axis} of a value with axes {exprs}")
        width = full_size(exprs[axis])
        outer, inner = (math.prod(full_size(part) for part in parts) for parts in (place.outer, place.inner))
        if (outer, inner) != (1, 1):
            vector = self._reshape(vector, (1, BatchDim(1), 1, width))
            whole: Shape = (outer, BatchDim(1), inner, width)
            if units_in(Product((*place.outer, *place.inner))):
                vector = self._times(vector, TensorRef(self._ones((outer, 1, inner, 1))), whole)
            else:
                vector = self._call("expand.default", {"self": Ref(vector), "size": whole}, whole)
        if place.axis > axis:
            order = (1, 0) if (outer, inner) == (1, 1) else (3, 0, 1, 2)
            shape = self.specs[vector][0]
            turned = tuple(shape[dim] for dim in order)
            vector = self._call("permute.default", {"self": Ref(vector), "dims": order}, turned)
        sizes: list[int | BatchDim] = [1] * len(exprs)
        sizes[place.axis], sizes[axis] = BatchDim(outer * inner), width
        return self._reshape(vector, tuple(sizes))

    def _vector(self, expr: AxisExpr) -> str | None:
        """The gates of all positions of an axis, shape (batch, positions); None where none of them has one."""
        if not units_in(expr) & self.layout.keys():
            return None
        if expr not in self.vectors:
            self.vectors[expr] = self._written(expr)
        return self.vectors[expr]

    def _written(self, expr: AxisExpr) -> str | None:
        if isinstance(expr, Unit):
            start, stop = self.layout[expr.group]
            if stop - start == self.units:
                return self.entry
            args: dict[str, Arg] = {"self": Ref(self.entry), "dim": 1, "start": start, "end": stop, "step": 1}
            return self._call("slice.Tensor", args, (BatchDim(1), expr.size))
        if isinstance(expr, Sum):
            parts = tuple(Ref(self._vector(part) or self._open_gates(full_size(part))) for part in expr.parts)
            return self._call("cat.default", {"tensors": parts, "dim": 1}, (BatchDim(1), full_size(expr)))
        if isinstance(expr, Fixed):
            return None
        # Factors without gates are taken together, so that (channels, height, width) is repeated once.
        whole, ahead = self._vector(expr.parts[0]), expr.parts[:1]
        for part in expr.parts[1:]:
            vector = self._vector(part)
            if whole is not None or vector is not None:
                whole = self._outer(whole, ahead, vector, part)
            ahead = (*ahead, part)
        return whole

    def _outer(self, left: str | None, ahead: tuple[AxisExpr, ...], right: str | None, part: AxisExpr) -> str:
        """Gates of the pairs (left, right), shape (batch, left x right); a side without gates has ones."""
        n, m = math.prod(full_size(one) for one in ahead), full_size(part)
        shape: Shape = (BatchDim(1), n, m)
        if left is not None and right is not None:
            other = Ref(self._reshape(right, (BatchDim(1), 1, m)))
            pairs = self._times(self._reshape(left, (BatchDim(1), n, 1)), other, shape)
        else:
            given = left or right or self.entry
            narrow: Shape = (BatchDim(1), n, 1) if left is not None else (BatchDim(1), 1, m)
            held = units_in(part) if left is not None else units_in(Product(ahead))
            pairs = self._reshape(given, narrow)
            if (
                held
            ):  # a stored axis of ones is sliced with the group that lies there, an expanded one could not be
                ones = self._ones((1, m) if left is not None else (n, 1))
                pairs = self._times(pairs, TensorRef(ones), shape)
            else:
                pairs = self._call("expand.default", {"self": Ref(pairs), "size": shape}, shape)
        return self._reshape(pairs, (BatchDim(1), n * m))

    def _open_gates(self, size: int) -> str:
        """Gates that are always one, shape (batch, size)."""
        shape: Shape = (BatchDim(1), size)
        args: dict[str, Arg] = {"self": TensorRef(self._ones((1, size))), "size": shape}
        return self._call("expand.default", args, shape)

    def _ones(self, shape: tuple[int, ...]) -> str:
        """A stored tensor of ones; never shared, for different groups may be sliced on it."""
        dtype = getattr(torch, self.dtype)
        device = next((tensor.device for tensor in self.source.tensors.values()), torch.device("cpu"))
        name = _numbered("gates.ones", self.stored)
        self.stored.add(name)
        self.tensors[name] = torch.ones(shape, dtype=dtype, device=device)
        return name

    def _as(self, name: str, dtype: str) -> str:
        """The value in the precision of what it multiplies."""
        shape, have = self.specs[name]
        if have == dtype:
            return name
        args: dict[str, Arg] = {"self": Ref(name), "dtype": Constant("dtype", dtype)}
        return self._call("to.dtype", args, shape, dtype)

    def _reshape(self, name: str, shape: Shape) -> str:
        if self.specs[name][0] == shape:
            return name
        return self._call("reshape.default", {"self": Ref(name), "shape": shape}, shape)

    def _times(self, name: str, other: Arg, shape: Shape) -> str:
        return self._call("mul.Tensor", {"self": Ref(name), "other": other}, shape)

    def _call(
        self, op: str, args: Mapping[str, Arg], shape: Shape, dtype: str | None = None, stem: str = ""
    ) -> str:
        name = self._free(stem or f"gate_{op.partition('.')[0]}")
        made = dtype or self.dtype
        self.nodes.append(Node(name, f"aten.{op}", {**default_args(f"aten.{op}"), **args}, (shape,), (made,)))
        self.specs[name] = (shape, made)
        return name

    def _free(self, wanted: str) -> str:
        name = _numbered(wanted, self.taken)
        self.taken.add(name)
        return name


def _numbered(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    return name
