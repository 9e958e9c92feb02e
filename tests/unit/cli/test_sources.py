"""`sarto add` and `sarto inspect` on models of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sarto.errors import RequestError
from sarto.graph import capture, write_graph
from sarto.graph.pt2 import write_pt2
from sarto.pipeline import Market
from sarto.types import Preprocessing
from sarto.zoo import vgg
from tests.unit.cli.markets import FACTORY, run


class Words(nn.Module):
    """A classifier of token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.hidden(self.words(ids).mean(1))))
        return found


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> str:
    """The spec of a factory that makes `Words`."""
    made = types.ModuleType("my_words")
    made.words = Words  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_words", made)
    return "my_words:words"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty market."""
    assert run("market", "init", tmp_path / "m").exit_code == 0
    return tmp_path / "m"


def as_json(*args: object) -> dict[str, Any]:
    found = run(*args, "--json")
    assert found.exit_code == 0, found.output
    value = json.loads(found.stdout)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("given", [("int64:7",), ("ids=int64:7",)])
def test_a_model_of_tokens_is_inspected(words: str, given: tuple[str, ...]) -> None:
    options = [part for text in given for part in ("--input", text)]
    found = as_json("inspect", words, *options)
    assert any(group["id"] == "hidden.weight:0" and not group["pinned"] for group in found["groups"])
    wrong = run("inspect", words, "--input", "idz=int64:7")
    assert wrong.exit_code == 2 and "no input 'idz'" in wrong.stderr


def test_a_model_of_tokens_is_not_stocked_without_a_vocabulary_and_the_message_says_why(
    words: str, store: Path, tmp_path: Path
) -> None:
    write_graph(capture(Words().eval(), torch.zeros(2, 7, dtype=torch.int64)), tmp_path / "graph")
    found = run("add", tmp_path / "graph", "--name", "x", "--classes", "a,b", "--market", store)
    assert found.exit_code == 2
    assert "the model reads ids (int64, [7])" in found.stderr and "images" in found.stderr
    assert "--vocabulary" in found.stderr
    with Market.open(store) as market, pytest.raises(RequestError, match=r"reads ids \(int64, \[7\]\)"):
        market.add(
            Words(),
            name="x",
            classes=["a", "b"],
            preprocessing=Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3),
            example=torch.zeros(2, 7, dtype=torch.int64),
        )


def test_a_module_is_stocked_with_its_example(store: Path) -> None:
    grey = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    with Market.open(store) as market:
        plain = Preprocessing(channels=1, mean=(0.0,), std=(1.0,))
        with pytest.raises(RequestError, match="give an example, or preprocessing a size"):
            market.add(grey, name="grey", classes=["a", "b"], preprocessing=plain)
        stocked = market.add(
            grey, name="grey", classes=["a", "b"], preprocessing=plain, example=torch.zeros(2, 1, 9, 7)
        )
        assert stocked.input_shape == (1, 9, 7) and stocked.preprocessing == plain


def test_a_graph_folder_is_read_at_its_own_size(store: Path, tmp_path: Path) -> None:
    model = vgg(widths=[4, "M", 6, "M"], n_classes=3).eval()
    write_graph(capture(model, torch.randn(2, 3, 12, 8)), tmp_path / "graph")
    stocked = as_json("add", tmp_path / "graph", "--name", "g", "--classes", "a,b,c", "--market", store)
    assert stocked["preprocessing"]["size"] == [12, 8] and stocked["preprocessing"]["std"] == [1.0] * 3
    bare = run("add", tmp_path / "graph", "--name", "h", "--market", store)
    assert bare.exit_code == 2 and "does not name its classes: give --classes" in bare.stderr
    short = run("add", *FACTORY, "--name", "h", "--classes", "a,b,c", "--size", "8", "--market", store)
    assert short.exit_code == 2 and "write height,width" in short.stderr


def image_folder(path: Path) -> Any:
    """A small random image classifier as `transformers` saves it."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 6],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "cat", 1: "dog", 2: "ship"},
    )
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(path)
    return model


def test_a_model_folder_brings_its_classes_and_its_preprocessing(store: Path, tmp_path: Path) -> None:
    model = image_folder(tmp_path / "net")
    described = {
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(described))
    stocked = as_json("add", tmp_path / "net", "--name", "net", "--market", store)
    assert stocked["classes"] == ["cat", "dog", "ship"] and stocked["input_shape"] == [3, 32, 32]
    assert stocked["preprocessing"] == {
        "size": [32, 32],
        "channels": 3,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "resize": "bilinear",
    }
    with Market.open(store) as market:
        graph = market.store.graph(stocked["id"])
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x).logits, rtol=1e-5, atol=1e-5)
    found = as_json("inspect", tmp_path / "net", "--input", "3,16,16")
    assert found["cost"]["params"] == sum(p.numel() for p in model.parameters())


def test_colours_that_nobody_says_are_assumed_and_told(store: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "net")
    args = ("add", tmp_path / "net", "--name", "net", "--size", "32,32", "--market", store)
    found = run(*args)
    assert found.exit_code == 0, found.output
    assert (
        "note: nothing says the mean and std of the images, so mean 0 and std 1 are assumed" in found.stderr
    )
    stocked = as_json(*args[:3], "said", *args[4:], "--mean", "0.5,0.5,0.5", "--std", "1,1,1")
    assert stocked["preprocessing"]["mean"] == [0.5] * 3


@pytest.mark.parametrize("kind", ["factory", "graph", "pt2"])
def test_every_source_has_one_rule_for_colours(store: Path, tmp_path: Path, kind: str) -> None:
    graph = capture(vgg(widths=[4, "M", 6, "M"], n_classes=3).eval(), torch.randn(2, 3, 8, 8))
    write_graph(graph, tmp_path / "graph")
    write_pt2(graph, tmp_path / "m.pt2")
    source: dict[str, tuple[object, ...]] = {
        "factory": (*FACTORY, "--size", "8,8"),
        "graph": (tmp_path / "graph",),
        "pt2": (tmp_path / "m.pt2", "--input", "3,8,8"),
    }
    add = ("add", *source[kind], "--classes", "a,b,c", "--market", store)
    bare, half, full = (
        run(*add, "--name", name, *said)
        for name, said in (
            ("bare", ()),
            ("half", ("--mean", "0.5,0.5,0.5")),
            ("full", ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")),
        )
    )
    assert [found.exit_code for found in (bare, half, full)] == [0, 0, 0], bare.output
    assert "so mean 0 and std 1 are assumed" in bare.stderr and "--mean and --std" in bare.stderr
    assert "so std 1 are assumed" in half.stderr and full.stderr == ""
    shown = as_json("show", "bare", "--market", store)
    assert shown["preprocessing"]["mean"] == [0.0] * 3 and shown["preprocessing"]["size"] == [8, 8]


def test_another_size_than_that_of_a_graph_is_told_in_options(store: Path, tmp_path: Path) -> None:
    graph = capture(vgg(widths=[4, "M"], n_classes=2).eval(), torch.randn(2, 3, 12, 8))
    write_graph(graph, tmp_path / "graph")
    add = ("add", tmp_path / "graph", "--name", "g", "--classes", "a,b", "--market", store)
    other = run(*add, "--size", "8,8")
    assert (
        other.exit_code == 2 and "reads images of 12,8" in other.stderr and "give --size 12,8" in other.stderr
    )
    other = run(*add, "--input", "3,8,8")
    assert other.exit_code == 2 and "can't be given 3,8,8: leave out --input" in other.stderr
    assert as_json(*add)["preprocessing"]["size"] == [12, 8]


def test_options_that_a_stocked_or_captured_model_does_not_take_are_refused(
    market: Path, tmp_path: Path
) -> None:
    found = run("inspect", "tiny", "--market", market, "--input", "3,9,9")
    assert found.exit_code == 2 and "tiny was captured with" in found.stderr
    assert run("inspect", "tiny", "--market", market, "--input", "3,8,8").exit_code == 0
    found = run("inspect", "tiny", "--market", market, "--arg", "n=1", "--weights", "w.safetensors")
    assert (
        found.exit_code == 2 and "leave out --arg" in found.stderr and "leave out --weights" in found.stderr
    )


def test_what_a_model_was_captured_with_is_shown(tmp_path: Path) -> None:
    args = ("inspect", *FACTORY, "--input", "3,8,8")
    value = as_json(*args)
    assert [(entry["shape"], entry["dtype"]) for entry in value["inputs"]] == [([3, 8, 8], "float32")]
    name = value["inputs"][0]["name"]
    text = run(*args, "--html", tmp_path / "page.html")
    want = f"{name} (float32, 3 \N{MULTIPLICATION SIGN} 8 \N{MULTIPLICATION SIGN} 8)"
    assert f"captured with {want}" in text.stdout and "note:" not in text.stderr
    assert f"Captured with {want}" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "note: nothing says what sarto.zoo:vgg reads: captured with --input 3,32,32" in run(*args[:-2]).stderr
    )


MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("inspect", "nowhere/model.pt2"), "there is no file or folder"),
    (("inspect", "no_such_package:net"), "Python finds no 'no_such_package'"),
    (("inspect", "sarto.zoo:vgg", "--input", "banana"), "is no list of sizes"),
    (("inspect", "sarto.zoo:vgg", "--arg", "widths=[3"), "the value is no JSON"),
    (("inspect", "sarto.zoo:vgg", "--arg", "a=1", "--arg", "a=2"), "--arg a is given twice"),
    (("inspect", "sarto.zoo:vgg", "--weights", "gone.safetensors"), "there is no such file"),
    (("inspect", "sarto.zoo:vgg", "--html", "nowhere/page.html"), "there is no folder nowhere"),
    (("add", "sarto.zoo:vgg", "--name", "x", "--classes", "a", "--market", "gone"), "no market in gone"),
    (
        ("add", "sarto.zoo:vgg", "--name", "x", "--classes", "a", "--samples", "gone"),
        "--samples gone: there is no",
    ),
    (
        ("add", "sarto.zoo:vgg", "--name", "x", "--classes", "a", "--size", "8,8", "--input", "3,9,9"),
        "--size 8,8 and --input 3,9,9 differ",
    ),
]


def test_mistakes_are_found_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom sarto.cli import app\n"
        "found = [CliRunner().invoke(app, args) for args in json.loads(sys.argv[1])]\n"
        "print(json.dumps([[one.exit_code, one.stderr] for one in found] + ['torch' in sys.modules]))"
    )
    given = json.dumps([args for args, _ in MISTAKES])
    ran = subprocess.run(
        [sys.executable, "-c", code, given], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    *told, torch_loaded = json.loads(ran.stdout)
    assert torch_loaded is False
    for (args, words), (exit_code, stderr) in zip(MISTAKES, told, strict=True):
        assert exit_code in (1, 2) and words in stderr, (args, stderr)
        assert len(stderr.splitlines()) == 1 and "defect" not in stderr
