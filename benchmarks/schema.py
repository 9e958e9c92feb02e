"""What a case file and a result file hold. Unknown keys and numbers without a unit are refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sarto.types import Value

_MEASURES = {
    "ms",
    "seconds",
    "minutes",
    "bytes",
    "mib",
    "gib",
    "params",
    "flops",
    "macs",
    "count",
    "times",
    "per",
}
_SHARES = {"accuracy", "coverage", "ratio", "share", "percent", "points", "rank"}
_STATISTICS = {"correlation", "difference", "error", "residual", "tau"}
#: The name of a number has one of these among its words (`accuracy_loto`), or starts with `n_`.
UNITS = frozenset(_MEASURES | _SHARES | _STATISTICS)

Kind = Literal["quality", "cost", "speed"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$", max_length=80)]
Scalar = str | int | float | bool | None


class Case(Value):
    """One benchmark: a function, its parameters, and the changes that make it small."""

    name: Name
    kind: Kind
    run: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*:[a-z_][a-z0-9_]*$")]
    about: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    smoke: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1

    def effective(self, smoke: bool) -> dict[str, Any]:
        """The parameters of a real run, or of a small one."""
        return {**self.parameters, **self.smoke} if smoke else dict(self.parameters)


class Machine(Value):
    """Where the numbers were measured."""

    processor: str
    cores: int
    memory_bytes: int | None
    system: str


class Result(Value):
    """What one run of one case gave, and all that is needed to run it again."""

    result: Literal[1] = 1
    name: Name
    kind: Kind
    about: str = ""
    smoke: bool
    commit: str | None
    dirty: bool
    machine: Machine
    threads: int
    python: str
    torch: str | None
    seed: int
    started: str
    wall_seconds: float
    parameters: dict[str, Any]
    numbers: dict[str, int | float]
    rows: tuple[dict[str, Scalar], ...] = ()

    @field_validator("numbers", mode="before")
    @classmethod
    def _have_units(cls, numbers: Mapping[str, Any]) -> Mapping[str, Any]:
        problems = [problem for item in numbers.items() if (problem := _number_problem(*item))]
        if not numbers:
            problems = ["no number at all; the function returns a dict of numbers"]
        if problems:
            raise ValueError("; ".join(problems))
        return numbers


def _number_problem(name: str, number: Any) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        return f"{name!r} is not a name; use lower case words joined by _"
    if not (name.startswith("n_") or UNITS & set(name.split("_"))):
        known = ", ".join(sorted(UNITS))
        return f"{name!r} says no unit; put one of its words in the name ({known}), or start a count with n_"
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return f"{name!r} is {number!r}, not a number"
    if not math.isfinite(number):
        return f"{name!r} is {number}; leave out a number that could not be measured"
    return None
