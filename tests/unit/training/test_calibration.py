"""Temperature and calibration error: on scores whose truth is known."""

from __future__ import annotations

import pytest
import torch

from sarto.errors import RequestError, ShapeError
from sarto.training import expected_calibration_error, fit_temperature


def true_scores(n: int, q: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores whose softmax is the chance with which the labels were drawn."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(n, q, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(scores, 1), 1, generator=generator).squeeze(1)
    return scores, labels


@pytest.mark.parametrize("factor", [0.05, 1.0, 40.0])
def test_temperature_undoes_a_factor(factor: float) -> None:
    scores, labels = true_scores(4000)
    assert fit_temperature(factor * scores, labels) == pytest.approx(factor, rel=0.06)


def test_temperature_is_the_best_on_a_fine_grid() -> None:
    scores, labels = true_scores(40, seed=3)
    found = fit_temperature(scores, labels)
    assert found is not None
    targets = 40 / 41 * torch.eye(3, dtype=torch.float64)[labels] + 1 / 41 / 3

    def loss(temperature: float) -> float:
        return -float((targets * torch.log_softmax(scores / temperature, 1)).sum())

    assert all(loss(found) <= loss(found * factor) + 1e-9 for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))


def test_without_mistakes_the_answer_stays_finite_and_modest() -> None:
    labels = torch.arange(30) % 3
    scores = torch.eye(3, dtype=torch.float64)[labels]
    temperature = fit_temperature(scores, labels)
    assert temperature is not None
    sure = float(torch.softmax(scores / temperature, 1).max())
    assert 0.9 < sure < 0.999


def test_too_few_samples_give_none() -> None:
    scores, labels = true_scores(9)
    assert fit_temperature(scores, labels) is None
    assert fit_temperature(torch.zeros(20, 3), torch.arange(20) % 3) is None
    assert fit_temperature(torch.randn(20, 1), torch.zeros(20, dtype=torch.int64)) is None
    many, truth = true_scores(15)
    many[:10] = torch.nan  # not counted
    assert fit_temperature(many, truth) is None
    assert expected_calibration_error(torch.softmax(true_scores(29)[0], 1), true_scores(29)[1]) is None


def test_calibration_error_by_hand() -> None:
    probabilities = torch.tensor([[0.95, 0.05]] * 20 + [[0.6, 0.4]] * 20, dtype=torch.float64)
    labels = torch.tensor([0] * 19 + [1] + [0] * 6 + [1] * 14)
    found = expected_calibration_error(probabilities, labels)
    assert found == pytest.approx(0.5 * abs(0.95 - 0.95) + 0.5 * abs(0.3 - 0.6))


def test_calibrated_scores_have_a_small_error() -> None:
    scores, labels = true_scores(5000)
    error = expected_calibration_error(torch.softmax(scores, 1), labels)
    worse = expected_calibration_error(torch.softmax(4 * scores, 1), labels)
    assert error is not None and worse is not None and error < 0.02 < worse


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"scores \(n, q\)"):
        fit_temperature(torch.ones(5), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(RequestError, match=r"labels must lie in 0\.\.1"):
        fit_temperature(torch.ones(5, 2), torch.full((5,), 2))
    with pytest.raises(RequestError, match="bins must be at least 1"):
        expected_calibration_error(torch.ones(5, 2), torch.zeros(5, dtype=torch.int64), bins=0)
