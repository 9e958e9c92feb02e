"""Where inputs and answers of tasks come from: the one function that a task space names, and what it must give."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.types import TaskSpace

Split = Literal["train", "test"]
#: Samples of each task that are drawn to see whether both answers occur.
LOOKED_AT = 64


@runtime_checkable
class TaskData(Protocol):
    """Inputs and answers of tasks. What the function that a task space names gives back."""

    def draw(
        self, tasks: Sequence[frozenset[str]], split: Split, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One sample of each task, drawn by the generator alone: inputs (n, ...) and answers (n,), or (n, ...) boxes.

        Answers of a task should be balanced; a task that has no samples in a split is a RequestError.
        """


@runtime_checkable
class Judge(Protocol):
    """What data of another kind than classification bring along."""

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Loss of each sample (n,)."""

    def score(self, outputs: Tensor, answers: Tensor) -> float:
        """Quality on samples of one task, in [0, 1]."""


def open_data(space: TaskSpace) -> TaskData:
    """The data of a task space: its function, called with its arguments.

    Runs the owner's code; call it for spaces of one's own only.

    Raises:
        RequestError: the function can't be imported, fails, or gives something without `draw`.
    """
    module_name, _, name = space.function.partition(":")
    if not module_name or not name:
        raise RequestError(f".function: package.module:name was expected, got {space.function!r}")
    try:
        made = getattr(importlib.import_module(module_name), name)(**space.arguments)
    except (ImportError, AttributeError) as error:
        raise RequestError(
            f"the function of task space {space.name!r}, {space.function!r}, can't be imported: {error}"
        ) from error
    except TypeError as error:
        given = ", ".join(space.arguments) or "none"
        raise RequestError(
            f"the function of task space {space.name!r}, {space.function!r}, refuses its arguments ({given}): {error}"
        ) from error
    if not isinstance(made, TaskData):
        raise RequestError(
            f"{space.function!r} gave a {type(made).__name__}; something with a method "
            "draw(tasks, split, generator) was expected"
        )
    if space.kind != "classification" and not isinstance(made, Judge):
        raise RequestError(
            f"data of a {space.kind} space bring loss(outputs, answers) and score(outputs, answers)"
        )
    return made


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


def check_data(space: TaskSpace, data: TaskData, seed: int = 0) -> Tensor:
    """Draw a few samples of every trained task, and refuse what can't be learnt; one batch of inputs.

    Raises:
        RequestError: a task has no samples, always the same answer, an answer that it does not have, or inputs that
            are no numbers; all problems at once.
    """
    problems: list[str] = []
    example: Tensor | None = None
    for place, task in enumerate((*space.seen, *space.combined)):
        generator = torch.Generator().manual_seed(seed + place)
        try:
            inputs, answers = data.draw([task] * LOOKED_AT, "train", generator)
        except RequestError as error:
            problems.append(f"task {space.named(task)!r}: {error.detail}")
            continue
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            told = f"{type(error).__name__}: {error}"
            problems.append(
                f"task {space.named(task)!r}: {type(data).__name__}.draw of the space's data failed: {told}"
            )
            continue
        wrong = _wrong_kind(inputs, answers, judged=isinstance(data, Judge))
        if wrong:
            problems.append(f"task {space.named(task)!r}: {type(data).__name__}.draw gave {wrong}")
            continue
        if len(inputs) != LOOKED_AT or len(answers) != LOOKED_AT:
            raise ShapeError(
                f"task {space.named(task)!r}: {LOOKED_AT} samples were asked for, {len(inputs)} inputs and "
                f"{len(answers)} answers were drawn"
            )
        example = inputs[:2]
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            problems.append(f"task {space.named(task)!r}: inputs hold NaN or infinity")
        if not isinstance(data, Judge):
            found = set(answers.tolist())
            outside = found - set(space.outputs(task))
            if outside:
                names = ", ".join(
                    space.answers[i] if 0 <= i < len(space.answers) else str(i) for i in sorted(outside)
                )
                problems.append(f"task {space.named(task)!r}: answers {names}, which it does not have")
            elif len(found) < 2:
                only = space.answers[cast(int, found.pop())]
                problems.append(
                    f"task {space.named(task)!r}: all of {LOOKED_AT} samples answer {only!r}; nothing can be learnt "
                    "from that. Balance the answers, or leave the task out"
                )
    if problems or example is None:
        shown = problems or ["the space has no task that is trained"]
        raise RequestError(f"{len(shown)} tasks can't be trained", problems=shown)
    return example


def _wrong_kind(inputs: object, answers: object, *, judged: bool) -> str:
    """What is not as training reads it: samples along the first axis, and for a classification whole numbers."""
    for name, value in (("inputs", inputs), ("answers", answers)):
        if not isinstance(value, Tensor) or not value.ndim:
            kind = type(value).__name__
            return f"{name} of type {kind}; give a tensor with the samples along its first axis"
    if not judged and isinstance(answers, Tensor) and (answers.is_floating_point() or answers.ndim != 1):
        return (
            f"answers of type {str(answers.dtype).removeprefix('torch.')} and shape {tuple(answers.shape)}; give the "
            "number of each sample's answer, int64 of shape (n,)"
        )
    return ""
