"""Random small convolutional networks: every structure that the rules know, in every order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Moves that a random network is made of.
MOVES = (
    "conv",
    "depthwise",
    "grouped",
    "residual",
    "project",
    "dense",
    "gate",
    "norm",
    "pool",
    "fold",
    "split",
)
_ACTIVATIONS = (F.relu, F.gelu, F.hardsigmoid, torch.tanh, F.silu)


@dataclass(frozen=True)
class Recipe:
    """What a random network is made from; equal recipes make equal networks."""

    moves: tuple[str, ...]
    seed: int
    flatten: bool = False


class RandomNet(nn.Module):
    """A network that plays the moves of a recipe on (batch, 3, 8, 8) and ends in a linear layer."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleDict()
        width = self._conv("stem", 3, 8)
        for place, move in enumerate(recipe.moves):
            width = self._build(f"{move}{place}", move, width)
        self.size = 2 if recipe.flatten else 1
        self.head = nn.Linear(width * self.size**2, 3)

    def _conv(self, name: str, given: int, made: int, kernel: int = 3, groups: int = 1) -> int:
        self.layers[name] = nn.Conv2d(given, made, kernel, padding=kernel // 2, groups=groups)
        return made

    def _build(self, name: str, move: str, width: int) -> int:
        if move == "conv":
            return self._conv(name, width, 6)
        if move == "depthwise":
            return self._conv(name, width, width, groups=width)
        if move == "grouped":
            groups = 2 if width % 2 == 0 else 1
            return self._conv(name, width, 4 * groups, groups=groups)
        if move in ("residual", "dense"):
            made = width if move == "residual" else 4
            self._conv(name + "a", width, 5)
            self._conv(name + "b", 5, made)
            return width if move == "residual" else width + made
        if move == "project":
            self._conv(name + "a", width, 8, kernel=1)
            self._conv(name + "b", width, 8)
            return 8
        if move == "gate":
            self._conv(name + "a", width, 3, kernel=1)
            self._conv(name + "b", 3, width, kernel=1)
        if move == "norm":
            self.layers[name] = nn.BatchNorm2d(width)
        if move == "split":
            self._conv(name, width, 8)
            return 4
        return width

    def _play(self, name: str, move: str, x: Tensor, act: int) -> Tensor:
        activation, layers = _ACTIVATIONS[act % len(_ACTIVATIONS)], self.layers
        if move in ("conv", "depthwise", "grouped"):
            return activation(layers[name](x))
        if move == "residual":
            return activation(x + layers[name + "b"](activation(layers[name + "a"](x))))
        if move == "dense":
            return torch.cat([x, layers[name + "b"](activation(layers[name + "a"](x)))], 1)
        if move == "project":
            return activation(layers[name + "a"](x) + layers[name + "b"](x))
        if move == "gate":
            squeezed = F.relu(layers[name + "a"](x.mean((2, 3), keepdim=True)))
            return x * torch.sigmoid(layers[name + "b"](squeezed))
        if move == "norm":
            return layers[name](x)
        if move == "pool":
            return F.max_pool2d(x, 2) if x.shape[-1] > 2 else x
        if move == "split":
            one, two = layers[name](x).chunk(2, 1)
            return one * torch.sigmoid(two)
        n, c, h, w = x.shape
        return x.reshape(n, c, h * w).permute(0, 2, 1).permute(0, 2, 1).view(n, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers["stem"](x)
        for place, move in enumerate(self.recipe.moves):
            x = self._play(f"{move}{place}", move, x, place + self.recipe.seed)
        return self.head(F.adaptive_avg_pool2d(x, self.size).flatten(1))


def random_net(moves: Sequence[str], seed: int, *, flatten: bool = False) -> tuple[nn.Module, Tensor]:
    """A float64 network in evaluation mode with perturbed statistics, and a batch of two inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RandomNet(Recipe(tuple(moves), seed, flatten)).double().eval()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                nn.init.normal_(layer.weight, 1.0, 0.2)
                nn.init.normal_(layer.bias, 0.0, 0.2)
        return model, torch.randn(2, 3, 8, 8, dtype=torch.float64)
