"""Normalisation: whole groups of a group norm go, channels of an instance norm go, layer and RMS norm pin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sarto.testing.surgery_contract import check_slicing

IMAGE = torch.randn(2, 3, 6, 6)


def net(*middle: nn.Module, width: int = 12) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 12, 3), *middle, nn.ReLU(), nn.Conv2d(width, 4, 3))


def test_group_norm_lets_whole_groups_go() -> None:
    graph = check_slicing(net(nn.GroupNorm(4, 12)), IMAGE, {"filters": 1})
    (group,) = graph.analysis.sliceable
    assert (group.size, group.granularity) == (4, 3)
    inner = [g for g in graph.analysis.groups.values() if any("group_norm" in why for why in g.pinned)]
    assert [g.size for g in inner] == [3]


def test_one_group_pins_all() -> None:
    graph = check_slicing(net(nn.GroupNorm(1, 12)), IMAGE, {})
    assert "group_norm" in graph.analysis.groups["0.weight:0"].pinned[0]


def test_group_norm_before_a_grouped_convolution() -> None:
    check_slicing(net(nn.GroupNorm(6, 12), nn.Conv2d(12, 12, 1, groups=3)), IMAGE, {"filters": 3})


def test_instance_norm_with_and_without_weights() -> None:
    check_slicing(net(nn.InstanceNorm2d(12, affine=True)), IMAGE, {"filters": 1})
    check_slicing(net(nn.InstanceNorm2d(12)), IMAGE, {"filters": 1})


def test_batch_norm_moves_with_its_channels() -> None:
    check_slicing(net(nn.BatchNorm2d(12)), IMAGE, {"filters": 1})


def test_layer_norm_pins_and_is_named() -> None:
    graph = check_slicing(
        nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 2)), torch.randn(2, 5), {}
    )
    assert "layer_norm" in graph.analysis.groups["0.weight:0"].pinned[0]


class RMSNorm(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.one, self.two, self.fused = nn.Linear(5, 8), nn.Linear(8, 2), fused
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if self.fused:
            return self.two(nn.functional.rms_norm(x, [8], self.weight))
        return self.two(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight)


def test_rms_norm_pins_fused_or_written_out() -> None:
    fused = check_slicing(RMSNorm(fused=True), torch.randn(2, 5), {})
    assert "rms_norm" in fused.analysis.groups["one.weight:0"].pinned[0]
    written = check_slicing(RMSNorm(fused=False), torch.randn(2, 5), {})
    assert "mean" in written.analysis.groups["one.weight:0"].pinned[0]


def test_weight_norm_pins_what_it_sums_over() -> None:
    first = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 12, 3))
    last = nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 4, 3))
    graph = check_slicing(nn.Sequential(first, nn.ReLU(), nn.Conv2d(12, 4, 3)), IMAGE, {"filters": 1})
    assert graph.analysis.sliceable[0].size == 12
    assert not check_slicing(
        nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), last), IMAGE, {}
    ).analysis.sliceable
