"""`.pt2` files of unknown origin: no code in them runs, and what they hold beyond raw tensors and JSON is refused."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sarto.errors import SartoError, StoreError
from sarto.graph.pt2 import read_pt2
from tests.unit.graph.pt2_files import (
    CONSTANTS,
    MODEL,
    SAMPLES,
    WEIGHTS,
    Net,
    changed,
    graph_of,
    join,
    node_of,
    parts,
    save,
)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The members of a sound file."""
    folder = tmp_path_factory.mktemp("sound")
    return parts(save(folder / "model.pt2", Net(), torch.zeros(2, 3, 6, 6)))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that exists once code of a payload has run."""
    return tmp_path / "code-ran"


@pytest.fixture
def payload(mark: Path) -> bytes:
    """A pickle that is found to be live."""
    data = pickle.dumps(Touch(mark))
    pickle.loads(data)
    assert mark.exists()
    mark.unlink()
    return data


def refused(path: Path, found: str, mark: Path | None = None) -> None:
    with pytest.raises(SartoError, match=found) as error:
        read_pt2(path)
    assert str(path) in str(error.value)
    assert mark is None or not mark.exists()


def test_the_unchanged_members_are_read(members: dict[str, bytes], tmp_path: Path) -> None:
    assert len(read_pt2(join(tmp_path / "m.pt2", members)).nodes) == 24


# --- the attacks that run code in torch.export.load ----------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "member"), [(WEIGHTS, "data/weights/weight_0"), (CONSTANTS, "data/constants/tensor_0")]
)
def test_pickled_tensors_are_refused(
    config: str, member: str, members: dict[str, bytes], payload: bytes, mark: Path, tmp_path: Path
) -> None:
    def use_pickle(document: Any) -> None:
        next(iter(document["config"].values()))["use_pickle"] = True

    bad = {**changed(members, config, use_pickle), member: payload}
    refused(join(tmp_path / "m.pt2", bad), "stored as a pickle, which can run code", mark)


def test_sample_inputs_are_never_opened(
    members: dict[str, bytes], payload: bytes, mark: Path, tmp_path: Path
) -> None:
    path = join(tmp_path / "m.pt2", {**members, SAMPLES: payload})
    assert len(read_pt2(path).nodes) == 24
    assert not mark.exists()
    without = {name: data for name, data in members.items() if name != SAMPLES}
    assert len(read_pt2(join(tmp_path / "n.pt2", without)).nodes) == 24


@pytest.mark.parametrize("where", ["input", "value", "computed size"])
@pytest.mark.parametrize(
    "form",
    [
        "{code}",
        "Symbol('s77') + {code}",
        "Mul(Integer(1), {code})",
        "Symbol('s77', positive={code})",
        "Symbol('s77'.__class__.__base__)",
        "s1*{code}",
    ],
)
def test_expressions_of_symbols_are_matched_and_not_evaluated(
    where: str, form: str, members: dict[str, bytes], mark: Path, tmp_path: Path
) -> None:
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    assert eval(code) is None and mark.exists()
    mark.unlink()

    def put(document: Any) -> None:
        graph = graph_of(document)
        text = form.format(code=code)
        expression = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}
        if where == "computed size":
            graph["sym_int_values"] = dict.fromkeys(graph["sym_int_values"], expression)
        else:
            graph["tensor_values"]["x" if where == "input" else "conv2d"]["sizes"][0] = expression

    refused(join(tmp_path / "m.pt2", changed(members, MODEL, put)), "can't be read: only whole numbers", mark)


def test_objects_beside_the_constants_are_refused(
    members: dict[str, bytes], payload: bytes, mark: Path, tmp_path: Path
) -> None:
    for name in ("data/constants/custom_obj_0", "data/constants/opaque_obj_0", "data/weights/model.pt"):
        refused(
            join(tmp_path / "m.pt2", {**members, name: payload}), "it is a pickle, which can run code", mark
        )

    def as_object(document: Any) -> None:
        document["config"]["shift"]["path_name"] = "custom_obj_0"

    refused(
        join(tmp_path / "m.pt2", changed(members, CONSTANTS, as_object)),
        "no member 'data/constants/custom",
        mark,
    )


def test_neither_pickle_nor_evaluation_is_in_reach_while_a_file_is_read(
    members: dict[str, bytes], tmp_path: Path
) -> None:
    path = join(tmp_path / "m.pt2", members)
    watch = f"""
import sys, torch
from sarto.graph.pt2 import read_pt2
read_pt2({str(path)!r})
seen = []
def hook(event, args):
    if event in ("pickle.find_class", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect"):
        seen.append((event, str(args)[:200]))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append((event, str(args)))
sys.addaudithook(hook)
read_pt2({str(path)!r})
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what the JSON may say -----------------------------------------------------------------------------------


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = to

    return change


def _node(op: str, **values: Any) -> Callable[[Any], None]:
    return lambda document: node_of(document, op).update(values)


def _argument(target: str, place: int, argument: Any) -> Callable[[Any], None]:
    return lambda document: node_of(document, target)["inputs"][place].update(arg=argument)


GRAPH = ("graph_module", "graph")
NODE_CASES: list[tuple[Callable[[Any], None], str]] = [
    (
        _node("conv2d.default", target="torch.ops.aten.from_file.default"),
        "may not hold: 'torch.ops.aten.from_file",
    ),
    (
        _node("conv2d.default", target="torch.ops.mine.run.default"),
        "may not hold: 'torch.ops.mine.run.default'",
    ),
    (_node("conv2d.default", target="os.system"), "may not hold: 'os.system'"),
    (
        _node("conv2d.default", target="torch.ops.aten.__class__.mro"),
        "may not hold: 'torch.ops.aten.__class__.mro'",
    ),
    (
        _node("conv2d.default", target="torch.ops.higher_order.cond"),
        "may not hold: 'torch.ops.higher_order.cond'",
    ),
    (
        _argument("conv2d.default", 0, {"as_tensor": {"name": "gone"}}),
        "the value 'gone' is read before it is made",
    ),
    (
        _argument("conv2d.default", 0, {"as_tensor": {"name": "relu_"}}),
        "the value 'relu_' is read before it is made",
    ),
    (_argument("conv2d.default", 3, {"as_ints": [1, "1"]}), "must be a whole number of 64 bits, got '1'"),
    (_argument("conv2d.default", 3, {"as_ints": [1, 2**64]}), "must be a whole number of 64 bits"),
    (_argument("conv2d.default", 3, {"as_ints": 1}), "must be a list, got 1"),
    (_argument("conv2d.default", 3, {"as_ints": [2, 2]}), "value 'conv2d' is recorded as .*, but it is"),
    (_argument("conv2d.default", 3, {"as_int": 1, "as_ints": []}), "an object with one key"),
    (
        _argument("conv2d.default", 3, {"as_graph": {"name": "g", "graph": {}}}),
        "of the form 'as_graph' can't stand",
    ),
    (
        _argument("conv2d.default", 3, {"as_custom_obj": {"name": "c"}}),
        "of the form 'as_custom_obj' can't stand",
    ),
    (_argument("conv2d.default", 3, {"as_operator": "os.system"}), "of the form 'as_operator' can't stand"),
    (
        _argument("conv2d.default", 3, {"as_complex": {"real": 1, "imag": 1}}),
        "of the form 'as_complex' can't",
    ),
    (
        _argument("zeros.default", 1, {"as_device": {"type": "hpu", "index": 0}}),
        "device 'hpu' is not allowed",
    ),
    (_argument("zeros.default", 0, {"as_ints": [2, 1]}), "value 'zeros' is recorded as .*batch"),
    (_argument("topk.default", 1, {"as_int": 5}), "topk.default can't run with its arguments"),
    (_node("conv2d.default", outputs=[]), "the value 'conv2d' is read before it is made"),
    (_node("conv2d.default", outputs=[{"as_tensor": {"name": "x"}}]), "two values have the name 'x'"),
    (
        _node("conv2d.default", outputs=[{"as_tensor": {"name": "../x"}}]),
        "the value name '../x' is not made of",
    ),
    (
        _node("topk.default", outputs=[{"as_tensors": [{"name": "a"}]}]),
        "another number of results than the 1",
    ),
    (
        _node("conv2d.default", inputs=[{"name": "nope", "arg": {"as_int": 1}, "kind": 1}]),
        "takes no argument 'nope'",
    ),
    (_set(*GRAPH, "nodes", to={}), "'nodes' of the graph must be list"),
    (_set(*GRAPH, "nodes", 0, to=3), "a node must be an object, got 3"),
    (_set(*GRAPH, "tensor_values", "conv2d", "dtype", to=9), "type number 9 is not allowed"),
    (_set(*GRAPH, "tensor_values", "conv2d", "dtype", to=8), "recorded as .*float64, but it is .*float32"),
    (_set(*GRAPH, "tensor_values", "conv2d", "sizes", 1, "as_int", to=9), "value 'conv2d' is recorded as"),
    (_set(*GRAPH, "tensor_values", "conv2d", "sizes", 1, "as_int", to=2**40), "a size lies between 0 and"),
    (_set(*GRAPH, "tensor_values", "conv2d", "sizes", to=[{"as_int": 1}] * 17), "17 axes, the limit is 16"),
    (
        _set(*GRAPH, "tensor_values", "p_conv_weight", "sizes", 0, "as_int", to=9),
        "stored as .*, the graph says",
    ),
    (_set(*GRAPH, "tensor_values", to={}), "the tensors of the graph has no 'p_conv_weight'"),
    (_set(*GRAPH, "inputs", to=[]), "0 inputs and 13 descriptions of inputs"),
    (
        _set("graph_module", "signature", "input_specs", 0, "parameter", "parameter_name", to="w"),
        "'w' is used but not",
    ),
    (_set("graph_module", "signature", "input_specs", 0, to={"token": {}}), "a graph takes tensors only"),
    (
        _set("graph_module", "signature", "output_specs", 0, to={"buffer_mutation": {}}),
        "changes nothing else",
    ),
    (_set(*GRAPH, "outputs", 0, to={"as_int": 3}), "a graph returns tensors only"),
    (
        _set(*GRAPH, "outputs", 0, to={"as_tensor": {"name": "shift"}}),
        "the value 'shift' is read before it is made",
    ),
    (_set("schema_version", "major", to=9), "version 9 of torch's format; version 8 is read"),
    (_set("graph_module", to=None), "'graph_module' of the program must be dict, got None"),
]


@pytest.mark.parametrize(("change", "found"), NODE_CASES, ids=[found for _, found in NODE_CASES])
def test_programs_that_are_no_graph_are_refused(
    change: Callable[[Any], None], found: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    refused(join(tmp_path / "m.pt2", changed(members, MODEL, change)), found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Symbol('s77', positive=True, integer=True)*Symbol('s77', positive=True, integer=True)",
            "multiplies symbols",
        ),
        ("Mul(Integer(0), Symbol('s77'))", "no multiple of the batch"),
        ("Mul(Integer(-2), Symbol('s77'))", "no multiple of the batch"),
        ("Mul(Integer(9999999999999), Symbol('s77'))", "no multiple of the batch"),
        ("Symbol('s78')", "depends on the symbol s78, which is no batch axis"),
        ("Symbol('u0')", "can't be read"),
        ("Pow(Symbol('s77'), Integer(2))", "can't be read"),
        ("2*" * 10_000 + "s77", "can't be read"),
        ("(" * 10_000, "can't be read"),
    ],
)
def test_sizes_that_are_no_multiple_of_the_batch_are_refused(
    text: str, found: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    sizes = ("tensor_values", "conv2d", "sizes", 0)
    bad = changed(members, MODEL, _set(*GRAPH, *sizes, to={"as_expr": {"expr_str": text}}))
    refused(join(tmp_path / "m.pt2", bad), found)


@pytest.mark.parametrize("text", ["s77", "Integer(1)*s77", "Mul(Integer(1), Symbol('s77', positive=True))"])
def test_a_multiple_of_the_batch_may_be_spelt_in_several_ways(
    text: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    sizes = ("tensor_values", "conv2d", "sizes", 0)
    path = join(
        tmp_path / "m.pt2", changed(members, MODEL, _set(*GRAPH, *sizes, to={"as_expr": {"expr_str": text}}))
    )
    assert len(read_pt2(path).nodes) == 24


def test_a_long_sequence_does_not_make_a_recurrent_layer_walk_it(tmp_path: Path) -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(1, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell(x)[1][0].sum(0)

    sound = parts(save(tmp_path / "m.pt2", Long(), torch.zeros(2, 3, 1)))

    def lengthen(document: Any) -> None:
        for meta in graph_of(document)["tensor_values"].values():
            if len(meta["sizes"]) == 3 and meta["sizes"][1] == {"as_int": 3}:
                meta["sizes"][1] = {"as_int": 10**8}

    graph = read_pt2(join(tmp_path / "n.pt2", changed(sound, MODEL, lengthen)))
    assert graph.inputs[0].shape[1] == 10**8


# --- tensors -------------------------------------------------------------------------------------------------

META = ("config", "conv.weight", "tensor_meta")
TENSOR_CASES: list[tuple[Callable[[Any], None], str]] = [
    (_set(*META, "dtype", to=8), "don't fit the 864 bytes"),
    (_set(*META, "dtype", to=10), "type number 10 is not allowed"),
    (_set(*META, "dtype", to=True), "'dtype' of the tensor must be int, got True"),
    (_set(*META, "sizes", 0, "as_int", to=9), "don't fit the 864 bytes"),
    (_set(*META, "sizes", 0, "as_int", to=-1), "whole sizes, strides and offset"),
    (_set(*META, "sizes", 0, "as_int", to=2**33), "is beyond the limits"),
    (_set(*META, "sizes", 0, to={"as_expr": {"expr_str": "s0"}}), "whole sizes, strides and offset"),
    (_set(*META, "strides", 0, "as_int", to=28), "don't fit the 864 bytes"),
    (_set(*META, "strides", 0, "as_int", to=-27), "whole sizes, strides and offset"),
    (_set(*META, "strides", to=[]), "4 sizes and 0 strides"),
    (_set(*META, "storage_offset", "as_int", to=1), "offset 1 of torch.float32 don't fit the 864 bytes"),
    (_set(*META, "storage_offset", "as_int", to=2**61), "don't fit the 864 bytes"),
    (_set(*META, "layout", to=1), "layout is number 1; only strided"),
    (_set(*META, to=None), "'tensor_meta' of the tensor must be dict"),
    (_set("config", "conv.weight", "path_name", to="../../archive_format"), "there is no member"),
    (_set("config", "conv.weight", "path_name", to="weight_99"), "no member 'data/weights/weight_99'"),
    (_set("config", "conv.weight", to=[]), "the tensor must be an object"),
    (_set("config", to=[]), "'config' of .* must be dict"),
]


@pytest.mark.parametrize(("change", "found"), TENSOR_CASES, ids=[found for _, found in TENSOR_CASES])
def test_tensors_that_do_not_fit_their_bytes_are_refused(
    change: Callable[[Any], None], found: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    refused(join(tmp_path / "m.pt2", changed(members, WEIGHTS, change)), found)


def test_an_expanded_tensor_is_refused_since_few_bytes_would_become_many(
    members: dict[str, bytes], tmp_path: Path
) -> None:
    def expand(document: Any) -> None:
        meta = document["config"]["conv.weight"]["tensor_meta"]
        meta["sizes"] = [{"as_int": 2**15}, {"as_int": 2**15}]
        meta["strides"] = [{"as_int": 0}, {"as_int": 0}]

    refused(join(tmp_path / "m.pt2", changed(members, WEIGHTS, expand)), "don't fit the 864 bytes")


def test_weights_that_were_left_out_are_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    refused(join(tmp_path / "m.pt2", {**members, "data/weights/weight_0": b""}), "don't fit the 0 bytes")


def test_weights_that_are_no_numbers_are_named(members: dict[str, bytes], tmp_path: Path) -> None:
    data = struct.pack("<f", float("nan")) + members["data/weights/weight_0"][4:]
    refused(join(tmp_path / "m.pt2", {**members, "data/weights/weight_0": data}), "hold NaN, .*: conv.weight")


# --- the zip file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../evil", "../../data/weights/weight_0", "data/../../evil", "/etc/evil", "data\\\\evil", "models/../evil.json",
     "evil.so", "data/aotinductor/model/run.so", "data/weights/weight_0/x", "models/a b.json"],
)  # fmt: skip
def test_members_that_are_not_on_the_list_are_refused(
    name: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    before = sorted(tmp_path.parent.rglob("*evil*"))
    refused(
        join(tmp_path / "m.pt2", {**members, name: b"x"}), "not on the list of allowed members|in one folder"
    )
    assert sorted(tmp_path.parent.rglob("*evil*")) == before


@pytest.mark.parametrize("root", ["", "../", "/", "./"])
def test_members_outside_of_a_plain_folder_are_refused(
    root: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    refused(join(tmp_path / "m.pt2", members, root), "all members lie in one folder")


def test_a_zip_bomb_is_refused_unopened(members: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"archive/{name}", bytes(2**26) if name == WEIGHTS else data)
    assert path.stat().st_size < 2**18
    refused(path, "is compressed .* only plain ones are read")


def test_two_members_on_the_same_bytes_are_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    path = join(tmp_path / "m.pt2", members)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        first = file.getinfo("archive/data/weights/weight_1").header_offset
    at = data.rindex(b"archive/data/weights/weight_2") - 4
    data[at : at + 4] = struct.pack("<I", first)
    path.write_bytes(data)
    refused(path, "its place in the file is not the one that the table says")


def test_a_member_that_is_there_twice_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate name"):
        for name, data in [*members.items(), ("archive_format", b"pt2")]:
            file.writestr(f"archive/{name}", data)
    refused(path, "it is there twice")


def test_two_programs_in_one_file_are_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    refused(join(tmp_path / "m.pt2", {**members, "models/other.json": b"{}"}), "it holds 2 programs")


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("archive_format", b"zip", "its format is b'zip', not 'pt2'"),
        ("byteorder", b"big", "its byte order is b'big'"),
        ("archive_format", b"p" * 1000, "has 1,000 bytes, the limit is 64"),
        (MODEL, b"{", "not JSON, or cut short"),
        (MODEL, b"[" * 100, "nested more than 16 levels"),
        (MODEL, b"[1e999]", "the program must be an object"),
        (WEIGHTS, b'{"config": NaN}', "NaN is no JSON"),
    ],
)
def test_members_with_other_bytes_are_refused(
    name: str, data: bytes, found: str, members: dict[str, bytes], tmp_path: Path
) -> None:
    refused(join(tmp_path / "m.pt2", {**members, name: data}), found)


def test_a_file_that_is_cut_short_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    whole = join(tmp_path / "m.pt2", members).read_bytes()
    path = tmp_path / "cut.pt2"
    for length in (0, 1, 21, 22, 100, len(whole) // 2, len(whole) - 22, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "no zip file, or cut short|can't be mapped")


def test_a_changed_byte_of_a_weight_is_found(members: dict[str, bytes], tmp_path: Path) -> None:
    path = join(tmp_path / "m.pt2", members)
    data = bytearray(path.read_bytes())
    at = data.index(members["data/weights/weight_0"])
    data[at + 100] ^= 1
    path.write_bytes(data)
    refused(path, "member 'data/weights/weight_0' is damaged: its checksum differs")


def test_a_table_of_contents_beyond_the_limit_is_refused_unread(
    members: dict[str, bytes], tmp_path: Path
) -> None:
    path = join(tmp_path / "m.pt2", members)
    data = bytearray(path.read_bytes())
    data[-10:-6] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    refused(path, "its table of contents has 2,147,483,648 bytes, the limit")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't be opened"):
        read_pt2(tmp_path / "none.pt2")
    with pytest.raises(StoreError, match="no ordinary file"):
        read_pt2(tmp_path)
