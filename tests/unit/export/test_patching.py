"""ONNX files of subnets from one export of the whole: what each computes is what eager computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from sarto.devices import load_onnx
from sarto.devices.profiling.packs import can_be_packed, pack_graph
from sarto.errors import GraphError
from sarto.export import to_onnx
from sarto.export.joining import joined_onnx
from sarto.export.patching import onnx_template
from sarto.graph import capture, slice
from sarto.graph.selection import leading


class Net(nn.Module):
    """A depthwise convolution, whose groups follow the units, and a flattened map, whose size does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.deep = nn.Conv2d(12, 12, 3, groups=12)
        self.last, self.out = nn.Conv2d(12, 9, 1), nn.Linear(36, 4)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(torch.relu(self.norm(self.first(x))))
        found: Tensor = self.out(torch.relu(self.last(x)).reshape(x.shape[0], -1))
        return found


def test_subnets_of_a_template_compute_what_eager_computes() -> None:
    graph = capture(Net().eval(), torch.randn(2, 3, 6, 6), prove=False)
    template = onnx_template(graph)
    rng = np.random.default_rng(1)
    for _ in range(3):
        counts = {group.id: int(rng.integers(1, group.size + 1)) for group in graph.analysis.sliceable}
        x = torch.randn(3, 3, 6, 6)
        found = load_onnx(template.subnet(counts))(x.numpy())
        torch.testing.assert_close(
            torch.as_tensor(found), slice(graph, leading(counts))(x), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(GraphError, match="no channel group 'nobody'"):
        template.subnet({"nobody": 1})


class Scaled(nn.Module):
    """Where the exporter writes something else for a slice: a size that stands in a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(torch.nn.functional.pad(self.first(x), (0, 0)))
        return found


def test_a_template_is_checked_before_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(Scaled().eval(), torch.randn(2, 5), prove=False)
    monkeypatch.setattr("sarto.export.patching._LIMIT", -1.0)
    with pytest.raises(GraphError, match=r"differs from eager by .*: no template fits"):
        onnx_template(graph)


def test_a_joined_pack_is_what_exporting_the_pack_writes() -> None:
    graph = capture(Net().eval(), torch.randn(2, 3, 6, 6), prove=False)
    rng = np.random.default_rng(2)
    parts = [{g.id: int(rng.integers(1, g.size + 1)) for g in graph.analysis.sliceable} for _ in range(3)]
    joined = onnx.load_from_string(onnx_template(graph).pack([*parts, parts[0]]))
    written = pack_graph(graph, [*parts, parts[0]])
    exported = to_onnx(written)
    ops = [Counter(node.op_type for node in model.graph.node) for model in (joined, exported)]
    assert ops[0] == ops[1]
    x = torch.randn(3, 3, 6, 6)
    (found,) = (load_onnx(joined.SerializeToString())(x.numpy()),)
    assert np.allclose(found, written(x).numpy(), rtol=0.05, atol=1e-5)
    stored = [
        [t for t in m.graph.initializer if t.data_type == onnx.TensorProto.FLOAT] for m in (joined, exported)
    ]
    sizes = [sum(int(np.prod(tensor.dims)) for tensor in tensors) for tensors in stored]
    assert sizes[0] == sizes[1], "no part is stored once for two"


def test_a_model_without_a_linear_layer_at_its_end_is_not_packed() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), torch.randn(2, 3, 4, 4), prove=False)
    with pytest.raises(GraphError, match="end in a linear layer, this one in Relu"):
        joined_onnx([to_onnx(graph)])
    assert not can_be_packed(graph)
