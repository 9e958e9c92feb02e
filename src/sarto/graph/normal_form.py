"""The normal form of a captured model: one small language of operators that surgery sees."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sarto.errors import GraphError
from sarto.graph import sizes
from sarto.graph.folding import Folder
from sarto.graph.model import (
    Arg,
    Input,
    ModelGraph,
    Node,
    Ref,
    Shape,
    TensorRef,
    prune,
)
from sarto.graph.operators import (
    ALLOWED,
    FOLDABLE,
    GETITEM,
    default_args,
    freeze_constant,
    is_scalar,
    signature,
)
from sarto.graph.precision import conversion, in_own_precision, makes_fractions
from sarto.graph.spellings import SPELLED_IN_FILES, write_out

#: Shape-only operators whose result is a reshape to the recorded output shape.
_RESHAPES = frozenset(
    f"aten.{name}"
    for name in [
        "view.default",
        "_unsafe_view.default",
        "reshape.default",
        "flatten.using_ints",
        "unflatten.int",
        "unsqueeze.default",
        "squeeze.default",
        "squeeze.dim",
        "squeeze.dims",
        "view_as.default",
        "reshape_as.default",
    ]
)
#: Operators that hand their input on.
_PASSES = frozenset(
    [
        "aten.detach.default",
        "aten.detach_.default",
        "aten.lift_fresh_copy.default",
        "aten.alias.default",
    ]
)
#: Other spellings of allowed operators, with the same arguments.
_SYNONYMS: Mapping[str, str] = {
    "aten.__and__.Tensor": "aten.bitwise_and.Tensor",
    "aten.__or__.Tensor": "aten.bitwise_or.Tensor",
    "aten.min.other": "aten.minimum.default",
    "aten.max.other": "aten.maximum.default",
    "aten.special_expit.default": "aten.sigmoid.default",
    "aten.arctan.default": "aten.atan.default",
    "aten.concat.default": "aten.cat.default",
}
#: Conversions: what matters of them is the type that comes out.
_CONVERSIONS = frozenset(
    f"aten.{name}"
    for name in [
        "to.dtype",
        "to.dtype_layout",
        "to.device",
        "to.other",
        "type_as.default",
        "_to_copy.default",
    ]
)
#: Moments with a yes or no for the correction.
_MOMENTS: Mapping[str, str] = {
    "aten.var.dim": "aten.var.correction",
    "aten.std.dim": "aten.std.correction",
}
_DROPPED = frozenset(["aten._assert_tensor_metadata.default", "aten._assert_scalar.default"])
_SPLITS = frozenset(
    [
        "aten.chunk.default",
        "aten.split.Tensor",
        "aten.split_with_sizes.default",
        "aten.split.sizes",
        "aten.unsafe_chunk.default",
        "aten.unsafe_split.Tensor",
        "aten.unbind.int",
    ]
)

#: Kept for what they say of their operands, written as other operators.
_REWRITTEN = frozenset(
    f"aten.{name}"
    for name in ["contiguous.default", "expand_as.default", "glu.default", "numpy_T.default", "mT.default"]
)
#: Every operator that the normal form takes, besides in-place forms of allowed ones: those of a graph, other
#: spellings, and those that may be computed once. A reader of foreign files looks up no other.
READABLE: frozenset[str] = (
    ALLOWED
    | FOLDABLE
    | _RESHAPES
    | _PASSES
    | _SPLITS
    | _CONVERSIONS
    | _DROPPED
    | _REWRITTEN
    | _SYNONYMS.keys()
    | _MOMENTS.keys()
    | SPELLED_IN_FILES
)


def from_program(program: torch.export.ExportedProgram) -> ModelGraph:
    """The normalised graph of an exported program that was made in this process."""
    write_out(program.graph)
    reader = _Reader(program)
    for node in program.graph.nodes:
        reader.read(node)
    return prune(reader.graph())


class _Reader:
    """Walks an exported program once and writes the normal form."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.outputs: tuple[str, ...] = ()
        self.alias: dict[str, Arg] = {}
        self.tensors: dict[str, Tensor] = {}
        self.parameters: set[str] = set()
        self.unknown: list[str] = []
        self.folder = Folder()
        self.specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        stored = {**program.state_dict, **program.constants}
        self.stored: Mapping[str, Any] = {name: value for name, value in stored.items()}

    def graph(self) -> ModelGraph:
        if self.unknown:
            names = ", ".join(sorted(set(self.unknown)))
            raise GraphError(f"the model uses operators that a graph may not hold: {names}")
        return ModelGraph(
            tuple(self.inputs),
            tuple(self.nodes),
            self.outputs,
            self.tensors,
            frozenset(self.parameters),
        )

    def read(self, node: torch.fx.Node) -> None:
        try:
            self._read(node)
        except sizes.OtherSize as size:
            raise sizes.refused(size, node) from size

    def _read(self, node: torch.fx.Node) -> None:
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "output":
            self._output(node)
        elif node.op == "get_attr":
            raise GraphError(
                f"the model holds a nested graph {node.target!r} (control flow); that is not supported"
            )
        else:
            self._call(node)

    def _placeholder(self, node: torch.fx.Node) -> None:
        spec = self.specs[node.name]
        kind = spec.kind.name
        if kind == "USER_INPUT":
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor):
                raise GraphError(f"input {node.name!r} is not a tensor; a graph takes tensors only")
            self.inputs.append(Input(node.name, sizes.shape(value), sizes.dtype(value)))
            self.alias[node.name] = Ref(node.name)
        elif kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
            name = str(spec.target)
            self.tensors[name] = self.stored[name].detach()
            if kind == "PARAMETER":
                self.parameters.add(name)
            else:
                self.folder.hold(node.name, self.tensors[name])
            self.alias[node.name] = TensorRef(name)
        else:
            raise GraphError(f"input {node.name!r} is of kind {kind}; a graph takes tensors only")

    def _output(self, node: torch.fx.Node) -> None:
        names: list[str] = []
        for place, result in enumerate(node.args[0]):  # type: ignore[arg-type]
            if result is None:
                continue
            value = self._arg(result)
            if not isinstance(value, Ref):
                raise GraphError(
                    f"output {place} of the model does not depend on its input; return computed tensors only"
                )
            names.append(value.name)
        self.outputs = tuple(names)

    def _call(self, node: torch.fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int):
            self.alias[node.name] = sizes.dim(value)
            return
        if self.folder.take(node):
            return
        if node.target is operator.getitem:
            self._getitem(node)
            return
        op = str(node.target)
        if op in _DROPPED:
            return
        if op in _PASSES:
            self.alias[node.name] = self._arg(node.args[0])
            return
        op = _functional(op)
        op = _SYNONYMS.get(op, op)
        self.alias[node.name] = Ref(node.name)
        shapes, dtypes = sizes.specs(value)
        if op in _RESHAPES:
            source = self._arg(node.args[0])
            args: dict[str, Arg] = {"self": source, "shape": shapes[0]}
            self.nodes.append(Node(node.name, "aten.reshape.default", args, shapes, dtypes))
            return
        if op in _SPLITS:
            kind = "unbind" if op == "aten.unbind.int" else "split"
            self.alias[node.name] = (kind, self._arg(node.args[0]), self._split_dim(node))
            return
        if op in _CONVERSIONS:
            self._convert(node, shapes, dtypes)
            return
        if op == "aten.contiguous.default":
            op, args = "aten.clone.default", {"self": self._arg(node.args[0])}
            args["memory_format"] = freeze_constant(torch.contiguous_format)
        elif op == "aten.expand_as.default":
            op, args = "aten.expand.default", {"self": self._arg(node.args[0]), "size": shapes[0]}
            args["implicit"] = False
        elif op == "aten.cat.default":
            filled = [part for part in node.args[0] if not _is_empty(part)]  # type: ignore[union-attr]
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            if len(filled) == 1:
                self.alias[node.name] = self._arg(filled[0])
                return
            args = {"tensors": tuple(self._arg(part) for part in filled), "dim": self._arg(dim)}
        elif op == "aten.glu.default":
            self._glu(node, shapes, dtypes)
            return
        elif op in ("aten.numpy_T.default", "aten.mT.default"):
            rank = len(shapes[0])
            dims = tuple(reversed(range(rank))) if "numpy" in op else (*range(rank - 2), rank - 1, rank - 2)
            op, args = "aten.permute.default", {"self": self._arg(node.args[0]), "dims": dims}
        elif op in _MOMENTS:
            unbiased = node.args[2] if len(node.args) > 2 else node.kwargs.get("unbiased", True)
            keepdim = node.args[3] if len(node.args) > 3 else node.kwargs.get("keepdim", False)
            args = {"self": self._arg(node.args[0]), "dim": self._arg(node.args[1])}
            args |= {"correction": int(bool(unbiased)), "keepdim": bool(keepdim)}
            op = _MOMENTS[op]
        else:
            if op not in ALLOWED:
                self.unknown.append(op)
                return
            names = signature(op)
            args = dict(zip(names.positional, (self._arg(a) for a in node.args), strict=False))
            args.update({name: self._arg(a) for name, a in node.kwargs.items()})
            args = {**default_args(op), **args}
            args = {name: args[name] for name in (*names.positional, *names.keyword)}
        if op == "aten.batch_norm.default":
            args["training"] = False
        if op == "aten.dropout.default":
            args["train"] = False
        if op == "aten.scaled_dot_product_attention.default" and args.get("scale") is None:
            width = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
            args["scale"] = float(width) ** -0.5
        made = Node(node.name, op, args, shapes, dtypes)
        self.nodes.extend(in_own_precision(made) if makes_fractions(node) else [made])

    def _convert(self, node: torch.fx.Node, shapes: tuple[Shape, ...], dtypes: tuple[str, ...]) -> None:
        """A conversion to the type that comes out; nothing where that is the type that goes in."""
        source = node.args[0]
        given = source.meta["val"] if isinstance(source, torch.fx.Node) else None
        if isinstance(given, Tensor) and sizes.dtype(given) == dtypes[0]:
            self.alias[node.name] = self._arg(source)
            return
        self.nodes.append(conversion(node.name, self._arg(source), shapes, dtypes[0]))

    def _glu(self, node: torch.fx.Node, shapes: tuple[Shape, ...], dtypes: tuple[str, ...]) -> None:
        """`glu` as what it is: the first half of an axis times the sigmoid of the second."""
        dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1))  # type: ignore[arg-type]
        half = shapes[0][dim]
        if not isinstance(half, int):
            raise GraphError(f"node {node.name!r} halves the batch axis; that is not supported")
        base, dim = self._arg(node.args[0]), dim % len(shapes[0])
        names = [f"{node.name}_{part}" for part in ("value", "gate", "sigmoid")]
        for name, start in zip(names, (0, half), strict=False):
            args: dict[str, Arg] = {"self": base, "dim": dim, "start": start, "end": start + half, "step": 1}
            self.nodes.append(Node(name, "aten.slice.Tensor", args, shapes, dtypes))
        self.nodes.append(Node(names[2], "aten.sigmoid.default", {"self": Ref(names[1])}, shapes, dtypes))
        product: dict[str, Arg] = {"self": Ref(names[0]), "other": Ref(names[2])}
        self.nodes.append(Node(node.name, "aten.mul.Tensor", product, shapes, dtypes))

    def _split_dim(self, node: torch.fx.Node) -> int:
        place = 1 if str(node.target) == "aten.unbind.int" else 2
        dim = int(node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0))  # type: ignore[arg-type]
        rank = len(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
        return dim % rank

    def _getitem(self, node: torch.fx.Node) -> None:
        source, index = node.args[0], node.args[1]
        if not isinstance(source, torch.fx.Node) or not isinstance(index, int):
            raise GraphError(
                f"node {node.name!r} picks an output in a way that is not supported", where=node.name
            )
        split = self.alias.get(source.name)
        shapes, dtypes = sizes.specs(node.meta["val"])
        if isinstance(split, tuple) and split and split[0] == "split":
            _, base, dim = split
            parts = [value.shape[dim] for value in source.meta["val"]]
            if any(not isinstance(part, int) for part in parts):
                raise GraphError(f"node {node.name!r} splits the batch axis; that is not supported")
            start = sum(parts[:index])
            args: dict[str, Arg] = {
                "self": base, "dim": dim, "start": start, "end": start + parts[index], "step": 1
            }  # fmt: skip
            self.nodes.append(Node(node.name, "aten.slice.Tensor", args, shapes, dtypes))
        elif isinstance(split, tuple) and split and split[0] == "unbind":
            picked: dict[str, Arg] = {"self": split[1], "dim": split[2], "index": index}
            self.nodes.append(Node(node.name, "aten.select.int", picked, shapes, dtypes))
        else:
            self.nodes.append(
                Node(
                    node.name,
                    GETITEM,
                    {"source": self._arg(source), "index": index},
                    shapes,
                    dtypes,
                )
            )
        self.alias[node.name] = Ref(node.name)

    def _arg(self, value: Any) -> Arg:
        if isinstance(value, torch.fx.Node):
            if value.name not in self.alias and self.folder.knows(value):
                return self._lifted(value.name)
            return self.alias.get(value.name, Ref(value.name))
        if isinstance(value, list | tuple):
            return tuple(self._arg(inner) for inner in value)
        if isinstance(value, torch.SymInt):
            return sizes.dim(value)
        if is_scalar(value):
            return value  # type: ignore[no-any-return]
        if isinstance(value, torch.device):
            # What a graph makes is made where its input is.
            return None
        constant = freeze_constant(value)
        if constant is None:
            raise GraphError(f"an argument of type {type(value).__name__} can't stand in a graph")
        return constant

    def _lifted(self, name: str) -> TensorRef:
        """A constant that was computed at capture, stored beside the weights."""
        stored = f"constant_{name}"
        self.tensors[stored] = self.folder.tensor(name)
        self.alias[name] = TensorRef(stored)
        return TensorRef(stored)


def _functional(op: str) -> str:
    """The functional form of an in-place operator (`relu_` -> `relu`), where there is one."""
    space, name, variant = op.split(".") if op.count(".") == 2 else ("", op, "")
    if name.endswith("_") and not name.endswith("__") and f"{space}.{name[:-1]}.{variant}" in ALLOWED:
        return f"{space}.{name[:-1]}.{variant}"
    return op


def _is_empty(part: Any) -> bool:
    """Whether an operand holds nothing (a placeholder of size 0, which a cat passes over)."""
    found = part.meta["val"] if isinstance(part, torch.fx.Node) else part
    return any(isinstance(size, int) and size == 0 for size in found.shape)
