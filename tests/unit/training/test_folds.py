"""Folds: one of each class, every sample covered, groups kept together."""

from __future__ import annotations

import pytest
import torch

from sarto.errors import RequestError, ShapeError
from sarto.training import one_of_each


def test_equal_classes_leave_out_each_sample_once_a_pairing() -> None:
    labels = torch.tensor([0, 1, 2] * 4)
    folds = one_of_each(labels, 3, pairings=3)
    assert folds.left_out.shape == (12, 3) and folds.per_pairing == 4
    for row in folds.left_out:
        assert sorted(labels[row].tolist()) == [0, 1, 2]
    for pairing in range(3):
        assert sorted(folds.left_out[folds.pairing == pairing].flatten().tolist()) == list(range(12))
    assert folds.left_out[:4].tolist() != folds.left_out[4:8].tolist()


def test_smaller_classes_start_over_and_keep_training_samples() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 4)
    folds = one_of_each(labels, 3, pairings=2)
    mask = folds.training_mask(12)
    for row, kept in zip(folds.left_out, mask, strict=True):
        assert sorted(labels[row].tolist()) == [0, 1, 2]
        assert (~kept).nonzero().flatten().tolist() == sorted(row.tolist())
        assert set(labels[kept].tolist()) == {0, 1, 2}
    assert set(folds.left_out[:6].flatten().tolist()) == set(range(12))


def test_single_samples_are_skipped_and_named() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2])
    folds = one_of_each(labels, 3, pairings=1)
    assert folds.skipped_classes == (1,)
    assert 2 not in folds.left_out.flatten().tolist()
    assert bool(folds.training_mask(5)[:, 2].all())
    alone = one_of_each(torch.tensor([0, 1]), 2)
    assert alone.count == 0 and alone.skipped_classes == (0, 1)


def test_large_classes_leave_out_several_at_a_time() -> None:
    labels = torch.tensor([0] * 25 + [1] * 3)
    folds = one_of_each(labels, 2, pairings=1, max_folds=10)
    assert folds.count == 10
    taken = [sample for sample in folds.left_out.flatten().tolist() if 0 <= sample < 25]
    assert sorted(taken) == list(range(25))
    assert all((labels[row[row >= 0]] == 1).sum() == 1 for row in folds.left_out)


def test_groups_leave_together() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    groups = torch.tensor([5, 5, 9, 1, 2, 2, 3])
    folds = one_of_each(labels, 2, pairings=2, groups=groups)
    for row in folds.left_out:
        out = set(row[row >= 0].tolist())
        assert (0 in out) == (1 in out) and (4 in out) == (5 in out)
    assert folds.per_pairing == 3


def test_same_seed_same_folds() -> None:
    labels = torch.tensor([0, 1] * 6)
    assert torch.equal(one_of_each(labels, 2, seed=3).left_out, one_of_each(labels, 2, seed=3).left_out)
    assert not torch.equal(one_of_each(labels, 2, seed=3).left_out, one_of_each(labels, 2, seed=4).left_out)


def test_wrong_arguments_are_refused() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    with pytest.raises(RequestError, match=r"group 7 holds samples of classes \[0, 1\]"):
        one_of_each(labels, 2, groups=torch.tensor([7, 7, 1, 2]))
    with pytest.raises(ShapeError, match="one group for each of the 4 samples"):
        one_of_each(labels, 2, groups=torch.tensor([7, 7, 1]))
    with pytest.raises(RequestError, match="pairings >= 1"):
        one_of_each(labels, 2, pairings=0)
