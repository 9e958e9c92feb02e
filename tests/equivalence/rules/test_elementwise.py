"""Elementwise operators: units keep their place through every activation, comparison and broadcast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.graph.operators import ALLOWED, GETITEM
from sarto.graph.rules import RULES
from sarto.testing.surgery_contract import check_slicing


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x)))


@pytest.mark.parametrize(
    "function",
    [
        F.celu,
        F.elu,
        F.gelu,
        F.hardsigmoid,
        F.hardswish,
        F.leaky_relu,
        F.logsigmoid,
        F.mish,
        F.relu6,
        F.selu,
        F.softplus,
        F.softsign,
        F.tanhshrink,
        torch.erf,
        torch.exp,
        torch.sin,
        lambda x: x.clamp(-0.5, 0.5),
        lambda x: x.abs().sqrt(),
        lambda x: x.square().log1p(),
        lambda x: 1 - x / 3,
        lambda x: 2.0**x,
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: x.masked_fill(x < 0, -0.3),
        lambda x: torch.maximum(x, -x) + torch.minimum(x, 2 * x),
        lambda x: torch.lerp(x, x.tanh(), 0.3),
        lambda x: torch.addcmul(x, x, x, value=0.5),
        lambda x: x * (x > 0).to(x.dtype),
        lambda x: torch.zeros_like(x) + x,
    ],
)
def test_units_pass_what_looks_at_each_number_alone(function: Callable[[Tensor], Tensor]) -> None:
    check_slicing(Between(function), torch.randn(2, 4), {"hidden units": 1})


class Broadcast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.scale, self.slope = nn.Parameter(torch.ones(6, 1, 1)), nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.one(x)) * self.scale
        return self.two(x + x.mean((2, 3), keepdim=True))


def test_vectors_are_cut_with_the_channels_that_they_scale() -> None:
    graph = check_slicing(Broadcast(), torch.randn(2, 3, 4, 4), {"filters": 1})
    (group,) = graph.analysis.sliceable
    assert {"scale", "slope.weight", "one.bias"} <= {name for name, _ in group.places}


def test_every_rule_is_for_an_operator_that_a_graph_may_hold() -> None:
    assert set(RULES) - {GETITEM} <= ALLOWED
    without = {op for op in ALLOWED if op not in RULES}
    assert not without, f"allowed operators without a rule: {sorted(without)}"
