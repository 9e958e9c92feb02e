"""The JSON of a `.pt2` file as an exported program: graph, signature and tensors, built without running anything.

What comes out has the four parts of `torch.export.ExportedProgram` that `capture.from_program` reads, so that a
file and a module captured in this process get one and the same normal form.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from sarto.errors import SPELT_OUT, GraphError
from sarto.graph.bounded import shown
from sarto.graph.model import BatchDim, Shape, size_at
from sarto.graph.pt2_arguments import read_argument
from sarto.graph.pt2_json import dim_of, field, only, type_of
from sarto.graph.pt2_operators import SYMBOL_CHECKS, readable
from sarto.graph.validity import (
    MAX_NAME,
    MAX_NODES,
    MAX_RANK,
    MAX_TENSORS,
    SHADOW_BATCH,
    batched,
    call_without_data,
    shape_problem,
)

_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_POSITIONAL: Final = 1


@dataclass(frozen=True)
class Program:
    """What `capture.from_program` reads of an exported program."""

    graph: torch.fx.Graph
    graph_signature: ExportGraphSignature
    state_dict: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Size:
    """A computed size; its expression is looked at when it is read."""

    name: str


@dataclass(frozen=True)
class _Unusable:
    """A value that no tensor operator may read."""

    why: str


def build_program(
    document: object, state_dict: Mapping[str, Tensor], constants: Mapping[str, Tensor], batch: torch.SymInt
) -> Program:
    """The program that the JSON of a `.pt2` file describes, over the given tensors.

    Args:
        document: plain data of `models/<name>.json`.
        state_dict: parameters and stored buffers by name.
        constants: other buffers and constants by name.
        batch: stands for the batch size in shapes.

    Raises:
        GraphError: a part is malformed, or is something that a graph can't hold: objects, nested graphs, operators
            outside of ATen, sizes that depend on more than the batch, changed buffers.
    """
    module = field(document, "graph_module", dict, "the program")
    version = field(field(document, "schema_version", dict, "the program"), "major", int, "schema_version")
    if version != 8:
        raise GraphError(f"the program has version {shown(version)} of torch's format; version 8 is read")
    graph = field(module, "graph", dict, "graph_module")
    signature = field(module, "signature", dict, "graph_module")
    builder = _Builder(graph, {**constants, **state_dict}, batch)
    builder.inputs(
        field(graph, "inputs", list, "the graph"), field(signature, "input_specs", list, "the signature")
    )
    builder.nodes(field(graph, "nodes", list, "the graph"))
    builder.outputs(
        field(graph, "outputs", list, "the graph"), field(signature, "output_specs", list, "the signature")
    )
    made = ExportGraphSignature(builder.input_specs, builder.output_specs)
    return Program(builder.graph, made, state_dict, constants)


class _Builder:
    """Writes a `torch.fx.Graph` value by value; keeps what each name of the file stands for."""

    def __init__(self, document: dict[str, Any], stored: Mapping[str, Tensor], batch: torch.SymInt) -> None:
        self.graph = torch.fx.Graph()
        self.input_specs: list[InputSpec] = []
        self.output_specs: list[OutputSpec] = []
        self.stored = stored
        self.batch = batch
        self.symbols: set[str] = set()
        self.metas = field(document, "tensor_values", dict, "the graph")
        self.sizes = field(document, "sym_int_values", dict, "the graph")
        self.values: dict[str, torch.fx.Node | _Size | _Unusable] = {}
        self.taken: set[str] = set()
        self.shadows: dict[torch.fx.Node, Any] = {}

    # --- inputs and outputs ----------------------------------------------------------------------------------

    def inputs(self, entries: list[Any], specs: list[Any]) -> None:
        if len(entries) != len(specs) or len(entries) > MAX_TENSORS:
            raise GraphError(
                f"the graph has {len(entries):,} inputs and {len(specs):,} descriptions of inputs"
            )
        for entry, spec in zip(entries, specs, strict=True):
            form, content = only(spec, "an input's description")
            given, argument = only(entry, "an input")
            if (form not in _STORED and form != "user_input") or given != "as_tensor":
                raise GraphError(f"an input is {shown(form)} {shown(given)}; a graph takes tensors only")
            name = field(argument, "name", str, "an input")
            meta = self._meta(name)
            if form == "user_input":
                self._learn_batch(name, meta)
        for entry, spec in zip(entries, specs, strict=True):
            form, content = only(spec, "an input's description")
            name = entry["as_tensor"]["name"]
            if form == "user_input":
                shape, dtype = self._shape(name)
                self._placeholder(name, torch.empty(size_at(shape, SHADOW_BATCH), dtype=dtype, device="meta"))
                self.input_specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(name), None))
                continue
            kind, key = _STORED[form]
            target = field(content, key, str, "an input's description")
            self._placeholder(name, self._stored_value(name, target))
            persistent = target in self.stored if kind is InputKind.BUFFER else None
            self.input_specs.append(InputSpec(kind, TensorArgument(name), target, persistent))

    def _learn_batch(self, name: str, meta: dict[str, Any]) -> None:
        sizes = field(meta, "sizes", list, f"input {shown(name)}")
        if not sizes:
            raise GraphError(f"input {shown(name)} has no axes; axis 0 of every input is the batch")
        first, symbol = dim_of(sizes[0])
        if not symbol:
            raise GraphError(
                f"the batch of input {shown(name)} is fixed to {shown(first)}: export the model again with "
                "dynamic_shapes of {0: torch.export.Dim.DYNAMIC} for every input"
            )
        self.symbols.add(symbol)

    def _stored_value(self, name: str, target: str) -> Tensor:
        tensor = self.stored.get(target)
        if tensor is None:
            raise GraphError(f"tensor {shown(target)} is used but not stored in the file")
        shape, dtype = self._shape(name)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise GraphError(
                f"tensor {shown(target)} is stored as {tuple(tensor.shape)} {tensor.dtype}, the graph says "
                f"{shown(shape)} {dtype}"
            )
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def _placeholder(self, name: str, value: Tensor) -> None:
        self._define(name, self.graph.placeholder(name), value)

    def outputs(self, entries: list[Any], specs: list[Any]) -> None:
        if len(entries) != len(specs) or len(entries) > MAX_NODES:
            raise GraphError(
                f"the graph has {len(entries):,} outputs and {len(specs):,} descriptions of outputs"
            )
        results: list[Any] = []
        for entry, spec in zip(entries, specs, strict=True):
            form, _ = only(spec, "an output's description")
            if form != "user_output":
                raise GraphError(
                    f"an output is a {shown(form)}: a graph returns results and changes nothing else"
                )
            given, argument = only(entry, "an output")
            if given != "as_tensor":
                raise GraphError(f"an output is {shown(given)}; a graph returns tensors only")
            name = field(argument, "name", str, "an output")
            results.append(self._read(name))
            self.output_specs.append(OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name), None))
        self.graph.output(tuple(results))

    # --- nodes -----------------------------------------------------------------------------------------------

    def nodes(self, entries: list[Any]) -> None:
        if len(entries) > MAX_NODES:
            raise GraphError(f"the graph has {len(entries):,} nodes, the limit is {MAX_NODES:,}")
        unknown = sorted({target for entry in entries if (target := _unknown(entry)) is not None})
        if unknown:
            named = ", ".join(map(shown, unknown[:SPELT_OUT]))
            raise GraphError(f"the model uses operators that a graph may not hold: {named}")
        for place, entry in enumerate(entries):
            try:
                self._node(entry)
            except GraphError as error:
                raise GraphError(f"nodes[{place}]: {error.detail}") from error

    def _node(self, entry: object) -> None:
        target = field(entry, "target", str, "a node")
        forms = _forms(entry)
        if target in SYMBOL_CHECKS:
            return
        if _is_symbolic(forms):
            for form, content in forms:
                self._symbolic(form, content)
            return
        op = readable(target)
        if op is None:
            raise GraphError(f"operator {shown(target)} is not allowed")
        args, kwargs = self._arguments(op, field(entry, "inputs", list, "a node"))
        made = self._made(op, args, kwargs)
        node = self.graph.call_function(op, args, kwargs)
        if len(forms) == 1 and forms[0][0] == "as_tensor":
            self._define(field(forms[0][1], "name", str, "a node's output"), node, made)
        elif forms:
            self._several(node, forms, made, entry.get("name") if isinstance(entry, dict) else None)

    def _made(self, op: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator gives on tensors without data; sizes of the file are compared with these."""

        def shadow(value: Any) -> Any:
            if isinstance(value, torch.fx.Node):
                return self.shadows[value]
            return [shadow(inner) for inner in value] if isinstance(value, list) else value

        try:
            return call_without_data(op, [*map(shadow, args)], {n: shadow(v) for n, v in kwargs.items()})
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise GraphError(f"{op} can't run with its arguments ({reason})") from error

    def _several(self, node: torch.fx.Node, forms: list[tuple[str, Any]], made: Any, name: object) -> None:
        """A node with several results: each is picked by a getitem node that carries its name."""
        node.name = name if type(name) is str else f"several_{len(self.taken)}"
        self._claim(node.name)
        parts: list[str | None] = []
        for form, content in forms:
            if form == "as_tensor":
                parts.append(field(content, "name", str, "a node's output"))
            elif form == "as_tensors" and type(content) is list and len(forms) == 1:
                parts.extend(field(part, "name", str, "a node's output") for part in content)
            elif form == "as_none":
                parts.append(None)
            else:
                raise GraphError(f"an output of the form {shown(form)} can't stand in a graph")
        if not isinstance(made, list | tuple) or len(made) != len(parts):
            raise GraphError(
                f"{node.target} gives another number of results than the {len(parts)} in the file"
            )
        values: list[Tensor | None] = []
        for index, (part, result) in enumerate(zip(parts, made, strict=True)):
            if part is None or result is None:
                values.append(None)
                continue
            self._define(part, self.graph.call_function(operator.getitem, (node, index)), result)
            values.append(self.values[part].meta["val"])  # type: ignore[union-attr]
        node.meta["val"] = values

    def _symbolic(self, form: str, content: object) -> None:
        key, name = only(content, "a symbol")
        if key != "as_name" or type(name) is not str:
            raise GraphError(f"a computed size must have a name, got {shown(content)}")
        self._claim(name)
        if form != "as_sym_int":
            self.values[name] = _Unusable("it is a truth value or fraction computed from sizes")
        else:
            self.values[name] = _Size(name)

    def _arguments(
        self, op: torch._ops.OpOverload, entries: list[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given: dict[str, tuple[Any, bool]] = {}
        names = {argument.name: argument.kwarg_only for argument in op._schema.arguments}
        for entry in entries:
            name = field(entry, "name", str, "an argument")
            if name not in names or name in given:
                raise GraphError(f"{op} takes no argument {shown(name)}, or it is given twice")
            positional = entry.get("kind") == _POSITIONAL and not names[name]
            given[name] = (read_argument(entry.get("arg"), self._read), positional)
        args: list[Any] = []
        for name in names:
            if name not in given or not given[name][1]:
                break
            args.append(given.pop(name)[0])
        return tuple(args), {name: value for name, (value, _) in given.items()}

    # --- names and values ------------------------------------------------------------------------------------

    def _claim(self, name: str) -> None:
        """Refuse a name that is taken, or that no value may have."""
        if len(name) > MAX_NAME or not _PLAIN_NAME.fullmatch(name):
            raise GraphError(f"the value name {shown(name)} is not made of letters, digits and '_'")
        if name in self.taken:
            raise GraphError(f"two values have the name {shown(name)}")
        self.taken.add(name)

    def _define(self, name: str, node: torch.fx.Node, made: Any) -> None:
        """Give a value its name, after its recorded size and type were found to be the true ones."""
        self._claim(name)
        shape, dtype = self._shape(name)
        found = (tuple(made.shape), made.dtype) if isinstance(made, Tensor) else None
        if found != (size_at(shape, SHADOW_BATCH), dtype):
            have = "no tensor" if found is None else f"{batched([(found[0], str(found[1])[6:])])}"
            raise GraphError(
                f"value {shown(name)} is recorded as {batched([(size_at(shape, SHADOW_BATCH), str(dtype)[6:])])}, "
                f"but it is {have}"
            )
        node.name = name
        sizes = [self.batch * dim.times if isinstance(dim, BatchDim) else dim for dim in shape]
        node.meta["val"] = torch.empty(sizes, dtype=dtype, device="meta")
        self.values[name] = node
        self.shadows[node] = made

    def _read(self, name: object) -> Any:
        """The node or size that a name of the file stands for."""
        value = self.values.get(name) if type(name) is str else None
        if value is None:
            raise GraphError(f"the value {shown(name)} is read before it is made, or never made")
        if isinstance(value, _Unusable):
            raise GraphError(f"the value {shown(name)} can't stand in a graph: {value.why}")
        return self._computed(value.name) if isinstance(value, _Size) else value

    def _computed(self, name: str) -> int | torch.fx.Node:
        """A computed size: the number that it is, or a node that stands for a multiple of the batch."""
        dim = self._dim(field(self.sizes, name, dict, "the sizes of the graph"))
        if not isinstance(dim, BatchDim):
            return dim
        first = next(iter(self.graph.nodes))
        node = self.graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
        node.name = name
        node.meta["val"] = self.batch * dim.times
        self.values[name] = node
        self.shadows[node] = dim.times * SHADOW_BATCH
        return node

    def _dim(self, entry: object) -> int | BatchDim:
        dim, symbol = dim_of(entry)
        if symbol and symbol not in self.symbols:
            raise GraphError(
                f"a size depends on the symbol {symbol}, which is no batch axis; only axis 0 of the inputs may vary"
            )
        return dim

    def _meta(self, name: str) -> dict[str, Any]:
        return field(self.metas, name, dict, "the tensors of the graph")

    def _shape(self, name: str) -> tuple[Shape, torch.dtype]:
        meta = self._meta(name)
        what = f"value {shown(name)}"
        dtype = type_of(field(meta, "dtype", int, what))
        sizes = field(meta, "sizes", list, what)
        if len(sizes) > MAX_RANK:
            raise GraphError(f"{what} has {len(sizes):,} axes, the limit is {MAX_RANK}")
        shape = tuple(self._dim(size) for size in sizes)
        problem = shape_problem(shape)
        if problem is not None:
            raise GraphError(f"{what}: {problem}")
        return shape, dtype


def _unknown(entry: object) -> str | None:
    """The operator of a node where it is not on the lists, and no arithmetic of sizes."""
    target = field(entry, "target", str, "a node")
    if target in SYMBOL_CHECKS or _is_symbolic(_forms(entry)):
        return None
    return None if readable(target) is not None else target[:MAX_NAME]


def _forms(entry: object) -> list[tuple[str, Any]]:
    return [only(output, "a node's output") for output in field(entry, "outputs", list, "a node")]


def _is_symbolic(forms: list[tuple[str, Any]]) -> bool:
    return bool(forms) and all(form in ("as_sym_int", "as_sym_bool", "as_sym_float") for form, _ in forms)


#: Form of a stored input -> kind, and the key that holds the tensor's name.
_STORED: Mapping[str, tuple[InputKind, str]] = {
    "parameter": (InputKind.PARAMETER, "parameter_name"),
    "buffer": (InputKind.BUFFER, "buffer_name"),
    "tensor_constant": (InputKind.CONSTANT_TENSOR, "tensor_constant_name"),
}
