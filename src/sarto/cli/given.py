"""What a command line says about a model, read and checked before anything slow is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sarto.errors import RequestError, SartoError
from sarto.types.inputs import input_parts


def together(*checks: Callable[[], object]) -> None:
    """Make every check, then tell all problems at once.

    Raises:
        RequestError: one check failed, or several.
    """
    failed: list[SartoError] = []
    for check in checks:
        try:
            check()
        except SartoError as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        problems = [text for error in failed for text in error.problems or (str(error),)]
        raise RequestError(problems[0], problems=problems)


def factory_arguments(given: Sequence[str]) -> dict[str, Any]:
    """The arguments of a factory from `key=value`; a value is JSON, or a plain word.

    Raises:
        RequestError: one has no key, is given twice, or is broken JSON.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise RequestError(f"--arg {text!r}: write key=value, for instance n_classes=10")
        if key in found:
            raise RequestError(f"--arg {key} is given twice: {found[key]!r} and {value!r}")
        try:
            found[key] = json.loads(value)
        except ValueError as error:
            if value.lstrip()[:1] in ("[", "{", '"'):
                raise RequestError(
                    f"--arg {text!r}: the value is no JSON ({error}); for instance widths=[8,16], written in quotes "
                    "where the shell would change it"
                ) from None
            found[key] = value
    return found


def check_inputs(given: Sequence[str]) -> None:
    """Read every `--input`, to see that it can be read.

    Raises:
        RequestError: names all that can't.
    """
    together(*(lambda text=text: input_parts(text) for text in given))


def check_place(option: str, path: str | None) -> None:
    """Refuse a file to write whose folder is not there.

    Raises:
        RequestError: says which folder.
    """
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise RequestError(f"{option} {path}: there is no folder {Path(path).parent}")
    if path is not None and Path(path).is_dir():
        raise RequestError(f"{option} {path}: that is a folder; name a file in it")


def check_there(option: str, path: str | None) -> None:
    """Refuse a file or folder to read that is not there.

    Raises:
        RequestError: names it.
    """
    if path is not None and not Path(path).exists():
        raise RequestError(f"{option} {path}: there is no such file or folder")
