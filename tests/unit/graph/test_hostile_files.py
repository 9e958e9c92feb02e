"""Files of unknown origin: what is wrong is refused with words, and nothing in a file can run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sarto.errors import GraphError, StoreError
from sarto.graph import BatchDim, Input, ModelGraph, Node, Ref, TensorRef
from sarto.graph import bounded as bounded_room
from sarto.graph.bounded import parse_json
from sarto.graph.encoding import MAX_GRAPH_BYTES, decode, encode
from sarto.graph.file import GraphFile, hash_of, read_graph, read_graph_files, write_graph
from sarto.graph.lazy import LazyTensors
from sarto.graph.operators import default_args


def small() -> ModelGraph:
    """Linear, ReLU and top-2 on (batch, 3): values, tensors, several outputs."""
    batch = BatchDim()
    linear = {"input": Ref("x"), "weight": TensorRef("fc.weight"), "bias": TensorRef("fc.bias")}
    topk = {**default_args("aten.topk.default"), "self": Ref("relu"), "k": 2}
    return ModelGraph(
        inputs=(Input("x", (batch, 3), "float32"),),
        nodes=(
            Node("fc", "aten.linear.default", linear, ((batch, 4),), ("float32",)),
            Node("relu", "aten.relu.default", {"self": Ref("fc")}, ((batch, 4),), ("float32",)),
            Node("top", "aten.topk.default", topk, ((batch, 2), (batch, 2)), ("float32", "int64")),
            Node("best", "getitem", {"source": Ref("top"), "index": 0}, ((batch, 2),), ("float32",)),
        ),
        outputs=("best",),
        tensors={"fc.weight": torch.arange(12.0).reshape(4, 3), "fc.bias": torch.ones(4)},
        parameters=frozenset(["fc.weight", "fc.bias"]),
        refused={"fc.weight:0": "differs"},
    )


def text_of(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def changed(place: str, value: object) -> bytes:
    """The text of `small`, changed in one place and put into canonical form again."""
    document: Any = json.loads(encode(small()))
    *path, last = (int(step) if step.isdigit() else step for step in place.split())
    holder = document
    for step in path:
        holder = holder[step]
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    return text_of(document)


def read(data: bytes) -> ModelGraph:
    return decode(data, small().tensors)


@pytest.fixture
def written(tmp_path: Path) -> GraphFile:
    return write_graph(small(), tmp_path / "graph")


def test_the_unchanged_text_is_accepted() -> None:
    assert encode(read(text_of(json.loads(encode(small()))))) == encode(small())


#: Where, what is put there (GONE: taken away), and what the error says.
GONE = object()
RELU, TOP, BEST = "nodes 1", "nodes 2", "nodes 3"
SIZES = "nodes 1 shapes"
UNSOUND: list[tuple[str, object, str]] = [
    # operators
    (
        f"{RELU} op",
        "aten.reluu.default",
        r"nodes\[1\] 'relu': operator 'aten.reluu.default' is not on the list",
    ),
    (f"{RELU} op", "aten.reluu.default", r"did you mean 'aten\.relu\.default'"),
    (f"{RELU} op", "aten.from_file.default", "operator 'aten.from_file.default' is not on the list"),
    (f"{RELU} op", "os.system", "operator 'os.system' is not on the list"),
    (f"{RELU} op", "__import__", "operator '__import__' is not on the list"),
    (f"{RELU} op", "aten.relu.default" * 10_000, r"operator 'aten\.relu\..*\.\.\..* is not on the list"),
    (f"{RELU} op", 7, r"nodes\[1\]: op must be a text, got 7"),
    # values
    (f"{RELU} args self", {"ref": "best"}, "argument 'self' reads 'best', which is made here or later"),
    (f"{RELU} args self", {"ref": "best"}, "the graph has a cycle"),
    (f"{RELU} args self", {"ref": "relu"}, "reads 'relu', which is made here or later"),
    (f"{RELU} args self", {"ref": "fcc"}, r"reads 'fcc', which does not exist \(did you mean 'fc'"),
    ("nodes 0 args weight", {"tensor": "fc.wait"}, r"tensor 'fc.wait', which is not stored \(did you mean"),
    (f"{RELU} name", "fc", r"nodes\[1\] 'fc': another value has this name"),
    (f"{RELU} name", "x", "another value has this name"),
    ("outputs", ["bets"], r"output 'bets' does not exist \(did you mean 'best'"),
    ("outputs", [], "the graph has no output"),
    ("outputs", ["top"], "output 'top' is 2 tensors; name a getitem node"),
    (
        f"{BEST} args source",
        {"ref": "relu"},
        "reads 'relu', which is 1 tensors; getitem picks one of several",
    ),
    (f"{BEST} args index", 2, "is 2 tensors, counted from 0; there is no 2"),
    (f"{BEST} args index", -1, "there is no -1"),
    # names
    *[
        (f"{BEST} name", name, "a name is made of letters, digits, '_' and '-'")
        for name in ("../../etc/passwd", "a/b", "a..b", ".a", "", "a\0b", 'a"); x(', "a b", "\u00e9", "a\n")
    ],
    (f"{BEST} name", "a" * 257, "the name has 257 characters, the limit is 256"),
    ("inputs 0 name", "self", "input 'self': an input needs a plain Python name"),
    ("inputs 0 name", "import", "an input needs a plain Python name"),
    ("inputs 0 name", "1x", "an input needs a plain Python name"),
    ("inputs", [{"dtype": "int8", "name": "x", "shape": [{"batch": 1}]}] * 2, "another input has this name"),
    # arguments
    ("nodes 0 args biass", None, r"has no argument 'biass' \(did you mean 'bias'"),
    ("nodes 0 args bias", GONE, "also needs bias; a graph holds every argument"),
    ("nodes 0 args weight", 3, "argument 'weight' must be tensor, got 3"),
    (f"{TOP} args k", "2", "argument 'k' must be int, got '2'"),
    (f"{TOP} args k", True, "argument 'k' must be int, got True"),
    (f"{TOP} args k", 2**63, "argument 'k' must be int"),
    (f"{TOP} args k", None, "argument 'k' must be int, got None"),
    (f"{TOP} args largest", 1, "argument 'largest' must be bool, got 1"),
    (f"{RELU} args self", [{"ref": "fc"}], "argument 'self' must be tensor"),
    (f"{RELU} args self", {"constant": ["device", "cuda:99"]}, "argument 'self' must be tensor"),
    (f"{RELU} args self", {"ref": 1}, r"nodes\[1\]: {'ref': 1} is no argument"),
    (f"{RELU} args self", {"eval": "1+1"}, "is no argument; an object is a ref, tensor, batch"),
    (f"{RELU} args self", {"ref": "fc", "tensor": "a"}, "is no argument"),
    (f"{RELU} args", [], r"nodes\[1\]: args must be an object"),
    # sizes and types
    (SIZES, [[{"batch": 1}, 2**31 + 1]], "holds 2147483649; a size lies between 0 and 2,147,483,648"),
    (SIZES, [[{"batch": 1}, -1]], "holds -1; a size lies between"),
    (SIZES, [[{"batch": 0}, 4]], "a size lies between"),
    (SIZES, [[2**31, 2**31]], "has 4,611,686,018,427,387,904 elements, the limit is"),
    (SIZES, [[1] * 17], "the shape has 17 axes, the limit is 16"),
    (SIZES, [[10**4000]], "a size lies between"),
    (SIZES, [["4"]], r"nodes\[1\]: a shape is a list of sizes, got \['4'\]"),
    (SIZES, [], "makes 1 tensors, the graph records 0 shapes and 1 types"),
    (f"{RELU} dtypes", ["float31"], r"the type 'float31' is not allowed \(did you mean 'float32'"),
    ("inputs 0 shape", [3, {"batch": 1}], "axis 0 must be the batch"),
    ("inputs 0 dtype", "object", "the type 'object' is not allowed"),
    ("inputs", [], "the graph has no input"),
    ("refused a", "\x1b[31m", r"refused\['a'\]: group and reason must be printable text"),
    ("refused a", 1, "refused must be an object of texts"),
    # structure
    ("noods", [], r"the graph: unknown key 'noods' \(did you mean 'nodes'"),
    ("nodes", GONE, "the graph: the key 'nodes' is missing"),
    (f"{RELU} shape", [], r"nodes\[1\]: a node: unknown key 'shape' \(did you mean 'shapes'"),
    (RELU, 7, r"nodes\[1\]: a node must be an object, got 7"),
    ("nodes", {}, "nodes must be a list, got {}"),
    ("tensors", [], "tensors must be an object, got"),
    ("tensors fc.bias parameter", 1, "'fc.bias': parameter must be true or false, got 1"),
    ("tensors fc.bias shape", [4.0], r"shape must be a list of whole numbers, got \[4\.0\]"),
    ("schema", 0, "its 'schema' must be a version number, got 0"),
    ("schema", True, "its 'schema' must be a version number"),
    ("schema", GONE, "its 'schema' must be a version number, got None"),
]


@pytest.mark.parametrize(("place", "value", "found"), UNSOUND)
def test_a_text_that_describes_no_sound_graph_is_refused(place: str, value: object, found: str) -> None:
    with pytest.raises(GraphError, match=found) as caught:
        read(changed(place, value))
    assert len(str(caught.value)) < 3_000


def test_nodes_in_the_wrong_order_are_refused() -> None:
    nodes = json.loads(encode(small()))["nodes"]
    with pytest.raises(GraphError, match="the graph has a cycle"):
        read(changed("nodes", nodes[::-1]))


def test_all_problems_are_named_at_once_but_not_thousands() -> None:
    document = json.loads(encode(small()))
    relu = document["nodes"][1]
    document["nodes"][1] = {**relu, "op": "aten.nope.default"}
    document["nodes"][2]["args"]["k"] = "2"
    with pytest.raises(GraphError, match=r"2 problems: .*aten\.nope\.default.*; .*argument 'k' must be int"):
        read(text_of(document))
    document["nodes"] = [{**relu, "name": f"n{place}", "op": "aten.nope"} for place in range(5_000)]
    with pytest.raises(GraphError, match="20 problems") as caught:
        read(text_of(document))
    assert len(caught.value.problems) == 20


def test_a_newer_version_is_refused_before_anything_else_is_looked_at() -> None:
    with pytest.raises(
        StoreError, match=r"written by a newer version of sarto \(graph format 2, .* up to 1\): update"
    ):
        read(b'{"schema": 2, "what": "ever"}')


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "not JSON, or cut short: Expecting value at character 0 of 0"),
        (b"null", "holds a JSON object, got None"),
        (b"\xff\xfe{}", "not UTF-8 .* at byte 0"),
        (b"\xef\xbb\xbf{}", "not JSON, or cut short: Unexpected UTF-8 BOM"),
        (b'{"schema":NaN}', "a number that can't be read .NaN is no JSON"),
        (b'{"schema":' + b"9" * 5_000 + b"}", "a number that can't be read"),
        (b"[" * 100_000, "nested more than 16 levels deep"),
        (b'{"a":' * 100_000, "nested more than 16 levels deep"),
        (b'{"schema":1,"a":' + b"[" * 17 + b"]" * 17 + b"}", "nested more than 16 levels deep"),
        (b'"]]]]]]]]]",' + b"[" * 17, "nested more than 16 levels deep"),
        (b"[" + b"{}," * 4_000_000, "holds more than 8,000,000 values"),
    ],
)
def test_text_that_is_no_json_or_too_much_of_it_is_refused(data: bytes, found: str) -> None:
    with pytest.raises(GraphError, match=found):
        read(data)


def test_brackets_inside_texts_do_not_count_as_depth() -> None:
    text = b'["' + b"[" * 100 + b'","\\"' + b"{" * 100 + b'"]'
    assert parse_json(text, max_bytes=1_000) == ["[" * 100, '"' + "{" * 100]


def test_a_long_text_without_an_end_is_refused_in_time_that_grows_with_its_length() -> None:
    begun = time.perf_counter()
    with pytest.raises(GraphError, match="cut short"):
        parse_json(b'["' + b'\\"' * 1_000_000, max_bytes=MAX_GRAPH_BYTES)
    assert time.perf_counter() - begun < 1


def test_a_text_beyond_the_limit_is_refused_unread(
    written: GraphFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with written.graph_path.open("r+b") as file:
        file.truncate(MAX_GRAPH_BYTES + 1)
    with pytest.raises(GraphError, match="the JSON has 67,108,865 bytes, the limit is 67,108,864"):
        read_graph(written.graph_path.parent)
    monkeypatch.setattr(bounded_room, "MAX_VALUES", 10)
    with pytest.raises(GraphError, match="more than 10 values"):
        read(encode(small()))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_graph_text_that_is_cut_short_is_refused(keep: float, written: GraphFile) -> None:
    data = written.graph_path.read_bytes()
    written.graph_path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(GraphError, match=r"graph\.json.*: not JSON, or cut short"):
        read_graph(written.graph_path.parent)


@pytest.mark.parametrize(
    "old_new",
    [
        (b'{"inputs"', b'{ "inputs"'),
        (b'"schema":1', b'"schema":1\n'),
        (b'"ref":"fc"', b'"ref":"\\u0066c"'),
        (b'"k":2', b'"k":2.0e0'),
        (b'"k":2', b'"k":-0'),
        (b'"k":2', b'"k":1e999'),
        (b'"differs"', b'"\\ud800"'),
    ],
)
def test_a_text_in_another_form_is_refused(old_new: tuple[bytes, bytes]) -> None:
    data = encode(small())
    assert data.count(old_new[0]) == 1
    with pytest.raises(GraphError, match=r"not in canonical form .*take the file that sarto wrote"):
        read(data.replace(*old_new))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (b'"k":2', b'"k":2,"k":2', "'k'"),
        (b'"schema":1', b'"schema":1,"schema":1', "'schema'"),
        (b'"fc.bias":{', b'"fc.bias":{},"fc.bias":{', "'fc.bias'"),
    ],
)
def test_a_key_given_twice_is_refused(old: bytes, new: bytes, key: str) -> None:
    with pytest.raises(GraphError, match=f"gives the key {key} twice in one object"):
        read(encode(small()).replace(old, new))


# --- weights ------------------------------------------------------------------------------------------------


def weights(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "is no safetensors file: it has 0 bytes"),
        (b"\x01\x02", "is no safetensors file: it has 2 bytes"),
        (weights({}, length=2**63), "claims a head of 9,223,372,036,854,775,808"),
        (weights({}, length=200), "claims a head of 200"),
        (weights(b"{}{}"), "no safetensors head: not JSON, or cut short"),
        (weights([]), "it must be an object"),
        (weights(b"[" * 1_000), "nested more than 16 levels"),
        (weights({"a": 1}), "tensor 'a' must have dtype, shape and data_offsets, got 1"),
        (weights({"a": {**ENTRY, "code": "x"}}), "must have dtype, shape and data_offsets"),
        (weights({"a": {**ENTRY, "dtype": "F4"}}), "tensor 'a' has the type 'F4'; allowed are F64, F32"),
        (weights({"a": {**ENTRY, "dtype": ["F32"]}}), "has the type"),
        (weights({"a": {**ENTRY, "shape": [2.0]}}), "must have at most 16 sizes"),
        (weights({"a": {**ENTRY, "shape": [1] * 17}}), "must have at most 16 sizes"),
        (weights({"a": {**ENTRY, "shape": [2**31 + 1]}}), "must have at most 16 sizes"),
        (weights({"a": {**ENTRY, "shape": [2**31] * 16}}), "can't lie at"),
        (weights({"a": {**ENTRY, "shape": [-2]}}), "must have at most 16 sizes"),
        (
            weights({"a": {**ENTRY, "data_offsets": [0, 9]}}, bytes(9)),
            r"can't lie at \[0, 9\]: it takes 8 bytes",
        ),
        (weights({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(9)), "can't lie at"),
        (weights({"a": {**ENTRY, "data_offsets": [-8, 0]}}, bytes(9)), "must lie between two offsets"),
        (weights({"a": ENTRY}, bytes(9)), "is no sound safetensors file"),
        (weights({"a": ENTRY, "b": ENTRY}, bytes(8)), "is no sound safetensors file"),
        (weights({"a": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16)), "is no sound safetensors file"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(data: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(data)
    with pytest.raises(StoreError, match=found):
        LazyTensors(path)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_under_the_name_of_weights_is_refused_and_not_run(form: str, written: GraphFile) -> None:
    target = written.weights_path.parent / "ran"
    if form == "pickle":
        written.weights_path.write_bytes(pickle.dumps(_Bomb(target)))
    else:
        torch.save(_Bomb(target), written.weights_path)
    with pytest.raises(StoreError, match="is no safetensors file"):
        read_graph(written.weights_path.parent, verify=True)
    assert not target.exists()
    pickle.loads(pickle.dumps(_Bomb(target)))
    assert target.exists(), "the bomb is a live one"


BIAS = {"dtype": "float32", "parameter": True, "shape": [4]}


@pytest.mark.parametrize(
    ("place", "value", "found"),
    [
        ("tensors fc.bias shape", [5], r"is \(\(5,\), 'float32'\) in the graph, \(\(4,\), .* in the weights"),
        ("tensors fc.bias dtype", "float16", r"'float16'.* in the graph, .*'float32'.* in the weights"),
        ("tensors fc.bias", GONE, "tensor 'fc.bias' is in the weights but not in the graph"),
        ("tensors more", BIAS, "tensor 'more' is in the graph but not in the weights"),
        ("tensors ../up", BIAS, "tensor '../up' is in the graph but not in the weights"),
        ("tensors fc.bias shape", [2**70], "don't belong together; fetch both again"),
    ],
)
def test_weights_of_another_graph_are_refused(
    place: str, value: object, found: str, written: GraphFile
) -> None:
    written.graph_path.write_bytes(changed(place, value))
    with pytest.raises(StoreError, match=found):
        read_graph(written.graph_path.parent)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/b", "a name is made of letters"),
        ("fc.bias.more", "'fc.bias' is a tensor too, so it can't hold another one"),
        ("forward", "every module has an attribute 'forward' of its own"),
        ("fc.__class__", "every module has an attribute '__class__' of its own"),
        ("fc._parameters.x", "every module has an attribute '_parameters' of its own"),
    ],
)
def test_tensors_that_no_module_can_hold_are_refused(name: str, found: str) -> None:
    entry = {"dtype": "float32", "parameter": False, "shape": [1]}
    data = changed(f"tensors {name}", entry)
    with pytest.raises(GraphError, match=f"tensor {name!r}: {found}"):
        decode(data, {**small().tensors, name: torch.ones(1)})


def test_a_changed_bit_is_found_with_the_expected_hash(written: GraphFile) -> None:
    folder = written.weights_path.parent
    data = bytearray(written.weights_path.read_bytes())
    data[-1] ^= 1
    written.weights_path.write_bytes(data)
    read_graph(folder)
    with pytest.raises(
        StoreError, match=r"weights.safetensors' is not the file that was asked for: .*fetch both files"
    ):
        read_graph(folder, weights_hash=written.weights_hash)
    with pytest.raises(StoreError, match=r"graph.json' is not the file that was asked for"):
        read_graph(folder, graph_hash=hash_of(b""))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_when_verified(value: float, tmp_path: Path) -> None:
    graph = small()
    graph.tensors["fc.weight"][1, 2] = value
    write_graph(graph, tmp_path)
    read_graph(tmp_path)
    with pytest.raises(StoreError, match=r"1 tensors of .* hold NaN, .* infinity: fc\.weight; fetch"):
        read_graph(tmp_path, verify=True)


def test_infinity_in_a_constant_is_a_mask_and_nan_is_nothing(tmp_path: Path) -> None:
    for value in (float("-inf"), float("nan")):
        graph = replace(small(), parameters=frozenset(["fc.weight"]))
        graph.tensors["fc.bias"][2] = value
        write_graph(graph, tmp_path)
        if value != value:
            with pytest.raises(StoreError, match=r"hold NaN, .* infinity: fc\.bias; fetch"):
                read_graph(tmp_path, verify=True)
        else:
            assert torch.isneginf(read_graph(tmp_path, verify=True).tensors["fc.bias"][2])


def test_a_shape_that_the_graph_does_not_compute_is_refused_when_verified(written: GraphFile) -> None:
    written.graph_path.write_bytes(changed(SIZES, [[{"batch": 1}, 5]]))
    read_graph(written.graph_path.parent)
    with pytest.raises(
        GraphError, match=r"'relu' is recorded as \(batch, 5\) float32, but .* gives \(batch, 4\)"
    ):
        read_graph(written.graph_path.parent, verify=True)


# --- places -------------------------------------------------------------------------------------------------


def test_a_folder_without_a_graph_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", tmp_path / "a\0b"):
        with pytest.raises(
            StoreError, match=r"no graph in .*graph\.json can't be opened .* name a folder with"
        ):
            read_graph(folder)


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors"])
def test_a_link_out_of_the_folder_is_refused(name: str, written: GraphFile, tmp_path: Path) -> None:
    path = written.graph_path.parent / name
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match=rf"{name}' is a link that leads out of its folder, to .*outside"):
        read_graph(path.parent)
    path.unlink()
    (tmp_path / "outside").rename(path.with_name("inside"))
    path.symlink_to("inside")
    assert read_graph(path.parent).outputs == ("best",)
    path.unlink()
    path.symlink_to(name)
    with pytest.raises(StoreError, match="can't be opened"):
        read_graph(path.parent)


def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused_without_waiting(written: GraphFile) -> None:
    written.graph_path.unlink()
    os.mkfifo(written.graph_path)
    with pytest.raises(StoreError, match="is no ordinary file"):
        read_graph(written.graph_path.parent)
    with pytest.raises(StoreError, match="is no ordinary file"):
        read_graph_files(written.weights_path.parent, written.weights_path)
    with pytest.raises(StoreError, match="can't be opened"):
        read_graph_files(written.graph_path.with_name("none"), written.weights_path)
