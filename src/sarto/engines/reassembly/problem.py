"""The choice of blocks as a layered graph: one block a stage, with values, costs and stitches between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sarto.errors import RequestError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stage:
    """The blocks that may stand in one stage.

    Attributes:
        donors: model of each block.
        value: what each block is worth.
        costs: budgeted costs of each block, shape (blocks, resources).
        peaks: peak bytes of each block.
    """

    donors: NDArray[np.int64]
    value: Floats
    costs: Floats
    peaks: Floats


@dataclass(frozen=True, eq=False)
class Joint:
    """What joining each block of a stage to each of the next costs.

    Attributes:
        loss: what is taken off the value, shape (blocks, blocks of the next stage); infinite: not possible.
        costs: budgeted costs of the stitch, shape (blocks, blocks of the next stage, resources).
    """

    loss: Floats
    costs: Floats


@dataclass(frozen=True)
class Sides:
    """Side constraints.

    Attributes:
        most_donors, least_donors: number of different models that blocks come from.
        must, avoid: models that have to be used, or not to be.
    """

    most_donors: int | None = None
    least_donors: int = 1
    must: frozenset[int] = frozenset()
    avoid: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Problem:
    """Which chain of blocks is best within budgets.

    Attributes:
        stages: first to last.
        joints: one between neighbouring stages.
        resources: name of each budgeted cost.
        budget: limit of each; infinite where there is none.
        peak: limit of the peak bytes of any block.
    """

    stages: tuple[Stage, ...]
    joints: tuple[Joint, ...]
    resources: tuple[str, ...] = ()
    budget: tuple[float, ...] = ()
    peak: float = math.inf
    sides: Sides = field(default_factory=Sides)

    def __post_init__(self) -> None:
        problems = []
        if not self.stages:
            problems.append("there is no stage to choose blocks for")
        if len(self.joints) != max(len(self.stages) - 1, 0):
            problems.append(
                f"{len(self.stages)} stages have {len(self.stages) - 1} joints, got {len(self.joints)}"
            )
        if len(self.budget) != len(self.resources):
            problems.append(f"{len(self.resources)} costs have as many limits, got {len(self.budget)}")
        for i, stage in enumerate(self.stages):
            n = len(stage.donors)
            if not n:
                problems.append(f"stage {i} has no block")
            if stage.value.shape != (n,) or stage.costs.shape != (n, len(self.resources)):
                problems.append(f"stage {i}: values and costs of {n} blocks don't fit")
            if bool((stage.costs < 0).any()):
                problems.append(f"stage {i}: costs must be at least 0")
        for i, joint in enumerate(self.joints):
            shape = (
                (len(self.stages[i].donors), len(self.stages[i + 1].donors))
                if not problems
                else joint.loss.shape
            )
            if joint.loss.shape != shape or joint.costs.shape != (*shape, len(self.resources)):
                problems.append(
                    f"joint {i}: losses and costs have shape {joint.loss.shape}, blocks ask for {shape}"
                )
        if problems:
            raise RequestError(problems[0], problems=problems)

    def value(self, path: Sequence[int]) -> float:
        """Value of a choice, block by block; minus infinite where a joint is not possible."""
        total = sum(float(stage.value[v]) for stage, v in zip(self.stages, path, strict=True))
        return total - sum(float(j.loss[path[i], path[i + 1]]) for i, j in enumerate(self.joints))

    def costs(self, path: Sequence[int]) -> tuple[float, ...]:
        """Budgeted costs of a choice, stitches in it."""
        total = np.zeros(len(self.resources))
        for stage, v in zip(self.stages, path, strict=True):
            total += stage.costs[v]
        for i, joint in enumerate(self.joints):
            total += joint.costs[path[i], path[i + 1]]
        return tuple(total.tolist())

    def donors(self, path: Sequence[int]) -> tuple[int, ...]:
        """Model of each block of a choice, or of its first stages."""
        return tuple(int(stage.donors[v]) for stage, v in zip(self.stages, path, strict=False))

    def keeps(self, path: Sequence[int]) -> bool:
        """Whether a choice is possible and within every limit."""
        donors = set(self.donors(path))
        return (
            math.isfinite(self.value(path))
            and all(
                c <= limit + tolerance(limit) for c, limit in zip(self.costs(path), self.budget, strict=True)
            )
            and all(float(s.peaks[v]) <= self.peak for s, v in zip(self.stages, path, strict=True))
            and self.sides.least_donors <= len(donors) <= (self.sides.most_donors or len(donors))
            and self.sides.must <= donors
            and not self.sides.avoid & donors
        )


@dataclass(frozen=True)
class Choice:
    """One chain of blocks.

    Attributes:
        path: number of the block of each stage.
        value: sum of values less losses.
        costs: name -> cost, stitches in it.
    """

    path: tuple[int, ...]
    value: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        choices: best first.
        exact: whether no better choice than the last one of them exists that is not among them.
        bound: an upper bound of the value of everything that is not among them.
        n_expanded: partial choices that were looked at.
    """

    choices: tuple[Choice, ...]
    exact: bool
    bound: float
    n_expanded: int


def choice_of(problem: Problem, path: Sequence[int]) -> Choice:
    """A choice with its value and costs."""
    costs = dict(zip(problem.resources, problem.costs(path), strict=True))
    return Choice(tuple(int(v) for v in path), problem.value(path), costs)


def tolerance(limit: float) -> float:
    """Rounding that a limit forgives."""
    return 1e-9 * max(1.0, abs(limit)) if math.isfinite(limit) else 0.0


def least_costs(problem: Problem) -> dict[str, float]:
    """The smallest that each budgeted cost can be, each by itself."""
    usable = [usable_blocks(problem, i) for i in range(len(problem.stages))]
    found: dict[str, float] = {}
    for r, name in enumerate(problem.resources):
        last = np.where(usable[-1], problem.stages[-1].costs[:, r], math.inf)
        for i in reversed(range(len(problem.joints))):
            joint = problem.joints[i]
            step = np.where(np.isfinite(joint.loss), joint.costs[:, :, r], math.inf) + last[None, :]
            last = np.where(usable[i], problem.stages[i].costs[:, r] + step.min(1), math.inf)
        found[name] = float(last.min())
    return found


def usable_blocks(problem: Problem, stage: int) -> NDArray[np.bool_]:
    """Blocks of a stage that no limit of their own rules out."""
    found = problem.stages[stage]
    good = found.peaks <= problem.peak
    if problem.sides.avoid:
        good &= ~np.isin(found.donors, sorted(problem.sides.avoid))
    return good
