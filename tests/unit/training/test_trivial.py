"""Trivial classifiers: against explicit refits and counts."""

from __future__ import annotations

import pytest
import torch

from sarto.errors import RequestError, ShapeError
from sarto.training import (
    chance,
    majority,
    nearest_mean_head,
    nearest_mean_loto,
    one_of_each,
    pixel_features,
    pixel_ridge_loto,
)


def test_chance_and_majority() -> None:
    assert chance(4) == 0.25
    assert majority(torch.tensor([2, 1, 2, 1, 0]), 3) == (1, 0.4)
    with pytest.raises(RequestError, match="at least one label"):
        majority(torch.empty(0, dtype=torch.int64), 3)
    with pytest.raises(RequestError, match="n_classes"):
        chance(0)


def test_pixel_features_are_block_means() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = pixel_features(images)
    assert features.shape == (2, 192)
    torch.testing.assert_close(features[1].reshape(3, 8, 8)[2, 3, 5], images[1, 2, 12:16, 20:24].mean())
    whole = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(pixel_features(whole), pixel_features(whole / 255))
    assert pixel_features(torch.rand(1, 1, 5, 5)).shape == (1, 64)
    with pytest.raises(ShapeError, match=r"images \(n, channels, h, w\)"):
        pixel_features(torch.rand(3, 8, 8))


def test_pixels_tell_dark_from_bright() -> None:
    labels = torch.arange(20) % 2
    images = 0.3 * torch.rand(20, 3, 16, 16) + 0.4 * labels.reshape(-1, 1, 1, 1)
    assert pixel_ridge_loto(images, labels, 2).accuracy == 1


def test_nearest_mean_loto_equals_refits() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 4)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64) + 3 + torch.eye(3, 4)[labels]
    found = nearest_mean_loto(x, labels, 3, pairings=2, seed=5)
    folds = one_of_each(labels, 3, pairings=2, seed=5)
    right: dict[int, list[float]] = {}
    for row, kept in zip(folds.left_out, folds.training_mask(12), strict=True):
        head = nearest_mean_head(x[kept], labels[kept], 3)
        for sample in row.tolist():
            right.setdefault(sample, []).append(float(head.predict(x[[sample]])[0] == labels[sample]))
    expected = torch.tensor([sum(right[s]) / len(right[s]) for s in range(12)], dtype=torch.float64)
    torch.testing.assert_close(found.correct, expected)
    by_class = [float(expected[labels == cls].mean()) for cls in range(3)]
    assert found.accuracy == pytest.approx(sum(by_class) / 3)
    assert found.lam is None


def test_nearest_mean_loto_with_one_sample_a_class_counts_nothing() -> None:
    found = nearest_mean_loto(torch.randn(3, 4), torch.arange(3), 3)
    assert found.accuracy is None and found.n_counted == 0 and "no sample could be left out" in found.basis
