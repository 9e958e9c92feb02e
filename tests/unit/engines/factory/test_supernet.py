"""Supernets: gates equal extraction, ratios keep limits, joint training learns and resumes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sarto import zoo
from sarto.engines.factory.assembler import Assembler
from sarto.engines.factory.spaces.numvqa import NumVqa
from sarto.engines.factory.subnets import together
from sarto.engines.factory.supernet import Supernet, as_placed, placed, selection
from sarto.engines.factory.training import draw_limits, qualities, train_supernet
from sarto.errors import GraphError, RequestError, ShapeError
from sarto.graph import (
    ModelGraph,
    capture,
    gate,
    gate_layout,
    gateable,
    relative_difference,
    slice,
    through_norms,
)
from sarto.training import has_bfloat16
from sarto.types import AssemblerSettings, JointSettings, TaskSpace

SPACE = TaskSpace.parse(
    {
        "name": "few",
        "groups": {"quantifier": ["has", "exactly_2"], "predicate": ["digit_7", "digit_1", "odd"]},
        "unseen": [["exactly_2", "odd"]],
        "function": "none:none",
        "answers": ["no", "yes"],
    }
)


def digits() -> NumVqa:
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 255, (10, 6, 6), dtype=np.uint8)
    images = {split: np.repeat(shapes, 4, 0) for split in ("train", "test")}
    return NumVqa(images, {split: np.repeat(np.arange(10), 4) for split in images})  # type: ignore[arg-type]


def backbone(name: str) -> ModelGraph:
    torch.manual_seed(0)
    if name == "vit":
        return capture(
            zoo.vit_cifar(2, width=16, depth=2, heads=2).eval(), torch.rand(2, 3, 32, 32), prove=False
        )
    if name == "mobilenet":
        return capture(zoo.mobilenet_v2(2).eval(), torch.rand(2, 3, 32, 32), prove=False)
    net = zoo.resnet(2, 1, (1, 1), 8, name == "bottleneck", "cifar").eval()
    return capture(net, torch.rand(2, 1, 12, 12), prove=False)


def supernet(graph: ModelGraph, order: str = "nested", placement: str = "paper") -> Supernet:
    groups = placed(graph, placement)  # type: ignore[arg-type]
    graph = as_placed(graph, placement)  # type: ignore[arg-type]
    torch.manual_seed(1)
    shape = AssemblerSettings(order=order, hidden=16, gaters=2, limit_dims=8, most=1.0)  # type: ignore[arg-type]
    made = Assembler(len(SPACE.properties), gate_layout(graph, groups), shape)
    return Supernet(graph, SPACE, groups, made.eval())


CODES = torch.tensor([SPACE.code(task) for task in SPACE.seen], dtype=torch.float32)


def test_half_precision_is_refused_where_it_would_be_emulated() -> None:
    graph, joint = backbone("basic"), QUICK.replace(precision="bfloat16")
    if has_bfloat16():
        done = train_supernet(graph, placed(graph), SPACE, digits(), assembler=SMALL, joint=joint)
        assert done.result.stopped is None
        return
    with pytest.raises(RequestError, match="set precision: float32") as caught:
        train_supernet(graph, placed(graph), SPACE, digits(), assembler=SMALL, joint=joint)
    assert caught.value.where == "joint.precision"


@pytest.mark.parametrize("placement", ["paper", "wide"])
@pytest.mark.parametrize("name", ["basic", "bottleneck", "mobilenet", "vit"])
def test_extraction_equals_the_gated_supernet(name: str, placement: str) -> None:
    net = supernet(backbone(name), placement=placement)
    shape = net.graph.inputs[0].shape
    inputs = torch.rand(3, *[int(size) for size in shape[1:]])
    gated = net.gated()
    for limit in (0.3, 0.7):
        gates = net.assembler.gates(CODES[:1], torch.tensor([limit]))
        whole = gated(inputs, gates.expand(3, -1).contiguous())
        assert relative_difference(net.subnet(gates[0])(inputs), whole) <= 1e-5
    whole = gated(inputs, torch.ones(3, net.assembler.units))
    # Norms over gated streams are written out, which rounds another way.
    assert relative_difference(whole, net.graph(inputs)) <= (
        1e-5 if (name, placement) == ("vit", "wide") else 0
    )


def test_kinds_decide_where_gates_stand() -> None:
    vit = backbone("vit")
    assert {vit.analysis.group(g).kind for g in placed(vit)} == {"hidden units"}
    assert {vit.analysis.group(g).kind for g in placed(vit, "wide") if g in vit.analysis.groups} >= {
        "hidden units",
        "heads",
    }
    wide = as_placed(vit, "wide")
    assert {wide.analysis.group(g).kind for g in placed(vit, "wide")} == {"hidden units", "heads", "stream"}
    basic = backbone("basic")
    assert {basic.analysis.group(g).kind for g in placed(basic)} == {"filters"}
    assert {basic.analysis.group(g).kind for g in placed(basic, "wide")} == {"filters", "stream"}


def test_a_backbone_without_sliceable_groups_is_refused() -> None:
    plain = capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(2, 4), prove=False)
    with pytest.raises(GraphError, match="no channel group of this model can have gates"):
        placed(plain)


@settings(max_examples=25)
@given(st.sampled_from(["nested", "paper"]), st.floats(0.35, 1.0), st.integers(0, 1000))
def test_the_ratio_is_never_above_the_limit(order: str, limit: float, seed: int) -> None:
    torch.manual_seed(seed)
    layout = {"a": (0, 5), "b": (5, 9), "c": (9, 30)}
    shape = AssemblerSettings(order=order, hidden=8, gaters=2, limit_dims=8)  # type: ignore[arg-type]
    made = Assembler(len(SPACE.properties), layout, shape).eval()
    gates = made.gates(CODES, torch.full((len(CODES),), limit))
    assert set(gates.unique().tolist()) <= {0.0, 1.0}
    assert bool((gates.double().mean(1) <= limit + 1e-9).all())


def test_the_nested_ratio_grows_with_the_limit_for_every_task() -> None:
    net = supernet(backbone("basic"))
    previous = torch.zeros(len(CODES), net.assembler.units)
    for limit in torch.linspace(0.1, 1.0, 30):
        gates = net.assembler.gates(CODES, limit.expand(len(CODES)))
        assert bool((gates >= previous).all())
        previous = gates
    assert bool((previous == 1).all())


def test_closed_groups_and_wrong_codes_are_refused() -> None:
    with pytest.raises(GraphError, match="'b' has no open gate"):
        selection(torch.tensor([1.0, 0, 0]), {"a": (0, 1), "b": (1, 3)})
    made = supernet(backbone("basic")).assembler
    with pytest.raises(ShapeError, match=r"\(n, 5\)"):
        made.gates(torch.zeros(1, 4), torch.tensor([0.5]))
    for limit in (0.0, 1.5):
        with pytest.raises(RequestError):
            made.gates(CODES[:1], torch.tensor([limit]))


def test_mixed_gaters_by_hand() -> None:
    shape = AssemblerSettings(order="paper", hidden=4, gaters=3, limit_dims=4, clamp=100.0)
    torch.manual_seed(0)
    made = Assembler(5, {"a": (0, 3)}, shape).eval()
    codes, limits = torch.eye(5)[:2], torch.tensor([0.5, 1.0])
    layer = made.layers[0]
    encoding = torch.relu(made.norm(made.encode(torch.cat([codes, _waves(limits)], 1))))
    by_hand = torch.zeros(2, 3)
    for sample in range(2):
        shares = torch.softmax(layer.mix(encoding)[sample], 0)
        read = torch.relu(layer.norm(encoding))[sample]
        for gater in range(3):
            by_hand[sample] += shares[gater] * (layer.gaters[gater] @ read)
        by_hand[sample] += layer.bias
    assert torch.allclose(made.weights(codes, limits), by_hand, atol=1e-6)


def _waves(limits: torch.Tensor) -> torch.Tensor:
    angles = 100 * limits[:, None] * torch.tensor([1.0, 10_000.0**-0.5])
    return torch.cat([angles.sin(), angles.cos()], 1)


QUICK = JointSettings(steps=8, batch=12, save_every=4, lr=1e-2)
SMALL = AssemblerSettings(hidden=8, gaters=2, limit_dims=8)


@pytest.mark.parametrize("order", ["nested", "paper"])
def test_joint_training_changes_both_parts_and_keeps_the_source(order: str) -> None:
    graph = backbone("basic")
    before = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    shape = SMALL.replace(order=order)
    done = train_supernet(graph, placed(graph), SPACE, digits(), assembler=shape, joint=QUICK)
    assert done.result.stopped is None and done.result.steps == 8
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.tensors.items())
    changed = [
        name for name in graph.parameters if not torch.equal(before[name], done.supernet.graph.tensors[name])
    ]
    assert set(changed) == set(graph.parameters)
    found = qualities(done.supernet, digits(), SPACE.kept_aside, (0.5,), n=20)
    ((quality, ratio),) = found.values()
    assert 0 <= quality <= 1 and 0 < ratio <= 0.5


@pytest.mark.parametrize("placement", ["paper", "wide"])
def test_a_transformer_is_trained_and_its_subnets_equal_the_gated_one(placement: str) -> None:
    class Coloured(NumVqa):
        def draw(self, tasks, split, generator):  # type: ignore[no-untyped-def]
            inputs, answers = super().draw(tasks, split, generator)
            return inputs.expand(-1, 3, -1, -1).contiguous(), answers

    torch.manual_seed(0)
    net = zoo.vit(2, side=12, patch=4, width=16, depth=2, heads=2).eval()
    graph = as_placed(capture(net, torch.rand(2, 3, 12, 12), prove=False), placement)  # type: ignore[arg-type]
    data = Coloured(digits().images, {split: np.repeat(np.arange(10), 4) for split in ("train", "test")})
    groups, shape = placed(graph, placement), SMALL.replace(skips=True)  # type: ignore[arg-type]
    done = train_supernet(graph, groups, SPACE, data, assembler=shape, joint=QUICK)
    assert done.result.stopped is None and done.supernet.assembler.skips
    changed = [
        name
        for name in graph.parameters
        if not torch.equal(graph.tensors[name], done.supernet.graph.tensors[name])
    ]
    assert set(changed) == set(graph.parameters)
    inputs, gated = torch.rand(2, 3, 12, 12), done.supernet.gated()
    for limit in (0.15, 0.4):
        gates = done.supernet.assembler.gates(CODES[:1], torch.tensor([limit]))
        whole = gated(inputs, gates.expand(2, -1).contiguous())
        assert relative_difference(done.supernet.subnet(gates[0])(inputs), whole) <= 1e-5


def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    graph, data = backbone("basic"), digits()
    straight = train_supernet(graph, placed(graph), SPACE, data, assembler=SMALL, joint=QUICK)

    def stop(step: int, loss: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_supernet(
            graph, placed(graph), SPACE, data, assembler=SMALL, joint=QUICK, folder=tmp_path, told=stop
        )
    again = train_supernet(graph, placed(graph), SPACE, data, assembler=SMALL, joint=QUICK, folder=tmp_path)
    assert again.result.resumed_from == 4
    for name, tensor in straight.supernet.graph.tensors.items():
        assert torch.equal(tensor, again.supernet.graph.tensors[name]), name
    for name, tensor in straight.supernet.assembler.state_dict().items():
        assert torch.equal(tensor, again.supernet.assembler.state_dict()[name]), name


def test_further_combinations_are_drawn_as_often_as_asked() -> None:
    class Told(NumVqa):
        def draw(self, tasks, split, generator):  # type: ignore[no-untyped-def]
            drawn.extend(tasks)
            return super().draw(tasks, split, generator)

    graph, plain = backbone("basic"), digits()
    told = Told(plain.images, {split: np.repeat(np.arange(10), 4) for split in plain.images})
    space = SPACE.replace(extra=(("has", "digit_7", "digit_1"), ("exactly_2", "digit_7", "odd")))
    for share, low, high in ((0.5, 0.3, 0.7), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
        drawn: list[frozenset[str]] = []
        joint = QUICK.replace(steps=10, extra_share=share)
        train_supernet(graph, placed(graph), space, told, assembler=SMALL, joint=joint)
        assert low <= sum(task in space.combined for task in drawn) / len(drawn) <= high
        assert not set(drawn) & set(space.kept_aside)


def test_limits_come_down_to_the_lowest() -> None:
    plan = JointSettings(batch=400, lowest=0.05)
    generator = torch.Generator().manual_seed(0)
    lowest = [float(draw_limits(plan, opened, 0.01, generator).min()) for opened in (0.0, 0.2, 0.5, 0.9, 1.0)]
    assert lowest[0] == 1.0
    assert lowest == sorted(lowest, reverse=True)
    assert lowest[-1] == pytest.approx(0.05, rel=1e-4)
    late = draw_limits(plan, 1.0, 0.01, generator)
    assert bool((late[:50] == 1).all()) and bool((late[-50:] < 0.0501).all())
    assert 0.3 < float((late < 0.3).double().mean()) < 0.8
    assert float(draw_limits(plan, 1.0, 0.2, generator).min()) >= 0.2  # never under what every group keeps


@cache
def precise_vit() -> ModelGraph:
    """One block in float64, whose stream is a group too."""
    torch.manual_seed(3)
    net = zoo.vit_cifar(2, width=16, depth=1, heads=2).double().eval()
    return as_placed(capture(net, torch.rand(2, 3, 32, 32).double(), prove=False), "wide")


@settings(max_examples=8)
@given(st.integers(0, 1000), st.floats(0.15, 0.9))
def test_norms_over_gated_streams_take_statistics_of_the_open_units(seed: int, share: float) -> None:
    graph = precise_vit()
    groups = placed(graph, "wide")
    layout = gate_layout(graph, groups)
    generator = torch.Generator().manual_seed(seed)
    gates = (torch.rand(max(stop for _, stop in layout.values()), generator=generator) < share).double()
    for start, stop in layout.values():
        gates[start] = 1.0
        assert stop > start
    inputs = torch.rand(3, 3, 32, 32, generator=generator).double()
    both = torch.stack([gates, torch.ones_like(gates), gates])
    whole = gate(graph, groups)(inputs, both)
    small = slice(graph, selection(gates, layout))
    assert int(small.tensors["norm.weight"].numel()) < 16 or bool((gates[:16] == 1).all())
    assert relative_difference(small(inputs[[0, 2]]), whole[[0, 2]]) <= 1e-12
    assert relative_difference(graph(inputs[1:2]), whole[1:2]) <= 1e-12


def test_norms_that_gates_can_t_follow_are_told() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y - y.mean(-1, keepdim=True))

    graph = through_norms(capture(Odd().eval(), torch.rand(2, 6), prove=False))
    (group,) = [g for g in graph.analysis.groups.values() if g.size == 8]
    assert "takes statistics over its units; gates know how for layer norm" in str(gateable(graph, group))


@pytest.mark.parametrize(("name", "placement"), [("basic", "paper"), ("vit", "wide")])
def test_one_model_of_several_tasks_gives_what_each_subnet_gives(name: str, placement: str) -> None:
    net = supernet(backbone(name), placement=placement)
    gates = net.assembler.gates(CODES[:3], torch.tensor([0.3, 0.2, 0.4]))
    graph, told = together(net, gates)
    assert told.shape[1] == int(gates.amax(0).sum()) < net.assembler.units
    inputs = torch.rand(2, *[int(size) for size in net.graph.inputs[0].shape[1:]])
    for place in range(3):
        shared = graph(inputs, told[place].expand(2, -1).contiguous())
        assert relative_difference([shared], [net.subnet(gates[place])(inputs)]) <= 1e-5
