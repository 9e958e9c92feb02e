"""Prune-and-tune keeps its size, touches no class, and is left out in words where its package is missing."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from benchmarks.slicepack import prune_and_tune as tuning
from sarto.engines.baselines import Budget, Given, Original
from sarto.engines.baselines.given import count_params
from sarto.errors import RequestError
from sarto.graph import block, capture, features
from tests.unit.engines.baselines.test_interface import Small, images

needed = pytest.mark.skipif(importlib.util.find_spec(tuning.PACKAGE) is None, reason="torch-pruning")


def model() -> nn.Module:
    torch.manual_seed(0)
    return tuning.Scaled(Small(2).eval(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def given(module: nn.Module) -> Given:
    graph = capture(module, torch.rand(2, 3, 8, 8))
    inputs = torch.cat([images(label, 4, 0) for label in range(3)])
    labels = torch.arange(3).repeat_interleave(4)
    donor = Original("small", graph, ("red", "green"))
    return Given((donor,), ("red", "green", "blue"), inputs, labels, budget=Budget(steps=5))


def test_without_the_package_there_is_a_reason_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "PACKAGE", "no_such_package_of_pruning")
    assert tuning.available() == "extra not installed: torch-pruning"
    module = model()
    with pytest.raises(RequestError, match=r"extra not installed: torch-pruning; install sarto\[bench\]"):
        tuning.prune_and_tune(given(module), {"small": module}, 500)


@needed
@pytest.mark.filterwarnings("ignore")
def test_the_largest_pruned_donor_of_that_size_is_tuned() -> None:
    module = model()
    order = given(module)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    found = tuning.prune_and_tune(order, {"small": module}, 600)
    assert 300 < found.params <= 600
    assert found.steps == 5 and found.scores(order.inputs).shape == (12, 3)
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), before, strict=True))
    with pytest.raises(RequestError, match="no pruned small has 5 parameters or fewer"):
        tuning.prune_and_tune(order, {"small": module}, 5)


@needed
@pytest.mark.filterwarnings("ignore")
def test_units_of_the_features_are_pruned_too() -> None:
    module = model()
    graph = capture(module, torch.rand(2, 3, 8, 8))
    whole = block(graph, end=features(graph).value)
    half = tuning.prune(module, torch.rand(2, 3, 8, 8), 0.5)
    assert tuning.features_width(half) == 5
    assert count_params(half) < 0.4 * count_params(whole)
