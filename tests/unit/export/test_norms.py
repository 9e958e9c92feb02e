"""Folding batch norms: the same function with fewer nodes, and only where it is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sarto import zoo
from sarto.export.norms import fold_norms
from sarto.graph import ModelGraph, capture, relative_difference
from sarto.testing.pico import PICO, pico
from sarto.testing.tolerances import EXACT


def norms(graph: ModelGraph) -> int:
    return sum(node.op == "aten.batch_norm.default" for node in graph.nodes)


@pytest.mark.parametrize("name", PICO)
def test_folding_changes_nothing_that_comes_out(name: str) -> None:
    model, x = pico(name)
    graph = capture(model, x, prove=False)
    before = {key: tensor.clone() for key, tensor in graph.tensors.items()}
    folded = fold_norms(graph)
    assert relative_difference((folded(x),), (graph(x),)) <= EXACT[torch.float64]
    assert all(torch.equal(before[key], tensor) for key, tensor in graph.tensors.items())
    assert folded.inputs == graph.inputs and len(folded.nodes) <= len(graph.nodes)


def test_every_norm_of_a_residual_network_is_folded() -> None:
    graph = capture(zoo.cifar_resnet(3, depth=8, width=4), torch.zeros(2, 3, 16, 16), prove=False)
    folded = fold_norms(graph)
    assert norms(graph) == 9 and norms(folded) == 0
    assert len(folded.nodes) == len(graph.nodes) - 9
    assert not any("running" in name for name in folded.tensors), "what nobody reads any more is left out"
    assert folded.parameters == folded.tensors.keys()
    x = torch.randn(4, 3, 16, 16)
    assert relative_difference((folded(x),), (graph(x),)) <= EXACT[torch.float32]


class Kinds(nn.Module):
    """Norms behind convolutions of every kind, with and without their own weights."""

    def __init__(self, layer: nn.Module, affine: bool) -> None:
        super().__init__()
        self.layer = layer
        norm = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}[type(layer)]
        self.norm = norm(4, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(6, 4, 3, groups=2),
        nn.Conv1d(6, 4, 4, padding="same", bias=False),
        nn.Conv2d(6, 4, 3, padding="same"),
        nn.Conv3d(6, 4, 2, bias=False),
    ],
)
def test_norms_fold_into_every_kind_of_convolution(layer: nn.Module, affine: bool) -> None:
    model = Kinds(layer, affine).double().eval()
    for tensor in model.norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, 6, *(5,) * (layer.weight.ndim - 2), dtype=torch.float64)
    graph = capture(model, x, prove=False)
    folded = fold_norms(graph)
    assert norms(folded) == 0 and len(folded.nodes) == 1
    assert relative_difference((folded(x),), (graph(x),)) <= EXACT[torch.float64]


class Kept(nn.Module):
    """Norms that can't be folded: on an input, on a sum, behind a convolution that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.first(x))
        return self.third(y + self.second(y))


def test_norms_that_something_else_depends_on_stay() -> None:
    x = torch.randn(2, 3, 4, 4)
    graph = capture(Kept().eval(), x, prove=False)
    assert fold_norms(graph).nodes == graph.nodes
    chain = capture(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval(), x, prove=False)
    seen = replace(chain, outputs=(chain.nodes[0].name, chain.outputs[0]))
    assert norms(fold_norms(seen)) == 1, "the convolution itself is asked for"
    assert norms(fold_norms(chain)) == 0


def test_new_tensors_take_no_name_that_is_in_use() -> None:
    x = torch.randn(2, 3, 4, 4)
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).eval(), x, prove=False
    )
    used = f"{graph.nodes[1].name}_weight"
    last = graph.nodes[2]
    tensors = {used if name == "2.weight" else name: tensor for name, tensor in graph.tensors.items()}
    renamed = replace(
        graph,
        nodes=(*graph.nodes[:2], last.with_args(weight=replace(last.args["weight"], name=used))),  # type: ignore[type-var]
        tensors=tensors,
        parameters=frozenset(used if name == "2.weight" else name for name in graph.parameters),
    )
    assert torch.equal(renamed(x), graph(x))
    assert relative_difference((fold_norms(renamed)(x),), (graph(x),)) <= EXACT[torch.float32]
