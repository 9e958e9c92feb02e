"""Whatever is done to the files of a graph, they load as what they say or are refused, and nothing else."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.errors import SartoError, StoreError
from sarto.graph import BatchDim, Input, ModelGraph, Node, Ref, capture
from sarto.graph.encoding import decode, encode
from sarto.graph.file import GraphFile, hash_of, read_graph, read_graph_files, write_graph
from sarto.graph.model import Arg, Constant
from sarto.graph.operators import default_args
from sarto.graph.validity import check_shapes
from sarto.testing.pico import pico
from sarto.testing.random_nets import MOVES, random_net

#: Words of the format and of hostile hands.
WORDS = [
    *(
        "ref",
        "tensor",
        "batch",
        "constant",
        "float",
        "self",
        "input",
        "weight",
        "x",
        "relu",
        "nan",
        "-inf",
        "",
    ),
    *("aten.relu.default", "aten.exec.default", "getitem", "../up", "a\0b", "\ud800", "__class__", "float16"),
]
LEAVES = st.one_of(
    st.sampled_from(WORDS),
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2, 10**9, 2**31 + 1, 2**63, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=2),
    max_leaves=4,
)
PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [b'"', b"\\", b"{", b"[", b"}", b"]", b",", b":", b"1e999", b"NaN", b"null", b"{}", b" "]
    ),
)


@cache
def base() -> ModelGraph:
    return capture(*pico("text", dtype=torch.float32), prove=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> GraphFile:
    return write_graph(base(), tmp_path_factory.mktemp("graph"))


def loads_as_it_says_or_is_refused(data: bytes) -> None:
    try:
        graph = decode(data, base().tensors)
        assert hash_of(encode(graph)) == hash_of(data)
        check_shapes(graph)
    except SartoError as error:
        assert len(str(error)) < 10_000


@settings(max_examples=150)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), PIECES), min_size=1, max_size=3))
def test_changed_bytes_of_a_graph(edits: list[tuple[float, int, bytes]]) -> None:
    data = encode(base())
    for at, removed, piece in edits:
        place = int(at * len(data))
        data = data[:place] + piece + data[place + removed :]
    loads_as_it_says_or_is_refused(data)


@settings(max_examples=150)
@given(st.data())
def test_changed_values_of_a_graph(data: st.DataObject) -> None:
    document = json.loads(encode(base()))
    for _ in range(data.draw(st.integers(1, 2))):
        _change(document, data)
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    loads_as_it_says_or_is_refused(text.encode("utf-8", "surrogatepass"))


def test_every_beginning_of_a_graph_is_refused() -> None:
    data = encode(base())
    for length in range(0, len(data), 7):
        with pytest.raises(SartoError, match="cut short"):
            decode(data[:length], base().tensors)


@settings(max_examples=60)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), in_head=st.booleans())
def test_changed_bytes_of_the_weights(at: float, byte: int, in_head: bool, files: GraphFile) -> None:
    whole = bytearray(files.weights_path.read_bytes())
    head = 8 + int.from_bytes(whole[:8], "little")
    place = int(at * (head if in_head else len(whole)))
    differs = whole[place] != byte
    whole[place] = byte
    changed = files.weights_path.with_name("changed")
    changed.unlink(missing_ok=True)
    changed.write_bytes(whole)
    try:
        graph = read_graph_files(files.graph_path, changed, verify=True)
        assert all(tensor.shape == base().tensors[name].shape for name, tensor in graph.tensors.items())
    except SartoError as error:
        assert str(changed) in str(error) or str(files.graph_path) in str(error)
    if differs:
        with pytest.raises(StoreError, match="not the file that was asked for"):
            read_graph_files(files.graph_path, changed, weights_hash=files.weights_hash)


@settings(max_examples=4)
@given(
    moves=st.lists(st.sampled_from(MOVES), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    flatten=st.booleans(),
)
def test_random_networks_come_back_as_they_were(
    moves: list[str], seed: int, flatten: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, x = random_net(moves, seed, flatten=flatten)
    graph = capture(model, x, prove=False)
    folder = tmp_path_factory.mktemp("graph")
    first = write_graph(graph, folder)
    again = read_graph(folder, graph_hash=first.graph_hash, weights_hash=first.weights_hash, verify=True)
    assert again.nodes == graph.nodes
    assert torch.equal(again(x), graph(x))  # type: ignore[arg-type]
    second = write_graph(again, folder)
    assert (second.graph_hash, second.weights_hash) == (first.graph_hash, first.weights_hash)


@given(
    st.floats(allow_nan=False),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.builds(BatchDim, st.integers(1, 2**31)), max_size=4),
    st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=20),
)
def test_every_number_and_text_comes_back_as_it_was(
    number: float, whole: int, sizes: list[int | BatchDim], text: str
) -> None:
    calls: list[tuple[str, dict[str, Arg]]] = [
        ("aten.mul.Scalar", {"self": Ref("x"), "other": number}),
        ("aten.select.int", {"self": Ref("x"), "dim": whole, "index": whole}),
        ("aten.zeros.default", {"size": tuple(sizes), "dtype": Constant("dtype", "bool")}),
        ("aten.einsum.default", {"equation": text, "tensors": (Ref("x"),)}),
    ]
    shape = (BatchDim(), 1)
    for op, args in calls:
        node = Node("y", op, {**default_args(op), **args}, (shape,), ("float32",))
        graph = ModelGraph((Input("x", shape, "float32"),), (node,), ("y",), {}, frozenset())
        again = decode(encode(graph), {})
        assert again.nodes == graph.nodes
        assert all(repr(again.nodes[0].args[name]) == repr(arg) for name, arg in args.items())


def _change(document: dict[str, Any], data: st.DataObject) -> None:
    """Replace, remove, double or add one value somewhere."""
    holder: Any = document
    while True:
        keys = sorted(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not data.draw(st.integers(0, 4)):
            break
        holder = inner
    action = data.draw(st.sampled_from(["replace", "replace", "remove", "add", "move"]))
    if action == "replace":
        holder[key] = data.draw(VALUES)
    elif action == "remove":
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(data.draw(st.integers(0, len(holder))), copy.deepcopy(inner))
    elif action == "add":
        holder[data.draw(st.sampled_from(WORDS))] = copy.deepcopy(inner)
    else:
        holder[key] = holder[data.draw(st.sampled_from(keys))]
