"""A task space: the properties that tasks are made of, and which tasks there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations, product
from math import comb, prod
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sarto.errors import RequestError, suggest
from sarto.types.fields import Frozen, Name, Names, Positive, Several, Version, twice
from sarto.types.value import Value

#: Tasks of one space; more can't be listed, trained or reported one by one.
MAX_TASKS = 20_000


class TaskSpace(Value):
    """Properties in groups, and the tasks that are trained or kept aside.

    A task is a set of properties: by default one of each group ("exactly two" of "digit 7"). It is named by its
    properties, joined with "+" in the order of the space: `exactly_2+digit_7`.

    Attributes:
        groups: group -> its properties; a task has `choose` of each.
        order: the groups in the order of the bits of a task code; by default as they are written. It is kept beside
            the groups because a mapping has no order where it is stored.
        choose: group -> how many properties of it a task has at most (at least one); groups not named: one.
        optional: groups of which a task may have no property.
        tasks: the tasks, if not all combinations.
        unseen: tasks kept out of training, to be tried afterwards.
        extra: further combinations of properties that are trained too, so that the assembler learns what a property
            means and not each task by heart; nobody can order them. They need not keep `choose`.
        function: `package.module:name` of what draws inputs and answers of tasks.
        arguments: keyword arguments of that function.
        answers: what the model's outputs mean.
        outputs_of: property -> outputs that a task with it tells apart; empty: every task uses all outputs. Outputs
            of no property of a task are cut off.
        within: property -> properties of other groups that a task with it may have; of groups of which none is named
            here, all. "fish" so goes with "ray" and "shark", and not with "apple".

    Reference:
        NN-Factory, arXiv 2308.15003, section 3.1: a task space of K properties.
        Differs: properties come in groups, so that contradictory and empty tasks can be refused.
    """

    space: Version = 1
    name: Name
    groups: Annotated[Frozen[Name, Names], Field(min_length=1)]
    order: Names = ()
    choose: Frozen[Name, Positive] = Field(default_factory=dict, validate_default=True)
    optional: Names = ()
    tasks: Several[Names] = ()
    unseen: Several[Names] = ()
    extra: Several[Names] = ()
    function: Name
    arguments: Frozen[Name, Any] = Field(default_factory=dict, validate_default=True)
    answers: Annotated[Names, Field(min_length=1)]
    outputs_of: Frozen[Name, Names] = Field(default_factory=dict, validate_default=True)
    within: Frozen[Name, Names] = Field(default_factory=dict, validate_default=True)
    kind: Literal["classification", "detection"] = "classification"

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("groups"), Mapping) and not data.get("order"):
            return {**data, "order": tuple(data["groups"])}
        return data

    @model_validator(mode="after")
    def _check_space(self) -> TaskSpace:
        if sorted(self.order) != sorted(self.groups):
            told = ", ".join(self.groups)
            raise RequestError(
                f".order: names each group once ({told}), got {', '.join(self.order) or 'none'}"
            )
        problems = [
            f".groups: property {name!r} is named twice; name it once" for name in twice(self.properties)
        ]
        problems += [f".groups.{name}: holds no property" for name, held in self.groups.items() if not held]
        problems += [f".answers: {name!r} is named twice" for name in twice(self.answers)]
        for name, most in self.choose.items():
            if name not in self.groups:
                problems.append(f".choose: {name!r} is no group{suggest(name, self.groups)}")
            elif most > len(self.groups[name]):
                problems.append(
                    f".choose.{name}: {most} of {len(self.groups[name])} properties can't be chosen"
                )
        problems += [
            f".optional: {name!r} is no group{suggest(name, self.groups)}"
            for name in self.optional
            if name not in self.groups
        ]
        for name, outputs in self.outputs_of.items():
            if name not in self.properties:
                problems.append(f".outputs_of: {name!r} is no property{suggest(name, self.properties)}")
            problems += [
                f".outputs_of.{name}: {output!r} is no answer{suggest(output, self.answers)}"
                for output in outputs
                if output not in self.answers
            ]
        problems += self._within_problems()
        if "+" in "".join(self.properties):
            problems.append(".groups: a property's name has no '+', which joins properties to a task's name")
        if not problems:
            for key in ("tasks", "unseen"):
                for place, task in enumerate(getattr(self, key)):
                    problems += [f".{key}[{place}]: {why}" for why in self.problems(task)]
        if not problems:
            problems += self._extra_problems()
        if not problems and not self.tasks and self._n_combinations() > MAX_TASKS:
            problems.append(
                f".groups: {self._n_combinations()} combinations, more than {MAX_TASKS}; list the tasks under .tasks"
            )
        if not problems and not self.seen:
            problems.append(".unseen: keeps every task out of training; leave some")
        if problems:
            raise RequestError(problems[0], problems=problems)
        return self

    @property
    def properties(self) -> tuple[str, ...]:
        """All properties, group by group; the bits of a task code."""
        return tuple(name for group in self.order for name in self.groups[group])

    @property
    def seen(self) -> tuple[frozenset[str], ...]:
        """The tasks that are trained."""
        unseen = {frozenset(task) for task in self.unseen}
        every = [frozenset(task) for task in self.tasks] if self.tasks else self._combinations()
        return tuple(dict.fromkeys(task for task in every if task not in unseen))

    @property
    def kept_aside(self) -> tuple[frozenset[str], ...]:
        """The tasks that are not trained."""
        return tuple(dict.fromkeys(frozenset(task) for task in self.unseen))

    @property
    def combined(self) -> tuple[frozenset[str], ...]:
        """The combinations that are trained beside the tasks."""
        return tuple(dict.fromkeys(frozenset(task) for task in self.extra))

    def _within_problems(self) -> list[str]:
        """What is wrong with the properties that go together."""
        group_of = {name: group for group, held in self.groups.items() for name in held}
        found = []
        for name, allowed in self.within.items():
            if name not in group_of:
                found.append(f".within: {name!r} is no property{suggest(name, group_of)}")
                continue
            if not allowed:
                found.append(
                    f".within.{name}: names no property; give those that go with it, or leave it out"
                )
            for other in allowed:
                if other not in group_of:
                    found.append(f".within.{name}: {other!r} is no property{suggest(other, group_of)}")
                elif group_of[other] == group_of[name]:
                    found.append(
                        f".within.{name}: {other!r} is of the same group, {group_of[name]!r}; name those of others"
                    )
        return found

    def _apart(self, task: Iterable[str]) -> list[str]:
        """Which properties of a task don't go together."""
        asked, found = list(task), []
        for name in asked:
            allowed = self.within.get(name, ())
            groups = [held for held in self.groups.values() if set(held) & set(allowed)]
            strange = [
                other for other in asked if other not in allowed and any(other in held for held in groups)
            ]
            if strange:
                found.append(
                    f"{' and '.join(strange)} {'does' if len(strange) == 1 else 'do'} not go with {name!r}; what does: "
                    f"{', '.join(allowed)}"
                )
        return found

    def _extra_problems(self) -> list[str]:
        """What is wrong with the further combinations."""
        found = []
        unseen = set(self.kept_aside)
        for place, named in enumerate(self.extra):
            found += [
                f".extra[{place}]: {name!r} is no property of {self.name!r}{suggest(name, self.properties)}"
                for name in named
                if name not in self.properties
            ]
            found += [f".extra[{place}]: {name!r} is named twice" for name in twice(named)]
            if not named:
                found.append(f".extra[{place}]: names no property; give some")
            elif frozenset(named) in unseen:
                found.append(f".extra[{place}]: {'+'.join(named)} is kept out of training under .unseen")
        return found

    def problems(self, task: Iterable[str]) -> list[str]:
        """What keeps a set of properties from being a task of this space; nothing where it is one."""
        asked = list(task)
        if not asked:
            return [f"a task has properties; give one of each group ({', '.join(self.order)})"]
        found = [
            f"{name!r} is no property of {self.name!r}{suggest(name, self.properties)}"
            for name in asked
            if name not in self.properties
        ]
        found += [f"{name!r} is named twice" for name in twice(asked)]
        if found:
            return found
        for group in self.order:
            held = self.groups[group]
            mine = [name for name in asked if name in held]
            most = self.choose.get(group, 1)
            if not mine and group not in self.optional:
                found.append(f"nothing of group {group!r} is named; give one of {', '.join(held)}")
            elif len(mine) > most:
                found.append(
                    f"{' and '.join(mine)} contradict each other: a task has at most {most} of {group!r}"
                )
        found += self._apart(asked)
        if not found and len(self.answers) > 1 and len(self.outputs(asked)) == 1:
            (only,) = self.outputs(asked)
            found.append(
                f"{self.named(asked)!r} has one answer, {self.answers[only]!r}: nothing is told apart"
            )
        return found

    def task(self, text: str | Iterable[str]) -> frozenset[str]:
        """The task that a name ("exactly_2+digit_7") or properties say.

        Raises:
            RequestError: it is none of this space; all problems at once.
        """
        asked = [part.strip() for part in text.split("+")] if isinstance(text, str) else list(text)
        asked = [name for name in asked if name]
        found = self.problems(asked)
        if found:
            raise RequestError(f"no task: {found[0]}", problems=found)
        return frozenset(asked)

    def named(self, task: Iterable[str]) -> str:
        """A task's name: its properties in the order of the space, joined with "+"."""
        held = set(task)
        return "+".join(name for name in self.properties if name in held)

    def code(self, task: Iterable[str]) -> tuple[int, ...]:
        """Multi-hot code of a task, one bit a property."""
        held = set(task)
        return tuple(int(name in held) for name in self.properties)

    def outputs(self, task: Iterable[str]) -> tuple[int, ...]:
        """Which outputs a task needs, in the order of the answers."""
        named = {output for name in task for output in self.outputs_of.get(name, ())}
        return tuple(i for i, answer in enumerate(self.answers) if not named or answer in named)

    def _combinations(self) -> list[frozenset[str]]:
        choices = [
            _subsets(self.groups[group], int(group not in self.optional), self.choose.get(group, 1))
            for group in self.order
        ]
        every = [frozenset(name for part in parts for name in part) for parts in product(*choices)]
        return [task for task in every if task and not self._apart(task)]

    def _n_combinations(self) -> int:
        return prod(
            sum(comb(len(held), n) for n in range(group not in self.optional, self.choose.get(group, 1) + 1))
            for group, held in self.groups.items()
        )


def _subsets(held: tuple[str, ...], least: int, most: int) -> list[tuple[str, ...]]:
    return [part for n in range(least, most + 1) for part in combinations(held, n)]


def distance(one: Iterable[str], other: Iterable[str]) -> float:
    """Share of properties that only one of two tasks has (Jaccard distance): 0 for equal tasks, at most 1."""
    a, b = set(one), set(other)
    return 1 - len(a & b) / max(1, len(a | b))


def nearest(
    task: Iterable[str], others: Iterable[frozenset[str]], n: int = 3
) -> Mapping[frozenset[str], float]:
    """The n tasks with the smallest distance, nearest first."""
    rated = sorted(
        ((distance(task, other), sorted(other), other) for other in others), key=lambda item: item[:2]
    )
    return {other: far for far, _, other in rated[:n]}
