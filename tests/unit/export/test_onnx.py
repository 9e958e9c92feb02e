"""ONNX files: equal to eager at several batch sizes, with their metadata, or refused and not left behind."""

from __future__ import annotations

import gc
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from sarto.errors import GraphError, ShapeError, VerifyError
from sarto.export import export_onnx, load_onnx, to_onnx
from sarto.export import onnx as exporting
from sarto.graph import (
    ModelGraph,
    capture,
    leading,
    read_graph,
    relative_difference,
    slice,
    uniform_counts,
    write_graph,
)
from sarto.testing.pico import PICO, pico
from sarto.testing.tolerances import EXACT


class Two(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x) + self.two(y), self.one(x)


class Attention(nn.Module):
    """Attention of tokens on themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def graph_of(name: str) -> tuple[ModelGraph, Tensor]:
    model, x = pico(name, dtype=torch.float32)
    return capture(model, x, prove=False), x


@pytest.mark.parametrize("name", PICO)
def test_onnxruntime_computes_what_eager_computes(name: str, tmp_path: Path) -> None:
    graph, x = graph_of(name)
    small = slice(graph, leading(uniform_counts(graph, 0.5)))
    found = export_onnx(small, tmp_path / "m.onnx", samples=x)
    assert found.max_relative_difference <= EXACT[torch.float32] and found.agreement == 1.0
    assert found.batches == (1, 2, 7)
    model = load_onnx(tmp_path / "m.onnx")
    assert model.names == tuple(entry.name for entry in small.inputs) and model.outputs == ("output",)
    for batch in (1, 3, 5):
        wide = torch.cat([x, x])[:batch]
        have = torch.from_numpy(np.asarray(model(wide.numpy())))
        assert relative_difference((have,), (small(wide),)) <= EXACT[torch.float32]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"], "one file, nothing beside it"


def test_a_graph_on_disk_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    given = torch.randn(2, 4), torch.randn(2, 5)
    graph = capture(Two(), given, prove=False)
    write_graph(graph, tmp_path / "graph")
    lazy = read_graph(tmp_path / "graph")
    found = export_onnx(lazy, tmp_path / "new" / "m.onnx", samples=given)
    assert found.path == tmp_path / "new" / "m.onnx"
    model = load_onnx(found.path)
    assert model.names == ("x", "y") and model.outputs == ("output_0", "output_1")
    have = [torch.from_numpy(array) for array in model(*(tensor.numpy() for tensor in given))]
    assert relative_difference(have, graph(*given)) <= EXACT[torch.float32]


@pytest.mark.parametrize("play", ["argmax", "compare", "identity"])
def test_outputs_that_are_no_numbers_of_a_layer(play: str, tmp_path: Path) -> None:
    class Play(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return {"argmax": lambda: x.argmax(1), "compare": lambda: x > 0.5, "identity": lambda: x}[play]()

    graph = capture(Play(), torch.rand(2, 4), prove=False)
    x = torch.rand(5, 4)
    found = export_onnx(graph, tmp_path / "m.onnx", samples=x)
    assert found.max_relative_difference == 0
    np.testing.assert_array_equal(np.asarray(load_onnx(found.path)(x.numpy())), graph(x).numpy())


def test_the_file_holds_metadata_a_named_batch_and_nothing_about_its_making(tmp_path: Path) -> None:
    graph, _ = graph_of("residual")
    found = export_onnx(graph, tmp_path / "m.onnx", metadata={"classes": '["a", "b"]', "plan": "p"})
    proto = onnx.load(found.path)
    assert load_onnx(found.path).metadata == {"classes": '["a", "b"]', "plan": "p"}
    assert found.size_bytes == found.path.stat().st_size
    assert found.opset == max(
        entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")
    )
    batch = [
        value.type.tensor_type.shape.dim[0].dim_param for value in (*proto.graph.input, *proto.graph.output)
    ]
    assert batch == ["batch", "batch"]
    assert (
        b"torch.ops" not in found.path.read_bytes()
        and str(Path.cwd()).encode() not in found.path.read_bytes()
    )
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    onnx.checker.check_model(proto)


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    graph, _ = graph_of("text")
    one, two = (export_onnx(graph, tmp_path / name).path.read_bytes() for name in ("a.onnx", "b.onnx"))
    assert one == two


def test_an_asked_for_opset_is_used(tmp_path: Path) -> None:
    graph = capture(nn.Linear(4, 2), torch.zeros(2, 4), prove=False)
    assert export_onnx(graph, tmp_path / "m.onnx", opset=18).opset == 18
    for opset in (3, 999):
        with pytest.raises(GraphError, match=f"can't be written as ONNX.*{opset}"):
            export_onnx(graph, tmp_path / "m.onnx", opset=opset)


def test_an_operator_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    graph = capture(Attention(), torch.zeros(2, 5, 8), prove=False)
    with pytest.raises(GraphError, match=r"aten\.scaled_dot_product_attention\.default fails \(only 4D"):
        export_onnx(graph, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["residual", "mobile"])
def test_in_double_precision_the_file_says_the_same_to_twelve_digits(name: str, tmp_path: Path) -> None:
    """ONNX Runtime has no convolution in double precision, and says so; ONNX's own evaluator has one."""
    model, x = pico(name)
    graph = capture(model, x, prove=False)
    reference = ReferenceEvaluator(to_onnx(graph))
    have = torch.from_numpy(np.asarray(reference.run(None, {reference.input_names[0]: x.numpy()})[0]))
    assert relative_difference((have,), (graph(x),)) <= EXACT[torch.float64]
    words = r"ONNX Runtime can't run this graph in float64.*Conv.*graph\.to\(torch\.float32\) may run"
    with pytest.raises(GraphError, match=words):
        export_onnx(graph, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = graph_of("residual")
    (tmp_path / "m.onnx").write_bytes(b"what was there before")
    broken = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    broken["fc.bias"] += 1e-3

    def folded(given: ModelGraph) -> ModelGraph:
        return ModelGraph(given.inputs, given.nodes, given.outputs, broken, given.parameters)

    monkeypatch.setattr(exporting, "fold_norms", folded)
    with pytest.raises(VerifyError, match=r"differs from eager by .* more than 1e-05; the file was not kept"):
        export_onnx(graph, tmp_path / "m.onnx", samples=x)
    assert (tmp_path / "m.onnx").read_bytes() == b"what was there before"
    assert len(list(tmp_path.iterdir())) == 1


def test_agreement_is_the_share_of_equal_decisions() -> None:
    graph = capture(nn.Linear(4, 2), torch.zeros(2, 4), prove=False)
    weight, bias = graph.tensors["weight"], graph.tensors["bias"]
    weight.zero_(), bias.copy_(torch.tensor([0.0, 1.0]))

    class Other:
        def __call__(self, x: np.ndarray) -> np.ndarray:
            return np.stack([np.where(np.arange(len(x)) == 0, 2.0, 0.0), np.ones(len(x))], 1).astype(
                np.float32
            )

    difference, agreement = exporting._compare(graph, Other(), (torch.zeros(20, 4),))  # type: ignore[arg-type]
    assert difference == 2.0
    assert agreement == pytest.approx(1 - 4 / (1 + 2 + 7 + 20)), "the first of each of four batches differs"


def test_the_difference_is_relative_to_the_largest_output_of_all_batches() -> None:
    graph = capture(nn.Linear(1, 2), torch.zeros(2, 1), prove=False)
    graph.tensors["weight"].fill_(1.0), graph.tensors["bias"].zero_()

    class Other:
        def __call__(self, x: np.ndarray) -> np.ndarray:
            return x.repeat(2, 1) + np.float32(0.5)

    large = torch.full((3, 1), 100.0)
    assert exporting._compare(graph, Other(), (large,))[0] == pytest.approx(0.005)  # type: ignore[arg-type]
    assert exporting._compare(graph, lambda x: x, (large,))[0] == float("inf"), "another shape"  # type: ignore[arg-type]


def test_samples_that_the_graph_does_not_take_are_refused(tmp_path: Path) -> None:
    graph, _ = graph_of("residual")
    with pytest.raises(ShapeError, match=r"'x' must have shape \['batch', 3, 8, 8\], got \[2, 3, 4, 4\]"):
        export_onnx(graph, tmp_path / "m.onnx", samples=torch.zeros(2, 3, 4, 4))


def test_weights_that_do_not_fit_into_one_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, _ = graph_of("residual")
    monkeypatch.setattr(exporting, "MAX_BYTES", 1000)
    with pytest.raises(GraphError, match=r"one ONNX file holds 1,000\. Slice it further"):
        export_onnx(graph.sketch(), tmp_path / "m.onnx")


def test_exporting_is_silent_and_leaves_the_process_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph, _ = graph_of("plain")
    filters, collecting = list(warnings.filters), gc.isenabled()
    export_onnx(graph, tmp_path / "m.onnx")
    told = capfd.readouterr()
    assert told.out == "" and told.err == ""
    assert warnings.filters == filters and gc.isenabled() is collecting
    assert logging.root.manager.disable == logging.NOTSET
