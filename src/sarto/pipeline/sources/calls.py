"""A function of somebody's own module: found by name, its arguments checked, called; every failure is told."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from sarto.errors import RequestError, SartoError, suggest

#: Hints against which an argument can be held.
_PLAIN = (int, float, str, bool, list, dict)


def called(
    spec: str, arguments: Mapping[str, Any], *, noun: str = "factory", give: str = "--arg NAME=..."
) -> Any:
    """What `package.module:name(**arguments)` gives. Runs its owner's code.

    Args:
        noun: what the function is called in messages.
        give: how an argument NAME is given.

    Raises:
        RequestError: there is no such function, it does not take the arguments, or it fails.
    """
    function = _function(spec, noun)
    _check_arguments(spec, function, arguments, give)
    try:
        return function(**arguments)
    except SartoError:
        raise
    except FileNotFoundError as error:
        raise RequestError(
            f"{_call(spec, arguments)} needs the file {str(error.filename)!r}, which is not there"
        ) from error
    except (Exception, SystemExit) as error:
        # What code that is not ours raises is up to it.
        raise RequestError(
            f"{_call(spec, arguments)} failed: {failure(error)}{_other_types(function, arguments)}"
        ) from error


def failure(error: BaseException) -> str:
    """A failure of code that is not ours: its type, and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _function(spec: str, noun: str) -> Callable[..., Any]:
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
        cure = _to_be_found(module_name) if own else f"it needs {error.name!r}"
        raise RequestError(f"can't import {module_name!r}: {error}; {cure}") from error
    except (Exception, SystemExit) as error:
        raise RequestError(f"can't import {module_name!r}: {failure(error)}") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        known = [key for key in vars(module) if not key.startswith("_") and callable(getattr(module, key))]
        if function is not None:
            raise RequestError(f"{spec} is a {type(function).__name__}, not a {noun}{suggest('', known)}")
        raise RequestError(f"{module_name!r} has no {noun} {name!r}{suggest(name, known)}")
    return function  # type: ignore[no-any-return]


def _to_be_found(module_name: str) -> str:
    if module_name.endswith(".py"):
        return f"a function is named by its module, not by its file: write {module_name[:-3]}:NAME"
    top = module_name.partition(".")[0]
    if Path(f"{top}.py").is_file() or Path(top).is_dir():
        return "it lies in this folder: run with PYTHONPATH=."
    return "install it, or run where Python finds it (PYTHONPATH)"


def _check_arguments(
    spec: str, function: Callable[..., Any], arguments: Mapping[str, Any], give: str
) -> None:
    """Refuse arguments that a function does not have, and the lack of those that it needs."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Some callables have no signature; calling them tells.
        return
    kinds = inspect.Parameter
    named = [
        name
        for name, entry in known.items()
        if entry.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    ]
    problems = []
    if not any(entry.kind is kinds.VAR_KEYWORD for entry in known.values()):
        problems += [
            f"{spec} has no argument {name!r}{suggest(name, named) or ' (it takes none)'}"
            for name in arguments
            if name not in named
        ]
    problems += [
        f"{spec} needs the argument {name!r}: give {give.replace('NAME', name)}"
        for name in named
        if known[name].default is kinds.empty and name not in arguments
    ]
    if problems:
        raise RequestError(problems[0], problems=problems)


def _other_types(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """The arguments of another type than a function's plain hints say, as the end of a message."""
    made: Any = function
    try:
        hints = get_type_hints(made.__dict__.get("__init__", made) if inspect.isclass(made) else made)
    except Exception:
        # Hints may name what is imported for type checkers only.
        return ""
    wrong = []
    for name, value in arguments.items():
        wanted: Any = hints.get(name)
        if wanted not in _PLAIN:
            continue
        fits = isinstance(value, (int, float) if wanted is float else wanted)
        if not fits or (wanted in (int, float) and isinstance(value, bool)):
            wrong.append(f"{name} is to be {wanted.__name__}, found {value!r} ({type(value).__name__})")
    return f"; {'; '.join(wrong)}" if wrong else ""


def _call(spec: str, arguments: Mapping[str, Any]) -> str:
    return f"{spec}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
