"""A graph as canonical JSON and back: equal graphs give equal bytes, and only those bytes are read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import islice
from typing import Any, Final, TypeVar

from torch import Tensor

from sarto.errors import SPELT_OUT, GraphError, StoreError, suggest
from sarto.graph.bounded import parse_json, shown
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
)
from sarto.graph.operators import ALLOWED, GETITEM, signature
from sarto.graph.validity import check_graph

T = TypeVar("T")

#: Version of the format. Readers refuse newer ones.
SCHEMA: Final = 1
MAX_GRAPH_BYTES: Final = 64 * 2**20

_NOT_FINITE: Mapping[str, float] = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def encode(graph: ModelGraph) -> bytes:
    """The graph without its weights as canonical JSON: sorted keys, no spaces, shortest floats, UTF-8.

    Raises:
        GraphError: the graph breaks a rule of the format (`check_graph`), or is too large for it.
    """
    check_graph(graph)
    document = {
        "schema": SCHEMA,
        "inputs": [
            {"name": entry.name, "shape": _write(entry.shape), "dtype": entry.dtype} for entry in graph.inputs
        ],
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "args": {name: _write(arg) for name, arg in node.args.items()},
                "shapes": _write(node.shapes),
                "dtypes": list(node.dtypes),
            }
            for node in graph.nodes
        ],
        "outputs": list(graph.outputs),
        "tensors": {
            name: {
                "shape": list(shape),
                "dtype": str(dtype).removeprefix("torch."),
                "parameter": name in graph.parameters,
            }
            for name, (shape, dtype) in shapes_of(graph.tensors).items()
        },
        "refused": dict(graph.refused),
    }
    data = _canonical(document)
    if len(data) > MAX_GRAPH_BYTES:
        raise GraphError(f"the graph takes {len(data):,} bytes, the limit is {MAX_GRAPH_BYTES:,}")
    return data


def decode(data: bytes, tensors: Mapping[str, Tensor]) -> ModelGraph:
    """The graph that canonical JSON describes, over the given tensors. Runs no code and reads no weights.

    `encode` of the result gives the same bytes again. Text in any other form is refused, so that one graph
    has one hash.

    Args:
        tensors: must have exactly the names, shapes and types that the text lists.

    Raises:
        GraphError: not JSON, not in canonical form, beyond the limits, unknown keys, or no sound graph.
        StoreError: written in a newer format, or for other tensors.
    """
    document = parse_json(data, max_bytes=MAX_GRAPH_BYTES)
    _check_schema(document)
    if _rewritten(document) != data:
        raise GraphError(_why_not_canonical(data))
    _, inputs, nodes, outputs, table, refused = _fields(
        document, ("schema", "inputs", "nodes", "outputs", "tensors", "refused"), "the graph"
    )
    parameters = _match_tensors(table, tensors)
    reader = _Reader()
    graph = ModelGraph(
        inputs=reader.all("inputs", inputs, _read_input),
        nodes=reader.all("nodes", nodes, _read_node),
        outputs=reader.all("outputs", outputs, lambda entry: _text(entry, "an output")),
        tensors=tensors,
        parameters=parameters,
        refused=reader.texts("refused", refused),
    )
    reader.refuse()
    check_graph(graph)
    return graph


class _Reader:
    """Reads lists entry by entry, and goes on after a bad one until there are many."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def all(self, what: str, entries: object, read: Callable[[Any], T]) -> tuple[T, ...]:
        if type(entries) is not list:
            self.problems.append(f"{what} must be a list, got {shown(entries)}")
            return ()
        made: list[T] = []
        for place, entry in enumerate(entries):
            try:
                made.append(read(entry))
            except GraphError as error:
                self.problems.append(f"{what}[{place}]: {error}")
                if len(self.problems) >= SPELT_OUT:
                    break
        return tuple(made)

    def refuse(self) -> None:
        """Raise one GraphError that holds all problems, if there are any."""
        if self.problems:
            raise GraphError("the graph file is malformed", problems=self.problems)

    def texts(self, what: str, entries: object) -> dict[str, str]:
        if type(entries) is dict and all(type(value) is str for value in entries.values()):
            return entries
        self.problems.append(f"{what} must be an object of texts, got {shown(entries)}")
        return {}


def _check_schema(document: object) -> None:
    if type(document) is not dict:
        raise GraphError(f"a graph file holds a JSON object, got {shown(document)}")
    schema = document.get("schema")
    if type(schema) is not int or schema < 1:
        raise GraphError(f"no graph file: its 'schema' must be a version number, got {shown(schema)}")
    if schema > SCHEMA:
        raise StoreError(
            f"this graph was written by a newer version of sarto (graph format {shown(schema)}, this one "
            f"reads up to {SCHEMA}): update sarto"
        )


def _match_tensors(table: object, tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the parameters, after the table was compared with the tensors that there are."""
    if type(table) is not dict:
        raise GraphError(f"tensors must be an object, got {shown(table)}")
    reader = _Reader()
    entries = reader.all("tensors", [*table.items()], _read_tensor)
    reader.refuse()
    listed = {name: (shape, dtype) for name, shape, dtype, _ in entries}
    found = {
        name: (tuple(shape), str(dtype).removeprefix("torch."))
        for name, (shape, dtype) in shapes_of(tensors).items()
    }
    if listed != found:
        problems = list(islice(_differences(listed, found), SPELT_OUT))
        raise StoreError(
            "the graph and the weights don't belong together; fetch both again from one source",
            problems=problems,
        )
    return frozenset(name for name, _, _, parameter in entries if parameter)


def _differences(listed: Mapping[str, object], found: Mapping[str, object]) -> Iterable[str]:
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            yield f"tensor {shown(name)} is in the graph but not in the weights"
        elif name not in listed:
            yield f"tensor {shown(name)} is in the weights but not in the graph"
        elif listed[name] != found[name]:
            have, want = shown(found[name]), shown(listed[name])
            yield f"tensor {shown(name)} is {want} in the graph, {have} in the weights"


def _read_tensor(item: tuple[str, object]) -> tuple[str, tuple[int, ...], str, bool]:
    name, entry = item
    try:
        shape, dtype, parameter = _fields(entry, ("shape", "dtype", "parameter"), "a tensor")
        if type(shape) is not list or any(type(dim) is not int for dim in shape):
            raise GraphError(f"shape must be a list of whole numbers, got {shown(shape)}")
        if type(parameter) is not bool:
            raise GraphError(f"parameter must be true or false, got {shown(parameter)}")
        return name, tuple(shape), _text(dtype, "dtype"), parameter
    except GraphError as error:
        raise GraphError(f"{shown(name)}: {error.detail}") from None


def _read_input(entry: object) -> Input:
    name, shape, dtype = _fields(entry, ("name", "shape", "dtype"), "an input")
    return Input(_text(name, "name"), _read_shape(shape), _text(dtype, "dtype"))


def _read_node(entry: object) -> Node:
    name, op, args, shapes, dtypes = _fields(entry, ("name", "op", "args", "shapes", "dtypes"), "a node")
    if type(args) is not dict:
        raise GraphError(f"args must be an object, got {shown(args)}")
    if type(shapes) is not list or type(dtypes) is not list:
        raise GraphError(f"shapes and dtypes must be lists, got {shown(shapes)} and {shown(dtypes)}")
    op = _text(op, "op")
    return Node(
        _text(name, "name"),
        op,
        {key: _read(args[key]) for key in _in_order(op, args)},
        tuple(_read_shape(shape) for shape in shapes),
        tuple(_text(dtype, "dtype") for dtype in dtypes),
    )


def _in_order(op: str, args: Mapping[str, object]) -> Iterable[str]:
    """The names of the arguments as the operator's schema orders them; unknown ones are refused later."""
    order = _order(op) if op == GETITEM or op in ALLOWED else args
    return order if args.keys() == order.keys() else args


@cache
def _order(op: str) -> Mapping[str, None]:
    if op == GETITEM:
        return {"source": None, "index": None}
    names = signature(op)
    return dict.fromkeys((*names.positional, *names.keyword))


def _read_shape(value: object) -> Shape:
    shape = _read(value)
    if not isinstance(shape, tuple) or not all(
        type(dim) is int or isinstance(dim, BatchDim) for dim in shape
    ):
        raise GraphError(f"a shape is a list of sizes, got {shown(value)}")
    return shape  # type: ignore[return-value]


def _read(value: Any) -> Arg:
    """An argument from its JSON form."""
    kind = type(value)
    if kind is list:
        return tuple([_read(inner) for inner in value])
    if kind is not dict:
        return value  # type: ignore[no-any-return]
    if len(value) == 1:
        form, content = next(iter(value.items()))
        if form == "ref" and type(content) is str:
            return Ref(content)
        if form == "tensor" and type(content) is str:
            return TensorRef(content)
        if form == "batch" and type(content) is int:
            return BatchDim(content)
        if form == "float" and type(content) is str and content in _NOT_FINITE:
            return _NOT_FINITE[content]
        if form == "constant" and type(content) is list and [type(part) for part in content] == [str, str]:
            return Constant(*content)
    raise GraphError(
        f"{shown(value)} is no argument; an object is a ref, tensor, batch, constant [kind, value] or float "
        "(inf, -inf, nan)"
    )


def _fields(value: object, names: tuple[str, ...], what: str) -> list[Any]:
    """The values of an object that must have exactly these keys."""
    if type(value) is not dict:
        raise GraphError(f"{what} must be an object, got {shown(value)}")
    if len(value) != len(names) or not all(name in value for name in names):
        unknown = [f"unknown key {shown(key)}{suggest(key, names)}" for key in value if key not in names]
        missing = [f"the key {name!r} is missing" for name in names if name not in value]
        raise GraphError(f"{what}: {'; '.join([*unknown[:5], *missing])}")
    return [value[name] for name in names]


def _text(value: object, what: str) -> str:
    if type(value) is not str:
        raise GraphError(f"{what} must be a text, got {shown(value)}")
    return value


def _write(value: Any) -> Any:
    """The JSON form of an argument."""
    if isinstance(value, tuple):
        return [_write(inner) for inner in value]
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, BatchDim):
        return {"batch": value.times}
    if isinstance(value, TensorRef):
        return {"tensor": value.name}
    if isinstance(value, Constant):
        return {"constant": [value.kind, value.value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    return value


def _canonical(document: object) -> bytes:
    return json.dumps(
        document, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()


def _rewritten(document: object) -> bytes | None:
    """The canonical text of parsed JSON; None where there is none (an endless number, half a character)."""
    try:
        return _canonical(document)
    except ValueError:
        return None


def _why_not_canonical(data: bytes) -> str:
    doubles: list[str] = []

    def note_doubles(pairs: list[tuple[str, Any]]) -> None:
        keys: set[str] = set()
        doubles.extend(key for key, _ in pairs if key in keys or keys.add(key))  # type: ignore[func-returns-value]

    json.loads(data, object_pairs_hook=note_doubles)
    if doubles:
        return f"the graph file gives the key {shown(doubles[0])} twice in one object"
    return (
        "the graph file is not in canonical form (sorted keys, no spaces, shortest numbers): another program "
        "changed it; take the file that sarto wrote"
    )
