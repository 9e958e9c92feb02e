"""Pico models: the smallest networks that show each structure surgery has to deal with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """conv-bn-relu, max pool, conv, flatten over space, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.fc1 = nn.Linear(6 * 4 * 4, 10)
        self.fc2 = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 2)
        x = F.adaptive_avg_pool2d(F.hardswish(self.conv2(x)), 4)
        x = F.dropout(x, 0.1, self.training).view(x.size(0), -1)
        return self.fc2(F.gelu(self.fc1(x)))


class Residual(nn.Module):
    """A residual stream with an identity and a projected shortcut, global average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.b1, self.b2 = nn.Conv2d(6, 7, 3, stride=2, padding=1), nn.Conv2d(7, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(6, 8, 1, stride=2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn(self.a2(F.relu(self.a1(x)))))
        x = F.relu(self.shortcut(x) + self.b2(F.relu(self.b1(x))))
        return self.fc(x.mean((2, 3)))


class Mobile(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project: inverted residual with a depthwise middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.expand, self.bn1 = nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project, self.bn3 = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu6(self.bn2(self.depth(F.relu6(self.bn1(self.expand(x))))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.bn3(self.project(y))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Dense(nn.Module):
    """Concatenated features: one group read by several layers at an offset; chunk and unit-step slices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one, self.two = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, F.silu(self.one(x))], 1)
        x = torch.cat([x, F.silu(self.two(x))], 1)
        a, b = self.last(F.relu(self.bn(x))).chunk(2, 1)
        return self.fc((a * torch.sigmoid(b)).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolution with several channels a group: groups and channels per group are separate units."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=4)
        self.outer = nn.Conv2d(8, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.leaky_relu(self.inner(x))))
        return self.fc(F.elu(self.outer(x)).amax((2, 3)))


class Text(nn.Module):
    """A convolution over time on features that were permuted, max over time."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv1d(5, 6, 3), nn.Conv1d(5, 6, 5, padding="same")
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 1)
        parts = [F.relu(conv(x)).amax(2) for conv in (self.narrow, self.wide)]
        return self.fc(torch.cat(parts, 1))


class Pinned(nn.Module):
    """A layer norm and a softmax over channels: what reads them can't be sliced exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)
        self.norm = nn.LayerNorm(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(torch.tanh(self.conv1(x))))
        return self.fc(self.norm(x.mean((2, 3))))


#: name -> (factory, shape of one input without the batch axis)
PICO: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (Plain, (3, 8, 8)),
    "residual": (Residual, (3, 8, 8)),
    "mobile": (Mobile, (3, 8, 8)),
    "dense": (Dense, (3, 8, 8)),
    "grouped": (Grouped, (3, 8, 8)),
    "text": (Text, (9, 5)),
    "pinned": (Pinned, (3, 8, 8)),
}


def pico(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A pico model in evaluation mode with perturbed statistics, and a batch of three inputs."""
    factory, shape = PICO[name]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory().to(dtype).eval()
    for tensor_name, tensor in model.state_dict().items():
        if tensor_name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator).to(dtype) + 0.5)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator).to(dtype))
    return model, torch.randn((3, *shape), generator=generator).to(dtype)
