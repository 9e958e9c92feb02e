"""Counts of right and wrong answers, and the H-score."""

from __future__ import annotations

import pytest
import torch

from sarto.errors import RequestError, ShapeError
from sarto.training import accuracy, balanced_accuracy, confusion, h_score, per_class_recall

LABELS = torch.tensor([0, 0, 0, 1, 2, 2])
PREDICTIONS = torch.tensor([0, 1, 0, 1, -1, 0])


def test_confusion_has_true_classes_in_rows() -> None:
    assert confusion(PREDICTIONS, LABELS, 3).tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_shares_leave_out_what_was_not_counted() -> None:
    assert accuracy(PREDICTIONS, LABELS) == pytest.approx(3 / 5)
    assert per_class_recall(PREDICTIONS, LABELS, 4) == (pytest.approx(2 / 3), 1.0, 0.0, None)
    assert balanced_accuracy(PREDICTIONS, LABELS, 4) == pytest.approx(5 / 9)


def test_nothing_counted_gives_none() -> None:
    nothing = torch.full((6,), -1)
    assert accuracy(nothing, LABELS) is None
    assert balanced_accuracy(nothing, LABELS, 3) is None


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ShapeError, match="one prediction for each label"):
        accuracy(PREDICTIONS[:3], LABELS)
    with pytest.raises(
        RequestError, match=r"2 problems: labels must lie.*; predictions must be below 1, got 1"
    ):
        confusion(PREDICTIONS, LABELS, 1)


@pytest.mark.parametrize("d", [5, 60])
def test_h_score_equals_its_definition(d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    x = torch.randn(24, d, generator=generator, dtype=torch.float64) + 2 * torch.eye(3, d)[labels]
    centred = x - x.mean(0)
    within = centred.T @ centred / 24
    means = torch.stack([centred[labels == cls].mean(0) for cls in labels])
    between = means.T @ means / 24
    shrunk = 0.7 * within + 0.3 * within.trace() / d * torch.eye(d)
    expected = torch.linalg.solve(shrunk, between).trace()
    assert h_score(x, labels, 3) == pytest.approx(float(expected))


def test_h_score_rises_with_separation_and_is_zero_without_features() -> None:
    labels = torch.arange(300) % 3
    noise = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    scores = [h_score(noise + shift * torch.eye(3, 6)[labels], labels, 3) for shift in (0, 1, 3)]
    assert scores[0] < scores[1] < scores[2]
    assert h_score(torch.ones(300, 6), labels, 3) == 0
    with pytest.raises(RequestError, match="shrinkage must lie"):
        h_score(noise, labels, 3, shrinkage=0)
