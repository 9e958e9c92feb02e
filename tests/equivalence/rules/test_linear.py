"""Convolutions: plain, grouped, depthwise, in one, two and three dimensions, and their transposes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sarto.testing.surgery_contract import check_slicing

IMAGE = torch.randn(2, 3, 6, 6)


@pytest.mark.parametrize(
    ("middle", "groups"),
    [
        (nn.ConvTranspose2d(12, 8, 2, stride=2), 2),
        (nn.ConvTranspose2d(12, 8, 3, padding=1, bias=False), 2),
        (nn.ConvTranspose2d(12, 8, 2, groups=4), 3),
        (nn.ConvTranspose2d(12, 12, 2, groups=12), 1),
        (nn.Conv2d(12, 8, 3, padding="same"), 2),
        (nn.Conv2d(12, 8, 3, padding=1, padding_mode="reflect"), 2),
        (nn.Conv2d(12, 24, 3, padding=1, groups=12), 2),
        (nn.Conv2d(12, 8, 1, groups=4), 3),
    ],
    ids=str,
)
def test_two_dimensions(middle: nn.Module, groups: int) -> None:
    width = middle.out_channels
    model = nn.Sequential(nn.Conv2d(3, 12, 3), middle, nn.ReLU(), nn.Conv2d(width, 4, 1))
    check_slicing(model, IMAGE, {"filters": groups})


def test_one_and_three_dimensions() -> None:
    check_slicing(
        nn.Sequential(nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, 6, 2), nn.Conv1d(6, 2, 1)),
        torch.randn(2, 3, 9),
        {"filters": 2},
    )
    check_slicing(
        nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 2, 1)),
        torch.randn(2, 3, 6, 6, 6),
        {"filters": 1},
    )


def test_a_weight_that_two_layers_share_is_one_group_on_both_sides() -> None:
    shared = nn.Linear(6, 6)
    graph = check_slicing(
        nn.Sequential(nn.Linear(4, 6), shared, nn.Tanh(), shared, nn.Linear(6, 2)),
        torch.randn(2, 4),
        {"hidden units": 1},
    )
    assert len(graph.analysis.sliceable[0].producers) == 3
