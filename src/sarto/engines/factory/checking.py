"""A look at the data of every task before training: what can't be learnt, or can't be judged, is said at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.engines.factory.data import InOrder, Judge, Split, TaskData
from sarto.errors import RequestError
from sarto.types import TaskSpace

#: Samples of each task that are drawn: of the train split, to see whether both answers occur; of the test split.
LOOKED_AT, TRIED = 64, 8
#: Tasks with one and the same reason that are told one by one; more are told together.
_ONE_BY_ONE = 3


@dataclass(frozen=True, eq=False)
class Looked:
    """What a look at the data of all tasks found.

    Attributes:
        inputs: two samples of one task.
        answers: of these.
        left_out: tasks without samples to train -> why.
        unjudged: other tasks without samples to judge -> why.
    """

    inputs: Tensor
    answers: Tensor
    left_out: Mapping[frozenset[str], str]
    unjudged: Mapping[frozenset[str], str]


def check_data(space: TaskSpace, data: TaskData, *, leave_out: bool = False, seed: int = 0) -> Looked:
    """Draw a few samples of every task, and refuse what can't be learnt.

    Args:
        leave_out: tasks without samples to train are to be left out, not refused.

    Raises:
        RequestError: a task has no samples to train, always the same answer, an answer that it does not have, no box,
            or inputs that are no numbers; drawing fails, or depends on more than the generator; all problems at once.
    """
    problems: list[str] = []
    empty: dict[frozenset[str], str] = {}
    good: dict[frozenset[str], tuple[Tensor, Tensor]] = {}
    for place, task in enumerate((*space.seen, *space.combined)):
        try:
            drawn = _drawn(space, data, [task] * LOOKED_AT, "train", seed + place)
            wrong = drawn if isinstance(drawn, str) else _untaught(space, data, task, drawn[1])
        except RequestError as error:
            empty[task] = error.detail
            continue
        if wrong or isinstance(drawn, str):
            problems.append(f"task {space.named(task)!r}: {wrong}")
        else:
            good[task] = (drawn[0][:2].clone(), drawn[1][:2].clone())
    n_tasks = len(problems)
    if not leave_out or not good:
        n_tasks += len(empty)
        problems += _together(space, empty)
    unjudged: dict[frozenset[str], str] = {}
    tried = [*(task for task in space.seen if task in good), *(space.kept_aside if good else ())]
    for place, task in enumerate(tried):
        try:
            drawn = _drawn(space, data, [task] * TRIED, "test", seed + place)
        except RequestError as error:
            unjudged[task] = error.detail
            continue
        if isinstance(drawn, str):
            problems.append(f"task {space.named(task)!r}, test split: {drawn}")
            n_tasks += 1
    if good and not problems:
        problems += _mixed(space, data, list(good), seed)
    if problems or not good:
        shown = problems or ["the space has no task that is trained"]
        told = f"{n_tasks} tasks can't be trained" if n_tasks else "these data can't be trained on"
        raise RequestError(told, problems=shown)
    inputs, answers = next(iter(good.values()))
    return Looked(inputs, answers, empty, unjudged)


def told_together(space: TaskSpace, tasks: Mapping[frozenset[str], str]) -> Iterator[str]:
    """Tasks with the same reason in one line: how many, why, and which."""
    for why in dict.fromkeys(tasks.values()):
        names = [space.named(task) for task, reason in tasks.items() if reason == why]
        yield f"{len(names)} tasks ({', '.join(names)}): {why}" if len(names) > 1 else f"{names[0]}: {why}"


def _together(space: TaskSpace, empty: Mapping[frozenset[str], str]) -> Iterator[str]:
    """Tasks without samples as problems."""
    cure = "give samples, or train the other tasks with `empty_tasks: leave_out`"
    if len(empty) <= _ONE_BY_ONE:
        yield from (f"task {space.named(task)!r}: {why}; {cure}" for task, why in empty.items())
    else:
        yield from (f"{text}; {cure}" for text in told_together(space, empty))


def _drawn(
    space: TaskSpace, data: TaskData, tasks: Sequence[frozenset[str]], split: Split, seed: int
) -> tuple[Tensor, Tensor] | str:
    """One sample of each task, or what is wrong with them in words. A RequestError of the data goes on."""
    name = type(data.data if isinstance(data, InOrder) else data).__name__
    try:
        inputs, answers = data.draw(tasks, split, torch.Generator().manual_seed(seed))
    except RequestError:
        raise
    except Exception as error:
        # What code that is not ours raises is up to it.
        return f"{name}.draw of the space's data failed: {type(error).__name__}: {error}"
    judged = isinstance(data, Judge)
    wrong = _wrong_kind(inputs, answers, judged=judged)
    if wrong:
        return f"{name}.draw gave {wrong}"
    if len(inputs) != len(tasks) or len(answers) != len(tasks):
        return (
            f"{len(tasks)} samples were asked for, {len(inputs)} inputs and {len(answers)} answers were drawn"
        )
    if not bool(torch.isfinite(inputs).all()):
        return "inputs hold NaN or infinity"
    if judged:
        return (inputs, answers) if bool(torch.isfinite(answers).all()) else "answers hold NaN or infinity"
    held: dict[frozenset[str], Collection[int]] = {task: set(space.outputs(task)) for task in tasks}
    outside = {found for found, task in zip(answers.tolist(), tasks, strict=True) if found not in held[task]}
    if outside:
        names = [
            space.answers[place] if 0 <= place < len(space.answers) else str(place)
            for place in sorted(outside)
        ]
        return f"answers {', '.join(names)}, which it does not have"
    return inputs, answers


def _untaught(space: TaskSpace, data: TaskData, task: frozenset[str], answers: Tensor) -> str:
    """Why nothing can be learnt from the answers to one task; nothing where something can."""
    if isinstance(data, Judge):
        there = answers[..., 0] if answers.ndim == 3 and answers.shape[-1] == 5 else answers
        if bool((there != 0).any()):
            return ""
        return f"none of {len(answers)} samples has a box; draw images with what it asks for, or leave it out"
    found = answers.unique().tolist()
    if len(found) > 1:
        return ""
    return (
        f"all of {len(answers)} samples answer {space.answers[found[0]]!r}; nothing can be learnt from that. Balance "
        "the answers, or leave the task out"
    )


def _mixed(space: TaskSpace, data: TaskData, tasks: Sequence[frozenset[str]], seed: int) -> Iterator[str]:
    """What is wrong with samples of many tasks in one draw, as training draws them, and with a second such draw."""
    mixed = [tasks[place % len(tasks)] for place in range(LOOKED_AT)]
    try:
        one, two = (_drawn(space, data, mixed, "train", seed) for _ in range(2))
    except RequestError as error:
        one = two = error.detail
    if isinstance(one, str) or isinstance(two, str):
        yield f"samples of several tasks in one draw, as training draws them: {one if isinstance(one, str) else two}"
    elif any(not torch.equal(first, second) for first, second in zip(one, two, strict=True)):
        yield (
            "two draws with the same generator differ, so a training that is stopped could not go on as it was: draw "
            "from `generator` alone, torch.rand(n, generator=generator) for instance"
        )


def _wrong_kind(inputs: object, answers: object, *, judged: bool) -> str:
    """What is not as training reads it: float32 with the samples along the first axis, answers as whole numbers."""
    for name, value in (("inputs", inputs), ("answers", answers)):
        if not isinstance(value, Tensor) or not value.ndim:
            kind = type(value).__name__
            return f"{name} of type {kind}; give a tensor with the samples along its first axis"
    if isinstance(inputs, Tensor) and inputs.dtype != torch.float32:
        return f"inputs of type {_plain(inputs)}; give float32, as preprocessing makes it of pixels"
    if not judged and isinstance(answers, Tensor) and (answers.dtype != torch.int64 or answers.ndim != 1):
        return (
            f"answers of type {_plain(answers)} and shape {tuple(answers.shape)}; give the number of each sample's "
            "answer, int64 of shape (n,)"
        )
    return ""


def _plain(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
