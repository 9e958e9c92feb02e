"""The one training loop: a few small steps on a few samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sarto.errors import RequestError, ShapeError
from sarto.training._inputs import check_positive, label_problems

Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, the steps asked for and the loss."""


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned copy of a model.

    module: the copy, in eval mode.
    history: loss before each step that was taken, on its batch.
    stopped: None, or why it ended early and which weights are returned.
    """

    module: nn.Module
    history: tuple[float, ...]
    stopped: str | None


def finetune(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int,
    lr: float,
    seed: int,
    progress: Progress | None = None,
    batch_size: int = 64,
    flip: bool = False,
    crop: int = 0,
    trainable: Callable[[str], bool] | None = None,
    autocast: bool = False,
) -> FineTuned:
    """Copy of a classifier after a few Adam steps on cross entropy, classes weighted equally.

    The copy stays in eval mode, so batch norm keeps its running statistics (a few samples would spoil them)
    and dropout is off. The same seed gives the same weights. The module that was passed in is not changed.

    Args:
        module: maps inputs to logits (n, q). A traced graph must have been traced for evaluation: its batch
            norms do not obey eval mode.
        inputs: shape (n, ...), as the module takes them.
        labels: 0..q-1, shape (n,).
        steps: number of updates.
        lr: step size of Adam; 1e-4..1e-3 for a few dozen steps.
        seed: of batches and augmentation.
        progress: called after each step.
        batch_size: samples a step; all of them when there are no more than that.
        flip: mirrors images left-right with probability one half.
        crop: pads images by reflection on each side by so many pixels and cuts out a random window.
        trainable: given a parameter's name, whether it may change; default all.
        autocast: computes in bfloat16 where that is safe; twice as fast on processors that have it, many times
            slower on others (see `has_bfloat16`). Weights and loss stay float32.

    Returns:
        The copy. When the loss or a gradient is not finite, the last weights with a finite loss are returned
        and `stopped` says so.

    Raises:
        ShapeError: labels or logits don't fit to inputs, or augmentation of inputs that are not images.
        RequestError: steps, lr, batch_size or crop out of range, bad labels, or nothing to train.
    """
    _check(inputs, labels, steps, batch_size, flip, crop)
    check_positive("lr", lr)
    tuned = copy.deepcopy(module).eval()
    flags = {name: parameter.requires_grad for name, parameter in tuned.named_parameters()}
    parameters = _choose_parameters(tuned, trainable)
    labels = labels.to(torch.int64)
    weights = _class_weights(tuned, inputs, labels)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        history, stopped = _run(
            tuned,
            parameters,
            steps,
            lr,
            progress,
            lambda rows: (_augment(inputs[rows], flip, crop, generator), labels[rows]),
            _batches(inputs.shape[0], batch_size, generator),
            weights,
            autocast,
        )
    for name, parameter in tuned.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(flags[name])
    return FineTuned(tuned, tuple(history), stopped)


def _run(
    module: nn.Module,
    parameters: list[nn.Parameter],
    steps: int,
    lr: float,
    progress: Progress | None,
    draw: Callable[[Tensor], tuple[Tensor, Tensor]],
    batches: Iterator[Tensor],
    weights: Tensor,
    autocast: bool,
) -> tuple[list[float], str | None]:
    """The steps, in place; ends at the last weights whose loss and gradient were finite."""
    optimiser = torch.optim.Adam(parameters, lr=lr)
    good = [parameter.detach().clone() for parameter in parameters]
    history: list[float] = []
    found = ""
    for step in range(steps + 1):
        inputs, labels = draw(next(batches))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = _logits(module, inputs)
        loss = nn.functional.cross_entropy(logits.to(weights.dtype), labels, weight=weights)
        value = float(loss.detach())
        if not math.isfinite(value):
            found = f"the loss was {value}"
        elif step < steps:
            good = [parameter.detach().clone() for parameter in parameters]
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if not all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
                found = "a gradient was not finite"
        if found:
            with torch.no_grad():
                for parameter, kept in zip(parameters, good, strict=True):
                    parameter.copy_(kept)
            return (
                history,
                f"{found} after {step} of {steps} steps; the last good weights are kept, try a smaller lr",
            )
        if step < steps:
            optimiser.step()
            history.append(value)
            if progress is not None:
                progress(step + 1, steps, value)
    return history, None


def _logits(module: nn.Module, inputs: Tensor) -> Tensor:
    logits = module(inputs)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != inputs.shape[0]:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ShapeError(f"the module must give logits ({inputs.shape[0]}, n_classes), it gave {found}")
    return logits


def _class_weights(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Weight of each logit's class, so that classes count equally however many samples they have."""
    with torch.no_grad():
        logits = _logits(module, inputs[:1])
    n_classes = logits.shape[1]
    problems = label_problems(labels, n_classes, every_class=False)
    if problems:
        raise RequestError(problems[0], problems=problems)
    counts = torch.bincount(labels, minlength=n_classes).to(logits.dtype)
    return labels.shape[0] / (int((counts > 0).sum()) * counts.clamp(min=1))


def _choose_parameters(module: nn.Module, trainable: Callable[[str], bool] | None) -> list[nn.Parameter]:
    chosen = []
    for name, parameter in module.named_parameters():
        wanted = parameter.is_floating_point() and (trainable is None or trainable(name))
        parameter.requires_grad_(wanted)
        if wanted:
            chosen.append(parameter)
    if not chosen:
        names = [name for name, _ in module.named_parameters()][:5]
        raise RequestError(f"nothing to train: none of the parameters {names} may change; check `trainable`")
    return chosen


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of sample indices: everything when it fits, else a fresh order each time round."""
    while True:
        if n <= size:
            yield torch.arange(n)
        else:
            yield from torch.randperm(n, generator=generator)[: n - n % size].split(size)


def _augment(images: Tensor, flip: bool, crop: int, generator: torch.Generator) -> Tensor:
    if flip:
        mirrored = torch.rand(images.shape[0], generator=generator) < 0.5
        images = torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(3), images)
    if crop:
        n, _, height, width = images.shape
        padded = nn.functional.pad(images, (crop, crop, crop, crop), mode="reflect")
        down, right = torch.randint(0, 2 * crop + 1, (2, n), generator=generator).unbind()
        rows = (down.unsqueeze(1) + torch.arange(height)).reshape(n, 1, height, 1)
        columns = (right.unsqueeze(1) + torch.arange(width)).reshape(n, 1, 1, width)
        sample = torch.arange(n).reshape(n, 1, 1, 1)
        images = padded[sample, torch.arange(images.shape[1]).reshape(1, -1, 1, 1), rows, columns]
    return images


def _check(inputs: Tensor, labels: Tensor, steps: int, batch_size: int, flip: bool, crop: int) -> None:
    if inputs.ndim < 1 or inputs.shape[0] < 1 or labels.shape != inputs.shape[:1]:
        raise ShapeError(
            f"inputs (n, ...) and one label for each were asked for; "
            f"got {tuple(inputs.shape)} and {tuple(labels.shape)}"
        )
    if (flip or crop) and inputs.ndim != 4:
        raise ShapeError(f"flip and crop need images (n, channels, h, w), got {tuple(inputs.shape)}")
    problems = []
    if steps < 0:
        problems.append(f"steps must be >= 0, got {steps}")
    if batch_size < 1:
        problems.append(f"batch_size must be >= 1, got {batch_size}")
    if crop < 0 or (crop and crop >= min(inputs.shape[2:])):
        problems.append(f"crop must be >= 0 and smaller than the image {tuple(inputs.shape[2:])}, got {crop}")
    if not bool(torch.isfinite(inputs).all()):
        problems.append("inputs have non-finite entries; remove those samples")
    if problems:
        raise RequestError(problems[0], problems=problems)
