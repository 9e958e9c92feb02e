"""What a rule sees: the axes of what a node reads, and where to note what it consumes and which numbers follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sarto.errors import GraphError
from sarto.graph import axes
from sarto.graph.axes import Axis
from sarto.graph.model import Arg, BatchDim, ModelGraph, Node, Ref, Shape, TensorRef

#: Stands for the batch while axes are factored: a prime larger than any real axis, so that sizes such as
#: batch x heads are plain integers with one factorisation.
BATCH = 1_000_003

Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class RawConsumption:
    """A linear operator sums over this axis of this argument: the place where dropping equals zeroing.

    An entry of a list argument is named by its place: `params.3`.
    """

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


@dataclass(frozen=True)
class RawProducer:
    """Units are made here from learned numbers: this axis of this stored tensor, or of a computed weight."""

    node: str
    tensor: str | None
    axis: int
    atoms: Axis


@dataclass(frozen=True)
class RawNote:
    """What a rule knows of the part that an axis plays: heads, value dims, recurrent units, a residual sum."""

    role: str
    atoms: Axis


@dataclass
class Context:
    """State of one analysis. Rules read axes from it and write consumptions and rewrites to it.

    `follow_statistics` lets an axis through operators that normalise by statistics over it (layer norm, a mean).
    That is no longer exact, so only an operation that says it is approximate may ask for it.
    """

    graph: ModelGraph
    follow_statistics: bool = False
    values: dict[str, Axes] = field(default_factory=dict)
    outputs: dict[str, tuple[Axes, ...]] = field(default_factory=dict)
    tensors: dict[str, Axes] = field(default_factory=dict)
    consumptions: list[RawConsumption] = field(default_factory=list)
    rewrites: list[RawRewrite] = field(default_factory=list)
    producers: list[RawProducer] = field(default_factory=list)
    notes: list[RawNote] = field(default_factory=list)

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
        """Note that the node sums over this axis of this argument (`tensors.1`: of this entry of a list)."""
        found = self.axes(node.argument(arg))
        if found is not None:
            self.consumptions.append(RawConsumption(node.name, arg, axis, found[axis]))

    def produce(self, node: Node, weight: Arg, axis: int) -> None:
        """Note that units are made here: this axis of a stored or computed weight."""
        found = self.axes(weight)
        if found is not None:
            tensor = weight.name if isinstance(weight, TensorRef) else None
            self.producers.append(RawProducer(node.name, tensor, axis, found[axis]))

    def normalised_over(self, axis: Axis, node: Node) -> None:
        """Note that the node divides by statistics over the axis: dropping a unit is not zeroing it, so pin it."""
        if not self.follow_statistics:
            self.pin(axis, node)

    def note(self, role: str, axis: Axis) -> None:
        """Note the part that an axis plays, for the kind of its channel group."""
        self.notes.append(RawNote(role, axis))

    def rewrite(self, node: Node, arg: str, atoms: Axis, index: int | None = None) -> None:
        """Note that an integer argument equals the size of an axis."""
        self.rewrites.append(RawRewrite(node.name, arg, index, atoms))


Rule = Callable[[Context, Node], Sequence[Axes]]


def integer(node: Node, arg: str) -> int:
    """An integer argument of a node.

    Raises:
        GraphError: it is something else.
    """
    value = node.args[arg]
    if isinstance(value, bool) or not isinstance(value, int):
        raise GraphError(f"{arg} of {because(node)} must be an integer, found {value!r}", where=node.name)
    return value


def integers(node: Node, arg: str) -> tuple[int, ...]:
    """A list of integers among the arguments of a node (one integer stands for a list of one).

    Raises:
        GraphError: it is something else.
    """
    value = node.args[arg]
    listed = value if isinstance(value, tuple) else (value,)
    found = tuple(entry for entry in listed if isinstance(entry, int) and not isinstance(entry, bool))
    if len(found) != len(listed):
        raise GraphError(f"{arg} of {because(node)} must be integers, found {value!r}", where=node.name)
    return found


def listed(node: Node, arg: str) -> tuple[Arg, ...]:
    """A list among the arguments of a node.

    Raises:
        GraphError: it is something else.
    """
    value = node.args[arg]
    if not isinstance(value, tuple):
        raise GraphError(f"{arg} of {because(node)} must be a list, found {value!r}", where=node.name)
    return value


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
