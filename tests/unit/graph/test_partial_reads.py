"""Slicing a graph on disk reads the bytes of the kept rows, not the whole weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sarto.graph import ModelGraph, Selection, capture, read_graph, slice, write_graph
from sarto.graph.lazy import LazyTensors

WIDTH, UNITS = 2048, 1024
ROW_BYTES = 4 * WIDTH

pytestmark = pytest.mark.skipif(
    not hasattr(os, "preadv"), reason="rows are read by themselves where there is preadv"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph on disk whose first weight takes 8 MB: 1024 units that each read 2048 values."""
    model = nn.Sequential(nn.Linear(WIDTH, UNITS, bias=False), nn.ReLU(), nn.Linear(UNITS, 2))
    place = tmp_path_factory.mktemp("graph")
    write_graph(capture(model, torch.zeros(2, WIDTH), prove=False), place)
    return place


class Counted:
    """Stands for `os.preadv` and adds up what it read; gives fewer bytes than asked, as a system may."""

    def __init__(self, at_most: int = 1 << 30) -> None:
        self.real = os.preadv
        self.calls: list[tuple[int, int]] = []
        self.at_most = at_most

    def __call__(self, handle: int, buffers: Sequence[Any], offset: int) -> int:
        count = self.real(handle, [buffers[0][: self.at_most]], offset)
        self.calls.append((offset, count))
        return count


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counter = Counted()
    monkeypatch.setattr(os, "preadv", counter)
    return counter


def weights(graph: ModelGraph) -> LazyTensors:
    assert isinstance(graph.tensors, LazyTensors)
    return graph.tensors


def test_only_the_bytes_of_kept_rows_are_read(folder: Path, counted: Counted) -> None:
    graph, whole = read_graph(folder), read_graph(folder)
    (group,) = graph.analysis.sliceable
    units = (3, 100, 101, 102, 700, 1023)
    small = slice(graph, Selection({group.id: units}))
    assert sum(count for _, count in counted.calls) == len(units) * ROW_BYTES
    assert [count // ROW_BYTES for _, count in counted.calls] == [1, 3, 1, 1], "neighbours are read together"
    assert torch.equal(small.tensors["0.weight"], whole.tensors["0.weight"][list(units)])
    x = torch.randn(2, WIDTH)
    assert torch.equal(small(x), slice(whole, Selection({group.id: units}))(x))  # type: ignore[arg-type]


def test_groups_and_a_sketch_read_no_weights(folder: Path, counted: Counted) -> None:
    graph = read_graph(folder)
    slice(graph.sketch(), Selection({graph.analysis.sliceable[0].id: (0, 5)}))
    assert counted.calls == [] and "0 read" in repr(weights(graph))


@pytest.mark.parametrize("positions", [(5, 2, 2, 900), (1023, 0), (7, 9), tuple(range(0, 1024, 3))])
def test_rows_come_in_the_wanted_order(positions: tuple[int, ...], folder: Path) -> None:
    tensors = LazyTensors(folder / "weights.safetensors")
    assert torch.equal(tensors.select("0.weight", 0, positions), tensors["0.weight"][list(positions)])


def test_short_reads_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", Counted(at_most=1000))
    tensors = LazyTensors(folder / "weights.safetensors")
    assert torch.equal(tensors.select("0.weight", 0, (5, 900)), tensors["0.weight"][[5, 900]])


def test_rows_shorter_than_a_page_and_other_axes_come_from_the_mapping(
    folder: Path, counted: Counted
) -> None:
    tensors = LazyTensors(folder / "weights.safetensors")
    assert torch.equal(tensors.select("2.bias", 0, (1, 0)), tensors["2.bias"][[1, 0]])
    assert torch.equal(tensors.select("0.weight", 1, (0, 9)), tensors["0.weight"][:, [0, 9]])
    with pytest.raises(IndexError):
        tensors.select("0.weight", 0, (0, UNITS))
    assert counted.calls == []


def test_a_file_that_got_the_name_later_is_not_read(tmp_path: Path, counted: Counted) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 2))
    place = tmp_path / "graph"
    write_graph(capture(model, torch.zeros(2, WIDTH), prove=False), place)
    tensors = LazyTensors(place / "weights.safetensors")
    wanted = model[0].weight.detach()[[1, 5]].clone()
    with torch.no_grad():
        model[0].weight.zero_()
    write_graph(capture(model, torch.zeros(2, WIDTH), prove=False), place)
    assert torch.equal(tensors.select("0.weight", 0, (1, 5)), wanted)
    (place / "weights.safetensors").unlink()
    assert torch.equal(tensors.select("0.weight", 0, (1, 5)), wanted)
    assert counted.calls == []
