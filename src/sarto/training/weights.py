"""New weights for a module that is trained from the start."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """New weights for every parameter, in place: Kaiming for matrices and kernels, 1 and 0 for norms, 0 for biases.

    Running means and variances start at 0 and 1.
    """
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        if parameter.ndim > 1:
            spread = math.sqrt(2.0 / max(1, parameter[0].numel()))
            parameter.copy_(torch.randn(parameter.shape, generator=generator).to(parameter) * spread)
        else:
            parameter.fill_(1.0 if leaf == "weight" else 0.0)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.zero_()
        elif name.endswith("running_var"):
            buffer.fill_(1.0)
