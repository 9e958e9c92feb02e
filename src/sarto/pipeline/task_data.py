"""The data of a task space: its function is called with its arguments."""

from __future__ import annotations

import os

from sarto.engines.factory.data import Judge, TaskData, in_order
from sarto.errors import RequestError
from sarto.pipeline.sources.calls import called
from sarto.types import TaskSpace


def data_of(space: TaskSpace) -> TaskData:
    """The data of a space, with `$NAME` in its arguments replaced by the environment's values.

    Raises:
        RequestError: a name is not in the environment, or the data can't be opened.
    """
    told, missing = {}, []
    for key, value in space.arguments.items():
        if isinstance(value, str):
            value = os.path.expandvars(value)
            if "$" in value:
                missing.append(
                    f"data.{key}: {value!r} names a variable that the environment does not have; set it, or give the "
                    "path itself"
                )
        told[key] = value
    if missing:
        raise RequestError(missing[0], problems=missing)
    return open_data(space.replace(arguments=told))


def open_data(space: TaskSpace) -> TaskData:
    """The data of a task space: its function, called with its arguments; answers in the space's order.

    Runs the owner's code; call it for spaces of one's own only.

    Raises:
        RequestError: the function can't be imported, refuses its arguments or fails, or gives something without `draw`;
            or its classes are not the space's answers.
    """
    module_name, _, name = space.function.partition(":")
    if not module_name or not name:
        raise RequestError(f".function: package.module:name was expected, got {space.function!r}")
    try:
        made = called(space.function, space.arguments, noun="function", give="data: {NAME: ...}")
    except RequestError as error:
        raise RequestError(
            f"the function of task space {space.name!r}: {error.detail}",
            where=error.where,
            problems=error.problems,
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
    return in_order(space, made)
