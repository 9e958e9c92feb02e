"""NetGraft: blocks that fit, adaptions that merge exactly, a student that replaces its donor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sarto.engines.baselines import Budget, NetGraftSettings, graft, netgraft
from sarto.engines.baselines.grafting import (
    Adaption,
    assemble,
    block_ends,
    merged,
    part,
    to_student,
    to_teacher,
)
from sarto.engines.baselines.netgraft import logit_distance
from sarto.errors import GraphError
from sarto.graph import ModelGraph, capture, chain
from sarto.testing.pico import pico
from tests.unit.engines.baselines.test_interface import donor, given, images

NO_STEPS = Budget(seconds=1e-9)


def graph_of(name: str) -> tuple[ModelGraph, torch.Tensor]:
    module, example = pico(name)
    return capture(module, example), example


def test_the_distance_of_logits_by_hand() -> None:
    # Lengths do not count: (3, 4) and (6, 8) are the same; (1, 0) and (0, 2) are at right angles.
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    teacher = torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert float(logit_distance(student, teacher)) == pytest.approx(2.0)


def test_two_adaptions_in_a_row_are_one() -> None:
    torch.manual_seed(0)
    first, second = Adaption(3, 7).double(), Adaption(7, 4).double()
    for layer in (first, second):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    assert torch.allclose(nn.functional.conv2d(x, *merged(first, second)), second(first(x)), atol=1e-12)


def test_picking_channels_and_putting_them_back_cancel() -> None:
    kept = (0, 2, 5)
    product = to_student(kept, 6)[:, :, 0, 0] @ to_teacher(kept, 6)[:, :, 0, 0]
    assert torch.equal(product, torch.eye(3))
    assert to_student(kept, 6)[:, :, 0, 0].argmax(1).tolist() == [0, 2, 5]


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_blocks_chain_to_the_donor_and_each_has_weights(name: str) -> None:
    graph, example = graph_of(name)
    parted = part(graph, 0.5, 0)
    assert torch.allclose(
        torch.as_tensor(chain(parted.teacher)(example)), torch.as_tensor(graph(example)), atol=1e-10
    )
    assert len(parted.teacher) == len(parted.student) == len(parted.cuts) + 1 >= 2
    assert all(any(b.tensors[n].ndim > 1 for n in b.parameters) for b in parted.teacher)
    for before, after, (kept, size) in zip(parted.student, parted.teacher, parted.kept, strict=False):
        assert before.node(before.outputs[0]).shape[1] == len(kept)
        assert after.node(after.outputs[0]).shape[1] == size


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_untrained_grafts_are_the_sliced_donor(name: str) -> None:
    """Adaptions that start at the units' places change nothing: the student is what slicing gives."""
    graph, example = graph_of(name)
    parted = part(graph, 0.5, 3)
    size = {cut.value: len(kept) for cut, (kept, _) in zip(parted.cuts, parted.kept, strict=True)}
    between = [
        (torch.eye(n, dtype=torch.float64).reshape(n, n, 1, 1), torch.zeros(n, dtype=torch.float64))
        for n in size.values()
    ]
    student = assemble(parted.student, between)
    whole = chain(parted.student)
    assert torch.allclose(torch.as_tensor(student(example)), torch.as_tensor(whole(example)), atol=1e-10)
    assert _params(whole) < _params(graph)


def test_no_step_leaves_the_sliced_donor_in_the_grafted_model() -> None:
    one = donor("d", ("red", "green"), 0)
    assert one.inputs is not None
    found = graft(one, one.inputs, budget=NO_STEPS)
    plain = chain(part(one.graph, 0.5, 0).student)
    assert found.steps == 0 and found.stopped == "the budget of 1e-09 s ended it"
    assert torch.allclose(
        torch.as_tensor(found.graph(one.inputs)), torch.as_tensor(plain(one.inputs)), atol=1e-5
    )
    extra = sum(n * n + n for n in (len(kept) for kept, _ in part(one.graph, 0.5, 0).kept))
    assert _params(found.graph) == _params(plain) + extra


@pytest.mark.parametrize("start", ["sliced", "fresh"])
def test_grafting_comes_nearer_to_the_donor(start: str) -> None:
    one = donor("d", ("red", "green"), 1)
    inputs = torch.cat([images(label, 8, 4) for label in range(4)])
    wanted = torch.as_tensor(one.graph(inputs))
    settings = replace(NetGraftSettings(), start=start)
    before = graft(one, inputs, settings, budget=NO_STEPS).graph
    found = graft(one, inputs, settings, budget=Budget(steps=90))
    gap_before, gap = (
        float(logit_distance(torch.as_tensor(g(inputs)), wanted)) for g in (before, found.graph)
    )
    assert found.steps == 90
    assert gap < 0.7 * gap_before


def test_students_of_all_donors_stand_under_one_head() -> None:
    order = given(n_donors=2, budget=Budget(steps=9))
    found = netgraft(order)
    assert found.steps == 9
    assert found.left_out is not None and found.left_out.shape == order.labels.shape
    assert found.params < sum(_params(one.graph) for one in order.donors)


def test_a_donor_without_maps_is_refused_in_words() -> None:
    flat = capture(
        nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2)).eval(),
        torch.rand(2, 5),
    )
    with pytest.raises(GraphError, match="this donor has no cut between any; order with other baselines"):
        part(flat, 0.5, 0)


def test_blocks_of_a_network_end_where_its_maps_shrink() -> None:
    graph, _ = graph_of("residual")
    strides = [cut.stride for cut in block_ends(graph)]
    assert strides == sorted(strides, key=lambda s: s or 0) and len(set(strides)) == len(strides)


def _params(graph: ModelGraph) -> int:
    return sum(graph.tensors[name].numel() for name in graph.parameters)
