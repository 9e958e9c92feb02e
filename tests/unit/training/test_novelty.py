"""None of the above: leaving samples out is exact, and the threshold refuses what it says."""

from __future__ import annotations

import pytest
import torch

from sarto.errors import RequestError
from sarto.training import fit_novelty


def clouds(count: int, d: int = 6, n_classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_classes).repeat_interleave(count)
    noise = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
    return 3 + noise + 4 * torch.eye(n_classes, d, dtype=torch.float64)[labels], labels


def brute(x: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor, left_out: int) -> float:
    """Novelty of a sample when means and radii are made without it."""
    z = x / scale
    found = []
    for label in range(int(labels.max()) + 1):
        mine = labels == label
        mine[left_out] = False
        mean = z[mine].mean(0)
        radius = ((z[mine] - mean).square().sum() / (int(mine.sum()) - 1)).sqrt()
        found.append(float((z[left_out] - mean).norm() / radius))
    return min(found)


@pytest.mark.parametrize("count", [3, 5, 20])
def test_leaving_out_equals_refitting(count: int) -> None:
    x, labels = clouds(count)
    found = fit_novelty(x, labels, 3, blocks=(2, 4), false_reject=0.2)
    assert found is not None
    want = sorted(brute(x, labels, found.scale, place) for place in range(len(x)))
    place = min(len(x), -(-(len(x) + 1) * 4 // 5))
    assert found.threshold == pytest.approx(want[place - 1], rel=1e-9)
    assert found.false_reject == (sum(value > want[place - 1] + 1e-12 for value in want) + 1) / (len(x) + 1)
    assert found.n_samples == len(x)


def test_new_samples_are_refused_as_often_as_stated_and_outsiders_far_more() -> None:
    x, labels = clouds(20)
    found = fit_novelty(x, labels, 3)
    assert found is not None and found.false_reject <= 0.05
    fresh, _ = clouds(400, seed=1)
    assert float((~found.known(fresh)).double().mean()) < 0.1
    assert not bool(found.known(fresh - 6).any())
    assert torch.equal(found.known(fresh), found.scores(fresh) <= found.threshold)


def test_scaling_features_changes_nothing() -> None:
    x, labels = clouds(6)
    one, two = fit_novelty(x, labels, 3), fit_novelty(1000 * x, labels, 3)
    assert one is not None and two is not None
    torch.testing.assert_close(one.scores(x), two.scores(1000 * x))
    assert one.threshold == pytest.approx(two.threshold)


def test_equal_samples_give_finite_novelties() -> None:
    x, labels = torch.ones(9, 4), torch.arange(3).repeat_interleave(3)
    found = fit_novelty(x, labels, 3)
    assert found is not None and found.known(x).all() and bool(torch.isfinite(found.scores(x + 1)).all())


def test_two_samples_of_a_class_are_too_few() -> None:
    x, labels = clouds(3)
    assert fit_novelty(x[:-1], labels[:-1], 3) is None
    with pytest.raises(RequestError, match="false_reject is a share between 0 and 1, got 1"):
        fit_novelty(x, labels, 3, false_reject=1)
