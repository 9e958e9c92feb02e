"""Which stocked supernets an order can be met by, and the plans of subnets that they have for its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sarto.errors import InfeasibleError, RequestError, suggest
from sarto.market import Store
from sarto.pipeline.donor_rules import why_not
from sarto.pipeline.subnets import ReadySupernet, Subnets, Tasks
from sarto.types import Budget, DonorRules, Plan, Preprocessing, StockedSupernet, Task


def covering(store: Store, task: Task) -> list[tuple[StockedSupernet, Tasks]]:
    """The stocked supernets that a task is one of, each with the tasks in its words.

    Raises:
        RequestError: none covers it; says the nearest properties.
    """
    every = list(store.supernets)
    chosen = [
        one
        for one in every
        if task.space in (None, one.space.name) and task.supernet in (None, one.name, one.id)
    ]
    if not chosen:
        what = f"supernet {task.supernet!r}" if task.supernet else f"supernet for space {task.space!r}"
        if not every:
            raise RequestError(
                "task.properties: the market holds no supernet; sarto factory train makes one", where="task"
            )
        names = [one.name if task.supernet else one.space.name for one in every]
        raise RequestError(
            f"task: the market holds no {what}{suggest(task.supernet or str(task.space), names)}",
            where="task",
        )
    found: list[tuple[StockedSupernet, Tasks]] = []
    problems: list[str] = []
    for one in chosen:
        why = [text for asked in task.tasks for text in one.space.problems(asked)]
        if why:
            problems += [f"task: {text}" for text in why]
        else:
            found.append((one, tuple(frozenset(asked) for asked in task.tasks)))
    if not found:
        raise RequestError(problems[0], problems=list(dict.fromkeys(problems)), where="task")
    return found


def covering_classes(store: Store, classes: Sequence[str]) -> list[tuple[StockedSupernet, Tasks]]:
    """The stocked supernets with a task that tells exactly these classes apart, or these and the fewest others.

    Where every task of a space has all its answers (yes and no, say), answers name no task, and the supernet is left
    out: such an order names its task.
    """
    found: list[tuple[StockedSupernet, Tasks]] = []
    for one in store.supernets:
        space = one.space
        if space.kind != "classification" or not set(classes) <= set(space.answers):
            continue
        if _asks_several(one):
            continue
        places = {space.answers.index(cls) for cls in classes}
        fitting = [
            (len(outputs), space.named(task), task)
            for task in (*space.seen, *space.kept_aside)
            if places <= (outputs := set(space.outputs(task)))
        ]
        if fitting:
            found.append((one, (min(fitting, key=lambda item: item[:2])[2],)))
    return found


def unnamed_task(store: Store, classes: Sequence[str]) -> str | None:
    """That classes are answers of a supernet which don't say what is asked, in words; None where they are not."""
    for one in store.supernets:
        if set(classes) <= set(one.space.answers) and _asks_several(one):
            named = [one.space.named(task) for task in one.space.seen]
            told = ", ".join(classes)
            return (
                f"{told} are answers of supernet {one.name!r} to each of {len(named)} tasks; name one of these, for "
                f"example {named[0]}"
            )
    return None


def _asks_several(one: StockedSupernet) -> bool:
    """Whether all tasks of a supernet have all answers, so that these name no task."""
    return not one.space.outputs_of and len({*one.space.seen, *one.space.kept_aside}) > 1


@dataclass(frozen=True)
class OfferedSubnets:
    """Plans of stocked supernets for an order by classes.

    Attributes:
        why_not: of each supernet that covers the classes and has no plan, in words.
    """

    plans: tuple[Plan, ...] = ()
    why_not: tuple[str, ...] = ()


def class_plans(
    held: Subnets,
    classes: Sequence[str],
    budget: Budget,
    reads: Preprocessing,
    rules: DonorRules | None = None,
    samples: str | None = None,
) -> OfferedSubnets:
    """Plans of stocked supernets for an order by classes: the largest subnet that fits, and a half and a quarter of it.

    Where none fits, the smallest one, so that an order that can't be kept knows its floor. Latency and a process's
    memory do not count here where no profile foretells them; what is built is measured.

    Args:
        reads: what the order's samples are.
        rules: about donors; supernets that they exclude are left out.
        samples: hash of those that batch norm statistics are taken from; None: they are those of training.
    """
    plans, why = list[Plan](), list[str]()
    counted_budget = budget if held.profile is not None else budget.replace(latency_ms=None)
    for manifest, tasks in covering_classes(held.store, classes):
        reason = why_not(manifest, rules or DonorRules()) or _reads_others(manifest.preprocessing, reads)
        if reason is None:
            one = held.get(manifest.id)
            try:
                plans += _largest(one, tasks, classes, counted_budget, samples)
            except RequestError as error:
                reason = str(error)
        if reason is not None:
            why.append(f"supernet {manifest.name!r}: {reason}")
    return OfferedSubnets(tuple(plans), tuple(why))


def _largest(
    one: ReadySupernet, tasks: Tasks, classes: Sequence[str], budget: Budget, samples: str | None
) -> list[Plan]:
    try:
        best = one.find(tasks, budget)
    except InfeasibleError:
        best = one.smallest(tasks)
    return [one.plan(tasks, found, classes, samples) for found in (best, *one.smaller(tasks, best, budget))]


def _reads_others(said: Preprocessing, reads: Preprocessing) -> str | None:
    """That a supernet reads other images than those of an order, in words; None where it does not."""
    if (said.size, said.channels) == (reads.size, reads.channels):
        return None
    own, other = (
        f"{'x'.join(map(str, kind.size)) if kind.size else 'any size'} with {kind.channels} channels"
        for kind in (said, reads)
    )
    return f"it reads images of {own}, the order's are {other}"
