"""Which arguments an operator takes, and whether those of a node are such ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sarto.errors import GraphError, suggest
from sarto.graph.bounded import is_text, shown
from sarto.graph.model import Arg, BatchDim, Constant, Node, Ref, TensorRef
from sarto.graph.operators import GETITEM, overload, signature, thaw_constant

#: Largest size of an axis.
MAX_DIM: Final = 2**31
#: Characters of a text argument, or of a reason in `refused`.
MAX_TEXT: Final = 10_000
#: The graph's own floating-point type, and the device of its first input.
MODEL_CONSTANTS: Final = frozenset([Constant("dtype", "model"), Constant("device", "model")])


@dataclass(frozen=True)
class Scope:
    """What a node may read.

    Attributes:
        made: values that exist before the node -> how many tensors each is.
        later: names of all nodes, to tell a cycle from an unknown name.
        tensors: names of the stored tensors.
    """

    made: Mapping[str, int]
    later: Set[str]
    tensors: Set[str]


@dataclass(frozen=True)
class Kind:
    """What an argument may be: `leaf` says of a single value, the flags say how it may be wrapped.

    Attributes:
        single: one value may stand for a whole list (`stride=2` for `stride=(2, 2)`).
    """

    leaf: str
    optional: bool = False
    is_list: bool = False
    optional_entries: bool = False
    single: bool = False

    def __str__(self) -> str:
        entry = f"{self.leaf} or None" if self.optional_entries else self.leaf
        return (f"a list of {entry}" if self.is_list else entry) + (" or None" if self.optional else "")


@dataclass(frozen=True)
class Form:
    """Arguments of an operator in order, their defaults, and how many tensors it gives."""

    kinds: Mapping[str, Kind]
    defaults: Mapping[str, object]
    returns: int


@cache
def form_of(op: str) -> Form:
    """The arguments that an allowed operator takes.

    Raises:
        GraphError: the operator is not allowed.
    """
    if op == GETITEM:
        return Form({"source": Kind("several tensors"), "index": Kind("int")}, {}, 1)
    schema = overload(op)._schema
    names = signature(op)
    declared = {argument.name: argument for argument in schema.arguments}
    kinds = {name: _kind(declared[name]) for name in (*names.positional, *names.keyword)}
    if kinds.get("other") == Kind("tensor"):
        # torch takes `x * 0.5` as a product of tensors, the second of them a number.
        kinds["other"] = Kind(_TENSOR_OR_NUMBER)
    return Form(kinds, names.defaults, len(schema.returns))


def argument_problems(node: Node, form: Form, scope: Scope) -> Iterator[str]:
    """What is wrong with the arguments of a node: names, kinds, and what they refer to."""
    if node.args.keys() != form.kinds.keys():
        for name in sorted(node.args.keys() - form.kinds.keys()):
            yield f"{node.op} has no argument {shown(name)}{suggest(name, form.kinds)}"
        missing = [name for name in form.kinds if name not in node.args]
        if missing:
            yield f"{node.op} also needs {', '.join(missing)}; a graph holds every argument"
        return
    for name, kind in form.kinds.items():
        arg = node.args[name]
        problem = _problem(kind, arg, scope)
        if problem is not None and not _is_default(arg, form.defaults.get(name)):
            yield f"{node.op}: argument {name!r} {problem}"
    if node.op == GETITEM:
        source, index = node.args["source"], node.args["index"]
        count = scope.made.get(source.name, 1) if isinstance(source, Ref) else 1
        if count > 1 and type(index) is int and not 0 <= index < count:
            yield f"{shown(source)} is {count} tensors, counted from 0; there is no {shown(index)}"


def _kind(argument: Any) -> Kind:
    """The kind that a torch schema gives an argument."""
    declared = argument.real_type
    optional = is_list = optional_entries = False
    while declared.kind() in ("OptionalType", "ListType"):
        if declared.kind() == "ListType":
            is_list = True
        elif is_list:
            optional_entries = True
        else:
            optional = True
        declared = declared.getElementType()
    return Kind(_LEAVES[declared.kind()], optional, is_list, optional_entries, argument.N is not None)


def _problem(kind: Kind, arg: Arg, scope: Scope) -> str | None:
    if arg is None:
        return None if kind.optional else f"must be {kind}, got None"
    if kind.is_list and isinstance(arg, tuple):
        for place, entry in enumerate(arg):
            if entry is None and kind.optional_entries:
                continue
            problem = _leaf_problem(kind.leaf, entry, scope)
            if problem is not None:
                return f"[{place}] {problem}"
        return None
    if kind.is_list and not kind.single:
        return f"must be {kind}, got {shown(arg)}"
    return _leaf_problem(kind.leaf, arg, scope)


def _leaf_problem(leaf: str, arg: Arg, scope: Scope) -> str | None:
    if not _FITS[leaf](arg):
        return f"must be {leaf}, got {shown(arg)}"
    if isinstance(arg, Ref):
        count = scope.made.get(arg.name)
        if count is None and arg.name in scope.later:
            return f"reads {shown(arg.name)}, which is made here or later: the graph has a cycle"
        if count is None:
            return f"reads {shown(arg.name)}, which does not exist{suggest(arg.name, scope.made)}"
        if (count == 1) == (leaf == "several tensors"):
            return f"reads {shown(arg.name)}, which is {count} tensors; getitem picks one of several"
    elif isinstance(arg, TensorRef):
        if arg.name not in scope.tensors:
            return (
                f"reads the tensor {shown(arg.name)}, which is not stored{suggest(arg.name, scope.tensors)}"
            )
    elif isinstance(arg, Constant) and arg not in MODEL_CONSTANTS:
        try:
            thaw_constant(arg)
        except GraphError:
            return f"must be an allowed {leaf}, got {shown(arg.value)}"
    return None


def _is_default(arg: Arg, default: object) -> bool:
    """Whether an argument is the schema's default as `default_args` has it, maybe a constant as a number."""
    return arg is not None and type(arg) is type(default) and arg == default


def _is_int(arg: Arg) -> bool:
    if isinstance(arg, BatchDim):
        return type(arg.times) is int and 1 <= arg.times <= MAX_DIM
    return type(arg) is int and -(2**63) <= arg < 2**63


def _is_number(arg: Arg) -> bool:
    return type(arg) in (float, bool) or _is_int(arg)


def _constant(kind: str) -> Callable[[Arg], bool]:
    return lambda arg: isinstance(arg, Constant) and arg.kind == kind


_TENSOR_OR_NUMBER: Final = "tensor or number"
#: Type in a torch schema -> what it is called here.
_LEAVES: Mapping[str, str] = {
    "TensorType": "tensor",
    "IntType": "int",
    "SymIntType": "int",
    "FloatType": "float",
    "NumberType": "number",
    "BoolType": "bool",
    "StringType": "text",
    "ScalarTypeType": "dtype",
    "LayoutType": "layout",
    "MemoryFormatType": "memory_format",
    "DeviceObjType": "device",
}
_FITS: Mapping[str, Callable[[Arg], bool]] = {
    "several tensors": lambda arg: isinstance(arg, Ref),
    "tensor": lambda arg: isinstance(arg, Ref | TensorRef),
    _TENSOR_OR_NUMBER: lambda arg: isinstance(arg, Ref | TensorRef) or _is_number(arg),
    "int": _is_int,
    "float": lambda arg: type(arg) is float or (type(arg) is int and _is_int(arg)),
    "number": _is_number,
    "bool": lambda arg: type(arg) is bool,
    "text": lambda arg: isinstance(arg, str) and is_text(arg, MAX_TEXT),
    "dtype": _constant("dtype"),
    "layout": _constant("layout"),
    "memory_format": _constant("memory_format"),
    "device": _constant("device"),
}
