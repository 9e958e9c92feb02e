"""The paper's losses against numbers worked out by hand or by numpy, one equation after the other."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sarto.engines.slicepack.paper import losses
from sarto.engines.slicepack.paper.pooling import select_units
from sarto.types import PaperSettings


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_l21_norm_is_a_sum_over_units_and_a_mean_over_samples() -> None:
    # Two samples, two units, two positions. Norms: 5, 0 | 13, 1.
    units = tensor([[[3.0, 4.0], [0.0, 0.0]], [[5.0, 12.0], [0.0, -1.0]]])
    assert float(losses.l21_norm(units)) == pytest.approx((5 + 0 + 13 + 1) / 2)
    assert float(losses.l21_norm(units, normalised=True)) == pytest.approx(9.5 / (2 * math.sqrt(2)))


def test_the_scores_are_the_summands_of_the_norm() -> None:
    units = tensor([[[3.0, 4.0], [0.0, 0.0]], [[5.0, 12.0], [0.0, -1.0]]])
    scores = losses.unit_scores(units)
    assert scores.tolist() == pytest.approx([9.0, 0.5])
    assert float(scores.sum()) == pytest.approx(float(losses.l21_norm(units)))


def test_the_pooling_loss_is_a_squared_distance_plus_alpha_times_the_norm() -> None:
    student, teacher = tensor([[1.0, 2.0], [0.0, 0.0]]), tensor([[0.0, 0.0], [0.0, 3.0]])
    units = tensor([[[3.0, 4.0]]])
    # Squared distances 5 and 9, mean 7; norm 5.
    assert float(losses.pooling_loss(student, teacher, units, 0.1)) == pytest.approx(7.5)


def test_the_classification_loss_is_the_log_loss_of_class_against_rest() -> None:
    logits = tensor([[0.0, 0.0], [0.0, math.log(3.0)], [0.0, math.log(4.0)]])
    positive = torch.tensor([True, True, False])
    by_hand = [-math.log(1 / 2), -math.log(3 / 4), -math.log(1 / 5)]
    assert float(losses.classification_loss(logits, positive)) == pytest.approx(sum(by_hand) / 3)
    # Weight 3 for the one negative, 1.5 for the two positives: both outcomes count alike.
    weighted = (1.5 * by_hand[0] + 1.5 * by_hand[1] + 3 * by_hand[2]) / 6
    found = losses.classification_loss(logits, positive, tensor([3.0, 1.5]))
    assert float(found) == pytest.approx(weighted)


def test_the_distillation_loss_sums_over_features_and_averages_over_samples() -> None:
    student, teacher = np.random.default_rng(0).standard_normal((2, 5, 3))
    by_hand = sum(((s - t) ** 2).sum() for s, t in zip(student, teacher, strict=True)) / 5
    assert float(losses.distillation_loss(tensor(student), tensor(teacher))) == pytest.approx(by_hand)


def test_adaption_and_combining_weigh_the_distillation_by_gamma_and_average_two_repairs() -> None:
    one, two, three = tensor(1.0), tensor(2.0), tensor(4.0)
    assert float(losses.repair_loss(one, {"dropped": two}, 10.0)) == 21.0
    assert float(losses.repair_loss(one, {"dropped": two, "linear": three}, 10.0)) == 31.0


def test_the_packing_loss_counts_classes_alike_and_decodes_each_class_from_its_own_samples() -> None:
    logits = tensor([[0.0, 0.0], [0.0, 0.0], [0.0, math.log(3.0)]])
    labels = torch.tensor([0, 0, 1])
    decoded = {0: tensor([[1.0], [3.0]]), 1: tensor([[0.0, 1.0]])}
    wanted = {0: tensor([[0.0], [0.0]]), 1: tensor([[2.0, 1.0]])}
    # Cross entropy: log 2 for class 0, log 4/3 for class 1. Decoding: (1 + 9) / 2 for class 0, 4 for class 1.
    by_hand = (math.log(2) + math.log(4 / 3)) / 2 + 0.5 * (5 + 4) / 2
    assert float(losses.packing_loss(logits, labels, decoded, wanted, 0.5)) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("select", "beta", "scores", "units"),
    [
        ("rate", 0.5, [0.1, 0.9, 0.5, 0.4], (1, 2)),
        ("rate", 0.1, [0.1, 0.9, 0.5, 0.4], (1,)),  # at least one
        ("rate", 0.5, [0.5, 0.5, 0.5, 0.5], (0, 1)),  # ties by index
        ("rate", 1.0, [0.0, 0.9, 0.0, 0.4], (0, 1, 2, 3)),
        ("rate", 0.5, [0.0, 0.9, 0.0, 0.0], (0, 1)),  # a dead unit only to make up the number
        ("threshold", 0.5, [0.2, 2.0, 1.1, 1.0], (1, 2)),  # above 1 - beta of the largest, not at it
        ("threshold", 0.01, [0.2, 2.0, 1.1, 1.0], (1,)),  # the largest is always there
        ("threshold", 1.0, [0.0, 2.0, 1e-9, 0.0], (1, 2)),  # dead units are not, at any beta
        ("threshold", 0.3, [0.0, 0.0, 0.0], (0,)),
    ],
)
def test_units_are_chosen_by_rate_or_by_threshold(
    select: str, beta: float, scores: list[float], units: tuple[int, ...]
) -> None:
    settings = PaperSettings.parse({"select": select, "beta": beta})
    assert select_units(tensor(scores), settings) == units


def test_a_larger_beta_keeps_what_a_smaller_one_kept_in_both_ways() -> None:
    scores = torch.rand(17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for select in ("rate", "threshold"):
        kept = [
            set(select_units(scores, PaperSettings.parse({"select": select, "beta": beta / 10})))
            for beta in range(1, 11)
        ]
        assert all(smaller <= larger for smaller, larger in pairwise(kept))
        assert kept[-1] == set(range(17))
