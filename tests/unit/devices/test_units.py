"""What a unit carries, against the weights and products that hold it, counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sarto.devices import count, unit_costs
from sarto.graph import Selection, capture, slice
from sarto.testing.random_layers import Attention


def test_a_filter_carries_its_row_its_norm_and_its_column() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten()
    )
    graph = capture(model, torch.randn(2, 3, 5, 5))
    (cost,) = unit_costs(graph).values()
    assert cost.params == (3 * 9 + 1) + 2 + 4
    assert cost.flops == 2 * 25 * (3 * 9 + 4)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention(8, "fused")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_head_carries_four_projections_and_two_products() -> None:
    graph = capture(Heads(), torch.randn(2, 8, 3, 3))
    (heads,) = (group for group in graph.analysis.sliceable if group.kind == "heads")
    cost = unit_costs(graph)[heads.id]
    assert cost.params == 3 * (3 * 8 + 3) + 3 * 8
    tokens = 9
    assert cost.flops == 2 * tokens * (3 * 3 * 8 + 3 * 8) + 2 * tokens * tokens * (3 + 3)


def test_every_unit_carries_the_same() -> None:
    graph = capture(Heads(), torch.randn(2, 8, 3, 3))
    whole = count(graph)
    for name, cost in unit_costs(graph).items():
        size = graph.analysis.groups[name].size
        for unit in range(size):
            less = count(slice(graph, Selection({name: tuple(u for u in range(size) if u != unit)})))
            assert (whole.params - less.params, whole.flops - less.flops) == (cost.params, cost.flops)
