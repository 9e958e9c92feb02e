"""What a rule sees: the axes of what a node reads, and where to note what it consumes and which numbers follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sarto.graph import axes
from sarto.graph.axes import Axis
from sarto.graph.model import Arg, BatchDim, ModelGraph, Node, Ref, Shape, TensorRef

#: Stands for the batch while axes are factored: a prime larger than any real axis, so that sizes such as
#: batch x heads are plain integers with one factorisation.
BATCH = 1_000_003

Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class RawConsumption:
    """A linear operator sums over this axis of this argument: the place where dropping equals zeroing."""

    node: str
    arg: str
    axis: int
    atoms: Axis


@dataclass(frozen=True)
class RawRewrite:
    """An integer argument of a node that must always equal the size of an axis."""

    node: str
    arg: str
    index: int | None
    atoms: Axis


@dataclass
class Context:
    """State of one analysis. Rules read axes from it and write consumptions and rewrites to it."""

    graph: ModelGraph
    values: dict[str, Axes] = field(default_factory=dict)
    tensors: dict[str, Axes] = field(default_factory=dict)
    consumptions: list[RawConsumption] = field(default_factory=list)
    rewrites: list[RawRewrite] = field(default_factory=list)
    producers: list[tuple[str, str, int]] = field(default_factory=list)

    def axes(self, arg: Arg) -> Axes | None:
        """Axes of a value or a stored tensor; None for an argument that is neither."""
        if isinstance(arg, Ref):
            return self.values[arg.name]
        if isinstance(arg, TensorRef):
            return self.tensors[arg.name]
        return None

    def unify(self, one: Axis, two: Axis, node: Node) -> None:
        """Make two axes one because of a node."""
        axes.unify(one, two, because(node))

    def pin(self, axis: Axis, node: Node) -> None:
        """Make an axis impossible to slice because of a node."""
        axes.pin(axis, because(node))

    def consume(self, node: Node, arg: str, axis: int) -> None:
        """Note that the node sums over this axis of this argument."""
        found = self.axes(node.args[arg])
        if found is not None:
            self.consumptions.append(RawConsumption(node.name, arg, axis, found[axis]))

    def produce(self, node: Node, tensor: Arg, axis: int) -> None:
        """Note that units are made here: rows of this stored tensor."""
        if isinstance(tensor, TensorRef):
            self.producers.append((node.name, tensor.name, axis))

    def rewrite(self, node: Node, arg: str, atoms: Axis, index: int | None = None) -> None:
        """Note that an integer argument equals the size of an axis."""
        self.rewrites.append(RawRewrite(node.name, arg, index, atoms))

    def outputs(self, node: Node, why: str | None = None) -> Axes:
        """Fresh axes for the first output of a node, pinned where a reason is given."""
        return fresh_axes(node.shape, why)


Rule = Callable[[Context, Node], Sequence[Axes]]


def because(node: Node) -> str:
    """The reason that names a node and its operator."""
    return f"{node.op.split('.')[1] if '.' in node.op else node.op} at {node.name}"


def dim_size(dim: int | BatchDim) -> int:
    """A size as an integer, the batch as a large prime."""
    return dim.times * BATCH if isinstance(dim, BatchDim) else dim


def fresh_axes(shape: Shape, why: str | None = None) -> Axes:
    """New axes for a shape; those that hold the batch are pinned by it."""
    made = []
    for dim in shape:
        axis = axes.fresh(dim_size(dim), why)
        if isinstance(dim, BatchDim):
            axes.pin(axis, "batch axis")
        made.append(axis)
    return tuple(made)
