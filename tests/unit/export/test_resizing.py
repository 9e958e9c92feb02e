"""Files of graphs that differ from a known one in their weights alone: equal to what the exporter writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from sarto.export import Known, export_onnx, to_onnx
from sarto.export.resizing import resized_onnx
from sarto.graph import ModelGraph, capture, slice
from sarto.graph.selection import leading


class Net(nn.Module):
    """Two branches with norms, joined under a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.left, self.right = nn.Conv2d(12, 10, 3), nn.Conv2d(12, 8, 3)
        self.out = nn.Linear(18, 4)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        both = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        found: Tensor = self.out(both.mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    torch.manual_seed(0)
    return capture(Net().eval(), torch.randn(2, 3, 8, 8), prove=False)


def at(graph: ModelGraph, share: float) -> ModelGraph:
    return slice(graph, leading({g.id: max(1, round(share * g.size)) for g in graph.analysis.sliceable}))


@pytest.fixture(scope="module")
def known(graph: ModelGraph) -> Known:
    half = at(graph, 0.5)
    return Known(half, to_onnx(half).SerializeToString())


def weights(model: onnx.ModelProto) -> dict[str, Tensor]:
    return {s.name: torch.tensor(numpy_helper.to_array(s)) for s in model.graph.initializer}


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_another_size_is_written_without_the_exporter_and_holds_what_it_would(
    share: float, graph: ModelGraph, known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = at(graph, share)
    usual = export_onnx(wanted, tmp_path / "usual.onnx")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the exporter was asked")

    monkeypatch.setattr("sarto.export.onnx.to_onnx", never)
    found = export_onnx(wanted, tmp_path / "quick.onnx", like=known, metadata={"plan": "p"})
    assert found.resized and not usual.resized and found.max_relative_difference <= 1e-5
    quick = onnx.load(found.path)
    assert {entry.key: entry.value for entry in quick.metadata_props} == {"plan": "p"}
    have, want = weights(quick), weights(onnx.load(usual.path))
    assert have.keys() == want.keys()
    assert all(torch.equal(have[name], want[name]) for name in have)


def test_other_operators_and_what_computes_something_else_go_to_the_exporter(
    graph: ModelGraph, known: Known, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(2, 3, 8, 8), prove=False)
    assert resized_onnx(known, other) is None
    assert not export_onnx(other, tmp_path / "other.onnx", like=known).resized
    # A known file in which a number is not a weight of the graph, as the exporter may have computed one beforehand.
    odd = onnx.load_from_string(known.data)
    linear = next(node for node in odd.graph.node if node.op_type == "Gemm")
    place = next(place for place, name in enumerate(linear.input) if name.endswith("bias"))
    bias = next(s for s in odd.graph.initializer if s.name == linear.input[place])
    kept = numpy_helper.from_array(numpy_helper.to_array(bias).copy(), "computed")
    odd.graph.initializer.append(kept)
    linear.input[place] = "computed"
    moved = at(graph, 0.8)
    tensors = {name: held + 1 if name.endswith("out.bias") else held for name, held in moved.tensors.items()}
    changed = replace(moved, tensors=tensors)
    found = export_onnx(changed, tmp_path / "changed.onnx", like=Known(known.graph, odd.SerializeToString()))
    assert not found.resized and found.max_relative_difference <= 1e-5
