"""What an agent lets in, and in which words it refuses the rest."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import flatbuffers
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from sarto.devices.agent.allowed import CHECKS, NAMES, convert, kind_of
from sarto.devices.agent.client import packed
from sarto.errors import RequestError
from sarto.graph import capture, read_graph, write_graph, write_pt2
from sarto.graph.encoding import MAX_GRAPH_BYTES
from tests.unit.devices.agent_models import endless, linear, onnx_file

LAYERS = '<net><layers><layer type="Parameter" version="opset1"/>{}</layers></net>'


def checked(kind: str, data: bytes, folder: Path) -> dict[str, Any]:
    """What the check says of bytes."""
    file, home = folder / "upload", folder / "let-in"
    file.write_bytes(data)
    home.mkdir()
    return convert({"kind": kind, "file": str(file), "folder": str(home)}, [])


def refused(kind: str, data: bytes, folder: Path) -> str:
    """The words with which bytes are refused; nothing that a runtime would load is left."""
    said = checked(kind, data, folder)
    assert "path" not in said
    return " ".join([said["detail"], *said["problems"]])


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()


def graph_parts(folder: Path) -> dict[str, bytes]:
    graph = capture(nn.Linear(4, 3).eval(), (torch.rand(2, 4),))
    write_graph(graph, folder)
    return {name: (folder / name).read_bytes() for name in ("graph.json", "weights.safetensors")}


def test_a_graph_is_the_same_after_its_journey(tmp_path: Path) -> None:
    graph_parts(tmp_path / "model")
    file = packed(tmp_path / "model", kind_of(tmp_path / "model", "torch"), tmp_path / "zip")
    (tmp_path / "there").mkdir()
    said = checked("graph", file.read_bytes(), tmp_path / "there")
    there = read_graph(tmp_path / "there" / "let-in" / said["path"])
    given = torch.rand(5, 4)
    assert torch.equal(there(given), read_graph(tmp_path / "model")(given))


def test_a_program_of_torch_is_let_in(tmp_path: Path) -> None:
    write_pt2(capture(nn.Linear(4, 3).eval(), (torch.rand(2, 4),)), tmp_path / "m.pt2")
    assert checked("pt2", (tmp_path / "m.pt2").read_bytes(), tmp_path) == {"path": "model.pt2"}


def test_standard_operators_are_let_in_nested_ones_too(tmp_path: Path) -> None:
    for place, data in enumerate((linear()[0], endless())):
        (tmp_path / str(place)).mkdir()
        assert checked("onnx", data, tmp_path / str(place)) == {"path": "model.onnx"}


def custom(domain: str = "com.example") -> onnx.NodeProto:
    return helper.make_node("Loader", ["x"], ["y"], domain=domain)


def test_operators_of_plug_ins_are_refused_wherever_they_hide(tmp_path: Path) -> None:
    body = helper.make_graph(
        [custom()], "b", [], [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    )
    hidden = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    function = helper.make_function(
        "com.example",
        "F",
        ["x"],
        ["y"],
        [helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    relu = helper.make_node("Relu", ["x"], ["y"])
    cases = {
        "operator 'Loader' is of the domain 'com.example'": onnx_file([custom()]),
        "operator 'Loader' is of the domain 'com.microsoft'": onnx_file([custom("com.microsoft")]),
        "is of the domain 'com.example'": onnx_file([hidden]),
        "there is no standard operator 'Loader'": onnx_file([custom("")]),
        "function 'F' is of the domain 'com.example'": onnx_file([relu], functions=(function,)),
    }
    for place, (words, data) in enumerate(cases.items()):
        (tmp_path / str(place)).mkdir()
        assert words in refused("onnx", data, tmp_path / str(place))


@pytest.mark.parametrize("inside", [False, True])
def test_weights_in_other_files_are_refused(tmp_path: Path, inside: bool) -> None:
    tensor = numpy_helper.from_array(linear()[1], "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    if inside:
        data = onnx_file([helper.make_node("Constant", [], ["w"], value=tensor), node])
    else:
        data = onnx_file([node], tensor)
    assert "tensor 'w' lies outside the file" in refused("onnx", data, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda parts: {**parts, "../evil.py": b""},
            "it holds '../evil.py', 'graph.json', 'weights.safetensors'",
        ),
        (lambda parts: {"/graph.json": parts["graph.json"]}, "must hold graph.json and weights.safetensors"),
        (lambda parts: {**parts, "graph.json": b"{}"}, "graph"),
        (lambda parts: {**parts, "graph.json": b" " * (MAX_GRAPH_BYTES + 1)}, f"{MAX_GRAPH_BYTES:,}"),
        (lambda parts: {**parts, "weights.safetensors": parts["weights.safetensors"][:-9]}, "weights"),
    ],
)
def test_graphs_of_other_files_and_damaged_ones_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    assert words in refused("graph", zipped(change(graph_parts(tmp_path / "model"))), tmp_path)


def test_a_compressed_file_is_refused_before_it_grows(tmp_path: Path) -> None:
    bomb = zipped({"graph.json": bytes(1 << 20), "weights.safetensors": b""}, zipfile.ZIP_DEFLATED)
    assert "not compressed" in refused("graph", bomb, tmp_path)
    assert not list((tmp_path / "let-in").rglob("*.json"))


@pytest.mark.parametrize("kind", CHECKS)
def test_garbage_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    generator = random.Random(kind)
    marks = {"tflite": b"\x10\0\0\0TFL3", "pte": b"\x10\0\0\0ET12", "openvino": b"PK\x03\x04"}
    for place in range(30):
        home = tmp_path / str(place)
        home.mkdir()
        data = generator.randbytes(generator.choice([0, 1, 7, 200]))
        words = refused(kind, (marks.get(kind, b"") if place % 2 else b"") + data, home)
        assert len(words) > 10
        assert not (home / "let-in" / NAMES[kind]).is_file()


def flat_file(mark: bytes, build: Any) -> bytes:
    builder = flatbuffers.Builder(256)
    builder.Finish(build(builder), file_identifier=mark)
    return bytes(builder.Output())


def table(builder: Any, fields: dict[int, Any]) -> int:
    """A table with offsets and (value, put) numbers by the number of their field."""
    builder.StartObject(12)
    for number, value in fields.items():
        if isinstance(value, tuple):
            getattr(builder, f"Prepend{value[1]}Slot")(number, value[0], 0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, value, 0)
    return int(builder.EndObject())


def vector(builder: Any, tables: list[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for entry in reversed(tables):
        builder.PrependUOffsetTRelative(entry)
    return int(builder.EndVector())


def litert(code: int, name: str = "") -> bytes:
    def build(builder: Any) -> int:
        text = builder.CreateString(name)
        entry = table(builder, {0: (min(code, 127), "Int8"), 1: text, 3: (code, "Int32")})
        return table(builder, {1: vector(builder, [entry])})

    return flat_file(b"TFL3", build)


def executorch(operator: str, delegate: str) -> bytes:
    def build(builder: Any) -> int:
        names = [builder.CreateString(text) for text in (operator, delegate)]
        inner = [vector(builder, [table(builder, {0: name})]) for name in names]
        return table(builder, {1: vector(builder, [table(builder, {6: inner[0], 7: inner[1]})])})

    return flat_file(b"ET12", build)


def test_custom_operators_and_foreign_compilers_are_refused(tmp_path: Path) -> None:
    cases = {
        "operator 'FlexLoad' is a custom one": ("tflite", litert(32, "FlexLoad")),
        "a part is compiled for 'QnnBackend'": ("pte", executorch("aten::add", "QnnBackend")),
        "operator 'mine::run' is none of": ("pte", executorch("mine::run", "XnnpackBackend")),
    }
    for place, (words, (kind, data)) in enumerate(cases.items()):
        (tmp_path / str(place)).mkdir()
        assert words in refused(kind, data, tmp_path / str(place))
    for kind, data in (("tflite", litert(150)), ("pte", executorch("aten::add", "XnnpackBackend"))):
        (tmp_path / kind).mkdir()
        assert checked(kind, data, tmp_path / kind) == {"path": NAMES[kind]}


def test_a_file_that_is_cut_off_anywhere_is_no_crash(tmp_path: Path) -> None:
    whole = executorch("aten::add", "QnnBackend")
    for length in range(len(whole)):
        home = tmp_path / str(length)
        home.mkdir()
        said = checked("pte", whole[:length], home)
        assert set(said) in ({"path"}, {"detail", "problems"})


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (LAYERS.format('<layer type="Mine" version="extension"/>'), "layer 'Mine' is of 'extension'"),
        (
            LAYERS.format('<data offset="0" size="9"/>'),
            "weights at 0 of 9 bytes lie outside model.bin (8 bytes)",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + LAYERS.format(""), "has a document type"),
        ("<net/>", "describes no layers"),
        ("<net", "is no XML"),
    ],
)
def test_openvino_models_with_more_than_layers_are_refused(tmp_path: Path, xml: str, words: str) -> None:
    data = zipped({"model.xml": xml.encode(), "model.bin": bytes(8)})
    assert words in refused("openvino", data, tmp_path)


def test_an_openvino_model_is_let_in(tmp_path: Path) -> None:
    data = zipped({"model.xml": LAYERS.format('<data offset="0" size="8"/>').encode(), "model.bin": bytes(8)})
    assert checked("openvino", data, tmp_path) == {"path": "model.xml"}


@pytest.mark.parametrize(
    ("name", "words"), [("m.aoti.pt2", "native code"), ("m.so", "no file that an agent runs")]
)
def test_native_code_is_never_sent(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        kind_of(tmp_path / name, "torch")
