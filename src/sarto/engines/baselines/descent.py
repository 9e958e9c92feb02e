"""The training loop of the baselines: batches of samples, mirrored or not, until the steps or the budget end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sarto.engines.baselines.given import CHUNK, Meter
from sarto.training import has_bfloat16


@dataclass(frozen=True, eq=False)
class Views:
    """The samples as they are and, of images, mirrored left to right.

    What a frozen model says of every view is computed once and picked out for each batch.

    Attributes:
        inputs: shape (views, n, ...).
    """

    inputs: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> Views:
        """Two views of images (n, channels, height, width), one of anything else."""
        images = inputs.ndim == 4 and inputs.is_floating_point()
        return cls(torch.stack([inputs, inputs.flip(3)]) if images else inputs.unsqueeze(0))

    def said(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        """What a model says of every view, shape (views, n, ...); without gradients."""
        with torch.no_grad():
            return torch.stack(
                [torch.cat([model(part) for part in view.split(CHUNK)]) for view in self.inputs]
            )

    def draw(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Index of a batch into views: which view of each row, with probability one half."""
        return torch.randint(len(self.inputs), (len(rows),), generator=generator), rows


def descend(
    views: Views,
    loss: Callable[[tuple[Tensor, Tensor]], Tensor],
    optimiser: torch.optim.Optimizer,
    *,
    steps: int,
    batch: int,
    generator: torch.Generator,
    meter: Meter,
    what: str,
    drops: Sequence[float] = (),
) -> str | None:
    """Steps on random batches; a loss that is not finite ends them at the weights that were good.

    Args:
        loss: of a batch, given as its index into views.
        drops: shares of the steps after which the step size is divided by ten.

    Returns:
        None, or what ended the training early.
    """
    tensors = [tensor for group in optimiser.param_groups for tensor in group["params"]]
    good = [tensor.detach().clone() for tensor in tensors]
    falls = {round(share * steps) for share in drops}
    batches = _batches(views.inputs.shape[1], batch, generator)
    with torch.enable_grad():
        for step in range(steps):
            if meter.spent is not None:
                return f"{meter.spent} ended it"
            if step in falls:
                for group in optimiser.param_groups:
                    group["lr"] /= 10
            optimiser.zero_grad(set_to_none=True)
            if not _differentiated(loss(views.draw(next(batches), generator)), tensors):
                _put(tensors, good)
                return f"a loss that was not finite ended it after {step} of {steps} steps"
            good = [tensor.detach().clone() for tensor in tensors]
            optimiser.step()
            meter.took(what)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        _put(tensors, good)
    return None


def _differentiated(value: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Gradients of a loss, put into the tensors; whether they and the loss are finite."""
    if not math.isfinite(float(value.detach())):
        return False
    value.backward()
    return all(bool(torch.isfinite(t.grad).all()) for t in tensors if t.grad is not None)


def quick(module: nn.Module, inputs: Tensor) -> tuple[Tensor, ...]:
    """Outputs of a module in training, given back as the inputs' dtype.

    On processors that have bfloat16 it is computed in it where that is safe, which is twice as fast; weights and losses
    stay as they are.
    """
    half = has_bfloat16(inputs.device.type)
    if half and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=half):
        outputs = module(inputs)
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(output.to(dtype) for output in found)


@torch.no_grad()
def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of sample indices: everything where it fits, else a fresh order each time round."""
    while True:
        if n <= size:
            yield torch.arange(n)
        else:
            yield from torch.randperm(n, generator=generator)[: n - n % size].split(size)
