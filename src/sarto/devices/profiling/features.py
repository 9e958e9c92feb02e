"""What a graph's latency is made of: terms of each layer, exact at any unit counts, for many subnets at once.

Every operator that multiplies gives the FLOPs of its products, the megabytes that it reads and writes, those of its
weights, and its calls; every other operator the megabytes that it moves, and its calls. Each term is a number times
unit counts, so nothing is built or sliced to know it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sarto.devices.profiling.kinds import PRODUCT_KINDS, kind_of
from sarto.devices.profiling.sizes import Counts, Floats, Places, Size, SizeTable, monomials
from sarto.errors import GraphError
from sarto.graph import ModelGraph, Node, Ref, TensorRef
from sarto.graph.expressions import AxisExpr, full_size
from sarto.graph.model import Arg, leaves, shapes_of

#: What a term counts: products in millions of FLOPs (channels rounded up to whole vectors), megabytes of activations
#: read and written by an operator that multiplies, of its weights, moved by another operator, and calls.
FEATURES = ("mflop", "read_mb", "write_mb", "weight_mb", "moved_mb", "calls")
_MEGA = 1e-6


@dataclass(frozen=True)
class Term:
    """One summand of a latency: `size` of what `feature` counts, at a node.

    Attributes:
        layer: the weights that the node computes with, or those before it.
        kind: of the operator.
    """

    node: str
    layer: str
    kind: str
    feature: str
    size: Size


@dataclass(frozen=True)
class Terms:
    """All terms of a graph, in the order of its nodes; their number and order stay the same when it is sliced."""

    table: SizeTable
    terms: tuple[Term, ...]
    skeleton: str

    @property
    def groups(self) -> Mapping[str, int]:
        """Sliceable groups with their units."""
        return self.table.groups

    def at(self, counts: Sequence[Counts] | Floats, *, width: int = 1, step: int = 1) -> Floats:
        """The value of every term, shape (subnets, terms).

        Args:
            counts: units kept of each group, or a matrix of shape (subnets, groups).
            width: of the device's vectors.
            step: counts are rounded up to multiples of it first.

        Raises:
            RequestError: a group is unknown, or a count is out of range; all problems at once.
        """
        rows = counts if isinstance(counts, np.ndarray) else self.table.rows(counts)
        rows = self.table.stepped(rows, step)
        found = self.table.evaluate(rows, width)
        factors, places = self._monomials
        return factors * found[places].prod(axis=1).T

    @cached_property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """Of each term, what it depends on: terms with the same can't be told apart by measuring subnets."""
        return tuple(self.table.follows(term.size) for term in self.terms)

    @cached_property
    def _monomials(self) -> tuple[Floats, Places]:
        return monomials([term.size for term in self.terms])


def terms_of(graph: ModelGraph, *, batch: int = 1) -> Terms:
    """The terms of a graph's latency; no weights are read."""
    analysis = graph.analysis
    reader = _Reader(graph, SizeTable({group.id: group.size for group in analysis.sliceable}, batch))
    found = tuple(term for node in graph.nodes for term in reader.terms(node))
    return Terms(reader.table, found, skeleton(graph))


def skeleton(graph: ModelGraph) -> str:
    """A hash of a graph's operators and their names, without any size: the same for all its slices."""
    text = "\n".join(f"{node.name} {node.op}" for node in graph.nodes)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class _Reader:
    """Reads nodes into terms, and remembers which layer each value comes from."""

    def __init__(self, graph: ModelGraph, table: SizeTable) -> None:
        self.graph, self.table = graph, table
        self.layers = {entry.name: entry.name for entry in graph.inputs}
        self.bytes = {name: dtype.itemsize for name, (_, dtype) in shapes_of(graph.tensors).items()}
        self.bytes_made = {entry.name: _itemsize(entry.dtype) for entry in graph.inputs}

    def terms(self, node: Node) -> Iterator[Term]:
        self.bytes_made[node.name] = _itemsize(node.dtypes[0])
        kind = kind_of(node, self._kernel(node))
        self.layers[node.name] = layer = self._layer(node, kind)
        products = PRODUCTS.get(node.op)
        read = [arg for arg in leaves(node.args) if isinstance(arg, Ref)]
        stored = [arg for arg in leaves(node.args) if isinstance(arg, TensorRef)]
        made = self._bytes(Ref(node.name))
        calls = Size()
        if products is None:
            for arg in read:
                yield Term(node.name, layer, kind, "moved_mb", self._bytes(arg))
            yield Term(node.name, layer, kind, "moved_mb", made)
        else:
            for size in products(self, node):
                yield Term(node.name, layer, kind, "mflop", size.scaled(2 * _MEGA))
            for arg in read:
                yield Term(node.name, layer, kind, "read_mb", self._bytes(arg))
            yield Term(node.name, layer, kind, "write_mb", made)
            for tensor in stored:
                yield Term(node.name, layer, kind, "weight_mb", self._bytes(tensor))
            if kind == "recurrent":
                steps = self.axes(node.args["input"])[:-1]
                calls = Size(math.prod(self.table.axis(axis).factor for axis in steps) / self.table.batch)
        yield Term(node.name, layer, kind, "calls", calls)

    def axes(self, arg: Arg) -> tuple[AxisExpr, ...]:
        """Expressions of a tensor argument's axes."""
        if isinstance(arg, TensorRef):
            return self.graph.analysis.tensor_axes[arg.name]
        if isinstance(arg, Ref):
            return self.graph.analysis.value_axes[arg.name][0]
        raise GraphError(f"an argument of a matrix product is no tensor: {arg!r}")

    def size(self, axes: Sequence[AxisExpr]) -> Size:
        """Elements of these axes together."""
        return self.table.elements(axes)

    def stair(self, axis: AxisExpr) -> Size:
        """An axis rounded up to whole vectors."""
        return self.table.stair(self.table.axis(axis))

    def _bytes(self, arg: Ref | TensorRef) -> Size:
        known = self.bytes if isinstance(arg, TensorRef) else self.bytes_made
        return self.size(self.axes(arg)).scaled(known[arg.name] * _MEGA)

    def _kernel(self, node: Node) -> int:
        weight = node.args.get("weight")
        axes = self.axes(weight)[2:] if "conv" in node.op and isinstance(weight, Ref | TensorRef) else ()
        return math.prod(full_size(axis) for axis in axes)

    def _layer(self, node: Node, kind: str) -> str:
        """The weights of the node, else the layer before it."""
        for arg in leaves(node.args):
            if isinstance(arg, TensorRef) and kind in (*PRODUCT_KINDS, "lookup"):
                return arg.name.rpartition(".")[0] or arg.name
            if isinstance(arg, Ref) and kind not in PRODUCT_KINDS:
                return self.layers[arg.name]
        return node.name


#: The products of a node: multiply-adds, each a size.
Products = Callable[[_Reader, Node], Iterator[Size]]


def _convolution(reader: _Reader, node: Node) -> Iterator[Size]:
    outs, ins, *kernel = reader.axes(node.args["weight"])
    batch, _, *space = reader.graph.analysis.value_axes[node.name][0]
    inner = reader.stair(ins) if node.args.get("groups", 1) == 1 else reader.size([ins])
    yield reader.size([batch, *space, *kernel]).times(reader.stair(outs), inner)


def _transposed(reader: _Reader, node: Node) -> Iterator[Size]:
    ins, outs, *kernel = reader.axes(node.args["weight"])
    batch, _, *space = reader.axes(node.args["input"])
    outer = reader.stair(outs) if node.args.get("groups", 1) == 1 else reader.size([outs])
    yield reader.size([batch, *space, *kernel]).times(reader.stair(ins), outer)


def _product(left: str) -> Products:
    def products(reader: _Reader, node: Node) -> Iterator[Size]:
        made = reader.graph.analysis.value_axes[node.name][0]
        inner = reader.stair(reader.axes(node.args[left])[-1])
        to_vector = node.op == "aten.matmul.default" and len(reader.axes(node.args["other"])) == 1
        if to_vector or not made:
            yield reader.size(made).times(inner)
        else:
            yield reader.size(made[:-1]).times(reader.stair(made[-1]), inner)

    return products


def _attention(reader: _Reader, node: Node) -> Iterator[Size]:
    *outer, width = reader.axes(node.args["query"])
    keys, values = reader.axes(node.args["key"])[-2], reader.axes(node.args["value"])[-1]
    for inner in (width, values):
        yield reader.size([*outer, keys]).times(reader.stair(inner))


def _recurrent(reader: _Reader, node: Node) -> Iterator[Size]:
    steps = reader.axes(node.args["input"])[:-1]
    given = node.args["params"]
    for arg in given if isinstance(given, tuple) else ():
        axes = reader.axes(arg)
        if len(axes) == 2:
            yield reader.size(steps).times(reader.stair(axes[0]), reader.stair(axes[1]))


def _einsum(reader: _Reader, node: Node) -> Iterator[Size]:
    """Every label once: exact for two operands without an ellipsis, no less than what is done for others."""
    terms = str(node.args["equation"]).replace(" ", "").partition("->")[0].split(",")
    given = node.args["tensors"]
    labels: dict[str, Size] = {}
    for term, arg in zip(terms, given if isinstance(given, tuple) else (), strict=False):
        axes = reader.axes(arg)
        before, dots, after = term.partition("...")
        hidden = len(axes) - len(before) - len(after)
        names = [*before, *(f"...{n}" for n in range(hidden, 0, -1) if dots), *after]
        for label, axis in zip(names, axes, strict=False):
            size = reader.size([axis])
            if label not in labels or labels[label] == Size(1.0):
                labels[label] = size
    yield Size().times(*labels.values())


PRODUCTS: Mapping[str, Products] = {
    "aten.conv1d.default": _convolution,
    "aten.conv1d.padding": _convolution,
    "aten.conv2d.default": _convolution,
    "aten.conv2d.padding": _convolution,
    "aten.conv3d.default": _convolution,
    "aten.conv_transpose1d.default": _transposed,
    "aten.conv_transpose2d.input": _transposed,
    "aten.linear.default": _product("input"),
    "aten.matmul.default": _product("self"),
    "aten.mm.default": _product("self"),
    "aten.bmm.default": _product("self"),
    "aten.addmm.default": _product("mat1"),
    "aten.baddbmm.default": _product("batch1"),
    "aten.einsum.default": _einsum,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.lstm.input": _recurrent,
    "aten.gru.input": _recurrent,
    "aten.rnn_tanh.input": _recurrent,
    "aten.rnn_relu.input": _recurrent,
}


def _itemsize(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)
