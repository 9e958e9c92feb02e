"""What every factory refuses, in the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def too_small(sizes: Mapping[str, int | Sequence[int]]) -> list[str]:
    """One sentence for each number below 1, and for each list that is empty or holds such a number."""
    problems = []
    for name, value in sizes.items():
        if isinstance(value, int):
            if value < 1:
                problems.append(f"{name} is {value}: give at least 1")
        elif not value or min(value) < 1:
            problems.append(f"{name} is {list(value)}: give positive numbers, at least one")
    return problems


def no_share(shares: Mapping[str, float]) -> list[str]:
    """One sentence for each dropout that is not in [0, 1)."""
    return [f"{name} is {p}: give 0 <= p < 1" for name, p in shares.items() if not 0 <= p < 1]


def unknown(name: str, value: str, known: Sequence[str]) -> list[str]:
    """One sentence if the value is none of those known."""
    names = ", ".join(repr(word) for word in known[:-1]) + f" or {known[-1]!r}"
    return [] if value in known else [f"{name} is {value!r}: give {names}"]


def refuse(problems: Sequence[str]) -> None:
    """Nothing, if there are no problems.

    Raises:
        ValueError: there are; all of them in one message.
    """
    if problems:
        raise ValueError("; ".join(problems))


def divisible(width: float, by: int = 8) -> int:
    """The multiple of `by` next to the width, at least `by` and never more than a tenth below the width.

    Reference:
        Howard et al., Searching for MobileNetV3, ICCV 2019, and the networks after it; the rule is that of the
        authors' published implementation.
    """
    rounded = max(by, int(width + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * width else rounded
