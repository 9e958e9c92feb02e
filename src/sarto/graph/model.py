"""The one noun of the core: a model is a flat graph of ATen operators and its tensors, nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sarto.errors import GraphError

if TYPE_CHECKING:
    from sarto.graph.analysis import Analysis


@dataclass(frozen=True, slots=True)
class BatchDim:
    """A size that is `times` x the batch size; resolved at run time from the first input."""

    times: int = 1


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of another node or of an input."""

    name: str


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A stored tensor: a parameter, a buffer or a lifted constant."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A torch enumeration written as text: kind is dtype, device, layout or memory_format."""

    kind: str
    value: str


Arg = Ref | TensorRef | BatchDim | Constant | bool | int | float | str | None | tuple["Arg", ...]
Shape = tuple[int | BatchDim, ...]


@dataclass(frozen=True)
class Input:
    """One input of a graph; axis 0 is the batch."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Node:
    """One operator call. `args` holds every argument of the operator's schema by name, defaults filled in."""

    name: str
    op: str
    args: Mapping[str, Arg]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]

    @property
    def shape(self) -> Shape:
        """Shape of the first output."""
        return self.shapes[0]

    def argument(self, name: str) -> Arg:
        """An argument by name; an entry of a list by its place (`params.3`)."""
        head, _, place = name.partition(".")
        found = self.args[head]
        return found[int(place)] if place and isinstance(found, tuple) else found

    def with_args(self, **changed: Arg) -> Node:
        """The same node with some arguments replaced."""
        return replace(self, args={**self.args, **changed})


@dataclass(frozen=True)
class ModelGraph:
    """A model: operators in topological order, named tensors, one or more outputs.

    Surgery never changes a graph; every operation returns a new one that may share tensors with its source.

    Attributes:
        inputs: what the model reads; axis 0 of each is the batch.
        nodes: operator calls, every argument defined before it is used.
        outputs: names of the values that the model returns.
        tensors: name -> stored tensor; may be lazy (read from disk when first asked for).
        parameters: names of the tensors that are trainable; the others are buffers or constants.
        refused: channel groups that failed the capture proof, with the reason; they are pinned.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)
    parameters: frozenset[str]
    refused: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def index(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return MappingProxyType({node.name: node for node in self.nodes})

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            GraphError: there is none.
        """
        found = self.index.get(name)
        if found is None:
            raise GraphError(f"no node {name!r} in this graph of {len(self.nodes)} nodes", where=name)
        return found

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """Value name -> names of the nodes that read it, in order."""
        table: dict[str, list[str]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(arg.name for arg in leaves(node.args) if isinstance(arg, Ref)):
                table.setdefault(name, []).append(node.name)
        return {name: tuple(users) for name, users in table.items()}

    @cached_property
    def analysis(self) -> Analysis:
        """Channel groups and where each axis comes from; computed once."""
        from sarto.graph.analysis import analyse

        return analyse(self)

    def sketch(self) -> ModelGraph:
        """The same graph with shapes instead of weights (meta tensors): enough to slice and to count."""
        shapes = shapes_of(self.tensors)
        return replace(
            self,
            tensors={
                name: torch.empty(shape, dtype=dtype, device="meta")
                for name, (shape, dtype) in shapes.items()
            },
        )

    @cached_property
    def floating_dtype(self) -> str:
        """Precision of the graph: that of its first floating-point parameter, else stored tensor, else input."""
        known = shapes_of(self.tensors)
        learned = [str(known[name][1])[6:] for name in known if name in self.parameters]
        stored = [str(dtype)[6:] for _, dtype in known.values()]
        given = [entry.dtype for entry in self.inputs]
        return next((dtype for dtype in (*learned, *stored, *given) if is_floating(dtype)), "float32")

    def to(self, dtype: torch.dtype) -> ModelGraph:
        """The same graph in another floating-point precision: tensors, inputs and the conversions inside.

        Values that were kept in a precision of their own (a half-precision model's float32 statistics) stay so.
        """
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.tensors.items()
        }
        old, new = self.floating_dtype, str(dtype).removeprefix("torch.")

        def converted(arg: Arg) -> Arg:
            if isinstance(arg, tuple):
                return tuple(converted(inner) for inner in arg)
            return Constant("dtype", new) if arg == Constant("dtype", old) else arg

        inputs = tuple(
            replace(entry, dtype=new) if is_floating(entry.dtype) else entry for entry in self.inputs
        )
        nodes = tuple(
            replace(
                node,
                args={name: converted(arg) for name, arg in node.args.items()},
                dtypes=tuple(new if d == old else d for d in node.dtypes),
            )
            for node in self.nodes
        )
        return replace(self, inputs=inputs, nodes=nodes, tensors=tensors)

    def module(self, *, train: bool = False) -> torch.fx.GraphModule:
        """A runnable `torch.fx.GraphModule`; its parameters carry the graph's tensor names.

        Args:
            train: to train it: a copy of the tensors, in training mode, with parameters that require gradients.
                Otherwise the module shares the graph's tensors and its parameters require no gradient, also after
                `.train()`, which switches batch norm and dropout alone. After `requires_grad_()` an optimizer would
                change the graph itself; ask for `module(train=True)` instead.
        """
        from sarto.graph.run import build_module

        return build_module(self, train=train)

    @cached_property
    def _module(self) -> torch.fx.GraphModule:
        return self.module()

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Outputs for a batch; one tensor where the graph has one output.

        Args:
            inputs: one tensor per input of the graph, in order, of the shapes that `inputs` says.

        Raises:
            ShapeError: the number of inputs or a shape differs from what the graph takes.
        """
        from sarto.graph.run import check_inputs

        check_inputs(self, inputs)
        result = self._module(*inputs)
        return result  # type: ignore[no-any-return]


def shapes_of(
    tensors: Mapping[str, Tensor],
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> (shape, dtype) of every tensor; lazy mappings answer from their header, without reading data."""
    table = getattr(tensors, "shapes", None)
    if table is not None:
        return dict(table)
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def leaves(value: Arg | Mapping[str, Arg]) -> Iterator[Arg]:
    """Every non-tuple argument inside an argument tree, in order."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def rename_refs(value: Arg, values: Mapping[str, str], tensors: Mapping[str, str] | None = None) -> Arg:
    """The argument with value names (and tensor names) replaced where the mappings name them."""
    if isinstance(value, Ref):
        return Ref(values.get(value.name, value.name))
    if isinstance(value, TensorRef) and tensors is not None:
        return TensorRef(tensors.get(value.name, value.name))
    if isinstance(value, tuple):
        return tuple(rename_refs(inner, values, tensors) for inner in value)
    return value


def prune(graph: ModelGraph) -> ModelGraph:
    """The graph without nodes and tensors that no output needs."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    used_tensors: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name not in needed:
            continue
        kept.append(node)
        for arg in leaves(node.args):
            if isinstance(arg, Ref):
                needed.add(arg.name)
            elif isinstance(arg, TensorRef):
                used_tensors.add(arg.name)
    tensors = {name: graph.tensors[name] for name in shapes_of(graph.tensors) if name in used_tensors}
    return replace(
        graph,
        nodes=tuple(reversed(kept)),
        tensors=tensors,
        parameters=frozenset(graph.parameters & used_tensors),
    )


def size_at(shape: Shape, batch: int) -> tuple[int, ...]:
    """Concrete sizes of a shape at a batch size."""
    return tuple(dim.times * batch if isinstance(dim, BatchDim) else dim for dim in shape)


def shape_text(shape: Shape) -> str:
    """A shape in words: `(batch, 3, 32, 32)`."""
    dims = (
        ("batch" if dim.times == 1 else f"{dim.times} x batch") if isinstance(dim, BatchDim) else str(dim)
        for dim in shape
    )
    return f"({', '.join(dims)})"


def elements(shape: Shape, batch: int = 1) -> int:
    """Number of elements of a shape at a batch size."""
    return math.prod(size_at(shape, batch))


def is_floating(dtype: str) -> bool:
    """Whether a dtype name is a floating-point one."""
    return dtype in {"float16", "bfloat16", "float32", "float64"}
