"""Random small networks: every structure that the rules know, in every order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.testing import random_layers as layers

#: Move of a random network -> its layer for a width and an activation, and the width that it gives.
LAYERS: Mapping[str, Callable[[int, layers.Activation], tuple[nn.Module, int]]] = {
    "conv": layers.convolve,
    "transposed": layers.transposed,
    "depthwise": layers.depthwise,
    "grouped": layers.grouped,
    "residual": layers.residual,
    "project": layers.project,
    "dense": layers.dense,
    "excite": layers.excite,
    "batch_norm": layers.batch_norm,
    "group_norm": layers.group_norm,
    "instance_norm": layers.instance_norm,
    "layer_norm": layers.layer_norm,
    "pool": layers.pooled,
    "fold": layers.folded,
    "split": layers.split,
    "shuffle": layers.shuffle,
    "pixels": layers.pixels,
    "doubled": layers.doubled,
    "padded": layers.padded,
    "attention": layers.attention,
    "written_attention": layers.written_attention,
    "grouped_queries": layers.grouped_queries,
    "gated_units": layers.gated_units,
    "gru": layers.gru,
    "both_ways": layers.both_ways,
}
#: Moves that a random network is made of.
MOVES = tuple(LAYERS)
_ACTIVATIONS = (F.relu, F.gelu, F.hardsigmoid, torch.tanh, F.silu)


class RandomNet(nn.Module):
    """A network that plays moves on (batch, 3, 4, 4) and ends in a linear layer."""

    def __init__(self, moves: Sequence[str], seed: int, *, flatten: bool) -> None:
        super().__init__()
        self.stem = layers.conv(3, 8)
        self.body, width = nn.Sequential(), 8
        for place, move in enumerate(moves):
            layer, width = LAYERS[move](width, _ACTIVATIONS[(place + seed) % len(_ACTIVATIONS)])
            self.body.add_module(f"{move}{place}", layer)
        self.size = 2 if flatten else 1
        self.head = nn.Linear(width * self.size**2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(self.stem(x)), self.size).flatten(1))


def random_net(moves: Sequence[str], seed: int, *, flatten: bool = False) -> tuple[nn.Module, Tensor]:
    """A float64 network in evaluation mode with perturbed statistics, and a batch of two inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RandomNet(moves, seed, flatten=flatten).double().eval()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                nn.init.normal_(layer.weight, 1.0, 0.2)
                nn.init.normal_(layer.bias, 0.0, 0.2)
        return model, torch.randn(2, 3, 4, 4, dtype=torch.float64)
