"""ONNX files: equal to eager at several batch sizes, with their metadata, or refused and not left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from sarto.errors import GraphError, VerifyError
from sarto.export import export_onnx, to_onnx
from sarto.export import onnx as exporting
from sarto.graph import capture, leading, relative_difference, slice, uniform_counts
from sarto.testing.pico import pico
from sarto.testing.tolerances import EXACT


@pytest.mark.parametrize("name", ["plain", "residual", "mobile", "dense", "grouped", "text", "pinned"])
def test_onnxruntime_computes_what_eager_computes(name: str, tmp_path: Path) -> None:
    model, x = pico(name, dtype=torch.float32)
    graph = capture(model, x, prove=False)
    small = slice(graph, leading(uniform_counts(graph, 0.5)))
    found = export_onnx(small, tmp_path / "m.onnx", samples=x)
    assert found.max_relative_difference <= EXACT[torch.float32] and found.agreement == 1.0
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    wide = torch.cat([x, x])[:5]
    have = torch.from_numpy(np.asarray(session.run(None, {session.get_inputs()[0].name: wide.numpy()})[0]))
    assert relative_difference((have,), (small(wide),)) <= EXACT[torch.float32]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"], "one file, nothing beside it"


@pytest.mark.parametrize("name", ["residual", "mobile"])
def test_in_double_precision_the_file_says_the_same_to_twelve_digits(name: str, tmp_path: Path) -> None:
    """ONNX Runtime has no convolution in double precision, and says so; ONNX's own evaluator has one."""
    model, x = pico(name)
    graph = capture(model, x, prove=False)
    reference = ReferenceEvaluator(to_onnx(graph))
    have = torch.from_numpy(np.asarray(reference.run(None, {reference.input_names[0]: x.numpy()})[0]))
    assert relative_difference((have,), (graph(x),)) <= EXACT[torch.float64]
    with pytest.raises(GraphError, match=r"ONNX Runtime can't run this graph in float64.*Conv"):
        export_onnx(graph, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_metadata_travels_in_the_file(tmp_path: Path) -> None:
    graph = capture(*pico("residual", dtype=torch.float32), prove=False)
    found = export_onnx(graph, tmp_path / "m.onnx", metadata={"classes": '["a", "b"]'})
    proto = onnx.load(tmp_path / "m.onnx")
    assert {entry.key: entry.value for entry in proto.metadata_props}["classes"] == '["a", "b"]'
    assert found.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert found.opset == max(e.version for e in proto.opset_import if e.domain in ("", "ai.onnx"))


def test_a_file_that_differs_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(*pico("residual", dtype=torch.float32), prove=False)
    (tmp_path / "m.onnx").write_bytes(b"what was there before")
    monkeypatch.setattr(exporting, "LIMITS", {"float32": -1.0})
    with pytest.raises(VerifyError, match="differs from eager"):
        export_onnx(graph, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"what was there before"
    assert len(list(tmp_path.iterdir())) == 1
