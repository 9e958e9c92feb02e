"""What counts in a network is what moves its outputs: a faint branch counts little, a stream once for every reader."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sarto.engines.slicepack import Readings, allocate, read_donor
from sarto.engines.slicepack.importance import importance
from sarto.graph import capture


class _Residual(nn.Module):
    """Two residual blocks of one convolution inside; the branches are scaled."""

    def __init__(self, scales: tuple[float, float]) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.a = nn.ModuleList(nn.Conv2d(8, 12, 3, padding=1) for _ in scales)
        self.b = nn.ModuleList(nn.Conv2d(12, 8, 3, padding=1, bias=False) for _ in scales)
        for layer, scale in zip(self.b, scales, strict=True):
            layer.weight.data *= scale

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for a, b in zip(self.a, self.b, strict=True):
            x = torch.relu(x + b(torch.relu(a(x))))
        return self.fc(x.mean((2, 3)))


class _Bottleneck(nn.Module):
    """A branch of three layers; positions come before channels, and the sum takes 0.2 of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Linear(3, 8), nn.Linear(8, 4)
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 8)

    def branch(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x.flatten(2).transpose(1, 2)))
        x = torch.add(x, self.branch(x), alpha=0.2)
        return self.fc(x.mean(1))


class _Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def readings_of(model: nn.Module) -> Readings:
    torch.manual_seed(1)
    inputs = torch.randn(40, 3, 10, 10)
    return read_donor(capture(model.eval(), inputs[:2], prove=False), inputs, torch.arange(40) % 4, 4)


def test_a_branch_counts_as_much_as_it_varies_of_the_sum() -> None:
    torch.manual_seed(0)
    model = _Residual((1.0, 0.1))
    readings = readings_of(model)
    found = importance(readings)
    with torch.no_grad():
        x = torch.relu(model.stem(readings.inputs))
        for place, (a, b) in enumerate(zip(model.a, model.b, strict=True)):
            branch = b(torch.relu(a(x)))
            total = x + branch
            want = branch.var((0, 2, 3), correction=0).mean() / total.var((0, 2, 3), correction=0).mean()
            (name,) = (group for group in found if group.startswith(f"a.{place}."))
            assert found[name] == pytest.approx(min(1.0, float(want)), rel=1e-4)
            x = torch.relu(total)
    # Two convolutions and the classifier read the stream.
    (stream,) = (group for group in found if group.startswith("stem."))
    assert found[stream] == 3


def test_every_layer_of_a_branch_counts_as_the_branch_does() -> None:
    torch.manual_seed(0)
    model = _Bottleneck()
    readings = readings_of(model)
    found = importance(readings)
    with torch.no_grad():
        x = torch.relu(model.stem(readings.inputs.flatten(2).transpose(1, 2)))
        branch = 0.2 * model.branch(x)
        want = branch.var((0, 1), correction=0).mean() / (x + branch).var((0, 1), correction=0).mean()
    inner = [share for group, share in found.items() if group[:2] in ("a.", "b.")]
    assert inner == pytest.approx([float(want)] * 2, rel=1e-4) and float(want) < 1


def test_where_nothing_is_added_every_layer_counts_alike() -> None:
    torch.manual_seed(0)
    assert set(importance(readings_of(_Chain())).values()) == {1.0}


def test_units_of_a_faint_branch_go_first() -> None:
    torch.manual_seed(0)
    widths = allocate(readings_of(_Residual((1.0, 0.05))), [0.6])[0.6]
    strong, faint = (next(n for group, n in widths.items() if group.startswith(f"a.{i}.")) for i in (0, 1))
    stream = next(n for group, n in widths.items() if group.startswith("stem."))
    assert faint < strong and stream == 8
