"""The speed benchmark cuts what it says it cuts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import surgery_speed
from benchmarks.coverage_models import Architecture, Given
from benchmarks.surgery_speed import cutting, draw, keep_memory, loading, surgery
from sarto.graph import ModelGraph, capture


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Architecture, ModelGraph]:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    architecture = Architecture("small", "zoo", "small", {"x": Given("signal", (6,))})
    monkeypatch.setattr(Architecture, "module", lambda _: module)
    monkeypatch.setattr(surgery_speed.gc, "collect", lambda: 0)  # the tests' own heap is large
    monkeypatch.setitem(surgery_speed.MODELS, "small", architecture)
    return module, architecture, capture(module, torch.randn(2, 6), prove=False)


def test_the_kept_bytes_are_those_of_the_tensors_that_slicing_makes(
    small: tuple[nn.Module, Architecture, ModelGraph],
) -> None:
    module, architecture, graph = small
    selection = draw(graph, 0.5, seed=0)
    assert [len(units) for units in selection.kept.values()] == [4]
    row = cutting(module, architecture, graph, selection, 2, torch_pruning=False)
    assert row["kept_mib"] * 2**20 == 4 * (4 * 6 + 4 + 3 * 4)  # the classifier's bias is shared
    assert row["params"] == 4 * 6 + 4 + 3 * 4 + 3
    assert row["slice_ms"] > 0 and row["slice_to_copy_ratio"] == row["slice_ms"] / row["copy_ms"]


def test_torch_pruning_cuts_the_same_units(small: tuple[nn.Module, Architecture, ModelGraph]) -> None:
    pytest.importorskip("torch_pruning")
    module, architecture, graph = small
    row = cutting(module, architecture, graph, draw(graph, 0.5, seed=1), 1, torch_pruning=True)
    assert row["torch_pruning_params"] == row["params"] and row["difference"] < 1e-6
    assert row["torch_pruning_with_groups_ms"] >= row["torch_pruning_ms"] > 0


def test_every_reader_gives_a_module_that_runs(small: tuple[nn.Module, Architecture, ModelGraph]) -> None:
    numbers = loading(*small, n_loads=1)
    assert {
        "graph_file_load_ms_median",
        "pt2_torch_load_ms_median",
        "pt2_ours_load_ms_median",
    } <= numbers.keys()
    assert all(number >= 0 for number in numbers.values())


def test_a_run_without_the_extra_says_so(
    small: tuple[nn.Module, Architecture, ModelGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgery_speed.importlib.util, "find_spec", lambda name: None)
    found = surgery(
        models=["small"], percents=[50], n_repeats=1, n_loads=1, torch_pruning=True, prove=False, seed=0
    )
    assert found["rows"] == [{"model": "small", "note": "skipped: extra not installed: sarto"}]


def test_memory_is_kept_where_the_c_library_can() -> None:
    assert keep_memory() in (True, False)
