"""Reading and writing `.pt2`: the graph is the captured one, and what is written computes the same bits."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto import zoo
from sarto.errors import GraphError, VerifyError
from sarto.graph import BatchDim, ModelGraph, capture, slice, uniform_counts
from sarto.graph import pt2 as pt2_room
from sarto.graph.capture import from_program
from sarto.graph.encoding import encode
from sarto.graph.file import read_graph, write_graph
from sarto.graph.pt2 import read_pt2, write_pt2
from sarto.graph.selection import leading
from sarto.testing.pico import PICO, pico
from tests.unit.graph.pt2_files import Net, export, save


class Forms(nn.Module):
    """Arguments and values of many forms: infinities, None in lists, types, folded constants, several inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.cell = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(10)
        self.fc = nn.Linear(10, 3)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.scale = torch.tensor([1.0, 2.0, 4.0])

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.table(ids) + torch.arange(4, dtype=torch.float32)[None, :, None]
        y, _ = self.cell(y)
        y = self.norm(y)
        weights = (y @ y.transpose(1, 2) / 3 + self.mask).softmax(-1)
        y = (weights @ y)[:, torch.tensor([0, 2]), :].mean(1)
        y = self.fc(y) * self.scale + x.to(torch.float32)
        y = torch.where(y > 0, y, y.new_full((1,), -0.5)).clamp(max=float("inf"))
        z = torch.zeros(x.shape[0] * 2, 3, dtype=torch.int64)
        return F.pad(y, (1, 0)), z, torch.einsum("bi,bj->bij", y, y).squeeze(1)


def forms() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Forms(), (torch.randint(0, 7, (2, 4)), torch.randn(2, 3, dtype=torch.float64))


def assert_same(one: ModelGraph, two: ModelGraph) -> None:
    assert encode(one) == encode(two)
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name


@pytest.mark.parametrize("name", PICO)
def test_a_file_gives_the_graph_that_capture_gives(name: str, tmp_path: Path) -> None:
    model, x = pico(name, dtype=torch.float32)
    graph = read_pt2(save(tmp_path / "model.pt2", model, x))
    assert_same(graph, capture(model, x, prove=False))
    with torch.no_grad():
        assert torch.equal(graph(x), model(x))


class Spellings(nn.Module):
    """Operators that are other operators of a graph in a few words."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.channel_shuffle(self.conv(x).clip(-1, 1), 2).movedim(1, -1).swapdims(1, 2)
        one, two = F.max_pool2d(x, 2, return_indices=True)[0].narrow(3, 0, 4).hsplit(2)
        x = torch.concatenate([one, two], 1).tile(1, 2, 1, 1).broadcast_to(x.shape[0], 16, 4, 4)
        return self.head(x.flatten(1)[:, :128])


@pytest.mark.parametrize(
    "make",
    [forms, lambda: (Spellings(), (torch.randn(2, 3, 10, 10),)), lambda: (Net(), (torch.randn(2, 3, 6, 6),))],
)
def test_arguments_and_values_of_every_form_are_read(make: object, tmp_path: Path) -> None:
    model, inputs = make()  # type: ignore[operator]
    program = export(model, *inputs)
    torch.export.save(program, tmp_path / "model.pt2")
    graph = read_pt2(tmp_path / "model.pt2")
    assert_same(graph, from_program(program))
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs), model(*inputs), rtol=0, atol=0)


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "shufflenet": (
        lambda: zoo.shufflenet_v2(4, widths=(8, 16, 32), depths=(1, 1, 1), first=4, last=8),
        (3, 32, 32),
    ),
    "swin": (lambda: zoo.swin(4, 16, 2, 8, (2, 1), (2, 4), 4), (3, 16, 16)),
    "convnext": (lambda: zoo.convnext(4, depths=(1, 1), widths=(8, 16)), (3, 16, 16)),
    "unet": (lambda: zoo.unet(width=4, depth=2), (3, 16, 16)),
}


@pytest.mark.parametrize("name", ZOO)
def test_models_of_the_zoo_are_read_as_they_are_captured(name: str, tmp_path: Path) -> None:
    make, shape = ZOO[name]
    x = torch.randn(2, *shape)
    program = export(make(), x)
    torch.export.save(program, tmp_path / "model.pt2")
    graph = from_program(program)
    assert_same(read_pt2(tmp_path / "model.pt2"), graph)
    assert torch.equal(read_pt2(write_pt2(graph, tmp_path / "again.pt2"))(x), graph(x))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["2.11", "2.12"])
def test_files_of_older_versions_of_torch_are_read(version: str, repository: Path) -> None:
    graph = read_pt2(repository / "tests" / "assets" / f"torch-{version}.pt2")
    model = Net().eval()
    model.load_state_dict({name: t for name, t in graph.tensors.items() if name != "shift"}, strict=False)
    assert encode(graph) == encode(capture(model, torch.zeros(2, 3, 6, 6), prove=False))
    x = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))


def test_weights_are_views_of_the_file_and_shared_ones_stay_shared(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = nn.Parameter(torch.empty(0))
    base = torch.randn(8, 4)
    model[0].weight, model[2].weight = nn.Parameter(base[:4]), nn.Parameter(base[4:])
    path = save(tmp_path / "model.pt2", model, torch.zeros(2, 4))
    before = path.read_bytes()
    graph = read_pt2(path)
    first, last = graph.tensors["0.weight"], graph.tensors["2.weight"]
    assert torch.equal(torch.cat([first, last]), base)
    with torch.no_grad():
        first.zero_()
    assert path.read_bytes() == before
    path.unlink()
    assert torch.equal(last, base[4:]), "the mapping outlives the name"


def test_a_transposed_weight_is_read_with_its_strides(tmp_path: Path) -> None:
    model = nn.Linear(3, 5)
    model.weight = nn.Parameter(torch.randn(3, 5).t())
    x = torch.randn(2, 3)
    graph = read_pt2(save(tmp_path / "model.pt2", model, x))
    assert graph.tensors["weight"].stride() == (1, 5)
    assert torch.equal(graph.tensors["weight"], model.weight)
    assert (
        write_graph(graph, tmp_path / "g").weights_hash
        == write_graph(capture(model, x, prove=False), tmp_path / "h").weights_hash
    )


def test_a_double_of_the_batch_is_a_multiple_and_a_sum_of_two_batches_is_refused(tmp_path: Path) -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, x]).reshape(x.shape[0], 2, 3).sum(1) * y

    inputs = (torch.randn(4, 3), torch.randn(4, 3))
    graph = read_pt2(save(tmp_path / "model.pt2", Double(), *inputs))
    assert graph.node("cat").shape == (BatchDim(2), 3)
    assert torch.equal(graph(*inputs), Double()(*inputs))  # type: ignore[arg-type]

    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, y])

    with pytest.raises(
        GraphError, match=r"the size \"Add\(Symbol.* can't be read: only whole numbers, symbols"
    ):
        read_pt2(save(tmp_path / "sum.pt2", Sum(), *inputs))


def test_a_fixed_batch_is_refused_with_the_way_to_export_again(tmp_path: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(GraphError, match="batch of input 'input' is fixed to 2: export the model again with"):
        read_pt2(tmp_path / "model.pt2")


# --- writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICO)
def test_what_is_written_computes_the_same_bits_at_other_batches(name: str, tmp_path: Path) -> None:
    model, x = pico(name, dtype=torch.float32)
    graph = capture(model, x, prove=False)
    path = write_pt2(graph, tmp_path / "folder" / "model.pt2")
    again = read_pt2(path)
    assert [node.op for node in again.nodes] == [node.op for node in graph.nodes]
    assert again.parameters == graph.parameters
    for name_, tensor in graph.tensors.items():
        assert torch.equal(tensor, again.tensors[name_])
    inputs = torch.randn(7, *x.shape[1:])
    assert torch.equal(again(inputs), graph(inputs))  # type: ignore[arg-type]
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pt2"]


def test_torch_itself_loads_what_is_written_and_a_sliced_graph_is_written_too(tmp_path: Path) -> None:
    model, x = pico("residual", dtype=torch.float32)
    graph = capture(model, x, prove=False)
    small = slice(graph, leading(uniform_counts(graph, 0.5)))
    loaded = torch.export.load(write_pt2(small, tmp_path / "small.pt2")).module()
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))


def test_a_graph_from_disk_is_written_with_its_own_bytes_only(tmp_path: Path) -> None:
    model, x = pico("plain", dtype=torch.float32)
    graph = capture(model, x, prove=False)
    write_graph(graph, tmp_path / "graph")
    again = read_graph(tmp_path / "graph")
    first, second = write_pt2(graph, tmp_path / "a.pt2"), write_pt2(again, tmp_path / "b.pt2")
    assert first.stat().st_size == second.stat().st_size
    small = slice(again, leading(uniform_counts(again, 0.5)))
    assert write_pt2(small, tmp_path / "c.pt2").stat().st_size < first.stat().st_size


def test_a_written_file_holds_zeros_for_samples_and_no_path_of_this_machine(tmp_path: Path) -> None:
    model, x = pico("plain", dtype=torch.float32)
    path = write_pt2(capture(model, x, prove=False), tmp_path / "model.pt2")
    with zipfile.ZipFile(path) as file:
        whole = b"".join(file.read(name) for name in file.namelist() if name.endswith(".json"))
    assert b".py" not in whole and str(tmp_path).encode() not in whole
    samples, _ = torch.export.load(path).example_inputs
    assert all(not bool(sample.any()) for sample in samples)


def test_graphs_without_data_and_files_that_compute_otherwise_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = pico("residual", dtype=torch.float32)
    graph = capture(model, x, prove=False)
    with pytest.raises(GraphError, match="has no data"):
        write_pt2(graph.sketch(), tmp_path / "model.pt2")
    monkeypatch.setattr(pt2_room, "read_pt2", lambda path: graph.to(torch.float64).to(torch.float32))
    write_pt2(graph, tmp_path / "same.pt2")
    other = capture(*pico("residual", dtype=torch.float32, seed=1), prove=False)
    monkeypatch.setattr(pt2_room, "read_pt2", lambda path: other)
    with pytest.raises(VerifyError, match="does not compute what the graph computes"):
        write_pt2(graph, tmp_path / "model.pt2")
    assert [entry.name for entry in tmp_path.iterdir()] == ["same.pt2"]
