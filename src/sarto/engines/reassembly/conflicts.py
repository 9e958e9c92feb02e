"""Why no chain keeps everything that is asked: a smallest set of constraints that can't be kept together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sarto.engines.reassembly.milp import possible
from sarto.engines.reassembly.problem import Problem, Sides

#: A constraint: what it is (a field of `Sides`, "budget" or "peak"), its value or place, and how it is told.
_Rule = tuple[str, Any, str]


def conflict(problem: Problem, names: Sequence[str]) -> tuple[str, ...]:
    """Constraints that no chain keeps together, in words; without any one of them some chain keeps the rest.

    Each constraint is left out in turn, and stays out where the others still allow no chain (a deletion filter), so one
    integer program is solved for each.

    Args:
        names: of the models, by their number.

    Returns:
        Nothing where a chain keeps all of them, or where even without them none can be joined.
    """
    kept = _rules(problem, names)
    if possible(problem) or not possible(_only(problem, [])):
        return ()
    for rule in list(kept):
        fewer = [other for other in kept if other is not rule]
        if not possible(_only(problem, fewer)):
            kept = fewer
    return tuple(text for _, _, text in kept)


def _rules(problem: Problem, names: Sequence[str]) -> list[_Rule]:
    """Every constraint of a problem; those first that one would rather hear of last."""
    sides = problem.sides
    found: list[_Rule] = []
    if sides.least_donors > 1:
        found.append(("least_donors", sides.least_donors, f"at least {sides.least_donors} donors"))
    found += [("avoid", i, f"without {names[i]}") for i in sorted(sides.avoid)]
    if math.isfinite(problem.peak):
        found.append(("peak", problem.peak, f"memory_bytes <= {problem.peak:.6g}"))
    found += [
        ("budget", r, f"{name} <= {limit:.6g}")
        for r, (name, limit) in enumerate(zip(problem.resources, problem.budget, strict=True))
        if math.isfinite(limit)
    ]
    if sides.most_donors is not None:
        plural = "" if sides.most_donors == 1 else "s"
        found.append(("most_donors", sides.most_donors, f"at most {sides.most_donors} donor{plural}"))
    return found + [("must", i, f"with {names[i]}") for i in sorted(sides.must)]


def _only(problem: Problem, rules: Sequence[_Rule]) -> Problem:
    """The problem under these constraints alone."""

    def those(kind: str) -> list[Any]:
        return [value for name, value, _ in rules if name == kind]

    return replace(
        problem,
        budget=tuple(limit if r in those("budget") else math.inf for r, limit in enumerate(problem.budget)),
        peak=min(those("peak"), default=math.inf),
        sides=Sides(
            most_donors=next(iter(those("most_donors")), None),
            least_donors=next(iter(those("least_donors")), 1),
            must=frozenset(those("must")),
            avoid=frozenset(those("avoid")),
        ),
    )
