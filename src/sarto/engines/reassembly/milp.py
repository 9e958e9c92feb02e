"""The choice as a mixed-integer program (HiGHS), for side constraints and as a certificate of A*."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, lil_matrix

from sarto.engines.reassembly.astar import infeasible
from sarto.engines.reassembly.problem import (
    Choice,
    Found,
    Problem,
    choice_of,
    least_costs,
    usable_blocks,
)
from sarto.errors import InfeasibleError, SartoError

#: Relative gap at which the solver stops; its own default is 1e-4.
GAP = 1e-9


def best_by_milp(problem: Problem, n: int = 1, *, differ: int = 1, seconds: float | None = None) -> Found:
    """The n best chains by integer programming; each differs from those before it in at least `differ` blocks.

    Variables: one a block (binary), one a joint between blocks (between 0 and 1), one a donor where donors are
    counted.

    Args:
        differ: 1: the plain list of the best; more: a diverse one.
        seconds: for each solution; None: no limit.

    Raises:
        InfeasibleError: no chain keeps the limits.
        SartoError: the solver stopped without an answer.
    """
    model = _Model(problem)
    chosen: list[Choice] = []
    bound, proven = -math.inf, True
    for _ in range(n):
        path, bound, proven = model.solve(seconds)
        if path is None:
            break
        chosen.append(choice_of(problem, path))
        if not proven:
            break
        model.forbid(path, differ)
    if not chosen:
        raise _none(problem)
    return Found(tuple(chosen), proven, bound, 0)


class _Model:
    """The program of a problem, to which cuts can be added."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        sizes = [len(stage.donors) for stage in problem.stages]
        self.first = np.concatenate([[0], np.cumsum(sizes)])
        self.joints: list[tuple[NDArray[np.int64], NDArray[np.int64], int]] = []
        at = int(self.first[-1])
        for joint in problem.joints:
            u, v = np.nonzero(np.isfinite(joint.loss))
            self.joints.append((u, v, at))
            at += len(u)
        self.counted = sorted({int(d) for stage in problem.stages for d in stage.donors})
        sides = problem.sides
        self.counts = sides.most_donors is not None or sides.least_donors > 1
        self.donor_at = at
        self.n = at + (len(self.counted) if self.counts else 0)
        self.rows: list[dict[int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []
        self._build()

    def _add(self, row: dict[int, float], low: float, high: float) -> None:
        self.rows.append(row)
        self.low.append(low)
        self.high.append(high)

    def _build(self) -> None:
        problem = self.problem
        for i, stage in enumerate(problem.stages):
            self._add({int(self.first[i] + v): 1.0 for v in range(len(stage.donors))}, 1.0, 1.0)
        for i, (u, v, at) in enumerate(self.joints):
            for block in range(len(problem.stages[i].donors)):
                row = {int(at + e): 1.0 for e in np.flatnonzero(u == block)}
                row[int(self.first[i] + block)] = -1.0
                self._add(row, 0.0, 0.0)
            for block in range(len(problem.stages[i + 1].donors)):
                row = {int(at + e): 1.0 for e in np.flatnonzero(v == block)}
                row[int(self.first[i + 1] + block)] = -1.0
                self._add(row, 0.0, 0.0)
        for r, limit in enumerate(problem.budget):
            if not math.isfinite(limit):
                continue
            # In units of the limit, so that the solver's tolerance means the same for all.
            unit = limit if limit > 0 else 1.0
            row = {}
            for i, stage in enumerate(problem.stages):
                row |= {int(self.first[i] + b): float(c) / unit for b, c in enumerate(stage.costs[:, r])}
            for (u, v, at), joint in zip(self.joints, problem.joints, strict=True):
                row |= {int(at + e): float(c) / unit for e, c in enumerate(joint.costs[u, v, r])}
            self._add(row, -math.inf, limit / unit)
        self._sides()

    def _sides(self) -> None:
        sides, stages = self.problem.sides, self.problem.stages
        for model in sorted(sides.must):
            row = {
                int(self.first[i] + b): 1.0
                for i, stage in enumerate(stages)
                for b in np.flatnonzero(stage.donors == model)
            }
            self._add(row, 1.0, math.inf)
        if not self.counts:
            return
        for place, model in enumerate(self.counted):
            uses = {
                int(self.first[i] + b): 1.0
                for i, stage in enumerate(stages)
                for b in np.flatnonzero(stage.donors == model)
            }
            for block in uses:
                self._add({block: 1.0, self.donor_at + place: -1.0}, -math.inf, 0.0)
            self._add({**uses, self.donor_at + place: -1.0}, 0.0, math.inf)
        every = {self.donor_at + place: 1.0 for place in range(len(self.counted))}
        self._add(every, float(sides.least_donors), float(sides.most_donors or len(self.counted)))

    def forbid(self, path: tuple[int, ...], differ: int) -> None:
        """From now on at least so many blocks differ from this choice."""
        row = {int(self.first[i] + v): 1.0 for i, v in enumerate(path)}
        self._add(row, -math.inf, float(len(path) - differ))

    def solve(self, seconds: float | None) -> tuple[tuple[int, ...] | None, float, bool]:
        """The best choice (None: there is none), an upper bound of all values, and whether it is proven best."""
        problem = self.problem
        worth = np.zeros(self.n)
        upper = np.ones(self.n)
        for i, stage in enumerate(problem.stages):
            place = slice(int(self.first[i]), int(self.first[i + 1]))
            worth[place] = stage.value
            upper[place] = usable_blocks(problem, i).astype(float)
        for (u, v, at), joint in zip(self.joints, problem.joints, strict=True):
            worth[at : at + len(u)] = -joint.loss[u, v]
        whole = np.zeros(self.n)
        whole[: int(self.first[-1])] = 1
        whole[self.donor_at :] = 1
        options: dict[str, float] = {"mip_rel_gap": GAP}
        if seconds is not None:
            options["time_limit"] = seconds
        result = milp(
            -worth,
            constraints=LinearConstraint(self._matrix(), np.array(self.low), np.array(self.high)),
            integrality=whole,
            bounds=Bounds(np.zeros(self.n), upper),
            options=options,
        )
        if result.status == 2:
            return None, -math.inf, True
        if result.x is None:
            raise SartoError(f"the integer program was not solved: {result.message}; give it more seconds")
        blocks = np.round(result.x[: int(self.first[-1])]).astype(int)
        path = tuple(
            int(blocks[int(self.first[i]) : int(self.first[i + 1])].argmax())
            for i in range(len(problem.stages))
        )
        dual = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
        return path, -float(dual), result.status == 0

    def _matrix(self) -> csr_matrix:
        matrix = lil_matrix((len(self.rows), self.n))
        for i, row in enumerate(self.rows):
            matrix.rows[i] = sorted(row)
            matrix.data[i] = [row[j] for j in sorted(row)]
        return matrix.tocsr()


def _none(problem: Problem) -> InfeasibleError:
    """The error for limits that no chain keeps; with donors that must be used without the nearest budget."""
    if not problem.sides.must:
        return infeasible(problem)
    told = {name: value for name, value in least_costs(problem).items() if math.isfinite(value)}
    each = ", ".join(f"{name} {value:.6g}" for name, value in told.items())
    return InfeasibleError(
        "no chain of blocks keeps all that is asked"
        + (f" (floor of each limit alone: {each})" if each else ""),
        floor=told,
    )


def possible(problem: Problem) -> bool:
    """Whether any chain keeps all limits and constraints; by integer programming without an objective of its own.

    Raises:
        SartoError: the solver stopped without an answer.
    """
    return _Model(problem).solve(None)[0] is not None


def certified(problem: Problem, found: Found, *, seconds: float | None = None) -> bool:
    """Whether the integer program finds nothing better than the first choice of a list."""
    other = best_by_milp(replace(problem), 1, seconds=seconds)
    return other.exact and other.choices[0].value <= found.choices[0].value + 1e-6 * max(
        1.0, abs(other.bound)
    )
