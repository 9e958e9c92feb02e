"""Second moments: against explicit sums over rows."""

from __future__ import annotations

import math

import pytest
import torch

from sarto.errors import RequestError, ShapeError
from sarto.training import (
    class_cross_moments,
    class_grams,
    class_weights,
    cross_moment,
    one_against_rest,
    position_stride,
    second_moment,
)
from sarto.training import moments as moments_room

LABELS = torch.tensor([0, 2, 1, 0, 2, 0])


def images(units: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(6, units, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(z: torch.Tensor, f: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(z.shape[1], f.shape[1], dtype=torch.float64)
    for sample in range(z.shape[0]):
        for row in range(z.shape[2]):
            for column in range(z.shape[3]):
                outer = torch.outer(z[sample, :, row, column], f[sample, :, row, column])
                total += weights[sample] * outer / (z.shape[2] * z.shape[3])
    return total


def test_every_position_is_a_row_with_the_weight_of_its_sample() -> None:
    x, weights = images(), torch.tensor([0.5, 0.0, 1.0, 2.0, 0.1, 0.3], dtype=torch.float64)
    torch.testing.assert_close(second_moment(x, weights), by_hand(x, x, weights))
    torch.testing.assert_close(second_moment(x), by_hand(x, x, torch.full((6,), 1 / 6)))
    f = images(2, seed=1)
    torch.testing.assert_close(cross_moment(x, f, weights), by_hand(x, f, weights))


def test_units_may_stand_on_another_axis_or_have_no_positions() -> None:
    x = images()
    torch.testing.assert_close(second_moment(x.movedim(1, 3), axis=3), second_moment(x))
    flat = x[:, :, 0, 0]
    torch.testing.assert_close(second_moment(flat), flat.T @ flat / 6)


def test_stride_takes_every_so_manieth_position() -> None:
    x = images()
    taken = x.flatten(2)[:, :, ::4]
    torch.testing.assert_close(second_moment(x, stride=4), second_moment(taken))


def test_sums_are_float64_and_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images().float() + 1000
    whole = second_moment(x)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole, second_moment(x.double()), rtol=1e-12, atol=0)
    monkeypatch.setattr(moments_room, "_CHUNK_NUMBERS", 100)
    torch.testing.assert_close(second_moment(x), whole, rtol=1e-12, atol=0)


def test_class_moments_are_means_over_the_samples_of_each_class() -> None:
    x, f = images(), images(2, seed=1)
    grams = class_grams(x, LABELS, 3)
    crosses = class_cross_moments(x, f, LABELS, 3)
    for cls in range(3):
        torch.testing.assert_close(grams[cls], second_moment(x[cls == LABELS]))
        torch.testing.assert_close(crosses[cls], cross_moment(x[cls == LABELS], f[cls == LABELS]))


def test_one_against_rest_equals_one_weighted_pass_for_each_class() -> None:
    x = images()
    mixed = one_against_rest(class_grams(x, LABELS, 3), torch.bincount(LABELS), wpos=0.33)
    for cls in range(3):
        torch.testing.assert_close(mixed[cls], second_moment(x, class_weights(LABELS, cls, wpos=0.33)))


def test_a_lone_class_gets_its_own_moment() -> None:
    x, labels = images(), torch.zeros(6, dtype=torch.int64)
    mixed = one_against_rest(class_grams(x, labels, 1), torch.tensor([6]), wpos=0.33)
    torch.testing.assert_close(mixed[0], second_moment(x))
    torch.testing.assert_close(second_moment(x, class_weights(labels, 0, wpos=0.33)), second_moment(x))


def test_class_weights_sum_to_one() -> None:
    weights = class_weights(LABELS, 2, wpos=0.4)
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights[LABELS == 2].sum()) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("grid", "limit"), [((32, 32), 100), ((8, 8), 64), ((7, 7), 10), ((1, 1), 5), ((100,), 7)]
)
def test_position_stride_keeps_the_limit_and_visits_all_columns(grid: tuple[int, ...], limit: int) -> None:
    stride = position_stride(grid, limit)
    taken = range(0, math.prod(grid), stride)
    assert len(taken) <= limit
    assert math.gcd(stride, grid[-1]) == 1
    if len(taken) >= grid[-1]:
        assert {position % grid[-1] for position in taken} == set(range(grid[-1]))


def test_wrong_arguments_are_refused() -> None:
    x = images()
    with pytest.raises(ShapeError, match="one weight for each of 6 samples"):
        second_moment(x, torch.ones(5))
    with pytest.raises(RequestError, match="finite and >= 0"):
        second_moment(x, -torch.ones(6))
    with pytest.raises(RequestError, match="stride must be at least 1, got 0"):
        second_moment(x, stride=0)
    with pytest.raises(ShapeError, match="units on axis 4"):
        second_moment(x, axis=4)
    with pytest.raises(ShapeError, match="agree in all but axis 1"):
        cross_moment(x, x[:, :, :2])
    with pytest.raises(ShapeError, match="one label for each of the 6 samples"):
        class_grams(x, LABELS[:5], 3)
    with pytest.raises(RequestError, match=r"classes \[3\] have no samples"):
        class_grams(x, LABELS, 4)
    with pytest.raises(RequestError, match=r"wpos must lie in 0\.\.1"):
        class_weights(LABELS, 0, wpos=1.5)
    with pytest.raises(RequestError, match="class 7 has no samples"):
        class_weights(LABELS, 7, wpos=0.5)
    with pytest.raises(ShapeError, match="one count for each of 3 classes"):
        one_against_rest(class_grams(x, LABELS, 3), torch.tensor([1, 2]), wpos=0.5)
    with pytest.raises(RequestError, match="at least one sample"):
        one_against_rest(class_grams(x, LABELS, 3), torch.tensor([1, 2, 0]), wpos=0.5)
    with pytest.raises(RequestError, match="limit of positions"):
        position_stride((4, 4), 0)
