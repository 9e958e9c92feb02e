"""CA-MKD: its weights and losses against values worked out by hand, and a student that learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sarto.engines.baselines import Budget, CaMkdSettings, Given, Original, ca_mkd
from sarto.engines.baselines.camkd import confidence_weights, hint_loss, hint_value, teaching_loss
from sarto.graph import capture
from tests.unit.engines.baselines.test_interface import given, images


def test_weights_of_three_teachers_by_hand() -> None:
    # exp of the losses: 1, 2, 5; shares 1/8, 2/8, 5/8; weights (1 - share) / 2.
    losses = torch.log(torch.tensor([[1.0], [2.0], [5.0]], dtype=torch.float64))
    assert confidence_weights(losses).flatten().tolist() == pytest.approx([7 / 16, 6 / 16, 3 / 16])


def test_weights_add_up_to_one_and_two_teachers_swap_their_shares() -> None:
    losses = torch.rand(4, 9, dtype=torch.float64) * 5
    assert confidence_weights(losses).sum(0).tolist() == pytest.approx([1.0] * 9)
    pair = torch.tensor([[0.3], [1.7]], dtype=torch.float64)
    assert torch.allclose(confidence_weights(pair), torch.softmax(pair, 0).flip(0))
    assert confidence_weights(torch.rand(1, 3)).tolist() == [[1.0, 1.0, 1.0]]


def test_the_teaching_loss_by_hand() -> None:
    # One sample, two classes: the student says 1/2, 1/2; teachers say 3/4, 1/4 and 1/2, 1/2.
    student = torch.zeros(1, 2, dtype=torch.float64)
    teachers = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]], dtype=torch.float64)
    weights = torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    apart = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(teaching_loss(student, teachers, weights, 1.0)) == pytest.approx(0.25 * apart / 2)
    # At temperature 2 the teacher says sqrt(3) : 1, and the loss counts four times.
    share = math.sqrt(3) / (1 + math.sqrt(3))
    soft = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
    assert float(teaching_loss(student, teachers, weights, 2.0)) == pytest.approx(4 * 0.25 * soft / 2)


def test_the_hint_loss_by_hand() -> None:
    mine = [torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 1)]
    theirs = [torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.full((2, 1), 3.0)]
    # Mean squares: teacher 0 gives 2 and 2, teacher 1 gives 9 and 9.
    weights = torch.tensor([[0.5, 1.0], [0.5, 0.0]])
    assert float(hint_loss(mine, theirs, weights)) == pytest.approx((0.5 * 2 + 1.0 * 2 + 0.5 * 9) / 4)


def test_the_hint_is_the_last_map_or_the_features() -> None:
    graph = given().donors[0].graph
    value, layout = hint_value(graph)
    assert layout == "map" and graph.node(value).shape[1:] == (10, 4, 4)
    flat = capture(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)).eval(), torch.rand(2, 5))
    assert hint_value(flat)[1] == "vector"


def test_from_new_weights_the_student_learns_too() -> None:
    settings = CaMkdSettings(start="fresh", steps=60, beta=1.0)
    found = ca_mkd(given(k=6), settings)
    tested = torch.cat([images(label, 10, 1) for label in range(3)])
    assert float((found.predict(tested) == torch.arange(3).repeat_interleave(10)).float().mean()) > 0.8
    assert found.steps == 60 and "fresh start" in found.note


def test_donors_of_vectors_and_of_maps_teach_one_student() -> None:
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 2)).eval()
    order = given()
    both = Given(
        (order.donors[0], Original("flat", capture(flat, torch.rand(2, 3, 8, 8)), ("blue", "yellow"))),
        order.classes,
        order.inputs,
        order.labels,
        budget=Budget(steps=4),
    )
    turned = Given(both.donors[::-1], order.classes, order.inputs, order.labels, budget=Budget(steps=4))
    for one in (both, turned):
        assert bool(torch.isfinite(ca_mkd(one).scores(order.inputs)).all())
