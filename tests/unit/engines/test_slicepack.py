"""Closed-form slicing against brute force on small nets: choice, repair, widths, and what stays exact."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from sarto.engines.slicepack import RepairSettings, allocate, choose_units, make_fragment, read_donor
from sarto.engines.slicepack.readings import Readings
from sarto.engines.slicepack.rows import units_of
from sarto.engines.slicepack.units import class_shares, group_moment
from sarto.errors import GraphError, RequestError
from sarto.graph import capture, evaluate, relative_difference, slice, uniform_counts
from sarto.graph.expressions import Fixed, Product, Sum, Unit
from sarto.testing.pico import pico
from sarto.testing.tolerances import EXACT


def reading(name: str, per_class: int = 6, n_classes: int = 3) -> Readings:
    model, _ = pico(name)
    graph = capture(model, torch.zeros(2, *pico(name)[1].shape[1:], dtype=torch.float64), prove=False)
    generator = torch.Generator().manual_seed(3)
    shape = graph.inputs[0].shape[1:]
    labels = torch.arange(n_classes).repeat_interleave(per_class)
    inputs = torch.randn((len(labels), *shape), generator=generator, dtype=torch.float64)
    inputs += labels.reshape(-1, *[1] * len(shape)) * 0.5
    return read_donor(graph, inputs, labels, n_classes)


NAMES = ["plain", "residual", "mobile", "dense", "text"]


@pytest.mark.parametrize("name", NAMES)
def test_grams_are_plain_second_moments_by_class(name: str) -> None:
    readings = reading(name)
    assert readings.grams
    for (name_, _, group), grams in readings.grams.items():
        reader = readings.reader[name_]
        consumption = reader.consumption
        _, values = evaluate(readings.graph, readings.inputs, watch=[reader.source])
        units = units_of(values[reader.source], consumption.axis, consumption.expr, group, {})
        for label in range(readings.n_classes):
            rows = units[readings.labels == label].movedim(1, -1).reshape(-1, units.shape[1])
            torch.testing.assert_close(grams[label], rows.T @ rows / len(rows))


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_gives_the_donor_back(name: str) -> None:
    readings = reading(name)
    whole = {group.id: group.size for group in readings.graph.analysis.sliceable}
    fragment, _ = make_fragment(readings, [0], whole)
    assert (
        relative_difference((fragment(readings.inputs),), (readings.graph(readings.inputs),))
        <= EXACT[torch.float64]
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sequential", [True, False])
def test_repair_brings_the_outputs_nearer_than_pruning(name: str, sequential: bool) -> None:
    readings = reading(name, per_class=20)
    keep = uniform_counts(readings.graph, 0.5)
    want = readings.graph(readings.inputs)
    pruned, selection = make_fragment(readings, [], keep, repair=None)
    repaired, same = make_fragment(readings, [], keep, repair=RepairSettings(lam=1e-3, sequential=sequential))
    assert same == selection
    assert pruned.tensors.keys() == repaired.tensors.keys()
    assert (repaired(readings.inputs) - want).norm() < 0.9 * (pruned(readings.inputs) - want).norm()


def test_infinite_ridge_is_plain_pruning() -> None:
    readings = reading("residual")
    keep = uniform_counts(readings.graph, 0.5)
    pruned, _ = make_fragment(readings, [1], keep, repair=None)
    repaired, _ = make_fragment(readings, [1], keep, repair=RepairSettings(lam=float("inf")))
    assert all(torch.equal(pruned.tensors[name], tensor) for name, tensor in repaired.tensors.items())


def test_duplicated_units_are_sliced_without_loss() -> None:
    """A network whose second half of units copies the first is halved exactly."""
    model, x = pico("plain")
    with torch.no_grad():
        model.conv1.weight[4:] = model.conv1.weight[:4]
        for tensor in (model.bn1.weight, model.bn1.bias, model.bn1.running_mean, model.bn1.running_var):
            tensor[4:] = tensor[:4]
    readings = read_donor(capture(model, x, prove=False), x, torch.tensor([0, 1, 2]), 3)
    small, selection = make_fragment(
        readings, [0], {"conv1.weight:0": 4}, repair=RepairSettings(lam=1e-12), criterion="css"
    )
    assert len({unit % 4 for unit in selection.kept["conv1.weight:0"]}) == 4, "one of each pair is kept"
    assert relative_difference((small(x),), (readings.graph(x),)) <= 1e-8


class Attending(nn.Module):
    """One attention of two heads, with value dims of their own, and a classifier on the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 12)
        self.out, self.fc = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            made.reshape(x.shape[0], 5, 2, -1).transpose(1, 2)
            for made in (self.query(x), self.key(x), self.value(x))
        )
        read = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.fc((x + self.out(read.reshape(x.shape[0], 5, 12))).mean(1))


@pytest.mark.parametrize("kind", ["value dims", "heads"])
def test_duplicated_parts_of_an_attention_are_sliced_without_loss(kind: str) -> None:
    torch.manual_seed(0)
    model = Attending().double().eval()
    with torch.no_grad():
        for layer in (model.query, model.key, model.value) if kind == "heads" else (model.value,):
            for tensor in (layer.weight, layer.bias):
                parts = tensor.view(2, -1, *tensor.shape[1:])  # by head
                if kind == "heads":
                    parts[1] = parts[0]
                else:
                    parts[:, 3:] = parts[:, :3]
    x = torch.randn(12, 5, 6, dtype=torch.float64)
    graph = capture(model, x, prove=False)
    (group,) = [group for group in graph.analysis.sliceable if group.kind == kind]
    readings = read_donor(graph, x, torch.arange(12) % 3, 3)
    small, selection = make_fragment(
        readings, [0], {group.id: group.size // 2}, repair=RepairSettings(lam=1e-12)
    )
    assert len({unit % (group.size // 2) for unit in selection.kept[group.id]}) == group.size // 2
    assert relative_difference((small(x),), (graph(x),)) <= 1e-8
    # What was repaired is not the pruned reader.
    assert (
        relative_difference((make_fragment(readings, [0], selection.kept, repair=None)[0](x),), (graph(x),))
        > 1e-3
    )


def test_column_subset_is_near_the_best_of_all_subsets() -> None:
    readings = reading("residual", per_class=10)
    group = "stem.weight:0"
    gram, weights = group_moment(readings, group, [0], 0.33)

    def error(kept: tuple[int, ...]) -> float:
        index = torch.tensor(kept)
        inner = gram[index][:, index]
        left = gram - gram[:, index] @ torch.linalg.solve(inner, gram[index])
        return float((weights * left.diagonal()).sum())

    best = min(error(kept) for kept in combinations(range(6), 3))
    mine = choose_units(readings, [0], {group: 3}, "css", wpos=0.33).kept[group]
    worst = max(error(kept) for kept in combinations(range(6), 3))
    assert error(mine) <= best + 0.2 * (worst - best)


def test_energy_and_threshold_are_the_papers_criteria() -> None:
    readings = reading("plain")
    group = "conv1.weight:0"
    own, _ = group_moment(readings, group, [2], 1.0)
    scores = own.diagonal().sqrt()
    energetic = choose_units(readings, [2], {group: 3}, "energy", wpos=1.0).kept[group]
    assert set(energetic) == set(torch.topk(scores, 3).indices.tolist())
    above = choose_units(readings, [2], {group: 1}, "threshold", wpos=1.0, beta=0.4).kept[group]
    assert set(above) == set(torch.nonzero(scores / scores.max() > 0.6).flatten().tolist())
    by_group = choose_units(readings, [2], {group: 1}, "threshold", wpos=1.0, beta={group: 0.7}).kept[group]
    assert set(by_group) == set(torch.nonzero(scores / scores.max() > 0.3).flatten().tolist())
    assert len(by_group) > len(above)
    with pytest.raises(RequestError, match=f"needs a beta for every group; '{group}' has none"):
        choose_units(readings, [2], {group: 1}, "threshold", wpos=1.0, beta={"other": 0.7})


def test_random_units_depend_on_the_seed_alone() -> None:
    readings = reading("plain")
    keep = uniform_counts(readings.graph, 0.5)
    one = choose_units(readings, [0], keep, "random", wpos=0.5, seed=1)
    assert one == choose_units(readings, [2], keep, "random", wpos=0.1, seed=1)
    assert one != choose_units(readings, [0], keep, "random", wpos=0.5, seed=2)


def test_class_shares_sum_to_one_and_weigh_the_fragments_classes() -> None:
    shares = class_shares(4, [1, 2], 0.6)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[[1, 2]].tolist() == pytest.approx([0.3, 0.3])
    assert class_shares(3, [0, 1, 2], 0.9).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_allocated_widths_are_nested_and_keep_their_share(name: str) -> None:
    readings = reading(name, per_class=10)
    found = allocate(readings, (0.8, 0.6, 0.4))
    shares = sorted(found, reverse=True)
    for larger, smaller in pairwise(shares):
        assert all(found[smaller][group] <= found[larger][group] for group in found[larger])
    head = {"plain": ("fc2",), "residual": ("fc",), "mobile": ("fc",)}[name]
    full = _params(readings, {}, head)
    for share, counts in found.items():
        floor = {g.id: max(1, round(0.3 * g.size + 0.5)) for g in readings.graph.analysis.sliceable}
        assert _params(readings, counts, head) <= share * full or counts.items() <= floor.items()


def _params(readings: Readings, counts: dict[str, int], head: tuple[str, ...]) -> int:
    from sarto.graph import leading

    graph = slice(readings.graph, leading(counts)) if counts else readings.graph
    return sum(graph.tensors[n].numel() for n in graph.parameters if not n.startswith(head))


def test_every_class_needs_a_sample() -> None:
    model, x = pico("plain")
    with pytest.raises(RequestError, match=r"classes \[2\] have none"):
        read_donor(capture(model, x, prove=False), x, torch.tensor([0, 1, 1]), 3)


def test_units_of_products_and_sums_by_index_arithmetic() -> None:
    x = torch.arange(2 * 24.0).reshape(2, 24)
    flattened = units_of(x, 1, Product((Unit("a", 4), Fixed(6))), "a", {})
    assert torch.equal(flattened[1, 2], x[1, 12:18])
    parts = Sum((Unit("a", 4), Product((Fixed(2), Unit("b", 10)))))
    assert torch.equal(units_of(x, 1, parts, "b", {})[0, 3], x[0, [7, 17]])
    assert torch.equal(
        units_of(x[:, :21], 1, Sum((Unit("a", 4), Unit("b", 20))), "b", {"a": 1})[0, 0], x[0, 1]
    )
    with pytest.raises(GraphError, match="does not hold"):
        units_of(x, 1, Fixed(24), "a", {})
