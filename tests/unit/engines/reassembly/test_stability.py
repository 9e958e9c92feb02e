"""The number of blocks by stability, and the paper's heuristic beside the exact dissection."""

from __future__ import annotations

import numpy as np
import pytest

from sarto.engines.reassembly.heuristic import dissect_by_moves
from sarto.engines.reassembly.partition import Cuts, Limits, dissect_zoo
from sarto.engines.reassembly.stability import adjusted_rand, choose_k, on_batches, similarity_error
from sarto.errors import RequestError


def _staged(n_stages: int, n_models: int = 8, batches: int = 6, size: int = 24, seed: int = 0) -> Cuts:
    """Models that pass through the same states at the ends of their stages, and through their own between them."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((n_stages + 1, batches * size))
    vectors, models = [], []
    for _ in range(n_models):
        points = [common[0]]
        for stage in range(n_stages):
            points += list(generator.standard_normal((int(generator.integers(2, 4)), batches * size)))
            points.append(common[stage + 1])
        noisy = np.array(points) + 0.8 * generator.standard_normal((len(points), batches * size))
        rows = list(range(len(vectors), len(vectors) + len(points)))
        vectors += list(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
        models.append((rows, list(range(len(rows)))))
    return Cuts.of(np.array(vectors), models)


def test_the_adjusted_rand_index_of_known_cases() -> None:
    assert adjusted_rand([0, 0, 1, 1], [5, 5, 3, 3]) == 1.0
    assert adjusted_rand([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-0.5)
    generator = np.random.default_rng(0)
    by_chance = [
        adjusted_rand(generator.integers(0, 3, 200).tolist(), generator.integers(0, 3, 200).tolist())
        for _ in range(50)
    ]
    assert abs(float(np.mean(by_chance))) < 0.01
    with pytest.raises(RequestError, match="same things"):
        adjusted_rand([0, 1], [0])


def test_the_true_number_of_stages_is_the_steadiest() -> None:
    cuts = _staged(3)
    k, found = choose_k(cuts, Limits(slack=None), [3, 5], size=24, draws=3)
    assert k == 3
    told = {item.k: item for item in found}
    assert (told[3].agreement or 0.0) > (told[5].agreement or 1.0)


def test_the_error_of_a_dissection_s_similarity_is_what_leaving_each_batch_out_gives() -> None:
    cuts, size, batches = _staged(3, n_models=4), 24, 6
    found = dissect_zoo(cuts, Limits(3, None))

    def mean_similarity(vectors: np.ndarray) -> float:
        sets: dict[int, list[np.ndarray]] = {}
        for model, labels in enumerate(found.labels.tolist()):
            for label, (start, end) in zip(labels, found.bounds[model].tolist(), strict=True):
                ends = [vectors[cuts.rows[model, place]] for place in (start, end)]
                sets.setdefault(label, []).append(np.concatenate(ends))
        return float(np.mean([psi @ np.mean(blocks, 0) for blocks in sets.values() for psi in blocks]))

    assert mean_similarity(cuts.vectors) == pytest.approx(found.value / (4 * 3), abs=1e-5)
    left = []
    for gone in range(batches):
        part = np.delete(cuts.vectors, np.s_[gone * size : (gone + 1) * size], axis=1)
        left.append(mean_similarity(part / np.linalg.norm(part, axis=1, keepdims=True)))
    wanted = (batches - 1) / batches * np.square(np.array(left) - np.mean(left)).sum()
    assert similarity_error(cuts, found, size=size) == pytest.approx(wanted**0.5, rel=1e-4)
    assert similarity_error(cuts, found, size=size * batches) is None


def test_signatures_on_some_batches_have_length_one() -> None:
    cuts = _staged(2, n_models=2)
    part = on_batches(cuts.vectors, 24, [1, 4])
    assert part.shape == (len(cuts.vectors), 48)
    assert np.allclose(np.linalg.norm(part, axis=1), 1.0, atol=1e-6)
    with pytest.raises(RequestError, match="two batches"):
        choose_k(_staged(2, batches=1), Limits(slack=None), [2], size=24)


def test_the_papers_moves_never_beat_the_exact_dissection_on_a_staged_zoo() -> None:
    cuts = _staged(3, seed=1)
    exact = dissect_zoo(cuts, Limits(3, None, labels="free"), restarts=6)
    moved = dissect_by_moves(cuts, Limits(3, None), restarts=5)
    assert moved.value <= exact.value + 1e-6
    assert moved.bounds.shape == exact.bounds.shape


def test_the_papers_moves_keep_the_size_limit() -> None:
    cuts = _staged(2, n_models=5)
    found = dissect_by_moves(cuts, Limits(2, 0.5), restarts=3)
    for model in range(5):
        sizes = cuts.sizes[model]
        whole = sizes[cuts.length[model] - 1] - sizes[0]
        for a, b in found.bounds[model]:
            assert sizes[b] - sizes[a] <= 1.5 * whole / 2 + 0.5
