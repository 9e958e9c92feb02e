"""Where inputs and answers of tasks come from: what the one function that a task space names must give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.errors import RequestError, suggest
from sarto.types import TaskSpace

Split = Literal["train", "test"]


@runtime_checkable
class TaskData(Protocol):
    """Inputs and answers of tasks. What the function that a task space names gives back.

    It may carry `mean` and `std`, a number or one for each channel: inputs are pixels in [0, 1] less the mean, over the
    deviation. Training is refused where `preprocessing` says others. It may carry `classes`, names: its answers are
    then places in these, whatever the order of the space's `answers`.
    """

    def draw(
        self, tasks: Sequence[frozenset[str]], split: Split, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One sample of each task, drawn by the generator alone.

        Returns:
            Inputs (n, channels, height, width), float32, as `preprocessing` makes them of pixels; and answers (n,),
            int64, places in the space's `answers`. For detection, answers are (n, most, 5): 1 or 0 for no box, then
            left, top, right, bottom.

        Answers of a task should be balanced; a task that has no samples in a split is a RequestError.
        """


@runtime_checkable
class Judge(Protocol):
    """What data of another kind than classification bring along."""

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Loss of each sample (n,)."""

    def score(self, outputs: Tensor, answers: Tensor) -> float:
        """Quality on samples of one task, in [0, 1]."""


class InOrder:
    """Data whose answers are places among classes of their own, with answers as places in a space's order."""

    def __init__(self, data: TaskData, classes: Sequence[str], answers: Sequence[str]) -> None:
        self.data = data
        self.mean, self.std = getattr(data, "mean", None), getattr(data, "std", None)
        self.places = torch.tensor([answers.index(name) if name in answers else -1 for name in classes])

    def draw(
        self, tasks: Sequence[frozenset[str]], split: Split, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One sample of each task, as the data draw it, its answer by name."""
        inputs, found = self.data.draw(tasks, split, generator)
        return inputs, self.places[found]


def in_order(space: TaskSpace, data: TaskData) -> TaskData:
    """The data with answers as places in a space's `answers`: data with `classes` answer with places in these.

    Raises:
        RequestError: an answer is no class of the data, or a task names a class that is no answer.
    """
    classes = getattr(data, "classes", None)
    if classes is None or isinstance(data, Judge):
        return data
    held = [str(name) for name in classes]
    problems = [
        f".answers: {name!r} is no class of the data{suggest(name, held)}"
        for name in space.answers
        if name not in held
    ]
    problems += [
        f".answers: {name!r}, which tasks name, is a class of the data and no answer; add it"
        for name in space.properties
        if name in held and name not in space.answers
    ]
    if problems:
        raise RequestError(f"task space {space.name!r}: {problems[0]}", problems=problems)
    return data if tuple(held) == tuple(space.answers) else InOrder(data, held, space.answers)


def losses(space: TaskSpace, data: TaskData, outputs: Tensor, answers: Tensor, allowed: Tensor) -> Tensor:
    """Loss of each sample (n,): cross entropy among the outputs that its task tells apart, or the data's own.

    Args:
        allowed: (n, outputs), true where a sample's task has the output.
    """
    if isinstance(data, Judge):
        return data.loss(outputs, answers)
    return F.cross_entropy(outputs.masked_fill(~allowed, -torch.inf), answers, reduction="none")


def score(space: TaskSpace, data: TaskData, outputs: Tensor, answers: Tensor, task: frozenset[str]) -> float:
    """Quality on samples of one task: the mean recall of its answers, or the data's own score."""
    if isinstance(data, Judge):
        return data.score(outputs, answers)
    kept = torch.tensor(space.outputs(task))
    chosen = kept[outputs[:, kept].argmax(1)]
    recalls = [(chosen[answers == answer] == answer).double().mean() for answer in answers.unique()]
    return float(torch.stack(recalls).mean())


def allowed_outputs(space: TaskSpace, tasks: Sequence[frozenset[str]]) -> Tensor:
    """(n, outputs): true where a task has the output."""
    rows = torch.zeros(len(tasks), len(space.answers), dtype=torch.bool)
    for row, task in enumerate(tasks):
        rows[row, list(space.outputs(task))] = True
    return rows
