"""What a text names, and what first bytes tell: no model is read, no package imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarto.errors import RequestError
from sarto.types.inputs import input_parts
from sarto.types.sources import check_source, source_kind


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("timm:resnet18", "named"),
        ("torchvision:vit_b_16", "named"),
        ("my.models:net", "factory"),
        ("nowhere.onnx", "none"),
    ],
)
def test_names_tell_their_kind(spec: str, kind: str) -> None:
    assert source_kind(spec) == kind


def test_what_lies_on_disk_tells_its_kind(tmp_path: Path) -> None:
    for name in ("graph", "config"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text("{}")
    (tmp_path / "a:b").mkdir()
    for name in ("m.pt2", "m.onnx"):
        (tmp_path / name).write_bytes(b"")
    kinds = {"graph": "graph", "config": "transformers", "a:b": "none", "m.pt2": "pt2", "m.onnx": "onnx"}
    assert {name: source_kind(str(tmp_path / name)) for name in kinds} == kinds


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.pt2", b"", "is no exported program: it is empty"),
        ("m.pt2", b"<!DOCTYPE html>", "it holds HTML or XML, such as the page of a failed download"),
        ("m.pt2", b"\x00\x01\x02", "it begins with the bytes 00 01 02"),
        ("m.onnx", b"", "is no ONNX file: it is empty"),
        ("m.onnx", b"hello\nyou", "is no ONNX file: it holds text, 'hello'"),
        ("m.onnx", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("m.py", b"", "Python code is named as a module, m:FACTORY"),
        ("m.safetensors", b"", "it holds weights only"),
    ],
)
def test_a_file_that_is_no_model_is_told_by_its_first_bytes(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError) as told:
        check_source(str(tmp_path / name))
    assert words in str(told.value)


def test_a_folder_that_is_no_model_names_the_model_in_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no graph.json and no config.json; give"):
        check_source(str(tmp_path))
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(RequestError, match=r"it holds net.onnx: name that file"):
        check_source(str(tmp_path))
    with pytest.raises(RequestError, match=r"there is no file or folder .*gone.pt2"):
        check_source(str(tmp_path / "gone.pt2"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("models/net.py:make", "not by a path: write models.net:make"),
        ("my models:make", "write package.module:factory"),
        ("json:", "write package.module:factory"),
        ("no_such_package.models:make", "Python finds no 'no_such_package'"),
    ],
)
def test_a_factory_that_can_not_be_there_is_told(spec: str, words: str) -> None:
    with pytest.raises(RequestError) as told:
        check_source(spec)
    assert words in str(told.value)


def test_a_module_beside_the_user_is_told_how_to_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_nets.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    with pytest.raises(RequestError, match=r"it lies in this folder: run with PYTHONPATH=\."):
        check_source("my_own_nets:make")


def test_weights_are_looked_at_and_all_problems_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    with pytest.raises(RequestError, match=r"bad.safetensors is no safetensors file: it holds text, 'junk'"):
        check_source("json:loads", weights=tmp_path / "bad.safetensors")
    with pytest.raises(RequestError, match=r"gone.safetensors: there is no such file"):
        check_source("json:loads", weights=tmp_path / "gone.safetensors")
    (tmp_path / "m.onnx").write_bytes(b"\x08")
    with pytest.raises(RequestError, match=r"2 problems: .*leave out --weights w.*leave out --arg a, b"):
        check_source(str(tmp_path / "m.onnx"), arguments=["a", "b"], weights="w")


def test_an_input_needs_sizes_or_a_dtype() -> None:
    assert input_parts("float32:") == ((), "float32", "")
    with pytest.raises(RequestError, match="--input '': '' is no list of sizes"):
        input_parts("")
