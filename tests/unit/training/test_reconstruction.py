"""Reconstruction maps: against stacked least squares, at both ends of lam, and with duplicated units."""

from __future__ import annotations

import math

import pytest
import torch

from sarto.errors import RequestError, ShapeError
from sarto.training import column_subset, reconstruction_map, selection_matrix


def samples(rows: int, units: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(units, units, generator=generator, dtype=torch.float64)
    return torch.randn(rows, units, generator=generator, dtype=torch.float64) @ mixing


@pytest.mark.parametrize("lam", [1e-8, 1e-2, 3.0])
def test_equals_least_squares_with_ridge_rows(lam: float) -> None:
    full, kept = samples(40, 7), torch.tensor([1, 4, 5])
    sliced = full[:, kept] + 0.1 * samples(40, 3, seed=1)  # what a sliced network would give there
    weights = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    towards = selection_matrix(kept, 7)
    gram = sliced.T @ (weights.unsqueeze(1) * sliced)
    cross = full.T @ (weights.unsqueeze(1) * sliced)
    strength = math.sqrt(lam * float(gram.diagonal().mean()))
    root = weights.sqrt().unsqueeze(1)
    rows = torch.cat([root * sliced, strength * torch.eye(3, dtype=torch.float64)])
    goals = torch.cat([root * full, strength * towards.T])
    expected = torch.linalg.lstsq(rows, goals, driver="gelsd").solution.T
    found = reconstruction_map(gram, cross, lam=lam, towards=towards)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_infinite_lam_is_plain_pruning_and_large_lam_comes_close() -> None:
    x, kept = samples(30, 6), torch.tensor([0, 2, 3])
    towards = selection_matrix(kept, 6)
    gram, cross = x[:, kept].T @ x[:, kept], x.T @ x[:, kept]
    assert torch.equal(reconstruction_map(gram, cross, lam=math.inf, towards=towards), towards)
    torch.testing.assert_close(
        reconstruction_map(gram, cross, lam=1e12, towards=towards), towards, rtol=0, atol=1e-9
    )


def test_all_units_kept_gives_the_identity_at_any_lam() -> None:
    x = samples(30, 5)
    gram = x.T @ x
    for lam in (0.0, 1e-9, 0.01, 10.0):
        found = reconstruction_map(gram, gram, lam=lam, towards=torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(found, torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("lam", [0.0, 1e-10])
def test_duplicated_units_cut_to_half_come_back_exactly(lam: float) -> None:
    distinct = samples(25, 6).relu()
    x = torch.cat([distinct, 2.5 * distinct], 1)[
        :, torch.randperm(12, generator=torch.Generator().manual_seed(1))
    ]
    gram = x.T @ x
    kept = column_subset(gram, torch.ones(12), 6).kept
    found = reconstruction_map(
        gram[kept][:, kept], gram[:, kept], lam=lam, towards=selection_matrix(kept, 12)
    )
    torch.testing.assert_close(x[:, kept] @ found.T, x, rtol=0, atol=1e-7)


def test_singular_moment_without_ridge_keeps_the_map_near_pruning() -> None:
    one = samples(20, 1)
    x = torch.cat([one, one, 3 * one], 1)  # the two kept units are the same: their shares are not determined
    kept = torch.tensor([0, 1])
    towards = selection_matrix(kept, 3)
    found = reconstruction_map(x[:, kept].T @ x[:, kept], x.T @ x[:, kept], lam=0.0, towards=towards)
    torch.testing.assert_close(found[:2], torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(found[2], torch.tensor([1.5, 1.5], dtype=torch.float64))


@pytest.mark.parametrize("lam", [0.0, 1e-2])
def test_dead_units_leave_the_selection_matrix(lam: float) -> None:
    towards = selection_matrix(torch.tensor([1]), 3)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = reconstruction_map(zero, torch.zeros(3, 1, dtype=torch.float64), lam=lam, towards=towards)
    assert torch.equal(found, towards)


@pytest.mark.parametrize("lam", [0.0, 1e-2])
def test_a_batch_equals_its_items(lam: float) -> None:
    kept = torch.tensor([0, 3])
    towards = selection_matrix(kept, 5)
    items = [samples(30, 5, seed=seed) * 10.0**seed for seed in range(3)]
    grams = torch.stack([x.T @ x for x in items])
    cross = grams[:, :, kept]
    batch = reconstruction_map(grams[:, kept][:, :, kept], cross, lam=lam, towards=towards)
    for item in range(3):
        alone = reconstruction_map(grams[item, kept][:, kept], cross[item], lam=lam, towards=towards)
        torch.testing.assert_close(batch[item], alone)


def test_result_has_the_type_of_the_moments() -> None:
    x = samples(20, 4).float()
    kept = torch.tensor([0, 1])
    found = reconstruction_map(
        x[:, kept].T @ x[:, kept], x.T @ x[:, kept], lam=0.01, towards=selection_matrix(kept, 4)
    )
    assert found.dtype == torch.float32 and found.shape == (4, 2)


def test_wrong_arguments_are_refused() -> None:
    gram, cross, towards = torch.eye(2), torch.ones(4, 2), selection_matrix(torch.tensor([0, 1]), 4)
    with pytest.raises(RequestError, match="lam must be >= 0, got -1"):
        reconstruction_map(gram, cross, lam=-1, towards=towards)
    with pytest.raises(ShapeError, match=r"cross must have shape \(..., units, 2\)"):
        reconstruction_map(gram, cross.T, lam=1, towards=towards)
    with pytest.raises(ShapeError, match="towards must have the shape of cross"):
        reconstruction_map(gram, cross, lam=1, towards=towards[:3])
    with pytest.raises(RequestError, match="non-finite"):
        reconstruction_map(gram, cross * torch.nan, lam=1, towards=towards)
    with pytest.raises(RequestError, match=r"indices in 0..2"):
        selection_matrix(torch.tensor([3]), 3)
    with pytest.raises(RequestError, match="differ from each other"):
        selection_matrix(torch.tensor([1, 1]), 3)
