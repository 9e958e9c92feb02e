"""What all stages of one fragment share: the donor, its samples, what it says of them, and how steps are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.engines.slicepack.paper.layers import Donor, Layer
from sarto.engines.slicepack.paper.mixing import Kept, held_positions
from sarto.engines.slicepack.paper.network import Values, advance, can_cache, run
from sarto.errors import RequestError
from sarto.graph.model import TensorRef
from sarto.graph.run import check_inputs
from sarto.types import PaperSettings

#: Called with a step's name, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def silent(step: str, done: int, total: int) -> None:
    """Says nothing."""


@dataclass(frozen=True, eq=False)
class Task:
    """One class (or a few) to be sliced out of a donor.

    Attributes:
        inputs: samples of all the donor's classes, shape (n, ...).
        positive: shape (n,), whether a sample is of the fragment's classes.
        teacher: the donor's features of the samples, shape (n, width).
        outcome_weights: of "another class" and "the class" in the cross entropy, shape (2,).
        tensors: the donor's stored tensors.
        head: where H starts: weight (2, width) and bias (2,).
        settings: every number of the method.
    """

    donor: Donor
    inputs: Tensor
    positive: Tensor
    teacher: Tensor
    outcome_weights: Tensor
    tensors: Mapping[str, Tensor]
    head: tuple[Tensor, Tensor]
    settings: PaperSettings

    @property
    def own(self) -> Tensor:
        """Rows of the fragment's samples."""
        return torch.nonzero(self.positive).flatten()

    def given(self) -> Values:
        """The samples under the name of the donor's input."""
        return {self.donor.graph.inputs[0].name: self.inputs}

    def generator(self, stage: int, layer: int) -> torch.Generator:
        """Random numbers of one stage of one layer; stages do not depend on how many came before."""
        return torch.Generator().manual_seed((self.settings.seed * 16 + stage) * 4096 + layer)


@dataclass(frozen=True, eq=False)
class Front:
    """What a layer and those after it read, once for all steps: the layers before it are frozen.

    Attributes:
        start: place of the first node that still has to run.
        values: what is needed from there on, for all samples.
    """

    start: int
    values: Values


def fronts(task: Task) -> Iterator[tuple[Layer, Front]]:
    """Each layer with what it reads, front to back; the donor's frozen front runs once in all."""
    values, place, n = task.given(), 0, len(task.inputs)
    for layer in task.donor.layers:
        values = advance(task.donor, values, place, layer.start, n)
        place = layer.start
        yield layer, Front(place, values) if can_cache(task.donor, values) else Front(0, task.given())


def make_task(
    donor: Donor,
    inputs: Tensor,
    labels: Tensor,
    n_classes: int,
    classes: Sequence[int],
    settings: PaperSettings,
) -> Task:
    """The samples of a fragment, checked.

    Raises:
        RequestError: no class, one that the donor does not have, or one without samples; several inputs.
        ShapeError: the samples do not fit the donor.
    """
    if len(donor.graph.inputs) != 1:
        raise RequestError(
            f"the paper's method slices donors with one input, this one has {len(donor.graph.inputs)}"
        )
    check_inputs(donor.graph, (inputs,))
    problems = [
        f"class {cls} is none of the donor's {n_classes}" for cls in classes if not 0 <= cls < n_classes
    ]
    if not classes:
        problems.append("a fragment is of at least one class; none was named")
    if labels.shape != (len(inputs),):
        problems.append(f"{len(inputs)} samples need as many labels, got shape {tuple(labels.shape)}")
    if problems:
        raise RequestError(problems[0], problems=problems)
    positive = torch.isin(labels, torch.tensor(sorted(classes)))
    missing = [cls for cls in classes if not bool((labels == cls).any())]
    if missing:
        raise RequestError(
            f"the fragment's classes need at least one sample each; classes {missing} have none"
        )
    tensors = dict(donor.graph.tensors.items())
    with torch.no_grad():
        teacher = run(donor, donor.nodes, tensors, {donor.graph.inputs[0].name: inputs}, len(inputs))
    features: Tensor = teacher[donor.features.value]
    counts = torch.stack([(~positive).sum(), positive.sum()]).to(features.dtype)
    weights = torch.ones(2, dtype=features.dtype)
    if settings.class_weights == "balanced":
        weights = len(inputs) / (2 * counts.clamp(min=1))
    head = _head_start(donor, classes, settings, features)
    return Task(donor, inputs, positive, features, weights, tensors, head, settings)


def row_mask(task: Task, name: str, axes: Sequence[int], kept: Kept) -> Tensor:
    """Ones where a tensor belongs to kept units on these of its axes, broadcastable to it."""
    tensor = task.tensors[name]
    mask = torch.ones([1] * tensor.ndim, dtype=tensor.dtype)
    for axis in axes:
        expr = task.donor.graph.analysis.tensor_axes[name][axis]
        along = torch.zeros(tensor.shape[axis], dtype=tensor.dtype)
        along[held_positions(expr, kept)] = 1.0
        mask = mask * along.reshape([-1 if place == axis else 1 for place in range(tensor.ndim)])
    return mask


@dataclass(frozen=True, eq=False)
class Learned:
    """Tensors that train together.

    Attributes:
        tensors: leaves of the gradient; masks: for some of them, ones where they may change.
        lr: step size.
    """

    tensors: Sequence[Tensor]
    lr: float
    masks: Sequence[Tensor] = ()


def descend(
    what: str,
    learned: Sequence[Learned],
    loss: Callable[[Tensor], Tensor],
    steps: int,
    n: int,
    settings: PaperSettings,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Steps down a loss, in place.

    Args:
        loss: of the rows of a batch.
        n: number of samples; a batch holds all of them where they fit.

    Raises:
        RequestError: the loss is not finite.
    """
    groups = [{"params": list(part.tensors), "lr": part.lr} for part in learned if part.tensors]
    if not groups or steps == 0:
        return
    made = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.SGD
    optimiser = made(groups)
    batches = _batches(n, settings.batch, generator)
    with torch.enable_grad():
        for step in range(steps):
            value = loss(next(batches))
            if not math.isfinite(float(value.detach())):
                raise RequestError(
                    f"{what} diverged: after {step} of {steps} steps the loss was {float(value.detach())}; take a "
                    f"smaller lr (now {settings.lr:g}) or gamma (now {settings.gamma:g})"
                )
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            for part in learned:
                for tensor, mask in zip(part.tensors, part.masks, strict=False):
                    if tensor.grad is not None:
                        tensor.grad.mul_(mask)
            optimiser.step()
            progress(what, step + 1, steps)


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        if n <= size:
            yield torch.arange(n)
        else:
            yield from torch.randperm(n, generator=generator)[: n - n % size].split(size)


def _head_start(
    donor: Donor, classes: Sequence[int], settings: PaperSettings, features: Tensor
) -> tuple[Tensor, Tensor]:
    width = features.shape[1]
    if settings.head_start == "zero" or len(classes) >= donor.features.n_outputs:
        return torch.zeros(2, width, dtype=features.dtype), torch.zeros(2, dtype=features.dtype)
    stored = donor.graph.node(donor.features.classifier).args["bias"]
    weight = donor.graph.tensors[donor.classifier].detach()
    bias = torch.zeros(len(weight), dtype=weight.dtype)
    if isinstance(stored, TensorRef):
        bias = donor.graph.tensors[stored.name].detach()
    own = torch.zeros(len(weight), dtype=torch.bool)
    own[list(classes)] = True
    rows = torch.stack([weight[~own].mean(0), weight[own].mean(0)])
    return rows, torch.stack([bias[~own].mean(), bias[own].mean()]).to(rows.dtype)
