"""Fragments of every architecture by other roads: donor, plain pruning, twins, permutations, explicit maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from sarto import zoo
from sarto.engines.slicepack import (
    GRAIL,
    Readings,
    RepairSettings,
    make_fragment,
    rate_widths,
    read_donor,
)
from sarto.engines.slicepack.repair import fit_repair
from sarto.engines.slicepack.units import group_moment
from sarto.graph import (
    ModelGraph,
    capture,
    evaluate,
    leading,
    relative_difference,
    repair,
    slice,
    uniform_counts,
)
from sarto.graph.expressions import AxisExpr, Fixed, Sum, Unit, full_size, kept_positions


class Encoder(nn.Module):
    """Tokens, positions, one attention block and one feed-forward block with norms behind the sums, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, 8), nn.Parameter(torch.randn(7, 8))
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out, self.norm1 = nn.Linear(8, 8), nn.LayerNorm(8)
        self.up, self.down, self.norm2 = nn.Linear(8, 12), nn.Linear(12, 8), nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places
        n, steps, _ = x.shape
        q, k, v = (
            layer(x).view(n, steps, 4, 2).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, steps, 8)
        x = self.norm1(x + self.out(mixed))
        x = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
        return self.classifier(x.mean(1))


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: zoo.vgg(3, (6, "M", 8, 8)),
    "vgg with hidden layers": lambda: zoo.vgg(3, (6, "M", 8), hidden=(10,), pooled=2),
    "residual": lambda: zoo.cifar_resnet(3, 8, 4),
    "bottleneck": lambda: zoo.resnet(3, depths=(1, 1, 1, 1), width=4, bottleneck=True, stem="cifar"),
    "mobilenet": lambda: zoo.mobilenet_v2(3, 6, ((2, 6, 2, 1), (2, 8, 1, 2)), 12),
    "densenet": lambda: zoo.densenet(3, depths=(2, 2), growth=4, first=6, bottleneck=2, stem="cifar"),
    "vit": lambda: zoo.vit(3, 8, 4, 8, 2, 4, 16),
}
TOKENS: dict[str, Callable[[], nn.Module]] = {
    "text cnn": lambda: zoo.text_cnn(3, 30, 6, 4, (2, 3)),
    "rnn": lambda: zoo.recurrent(3, "rnn", 30, 6, 8),
    "gru of two layers": lambda: zoo.recurrent(3, "gru", 30, 6, 8, layers=2),
    "lstm in both directions": lambda: zoo.recurrent(
        3, "lstm", 30, 6, 8, layers=2, bidirectional=True, pool="mean"
    ),
    "encoder": Encoder,
}
NAMES = [*IMAGES, *TOKENS]
RECURRENT = ("rnn", "gru of two layers", "lstm in both directions")


@cache
def donor(name: str) -> tuple[ModelGraph, Tensor, Tensor]:
    """A random network in float64, and samples with labels."""
    torch.manual_seed(5)
    model = (IMAGES.get(name) or TOKENS[name])().double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    labels = torch.arange(3).repeat_interleave(20)
    if name in IMAGES:
        inputs = torch.randn(60, 3, 8, 8, dtype=torch.float64) + 0.5 * labels.reshape(-1, 1, 1, 1)
    else:
        inputs = torch.randint(1, 20, (60, 7)) + 5 * labels.reshape(-1, 1)
    return capture(model, inputs[:2], prove=False), inputs, labels


@cache
def reading(name: str) -> Readings:
    return read_donor(*donor(name), 3)


def error(small: ModelGraph, readings: Readings) -> float:
    return float(relative_difference((small(readings.inputs),), (readings.graph(readings.inputs),)))


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_keeping_every_unit_gives_the_donor_back(name: str, sequential: bool) -> None:
    readings = reading(name)
    whole = {group.id: group.size for group in readings.graph.analysis.sliceable}
    assert whole
    small, _ = make_fragment(readings, [1], whole, repair=RepairSettings(sequential=sequential))
    assert error(small, readings) < 1e-10


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_an_endless_ridge_is_plain_pruning(name: str, sequential: bool) -> None:
    readings = reading(name)
    keep = uniform_counts(readings.graph, 0.5)
    pruned, selection = make_fragment(readings, [1], keep, repair=None)
    settings = RepairSettings(lam=float("inf"), sequential=sequential)
    repaired, same = make_fragment(readings, [1], keep, repair=settings)
    assert same == selection
    for tensor, other in zip(pruned.tensors.values(), repaired.tensors.values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_half_of_a_network_of_twins_is_exact(name: str, sequential: bool) -> None:
    """Every unit has a twin that computes the same; one of each pair and a repair give the whole network."""
    graph, inputs, labels = donor(name)
    twins = with_twins(graph)
    readings = read_donor(twins, inputs, labels, 3)
    small, selection = make_fragment(
        readings,
        [0],
        uniform_counts(twins, 0.5),
        repair=RepairSettings(lam=1e-13, sequential=sequential, rivals=None),
    )
    assert error(small, readings) < 1e-5
    assert error(slice(twins, selection), readings) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_repair_brings_the_donor_nearer(name: str) -> None:
    readings = reading(name)
    keep = uniform_counts(readings.graph, 0.5)
    want = readings.graph(readings.inputs)
    pruned, _ = make_fragment(readings, [], keep, repair=None)
    repaired, _ = make_fragment(readings, [], keep, repair=RepairSettings(lam=1e-3))
    assert (repaired(readings.inputs) - want).norm() < (pruned(readings.inputs) - want).norm()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RECURRENT])
def test_folded_maps_compute_what_explicit_maps_compute(name: str) -> None:
    readings = reading(name)
    keep = uniform_counts(readings.graph, 0.5)
    small, selection = make_fragment(readings, [2], keep)
    fitted = fit_repair(readings, [2], selection, slice(readings.graph, selection), RepairSettings())
    assert fitted.maps
    explicit = repair(readings.graph, selection, fitted.maps)
    assert len(explicit.nodes) == len(small.nodes) + len(fitted.maps)
    x = readings.inputs
    assert relative_difference((small(x),), (explicit(x),)) < 1e-10


def test_a_folded_recurrence_reads_its_repaired_state() -> None:
    """The recurrence by hand: at every step the weights read the map of the kept state."""
    readings = reading("rnn")
    small, selection = make_fragment(readings, [2], {"recurrent.weight_ih_l0:0": 4})
    fitted = fit_repair(readings, [2], selection, slice(readings.graph, selection), RepairSettings())
    own = {reader.arg: fitted.maps[reader.name] for reader in readings.readers if reader.name in fitted.maps}
    (kept,) = selection.kept.values()
    tensors = readings.graph.tensors
    at, part = list(kept), "recurrent."
    x = tensors["embedding.weight"][readings.inputs]
    state = torch.zeros(len(x), len(kept), dtype=torch.float64)
    for step in range(x.shape[1]):
        state = torch.tanh(
            x[:, step] @ tensors[f"{part}weight_ih_l0"][at].T
            + tensors[f"{part}bias_ih_l0"][at]
            + (state @ own["params.1"].T) @ tensors[f"{part}weight_hh_l0"][at].T
            + tensors[f"{part}bias_hh_l0"][at]
        )
    logits = state @ own["weight"].T @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    torch.testing.assert_close(small(readings.inputs), logits)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_units_does_not_matter(name: str) -> None:
    """A donor with its units in another order has the same fragment (which dead units it keeps may differ)."""
    graph, inputs, labels = donor(name)
    readings = reading(name)
    orders = {
        group.id: torch.randperm(group.size, generator=torch.Generator().manual_seed(place))
        for place, group in enumerate(graph.analysis.sliceable)
    }
    other = read_donor(permuted(graph, orders), inputs, labels, 3)
    keep = uniform_counts(graph, 0.5)
    one, first = make_fragment(readings, [1], keep)
    two, second = make_fragment(other, [1], keep)
    energies = {group: group_moment(readings, group, [1], 0.33)[0].diagonal() for group in keep}
    for group, units in second.kept.items():
        alive = {int(orders[group][unit]) for unit in units if energies[group][orders[group][unit]] > 0}
        assert alive == {unit for unit in first.kept[group] if energies[group][unit] > 0}
    assert relative_difference((two(inputs),), (one(inputs),)) < 1e-8


@pytest.mark.parametrize("name", ["vgg with hidden layers", "residual", "densenet", "vit"])
def test_without_classes_and_drawn_to_zero_it_is_grail(name: str) -> None:
    """Reference: GRAIL, arXiv 2602.23795: W' = W B, B = G[:, P] (G[P, P] + lambda I)^-1 at a reader's input."""
    readings = reading(name)
    graph = readings.graph
    keep = uniform_counts(graph, 0.5)
    small, selection = make_fragment(readings, [], keep, repair=GRAIL)
    checked = 0
    for consumption in graph.analysis.consumptions:
        node = graph.node(consumption.node)
        unit = consumption.expr
        if not isinstance(unit, Unit) or node.args.get("groups", 1) != 1 or unit.group not in selection.kept:
            continue
        _, values = evaluate(graph, readings.inputs, watch=[node.args["input"].name])
        rows = values[node.args["input"].name].movedim(consumption.axis, -1).flatten(0, -2).numpy()
        kept = list(selection.kept[unit.group])
        gram = rows.T @ rows
        inner = gram[np.ix_(kept, kept)]
        inner = inner + 1e-3 * inner.diagonal().mean() * np.eye(len(kept))
        weight = node.args["weight"].name
        made = kept_positions(graph.analysis.tensor_axes[weight][0], selection.kept)
        full = graph.tensors[weight].numpy()[made]
        want = np.einsum("ou...,us->os...", full, gram[:, kept] @ np.linalg.inv(inner))
        np.testing.assert_allclose(small.tensors[weight].numpy(), want, rtol=1e-8, atol=1e-10)
        checked += 1
    assert checked >= 2


def test_sizes_are_those_of_the_paper() -> None:
    """VGG16 halved (weights and biases of convolutions), ResNet34 at 0.3 with its residual streams whole."""
    vgg, resnet = (
        capture(model.eval(), torch.zeros(2, 3, 32, 32), prove=False)
        for model in (zoo.vgg16_bn_cifar(10), zoo.resnet34(20, stem="cifar"))
    )
    small = slice(vgg, leading(rate_widths(vgg, 0.5)))
    weights = [small.tensors[n.args["weight"].name] for n in small.nodes if n.op == "aten.conv2d.default"]
    assert sum(weight.numel() + len(weight) for weight in weights) == 3_680_160
    assert without_classifier(resnet) == 21_276_992
    assert without_classifier(slice(resnet, leading(rate_widths(resnet, 0.3)))) == 6_522_650


def without_classifier(graph: ModelGraph) -> int:
    return sum(graph.tensors[name].numel() for name in graph.parameters if not name.startswith("fc."))


def with_twins(graph: ModelGraph) -> ModelGraph:
    """The second half of every channel group made like the first half."""
    read = {(name, 1) for c in graph.analysis.consumptions for name in weights_of(graph, c.node, c.arg)}
    tensors = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    for group in graph.analysis.sliceable:
        half = group.size // 2
        for name, axis in group.places:
            if (name, axis) in read and tensors[name].shape[1] > 1:
                continue
            expr = graph.analysis.tensor_axes[name][axis]
            first = kept_positions(expr, {group.id: tuple(range(half))})
            second = kept_positions(expr, {group.id: tuple(range(half, 2 * half))})
            if len(first) == kept_positions(expr, {}).size:
                continue
            source = tensors[name].index_select(axis, torch.from_numpy(first))
            tensors[name].index_copy_(axis, torch.from_numpy(second), source)
    return replace(graph, tensors=tensors)


def weights_of(graph: ModelGraph, node: str, arg: str) -> list[str]:
    """The stored weights with which a consumption reads."""
    args = graph.node(node).args
    if "params" not in args:
        return [args["weight"].name] if "weight" in args else []
    if arg != "input":
        return [args["params"][int(arg.removeprefix("params."))].name]
    each = 4 if args["has_biases"] else 2
    return [args["params"][place * each].name for place in range(2 if args["bidirectional"] else 1)]


def permuted(graph: ModelGraph, orders: dict[str, Tensor]) -> ModelGraph:
    """The same function with the units of every group in another order."""
    tensors = {}
    for name, tensor in graph.tensors.items():
        for axis, expr in enumerate(graph.analysis.tensor_axes[name]):
            index = torch.from_numpy(reordered(expr, orders))
            tensor = tensor.index_select(axis, index)
        tensors[name] = tensor
    return replace(graph, tensors=tensors)


def reordered(expr: AxisExpr, orders: dict[str, Tensor]) -> npt.NDArray[np.int64]:
    """Old position of every new position of an axis."""
    if isinstance(expr, Fixed):
        return np.arange(expr.size)
    if isinstance(expr, Unit):
        return orders[expr.group].numpy() if expr.group in orders else np.arange(expr.size)
    if isinstance(expr, Sum):
        found, offset = [], 0
        for part in expr.parts:
            found.append(reordered(part, orders) + offset)
            offset += full_size(part)
        return np.concatenate(found)
    positions = np.zeros(1, dtype=np.int64)
    for part in expr.parts:
        positions = (positions[:, None] * full_size(part) + reordered(part, orders)[None, :]).reshape(-1)
    return positions
