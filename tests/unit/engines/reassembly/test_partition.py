"""The dynamic program against enumeration, the alternation against its own promises, the limits against their words."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from sarto.engines.reassembly.partition import (
    Cuts,
    Limits,
    allowed,
    best_parting,
    dissect_zoo,
    set_means,
    value_of,
)
from sarto.errors import InfeasibleError, RequestError


def _zoo(n: int, n_cuts: tuple[int, int], width: int = 12, seed: int = 0, noise: float = 0.4) -> Cuts:
    """Models whose cut points drift from one common direction to another, with noise and unequal sizes."""
    generator = np.random.default_rng(seed)
    line = generator.standard_normal((6, width))
    vectors, models = [], []
    for _ in range(n):
        count = int(generator.integers(n_cuts[0], n_cuts[1] + 1))
        spots = np.sort(generator.random(count)) * 5
        low = np.floor(spots).astype(int).clip(0, 4)
        points = line[low] * (low + 1 - spots)[:, None] + line[low + 1] * (spots - low)[:, None]
        points = points + noise * generator.standard_normal(points.shape)
        rows = list(range(len(vectors), len(vectors) + count))
        vectors += list(points / np.linalg.norm(points, axis=1, keepdims=True))
        models.append((rows, np.cumsum(generator.integers(1, 20, count)).tolist()))
    return Cuts.of(np.array(vectors), models)


def _enumerate(cuts: Cuts, limits: Limits, means: np.ndarray, fits: np.ndarray, model: int) -> float:
    """The best value of one model over every parting and labelling."""
    width = cuts.vectors.shape[1]
    length = int(cuts.length[model])
    best = -np.inf
    counts = range(1, limits.k + 1) if limits.skip is not None else [limits.k]
    for used in counts:
        for inner in itertools.combinations(range(1, length - 1), used - 1):
            edges = [0, *inner, length - 1]
            blocks = list(itertools.pairwise(edges))
            if not all(fits[model, a, b] for a, b in blocks):
                continue
            if limits.labels == "free":
                labellings = itertools.product(range(limits.k), repeat=used)
            else:
                labellings = itertools.combinations(range(limits.k), used)
            for labels in labellings:
                total = (limits.skip or 0.0) * (limits.k - used)
                for (a, b), j in zip(blocks, labels, strict=True):
                    psi = np.concatenate(
                        [cuts.vectors[cuts.rows[model, a]], cuts.vectors[cuts.rows[model, b]]]
                    )
                    total += float(psi @ means[j]) - 0.5 * float(means[j] @ means[j])
                best = max(best, total)
    assert width == cuts.vectors.shape[1]
    return best


@pytest.mark.parametrize(
    "limits",
    [
        Limits(3, 0.6),
        Limits(3, None),
        Limits(4, None, skip=0.3),
        Limits(3, 0.9, skip=-0.2),
        Limits(3, None, labels="free"),
        Limits(2, 0.5, labels="free"),
    ],
)
def test_the_dynamic_program_equals_enumeration(limits: Limits) -> None:
    cuts = _zoo(8, (6, 9), seed=limits.k)
    generator = np.random.default_rng(1)
    means = generator.standard_normal((limits.k, 2 * 12)).astype(np.float32) * 0.3
    fits, _ = allowed(cuts, limits)
    bounds, labels, value = best_parting(cuts, limits, means, fits)
    for model in range(cuts.n_models):
        assert value[model] == pytest.approx(_enumerate(cuts, limits, means, fits, model), abs=1e-5)
        kept = bounds[model][bounds[model][:, 0] >= 0]
        assert kept[0, 0] == 0 and kept[-1, 1] == cuts.length[model] - 1
        assert all(before[1] == after[0] for before, after in itertools.pairwise(kept))
        assert all(fits[model, a, b] for a, b in kept)
        if limits.labels == "ordered":
            used = labels[model][labels[model] >= 0]
            assert (np.diff(used) > 0).all()


@pytest.mark.parametrize("limits", [Limits(3, 0.8), Limits(3, 0.8, skip=0.1), Limits(3, 0.8, labels="free")])
def test_alternating_never_loses(limits: Limits) -> None:
    found = dissect_zoo(_zoo(30, (7, 12), seed=4), limits, restarts=3)
    assert len(found.history) > 1
    assert (np.diff(found.history) >= -1e-9).all()


def test_the_value_is_the_mean_similarity_within_sets() -> None:
    cuts = _zoo(6, (6, 8), seed=2)
    limits = Limits(3, None)
    found = dissect_zoo(cuts, limits)
    total = 0.0
    for j in range(3):
        psi = []
        for model in range(6):
            for (a, b), label in zip(found.bounds[model], found.labels[model], strict=True):
                if label == j:
                    psi.append(np.concatenate([cuts.vectors[cuts.rows[model, c]] for c in (a, b)]))
        stacked = np.array(psi, dtype=np.float64)
        total += float((stacked @ stacked.T).sum()) / len(stacked)
    assert found.value == pytest.approx(total, rel=1e-5)
    means = set_means(cuts, found.bounds, found.labels, 3, found.means)
    assert value_of(cuts, found.bounds, found.labels, means, limits) == pytest.approx(found.value)


def test_common_stages_are_found_where_there_are_some() -> None:
    generator = np.random.default_rng(0)
    stages = np.linalg.qr(generator.standard_normal((16, 16)))[0][:4]
    vectors, models, truth = [], [], []
    for i in range(12):
        lengths = generator.integers(2, 5, 3)
        labels = np.repeat(np.arange(4), [1, *lengths])
        rows = list(range(len(vectors), len(vectors) + len(labels)))
        points = stages[labels] + 0.05 * generator.standard_normal((len(labels), 16))
        vectors += list(points / np.linalg.norm(points, axis=1, keepdims=True))
        models.append((rows, list(range(len(rows)))))
        truth.append(np.cumsum(lengths))
        assert i < 12
    found = dissect_zoo(Cuts.of(np.array(vectors), models), Limits(3, None), restarts=6)
    # A block ends where its stage does, or at any cut point of it: the output is then the same.
    for model, ends in enumerate(truth):
        starts = [0, *ends[:-1]]
        for k in range(3):
            assert starts[k] < found.bounds[model, k, 1] <= ends[k]


def test_a_model_that_can_not_keep_the_size_limit_gets_the_least_slack_that_works() -> None:
    vectors = np.eye(6)
    cuts = Cuts.of(vectors, [([0, 1, 2, 3], [0, 10, 20, 30]), ([0, 1, 4, 5], [0, 90, 95, 100])])
    found = dissect_zoo(cuts, Limits(3, 0.2))
    assert [model for model, _ in found.fixed] == [1]
    assert found.fixed[0][1] == pytest.approx(90 * 3 / 100 - 1)


def test_too_few_cut_points_are_told_with_the_most_blocks_that_work() -> None:
    with pytest.raises(InfeasibleError, match="the most for all is 2") as caught:
        dissect_zoo(_zoo(4, (3, 3)), Limits(4, None))
    assert caught.value.floor == {"k": 2}
    found = dissect_zoo(_zoo(4, (3, 3)), Limits(4, None, skip=0.0))
    assert ((found.labels >= 0).sum(1) <= 2).all()


def test_limits_and_zoos_that_mean_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="at least one block"):
        Limits(0)
    with pytest.raises(RequestError, match="at least 0"):
        Limits(2, -0.1)
    with pytest.raises(RequestError, match="ordered labels only"):
        Limits(2, skip=0.1, labels="free")
    with pytest.raises(RequestError, match="fewer than two cut points"):
        Cuts.of(np.eye(3), [([0], [1.0])])
    with pytest.raises(RequestError, match="no model"):
        Cuts.of(np.eye(3), [])


def test_hundreds_of_models_take_a_second() -> None:
    cuts = _zoo(300, (20, 20), width=128, seed=5)
    begun = time.process_time()
    found = dissect_zoo(cuts, Limits(4, 0.8), restarts=1)
    assert time.process_time() - begun < 5.0
    assert found.bounds.shape == (300, 4, 2)
