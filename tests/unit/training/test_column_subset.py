"""Unit selection: against naive greedy selection with explicit projections, and at the edges."""

from __future__ import annotations

import pytest
import torch

from sarto.errors import RequestError, ShapeError
from sarto.training import above_threshold, column_subset, energy, random_units, top, top_rate


def activations(rows: int, units: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, units, generator=generator, dtype=torch.float64)


def error_after(x: torch.Tensor, kept: list[int], weights: torch.Tensor) -> float:
    """Weighted squared error of predicting all columns from the kept ones, by least squares."""
    solution = torch.linalg.lstsq(x[:, kept], x, driver="gelsd").solution
    return float(((x - x[:, kept] @ solution).square().sum(0) * weights).sum())


@pytest.mark.parametrize("seed", range(4))
def test_order_is_that_of_greedy_least_squares(seed: int) -> None:
    x = activations(50, 12, 12, seed)
    weights = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    result = column_subset(x.T @ x, weights, 9)
    kept: list[int] = []
    total = float((x.square().sum(0) * weights).sum())
    for step in range(9):
        errors = {unit: error_after(x, [*kept, unit], weights) for unit in range(12) if unit not in kept}
        kept.append(min(errors, key=errors.__getitem__))
        assert result.order[step] == kept[-1]
        assert float(result.left[step]) == pytest.approx(errors[kept[-1]] / total, abs=1e-10)
    assert result.kept.tolist() == sorted(kept)


def test_blocked_updates_agree_with_full_deflation() -> None:
    x = activations(300, 90, 90, 1).relu()
    gram = x.T @ x
    weights = torch.linspace(0.5, 2, 90, dtype=torch.float64)
    residual, order = gram.clone(), []
    for _ in range(80):
        scores = (weights.unsqueeze(1) * residual.square()).sum(0) / residual.diagonal().clamp(min=1e-30)
        scores[order] = -1
        order.append(int(scores.argmax()))
        column = residual[:, order[-1]].clone()
        residual -= torch.outer(column, column) / column[order[-1]]
    assert column_subset(gram, weights, 80).order.tolist() == order


def test_rank_deficient_gram_is_explained_after_rank_picks_and_still_gives_all_units() -> None:
    x = activations(60, 40, 7, 2)
    result = column_subset(x.T @ x, torch.ones(40), 40)
    assert float(result.left[6]) < 1e-9
    assert float(result.left[5]) > 1e-6
    assert sorted(result.order.tolist()) == list(range(40))


def test_units_already_explained_come_after_the_fresh_ones() -> None:
    x = activations(60, 6, 6, 3)
    doubled = torch.cat([x, x], 1)  # unit j + 6 repeats unit j
    result = column_subset(doubled.T @ doubled, torch.ones(12), 6)
    assert sorted(unit % 6 for unit in result.order.tolist()) == list(range(6))
    assert float(result.left[-1]) < 1e-9


def test_equal_units_are_taken_by_lowest_index() -> None:
    assert column_subset(torch.eye(5), torch.ones(5), 3).order.tolist() == [0, 1, 2]
    assert column_subset(torch.ones(4, 4), torch.ones(4), 2).order.tolist() == [0, 1]


def test_dead_units_are_taken_last_by_index() -> None:
    gram = torch.zeros(5, 5)
    gram[3, 3], gram[1, 1] = 4.0, 9.0
    assert column_subset(gram, torch.ones(5), 4).order.tolist() == [1, 3, 0, 2]
    assert column_subset(torch.zeros(3, 3), torch.ones(3), 2).kept.tolist() == [0, 1]


def test_without_weights_the_largest_residual_is_taken() -> None:
    gram = torch.diag(torch.tensor([1.0, 5.0, 3.0]))
    assert column_subset(gram, torch.zeros(3), 3).order.tolist() == [1, 2, 0]


def test_weights_steer_the_choice() -> None:
    gram = torch.eye(3, dtype=torch.float64)
    assert column_subset(gram, torch.tensor([1.0, 1.0, 2.0]), 1).order.tolist() == [2]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(RequestError, match=r"units to keep must lie in 1..3, got 4"):
        column_subset(torch.eye(3), torch.ones(3), 4)
    with pytest.raises(ShapeError, match="must be square"):
        column_subset(torch.ones(2, 3), torch.ones(3), 1)
    with pytest.raises(ShapeError, match=r"weights \(u,\)"):
        column_subset(torch.eye(3), torch.ones(2), 1)
    with pytest.raises(RequestError, match="finite and >= 0"):
        column_subset(torch.eye(3), -torch.ones(3), 1)
    with pytest.raises(RequestError, match="non-finite entries"):
        column_subset(torch.full((2, 2), torch.nan), torch.ones(2), 1)


def test_energy_is_the_root_mean_square() -> None:
    x = activations(20, 5, 5, 4)
    torch.testing.assert_close(energy(x.T @ x / 20), x.square().mean(0).sqrt())


def test_top_rate_keeps_the_rounded_share_and_breaks_ties_by_index() -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])
    assert top_rate(scores, 0.4).tolist() == [1, 2]
    assert top_rate(scores, 0.01).tolist() == [1]
    assert top_rate(scores, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert top(scores, 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(RequestError, match=r"must lie in \(0, 1\], got 0"):
        top_rate(scores, 0)
    with pytest.raises(RequestError, match="units to keep"):
        top(scores, 6)


def test_threshold_is_relative_to_the_largest_score_and_never_empty() -> None:
    scores = torch.tensor([2.0, 10.0, 7.0, 7.5])
    assert above_threshold(scores, 0.3).tolist() == [1, 3]
    assert above_threshold(scores * 1000, 0.3).tolist() == [1, 3]
    assert above_threshold(scores, 1.0).tolist() == [0, 1, 2, 3]
    assert above_threshold(torch.zeros(3), 0.3).tolist() == [0]
    with pytest.raises(RequestError, match="beta must lie"):
        above_threshold(scores, 1.5)
    with pytest.raises(RequestError, match="scores >= 0"):
        above_threshold(-scores, 0.5)
    with pytest.raises(RequestError, match="non-finite"):
        above_threshold(torch.tensor([torch.nan]), 0.5)


def test_random_units_differ_by_seed_only() -> None:
    first = random_units(8, 30, 0)
    assert first.tolist() == sorted(set(first.tolist())) and len(first) == 8 and int(first.max()) < 30
    assert first.tolist() == random_units(8, 30, 0).tolist()
    assert first.tolist() != random_units(8, 30, 1).tolist()
    with pytest.raises(RequestError, match=r"1..3, got 0"):
        random_units(0, 3, 0)
