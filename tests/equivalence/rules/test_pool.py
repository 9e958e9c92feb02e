"""Pools, resampling and reductions: channels pass, space is pinned; a sum over channels reads them, a mean pins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.testing.surgery_contract import check_slicing


class Between(nn.Module):
    """A function of a map between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x).tanh()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.adaptive_avg_pool2d(x, 3),
        lambda x: F.adaptive_max_pool2d(x, 3),
        lambda x: F.interpolate(x, scale_factor=2.0),
        lambda x: F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=False),
        lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic"),
        lambda x: F.pad(x, (1, 2, 0, 1)),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: x.amax((2, 3), keepdim=True),
        lambda x: x.mean(3, keepdim=True),
        lambda x: x.std((2, 3), keepdim=True),
        lambda x: x.max(3, keepdim=True)[0],
        lambda x: x / (x.norm(dim=(2, 3), keepdim=True) + 1),
        lambda x: x.logsumexp(3, keepdim=True),
        lambda x: x[:, :, 1:3],
    ],
)
def test_channels_pass_what_treats_each_alone(function: Callable[[Tensor], Tensor]) -> None:
    check_slicing(Between(function), torch.randn(2, 3, 6, 6), {"filters": 1})


class Reduced(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Linear(4, 6), nn.Linear(1, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x)))


def test_a_sum_over_units_reads_them() -> None:
    check_slicing(Reduced(lambda x: x.relu().sum(1, keepdim=True)), torch.randn(2, 4), {"hidden units": 1})


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.mean(1, keepdim=True), "mean"),
        (lambda x: x.amax(1, keepdim=True), "amax"),
        (lambda x: x.softmax(1).amax(1, keepdim=True), "softmax"),
        (lambda x: x.norm(dim=1, keepdim=True), "linalg_vector_norm"),
    ],
)
def test_a_statistic_over_units_pins_them(function: Callable[[Tensor], Tensor], reason: str) -> None:
    graph = check_slicing(Reduced(function), torch.randn(2, 4), {})
    assert reason in graph.analysis.groups["one.weight:0"].pinned[0]
