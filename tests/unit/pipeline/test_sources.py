"""Models from factories, files and folders: what is read, and what is refused with which words."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sarto.errors import GraphError, RequestError, StoreError
from sarto.graph import write_graph
from sarto.graph.pt2 import write_pt2
from sarto.pipeline import InputSpec, load_source, read_input
from sarto.pipeline.sources.calling import Called, capture_called
from sarto.pipeline.sources.factory import load_weights
from sarto.pipeline.sources.named import load_named


class Tokens(nn.Module):
    """Mean of the embeddings of the words that the mask leaves, through a linear layer."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.head = nn.Linear(6, n_classes)

    def forward(self, ids: Tensor, scale: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        rows = self.words(ids)
        if mask is not None:
            rows = rows * mask.unsqueeze(-1).to(rows.dtype)
        if scale is not None:
            rows = rows * scale.unsqueeze(-1)
        found: Tensor = self.head(rows.mean(1))
        return found


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that can be imported by name, with `Tokens` as a factory."""
    made = types.ModuleType("my_models")
    made.tokens = Tokens  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_models", made)
    return made


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3,32,32", InputSpec((3, 32, 32))),
        (" 3, 8 ,8", InputSpec((3, 8, 8))),
        ("int64:32", InputSpec((32,), "int64")),
        ("ids=int64:32", InputSpec((32,), "int64", "ids")),
        ("mask=bool:4,5", InputSpec((4, 5), "bool", "mask")),
        ("x=7", InputSpec((7,), name="x")),
        ("float64:", InputSpec((), "float64")),
    ],
)
def test_inputs_are_read_from_text_and_written_back(text: str, found: InputSpec) -> None:
    assert read_input(text) == found
    assert read_input(str(found)) == found
    example = found.example(5)
    assert tuple(example.shape) == (5, *found.shape) and str(example.dtype) == f"torch.{found.dtype}"
    assert torch.equal(example, found.example(5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3,-2", "'3,-2' is no list of sizes above 0"),
        ("3,0", "is no list of sizes above 0"),
        ("int46:3", r"no dtype 'int46' \(did you mean 'int64'\?\)"),
        (":3", "no dtype"),
        ("two words=3", "'two words' can't be the name of an argument"),
        ("=3", "can't be the name"),
        ("3x32", "write a shape without the batch"),
    ],
)
def test_another_input_is_refused_with_the_right_form(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_input(text)


def test_whole_numbers_stay_below_their_bound() -> None:
    values = InputSpec((50,), "int64", below=7).example()
    assert int(values.min()) >= 0 and int(values.max()) == 6


def test_a_factory_with_tokens_and_a_mask_is_captured_by_name(library: types.ModuleType) -> None:
    specs = (InputSpec((5,), "bool", "mask"), InputSpec((5,), "int64", "ids"))
    source = load_source("my_models:tokens", arguments={"n_classes": 4}, inputs=specs)
    assert [entry.name for entry in source.graph.inputs] == ["mask", "ids"]
    # The model's own names, not those of what calls it.
    assert set(source.graph.tensors) == {"words.weight", "head.weight", "head.bias"}
    model = Tokens(4)
    model.load_state_dict(dict(source.graph.tensors))
    ids, mask = torch.randint(0, 11, (3, 5)), torch.rand(3, 5) > 0.4
    torch.testing.assert_close(source.graph(mask, ids), model(ids, mask=mask))
    assert source.origin == "my_models:tokens with its own weights"


def test_inputs_without_names_go_by_their_place(library: types.ModuleType) -> None:
    source = load_source("my_models:tokens", inputs=[InputSpec((5,), "int64"), InputSpec((5,))])
    assert [entry.name for entry in source.graph.inputs] == ["ids", "scale"]
    assert [entry.dtype for entry in source.graph.inputs] == ["int64", "float32"]


def test_names_that_the_model_does_not_have_are_told_together(library: types.ModuleType) -> None:
    specs = (InputSpec((5,), "int64", "idz"), InputSpec((5,), name="scale"), InputSpec((5,), name="scale"))
    with pytest.raises(
        RequestError, match=r"no input 'idz' \(did you mean 'ids'\?\).*'scale' is given twice"
    ):
        load_source("my_models:tokens", inputs=specs)
    with pytest.raises(RequestError, match="name all of them, or none"):
        load_source("my_models:tokens", inputs=[InputSpec((5,), "int64", "ids"), InputSpec((5,))])


def test_a_called_model_gives_the_asked_parts_of_its_answer() -> None:
    class Record(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(4, 3)

        def forward(self, *, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": self.model(x) + self.model(y), "x": self.model(x), "n": x.new_ones(2)}

    inner = Record()
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    answer = inner(x=x, y=y)
    assert torch.equal(Called(inner, ["x", "y"], ["sum"])(x, y), answer["sum"])
    graph = capture_called(inner, ["x", "y"], (x, y), fields=["x", "sum"])
    # A model whose own first part is called "model" keeps it.
    assert set(graph.tensors) == {"model.weight", "model.bias"}
    one, two = graph(x, y)
    torch.testing.assert_close((one, two), (answer["x"], answer["sum"]))


def test_a_graph_folder_gives_the_same_graph(library: types.ModuleType, tmp_path: Path) -> None:
    source = load_source("my_models:tokens", inputs=[InputSpec((5,), "int64")])
    write_graph(source.graph, tmp_path / "graph")
    again = load_source(str(tmp_path / "graph"))
    assert again.graph.nodes == source.graph.nodes and again.origin == "graph folder graph"
    with pytest.raises(RequestError, match="brings its own weights"):
        load_source(str(tmp_path / "graph"), weights="w.safetensors")
    with pytest.raises(RequestError, match="no factory: leave out --arg width"):
        load_source(str(tmp_path / "graph"), arguments={"width": 3})


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.write_text("hello"), lambda path: None]
)
def test_what_is_no_model_names_what_is_one(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "thing")
    with pytest.raises(
        RequestError,
        match=r"(no model:|no file or folder).*package.module:factory, timm:NAME.*config.json.*onnx",
    ):
        load_source(str(tmp_path / "thing"))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "zipped.xyz"])
def test_pickles_are_refused_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / name)
    with pytest.raises(RequestError, match=r"is not read: it may hold code.*weights_only=True"):
        load_source(str(tmp_path / name))


def test_a_pickle_named_pt2_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Loud:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("the pickle was run",))

    torch.save(Loud(), tmp_path / "model.pt2")
    with pytest.raises(StoreError, match=r"model\.pt2"):
        load_source(str(tmp_path / "model.pt2"))
    assert "was run" not in capsys.readouterr().out


@pytest.mark.parametrize("library_name", ["timm", "torchvision"])
def test_a_missing_library_names_its_extra(library_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (library_name, f"{library_name}.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RequestError, match=rf"pip install 'sarto\[{library_name}\]'"):
        load_source(f"{library_name}:resnet18")


def test_a_missing_converter_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(RequestError, match=r"pip install 'sarto\[onnx-import\]'.*torchvision"):
        load_source(str(tmp_path / "model.onnx"))


def test_a_missing_transformers_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(RequestError, match=r"pip install 'sarto\[transformers\]'"):
        load_source(str(tmp_path))


class StandIn(nn.Module):
    """A small classifier for a library that is not installed."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return found


@pytest.fixture
def stand_in_timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Stands in for timm, of which it has only what sarto calls; gives the calls of `create_model`."""
    calls: list[dict[str, object]] = []

    def create_model(name: str, **options: object) -> nn.Module:
        calls.append({"name": name, **options})
        if name.partition(".")[0] != "small":
            raise RuntimeError(f"Unknown model ({name})")
        return StandIn(**{key: value for key, value in options.items() if key != "pretrained"})  # type: ignore[arg-type]

    settings = {"input_size": (3, 8, 8), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}
    timm = types.ModuleType("timm")
    timm.create_model = create_model  # type: ignore[attr-defined]
    timm.list_models = lambda: ["small", "large"]  # type: ignore[attr-defined]
    timm.data = types.SimpleNamespace(resolve_model_data_config=lambda model: settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    return calls


def test_a_stand_in_for_timm_makes_the_model_without_fetching(stand_in_timm: list[dict[str, object]]) -> None:
    source = load_source("timm:small.tagged", arguments={"num_classes": 5, "pretrained": True})
    assert stand_in_timm == [{"name": "small.tagged", "num_classes": 5, "pretrained": False}]
    assert source.graph.inputs[0].shape[1:] == (3, 8, 8)
    assert source.preprocessing is not None and source.preprocessing.mean == (0.4, 0.5, 0.6)
    assert source.preprocessing.resize == "refuse"
    assert "those of timm:small.tagged are random" in source.notes[0]
    # Without a tag nobody says which weights, so nobody says which preprocessing.
    assert load_source("timm:small", input_shape=(3, 9, 9)).preprocessing is None
    with pytest.raises(RequestError, match=r"timm has no model 'smal' \(did you mean 'small'\?\)"):
        load_named("timm", "smal", arguments={})
    with pytest.raises(RequestError, match=r"timm:small\(depth=3\) failed"):
        load_source("timm:small", arguments={"depth": 3})


def test_a_stand_in_for_timm_takes_weights_from_safetensors(
    stand_in_timm: list[dict[str, object]], tmp_path: Path
) -> None:
    model = StandIn(3)
    save_file(dict(model.state_dict()), tmp_path / "w.safetensors")
    source = load_source("timm:small", arguments={"num_classes": 3}, weights=tmp_path / "w.safetensors")
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(source.graph(x), model.eval()(x))
    assert source.origin == "timm:small with w.safetensors" and source.notes == ()
    with pytest.raises(RequestError, match=r"fc.bias: has shape \[3\], the model takes \[2\]"):
        load_source("timm:small", weights=tmp_path / "w.safetensors")
    with pytest.raises(RequestError, match="is not read"):
        load_source("timm:small", weights=tmp_path / "w.pth")


def _need(name: str) -> None:
    """Skip where a library is not installed, or does not import beside this torch."""
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{name} can't be imported: {error}")


@pytest.mark.slow
def test_timm_itself_gives_its_models(tmp_path: Path) -> None:
    _need("timm")
    timm = importlib.import_module("timm")
    model = timm.create_model("resnet10t", pretrained=False, num_classes=4).eval()
    save_file(dict(model.state_dict()), tmp_path / "w.safetensors")
    source = load_source(
        "timm:resnet10t.c3_in1k",
        arguments={"num_classes": 4},
        weights=tmp_path / "w.safetensors",
        input_shape=(3, 64, 64),
    )
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(source.graph(x), model(x), rtol=1e-5, atol=1e-5)
    assert source.preprocessing is not None and source.preprocessing.channels == 3
    with pytest.raises(RequestError, match="did you mean 'resnet10t'"):
        load_source("timm:resnet10tt")
    with pytest.raises(RequestError, match="Invalid pretrained tag"):
        load_source("timm:resnet10t.nowhere")


@pytest.mark.slow
def test_torchvision_itself_gives_its_models() -> None:
    _need("torchvision")
    source = load_source("torchvision:squeezenet1_1.IMAGENET1K_V1", input_shape=(3, 64, 64))
    assert source.preprocessing is not None and source.preprocessing.size == (224, 224)
    assert len(source.classes) == 1000 and source.classes[0] == "tench"
    assert source.graph(torch.randn(3, 3, 64, 64)).shape == (3, 1000)  # type: ignore[union-attr]
    with pytest.raises(RequestError, match=r"has no weights 'V9' \(.*IMAGENET1K_V1"):
        load_source("torchvision:squeezenet1_1.V9")
    with pytest.raises(RequestError, match="torchvision has no model 'squeezenet9'"):
        load_source("torchvision:squeezenet9")


def test_a_factory_that_can_not_be_captured_is_told_as_it_was(library: types.ModuleType) -> None:
    with pytest.raises(GraphError, match="could not capture Tokens"):
        load_source("my_models:tokens", input_shape=(3, 4, 4))


def test_a_pt2_file_gives_the_graph_that_was_written(library: types.ModuleType, tmp_path: Path) -> None:
    source = load_source("my_models:tokens", inputs=[InputSpec((5,), "int64")])
    write_pt2(source.graph, tmp_path / "model.pt2")
    again = load_source(str(tmp_path / "model.pt2"))
    ids = torch.randint(0, 11, (3, 5))
    assert torch.equal(again.graph(ids), source.graph(ids))  # type: ignore[arg-type]
    assert again.origin == "exported program model.pt2"


class Sized(nn.Sequential):
    """A convolutional classifier whose width is an argument."""

    def __init__(self, width: int = 4, path: str = "") -> None:
        if path:
            Path(path).read_bytes()
        if width == 0:
            raise KeyError("width")
        super().__init__(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


@pytest.fixture
def sized(library: types.ModuleType) -> str:
    """The spec of a factory that makes `Sized`."""
    library.sized = Sized  # type: ignore[attr-defined]
    library.number = 3  # type: ignore[attr-defined]
    return "my_models:sized"


@pytest.mark.parametrize("kind", ["graph", "pt2"])
def test_a_captured_model_takes_its_own_input_and_no_other(sized: str, tmp_path: Path, kind: str) -> None:
    graph = load_source(sized, input_shape=(3, 6, 5)).graph
    path = tmp_path / ("folder" if kind == "graph" else "model.pt2")
    (write_graph if kind == "graph" else write_pt2)(graph, path)
    (own,) = graph.inputs
    for same in (InputSpec((3, 6, 5)), InputSpec((3, 6, 5), name=own.name)):
        assert load_source(str(path), inputs=[same]).graph.inputs == graph.inputs
    assert load_source(str(path), input_shape=(3, 6, 5)).graph.inputs == graph.inputs
    others = [InputSpec((3, 9, 9)), InputSpec((3, 6, 5), "int64"), InputSpec((3, 6, 5), name="no")]
    for other in others:
        with pytest.raises(
            RequestError,
            match=rf"captured with {own.name}=float32:3,6,5 and can't be given .*leave out --input",
        ):
            load_source(str(path), inputs=[other])
    with pytest.raises(RequestError, match="leave out --input"):
        load_source(str(path), inputs=[InputSpec((3, 6, 5))] * 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widht": 3}, r"has no argument 'widht' \(did you mean 'width'\?\)"),
        ({"width": "ten"}, r"failed: TypeError: .*; width is to be int, found 'ten' \(str\)"),
        ({"path": "/no/where.txt"}, r"needs the file '/no/where.txt', which is not there"),
        ({"width": 0}, r"my_models:sized\(width=0\) failed: KeyError: 'width'"),
    ],
)
def test_wrong_arguments_of_a_factory_are_told(sized: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        load_source(sized, arguments=arguments)


def test_a_factory_that_is_none_or_lacks_arguments_is_told(sized: str, library: types.ModuleType) -> None:
    def needs(width: int, *, depth: int) -> nn.Module:
        return nn.Linear(width, depth)

    library.needs = needs  # type: ignore[attr-defined]
    library.kind = lambda: Sized  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match=r"2 problems.*needs the argument 'width': give --arg width="):
        load_source("my_models:needs")
    with pytest.raises(RequestError, match="my_models:number is a int, not a factory"):
        load_source("my_models:number")
    with pytest.raises(RequestError, match=r"gives a class \(Sized\) in place of a model, not an nn.Module"):
        load_source("my_models:kind")


def test_a_guessed_input_is_told_and_a_failure_hints_at_it(sized: str, library: types.ModuleType) -> None:
    assert load_source(sized).notes == (f"nothing says what {sized} reads: captured with --input 3,32,32",)
    assert load_source(sized, input_shape=(3, 32, 32)).notes == ()
    with pytest.raises(
        GraphError, match=r"[^.]\. Nothing said what the model reads, so 3,32,32 was tried.*--input"
    ):
        load_source("my_models:tokens")
    with pytest.raises(GraphError) as told:
        load_source("my_models:tokens", input_shape=(3, 4, 4))
    assert "was tried" not in str(told.value)


def test_weights_of_another_model_are_told_in_one_sentence(sized: str, tmp_path: Path) -> None:
    save_file(dict(Tokens().state_dict()), tmp_path / "w.safetensors")
    words = r"those of another model: none of its 3 tensors \(head.bias, .*is one of the model's 4 \(0.bias"
    with pytest.raises(RequestError, match=words):
        load_source(sized, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_of_a_type_that_needs_a_scale_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2)
    before, path = model.weight.clone(), tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(2, 3).to(dtype), "bias": torch.zeros(2)}, path)
    found = str(dtype).removeprefix("torch.")
    words = rf"weight: holds {found}, the model takes float32: give the weights before they were quantised"
    with pytest.raises(RequestError, match=words):
        load_weights(model, path)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_float_type_and_narrower_counters_are_read(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model, path = nn.BatchNorm1d(2), tmp_path / "weights.safetensors"
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    state |= {"weight": torch.tensor([0.5, -2.0], dtype=dtype), "num_batches_tracked": torch.tensor(7).int()}
    save_file(state, path)
    load_weights(model, path)
    assert model.weight.tolist() == [0.5, -2.0] and model.weight.dtype == torch.float32
    assert model.num_batches_tracked is not None and int(model.num_batches_tracked) == 7
    save_file({**state, "num_batches_tracked": torch.tensor(7.5)}, path)
    with pytest.raises(
        RequestError, match="num_batches_tracked: holds float32, the model takes int64: save it as"
    ):
        load_weights(model, path)
