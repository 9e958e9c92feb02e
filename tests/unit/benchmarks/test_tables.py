"""Tables say how sure they are, by the spread over orders, and what packs take beside the ensemble."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.slicepack.tables import Tried, errors, latencies
from sarto.graph import ModelGraph, capture


def tried(method: str, *scores: float, k: int = 5) -> Tried:
    return Tried({"method": method, "n_samples_per_class": k}, scores)


def test_the_error_of_a_distance_is_its_spread_over_orders_not_that_of_the_accuracies() -> None:
    found = errors(
        [
            tried("ensemble", 0.5, 0.7, 0.9),
            tried("ours", 0.49, 0.67, 0.88),
            tried("ensemble", 0.6, 0.7, 0.8),
            tried("ours", 0.57, 0.69, 0.78),
            tried("ours", 0.1, 0.2, 0.3, k=10),
        ]
    )
    under = 100 * np.array([[0.01, 0.03, 0.02], [0.03, 0.01, 0.02]]).mean(0)
    assert found == pytest.approx({"points_under_ensemble_ours_k5_error": under.std(ddof=1) / 3**0.5})
    steady = errors([tried("ensemble", 0.5, 0.9), tried("ours", 0.4, 0.8)])
    assert steady == pytest.approx({"points_under_ensemble_ours_k5_error": 0.0})


def test_nothing_is_said_of_a_single_order() -> None:
    assert errors([tried("ensemble", 0.5), tried("ours", 0.4)]) == {}


def _graph(width: int) -> ModelGraph:
    module = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten())
    return capture(module.eval(), torch.rand(2, 3, 24, 24), prove=False)


def test_packs_take_turns_with_the_ensemble() -> None:
    found = latencies({"ensemble": _graph(64), "ours": _graph(2)})
    assert found["latency_ratio_ensemble"] == 1 and 0 < found["latency_ratio_ours"] < 0.5
    assert found["latency_ratio_ours"] == found["latency_ms_ours"] / found["latency_ms_ensemble"]
    assert "latency_ratio_ours" not in latencies({"ours": _graph(2)})
