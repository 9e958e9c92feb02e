"""Whether sarto may run and store a graph: it is bounded, acyclic, of allowed operators, safely named."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, nn

from sarto.errors import SPELT_OUT, GraphError, suggest
from sarto.graph.arguments import MAX_DIM, MAX_TEXT, MODEL_CONSTANTS, Scope, argument_problems, form_of
from sarto.graph.bounded import is_text, shown
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
    shapes_of,
    size_at,
)
from sarto.graph.operators import GETITEM, overload, signature, thaw_constant

#: Types that a stored tensor or a value may have.
DTYPES: Final[Mapping[str, torch.dtype]] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
MAX_NODES: Final = 200_000
MAX_TENSORS: Final = 200_000
MAX_RANK: Final = 16
#: Elements of all tensors together, or of one value at batch 1.
MAX_ELEMENTS: Final = 2**36
MAX_NAME: Final = 256

#: Stands for the batch while shapes are checked: a prime that few axes have.
SHADOW_BATCH = 10_007

#: Operators with a step for each position of an axis: (input, state, parameters, ..., batch_first).
_RECURRENT = frozenset(
    f"aten.{name}" for name in ("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
)

_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
#: What a generated `forward` already uses; see `torch.fx.graph`.
_RESERVED = frozenset(["self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree"])
#: Names that `nn.Module` has itself: a tensor of that name could not be attached to a module.
_ATTRIBUTES = frozenset(dir(nn.Module()))
_CURE = "sarto did not write this graph; capture the model again"


def check_graph(graph: ModelGraph) -> None:
    """Refuse a graph that breaks a rule of the graph file; up to 20 problems at once. Reads no weights.

    Raises:
        GraphError: an unsafe, double or unknown name, a value read before it is made, an operator that is not
            allowed, arguments that are not those of its schema, a size beyond the limits.
    """
    problems = list(islice(_problems(graph), SPELT_OUT))
    if problems:
        raise GraphError("this is no graph that sarto can store or run", problems=problems)


@torch.no_grad()
def check_shapes(graph: ModelGraph) -> None:
    """Refuse a graph whose recorded shapes or types are not the ones it computes. Reads no weights.

    Every node runs once on tensors without data. The batch is a prime, which tells a size that follows the
    batch from one that does not.

    Raises:
        GraphError: torch refuses a node's arguments, or gives another shape or type than the graph records.
    """
    env: dict[str, Any] = {
        entry.name: torch.empty(size_at(entry.shape, SHADOW_BATCH), dtype=DTYPES[entry.dtype], device="meta")
        for entry in graph.inputs
    }
    stored = graph.sketch().tensors
    for node in graph.nodes:
        try:
            made = _run_without_data(node, env, stored, DTYPES[graph.floating_dtype])
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise GraphError(
                f"node {node.name!r}: {node.op} can't run with its arguments ({reason}); {_CURE}",
                where=node.name,
            ) from error
        results = made if isinstance(made, list | tuple) else (made,)
        have = [(tuple(r.shape), str(r.dtype).removeprefix("torch.")) for r in results]
        want = [(size_at(s, SHADOW_BATCH), d) for s, d in zip(node.shapes, node.dtypes, strict=True)]
        if have != want:
            raise GraphError(
                f"node {node.name!r} is recorded as {batched(want)}, but {node.op} gives {batched(have)}; "
                f"{_CURE}",
                where=node.name,
            )
        env[node.name] = made


def not_numbers(graph: ModelGraph) -> list[str]:
    """Names of the tensors that hold NaN, or infinity where they are learned; constants may, as masks do.

    Reads all floating-point tensors.
    """
    return [
        name
        for name, tensor in graph.tensors.items()
        if tensor.is_floating_point() and not _are_numbers(tensor, learned=name in graph.parameters)
    ]


def _are_numbers(tensor: Tensor, *, learned: bool) -> bool:
    # A finite sum has finite terms; only where it is not, each number is looked at.
    if math.isfinite(tensor.sum()):
        return True
    return bool((torch.isfinite(tensor) if learned else ~torch.isnan(tensor)).all())


def _problems(graph: ModelGraph) -> Iterator[str]:
    for what, count, limit in (
        ("nodes", len(graph.nodes), MAX_NODES),
        ("tensors", len(graph.tensors), MAX_TENSORS),
        ("inputs", len(graph.inputs), MAX_RANK),
        ("outputs", len(graph.outputs), MAX_NODES),
        ("refused groups", len(graph.refused), MAX_TENSORS),
    ):
        if count > limit:
            yield f"the graph has {count:,} {what}, the limit is {limit:,}"
            return
    shapes = shapes_of(graph.tensors)
    yield from _tensor_problems(graph, shapes)
    made: dict[str, int] = {}
    yield from _input_problems(graph.inputs, made)
    scope = Scope(made, {node.name for node in graph.nodes}, shapes.keys())
    for place, node in enumerate(graph.nodes):
        for problem in _node_problems(node, scope):
            yield f"nodes[{place}] {shown(node.name)}: {problem}"
        made[node.name] = len(node.shapes)
    if not graph.outputs:
        yield "the graph has no output; name at least one value"
    for name in graph.outputs:
        if name not in made:
            yield f"output {shown(name)} does not exist{suggest(name, made)}"
        elif made[name] != 1:
            yield f"output {shown(name)} is {made[name]} tensors; name a getitem node that picks one"
    for group, reason in graph.refused.items():
        if not is_text(group, MAX_NAME) or not is_text(reason, MAX_TEXT):
            yield f"refused[{shown(group)}]: group and reason must be printable text, got {shown(reason)}"


def _tensor_problems(
    graph: ModelGraph, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> Iterator[str]:
    total = 0
    for name, (shape, dtype) in shapes.items():
        problem = _name_problem(name) or _place_problem(name, shapes) or shape_problem(shape)
        if problem is None and dtype not in DTYPES.values():
            problem = _dtype_problem(str(dtype).removeprefix("torch."))
        if problem is not None:
            yield f"tensor {shown(name)}: {problem}"
        else:
            total += math.prod(shape)
    if total > MAX_ELEMENTS:
        yield f"the tensors have {total:,} elements together, the limit is {MAX_ELEMENTS:,}"
    for name in sorted(graph.parameters - shapes.keys()):
        yield f"parameter {shown(name)} is no tensor of the graph{suggest(name, shapes)}"


def _input_problems(inputs: tuple[Input, ...], made: dict[str, int]) -> Iterator[str]:
    if not inputs:
        yield "the graph has no input; it needs one whose axis 0 is the batch"
    elif inputs[0].shape[:1] != (BatchDim(1),):
        first = inputs[0]
        yield f"input {shown(first.name)}: axis 0 must be the batch, the shape is {shown(first.shape)}"
    for entry in inputs:
        name = entry.name
        problem = _name_problem(name) or shape_problem(entry.shape) or _dtype_problem(entry.dtype)
        if problem is None and (not name.isidentifier() or keyword.iskeyword(name) or name in _RESERVED):
            problem = "an input needs a plain Python name that torch.fx does not use itself"
        if problem is None and name in made:
            problem = "another input has this name"
        if problem is not None:
            yield f"input {shown(name)}: {problem}"
        made[name] = 1


def _node_problems(node: Node, scope: Scope) -> Iterator[str]:
    problem = _name_problem(node.name)
    if problem is not None:
        yield problem
    elif node.name in scope.made:
        yield "another value has this name"
    for problem in (*map(shape_problem, node.shapes), *map(_dtype_problem, node.dtypes)):
        if problem is not None:
            yield problem
    if len(node.op) > MAX_NAME:
        yield f"operator {shown(node.op)} is not on the list of allowed operators"
        return
    try:
        form = form_of(node.op)
    except GraphError as error:
        yield error.detail
        return
    if not len(node.shapes) == len(node.dtypes) == form.returns:
        have = f"{len(node.shapes)} shapes and {len(node.dtypes)} types"
        yield f"{node.op} makes {form.returns} tensors, the graph records {have}"
    yield from argument_problems(node, form, scope)


def _name_problem(name: str) -> str | None:
    if len(name) > MAX_NAME:
        return f"the name has {len(name):,} characters, the limit is {MAX_NAME}"
    if not _NAME.fullmatch(name):
        return "a name is made of letters, digits, '_' and '-', in parts joined by single dots"
    return None


def _place_problem(name: str, taken: Mapping[str, object]) -> str | None:
    """Why a tensor can't be attached to a module under its name; None where it can."""
    parts = name.split(".")
    if not _ATTRIBUTES.isdisjoint(parts):
        return f"every module has an attribute {min(_ATTRIBUTES.intersection(parts))!r} of its own"
    for end in range(1, len(parts)):
        owner = ".".join(parts[:end])
        if owner in taken:
            return f"{owner!r} is a tensor too, so it can't hold another one"
    return None


def _dtype_problem(dtype: str) -> str | None:
    return None if dtype in DTYPES else f"the type {shown(dtype)} is not allowed{suggest(dtype, DTYPES)}"


def shape_problem(shape: Shape) -> str | None:
    """What is wrong with a shape; None where it is within the limits."""
    if len(shape) > MAX_RANK:
        return f"the shape has {len(shape):,} axes, the limit is {MAX_RANK}"
    total = 1
    for dim in shape:
        size, least = (dim.times, 1) if isinstance(dim, BatchDim) else (dim, 0)
        if type(size) is not int or not least <= size <= MAX_DIM:
            return f"the shape {shown(shape)} holds {shown(dim)}; a size lies between 0 and {MAX_DIM:,}"
        total *= size
    if total > MAX_ELEMENTS:
        return f"the shape {shown(shape)} has {total:,} elements, the limit is {MAX_ELEMENTS:,}"
    return None


def _run_without_data(
    node: Node, env: Mapping[str, Any], stored: Mapping[str, Tensor], floating: torch.dtype
) -> Any:
    """What a node gives on meta tensors; factories are told to make meta tensors too."""

    def value(arg: Arg) -> Any:
        if isinstance(arg, Ref):
            return env[arg.name]
        if isinstance(arg, TensorRef):
            return stored[arg.name]
        if isinstance(arg, BatchDim):
            return arg.times * SHADOW_BATCH
        if isinstance(arg, Constant) and arg in MODEL_CONSTANTS:
            return floating if arg.kind == "dtype" else torch.device("meta")
        if isinstance(arg, Constant):
            return thaw_constant(arg)
        return [value(inner) for inner in arg] if isinstance(arg, tuple) else arg

    if node.op == GETITEM:
        return value(node.args["source"])[node.args["index"]]
    names = signature(node.op)
    named = {name: value(node.args[name]) for name in names.keyword if node.args[name] is not None}
    return call_without_data(overload(node.op), [value(node.args[name]) for name in names.positional], named)


def call_without_data(op: torch._ops.OpOverload, positional: list[Any], named: dict[str, Any]) -> Any:
    """What an operator gives on meta tensors. Factories make meta tensors too; recurrent layers do one step.

    Raises:
        RuntimeError, TypeError, ...: torch refuses the arguments.
    """
    arguments = op._schema.arguments
    given = dict(zip((argument.name for argument in arguments), positional, strict=False)) | named
    for argument in arguments:
        if argument.name == "device" and (argument.kwarg_only or "device" in given):
            given["device"] = torch.device("meta")
    axis = _step_axis(op, given)
    if axis is None:
        return op(**given)
    steps = given["input"].shape[axis]
    first, *states = op(**{**given, "input": given["input"].narrow(axis, 0, 1)})
    sizes = [steps if place == axis else size for place, size in enumerate(first.shape)]
    return (first.new_empty(sizes), *states)


def _step_axis(op: torch._ops.OpOverload, given: Mapping[str, Any]) -> int | None:
    """The axis that a recurrent layer walks along, where it is long: each step takes time even without data."""
    if str(op) not in _RECURRENT or not isinstance(given.get("input"), Tensor):
        return None
    axis = 1 if given.get("batch_first") is True and given["input"].ndim == 3 else 0
    return axis if given["input"].ndim > axis and given["input"].shape[axis] > 1 else None


def batched(specs: list[tuple[tuple[int, ...], str]]) -> str:
    """Shapes and types as text, multiples of the stand-in batch written as such."""

    def size(dim: int) -> str:
        if dim == 0 or dim % SHADOW_BATCH:
            return str(dim)
        return "batch" if dim == SHADOW_BATCH else f"{dim // SHADOW_BATCH} x batch"

    return " and ".join(f"({', '.join(map(size, shape))}) {dtype}" for shape, dtype in specs)
