"""The paper's search, for comparison: random chains within the budget, of which the best by some score is taken.

Reference:
    Deep Model Reassembly, NeurIPS 2022, section 3.3: 500 draws a budget.
    Differs: draws are counted when they keep the budget; a draw that breaks it costs nothing but time.
"""

from __future__ import annotations

import numpy as np

from sarto.engines.reassembly.problem import Choice, Problem, choice_of

#: Draws of the paper.
DRAWS = 500


def random_chains(problem: Problem, n: int = DRAWS, *, tries: int = 200, seed: int = 0) -> tuple[Choice, ...]:
    """At most n random chains that keep every limit, as drawn; repetitions are left out.

    Args:
        tries: draws for each chain that is asked for, at most.
    """
    generator = np.random.default_rng(seed)
    sizes = np.array([len(stage.donors) for stage in problem.stages])
    found: dict[tuple[int, ...], Choice] = {}
    for _ in range(n):
        for _ in range(tries):
            path = tuple(int(v) for v in generator.integers(0, sizes))
            if problem.keeps(path):
                found.setdefault(path, choice_of(problem, path))
                break
    return tuple(found.values())
