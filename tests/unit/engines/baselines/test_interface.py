"""What baselines are given and give back: the same samples, a budget that is kept, words where it can't be done."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sarto.engines.baselines import BASELINES, Budget, Given, Original, left_out_folds
from sarto.engines.baselines.descent import Views, descend
from sarto.engines.baselines.given import Meter, shared_out
from sarto.errors import GraphError, RequestError, ShapeError
from sarto.graph import block, capture, features
from sarto.training import PackState, draw_weights

SIDE, COLOURS = 8, 4


class Small(nn.Module):
    """Two convolutions with batch norm on 8x8 images."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.one, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 10, 3, padding=1)
        self.fc = nn.Linear(10, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.bn(self.one(x))), 2)
        return self.fc(torch.relu(self.two(x)).mean((2, 3)))


def images(label: int, k: int, seed: int) -> Tensor:
    """k noisy images of one colour."""
    generator = torch.Generator().manual_seed(1000 * seed + label)
    colour = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.8, 0.8, 0.1]])[label]
    return colour.reshape(1, 3, 1, 1) + 0.2 * torch.randn(k, 3, SIDE, SIDE, generator=generator)


def donor(name: str, classes: tuple[str, ...], seed: int) -> Original:
    torch.manual_seed(seed)
    model = Small(len(classes)).eval()
    nn.init.uniform_(model.bn.weight, 0.5, 1.5)
    nn.init.uniform_(model.bn.bias, -0.1, 0.1)
    graph = capture(model, torch.rand(2, 3, SIDE, SIDE))
    return Original(name, graph, classes, torch.cat([images(label, 4, 5) for label in range(COLOURS)]))


def given(n_donors: int = 2, k: int = 4, **more: object) -> Given:
    donors = tuple(
        donor(f"d{i}", ("red", "green") if i % 2 == 0 else ("blue", "yellow"), i) for i in range(n_donors)
    )
    inputs = torch.cat([images(label, k, 0) for label in range(3)])
    labels = torch.arange(3).repeat_interleave(k)
    return Given(donors, ("red", "green", "blue"), inputs, labels, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_each_gives_scores_of_the_classes_and_counts_what_runs(name: str) -> None:
    said: list[tuple[int, int]] = []
    order = given(budget=Budget(steps=12), progress=lambda _, done, total: said.append((done, total)))
    found = BASELINES[name](order)
    tested = torch.cat([images(label, 10, 1) for label in range(3)])
    truth = torch.arange(3).repeat_interleave(10)
    assert found.scores(tested).shape == (30, 3)
    assert float((found.predict(tested) == truth).float().mean()) > 0.6
    assert torch.allclose(found.scores(tested), torch.as_tensor(found.graph(tested)), atol=1e-5)
    assert found.params == sum(found.graph.tensors[name].numel() for name in found.graph.parameters)
    assert found.steps == (0 if name in ("probe", "ensemble") else 12)
    assert len(said) == found.steps
    assert all(done <= total for done, total in said)
    assert found.seconds > 0


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_the_same_seed_gives_the_same_scores_and_donors_stay_as_they_are(name: str) -> None:
    order = given(budget=Budget(steps=6))
    before = [{key: tensor.clone() for key, tensor in one.graph.tensors.items()} for one in order.donors]
    tested = images(0, 4, 9)
    first, second = (BASELINES[name](order).scores(tested) for _ in range(2))
    assert torch.equal(first, second)
    for one, kept in zip(order.donors, before, strict=True):
        assert all(torch.equal(one.graph.tensors[key], tensor) for key, tensor in kept.items())


def test_one_donor_and_one_sample_a_class_are_enough() -> None:
    for name, baseline in BASELINES.items():
        found = baseline(given(n_donors=1, k=1, budget=Budget(steps=3)))
        assert bool(torch.isfinite(found.scores(images(1, 2, 3))).all()), name


def test_probe_and_ensemble_have_the_head_of_packs() -> None:
    order = given(n_donors=2)
    bodies = [block(one.graph, end=features(one.graph).value) for one in order.donors]
    parts = {str(place): torch.as_tensor(body(order.inputs)) for place, body in enumerate(bodies)}
    head = PackState.of(parts, order.labels, order.classes).head(seed=order.seed).head
    tested = images(1, 6, 2)
    wanted = head.scores(torch.cat([torch.as_tensor(body(tested)) for body in bodies], 1)) / head.temperature
    assert torch.allclose(BASELINES["ensemble"](order).scores(tested), wanted, atol=1e-4)
    alone = [
        PackState.of({"0": part}, order.labels, order.classes).head(seed=order.seed)
        for part in parts.values()
    ]
    best = max(range(2), key=lambda place: alone[place].loto.accuracy or 0.0)
    said = alone[best].head.predict(torch.as_tensor(bodies[best](tested)))
    assert torch.equal(BASELINES["probe"](order).predict(tested), said)


def test_a_probe_is_one_donor_and_an_ensemble_all_of_them() -> None:
    order = given(n_donors=3)
    bodies = []
    for one in order.donors:
        head = features(one.graph)
        whole = sum(one.graph.tensors[name].numel() for name in one.graph.parameters)
        bodies.append(whole - (head.width + 1) * head.n_outputs)
    assert BASELINES["probe"](order).params in {body + 11 * 3 for body in bodies}
    assert BASELINES["ensemble"](order).params == sum(bodies) + 31 * 3


def test_what_is_wrong_with_an_order_is_said_all_at_once() -> None:
    order = given()
    with pytest.raises(RequestError, match=r"no samples of green.*budget.steps must be above 0, got 0"):
        Given(
            order.donors, order.classes, order.inputs, torch.tensor([0] * 6 + [2] * 6), budget=Budget(steps=0)
        )
    with pytest.raises(RequestError, match=r"labels must lie in 0\.\.1"):
        Given(order.donors, ("red", "green"), order.inputs, order.labels)
    with pytest.raises(RequestError, match="at least one donor"):
        Given((), order.classes, order.inputs, order.labels)
    with pytest.raises(ShapeError, match="one label for each"):
        Given(order.donors, order.classes, order.inputs, order.labels[:-1])


def test_parts_of_a_training_are_cut_alike() -> None:
    assert shared_out([100, 60, 60], None) == [100, 60, 60]
    assert shared_out([100, 60, 60], 22) == [10, 6, 6]
    assert shared_out([1, 1, 1], 2) == [1, 1, 0]
    for total in range(1, 40):
        assert sum(shared_out([7, 5, 3, 1], total)) == total


def test_seconds_end_a_training_and_the_note_says_so() -> None:
    found = BASELINES["camkd"](given(budget=Budget(seconds=1e-9)))
    assert found.steps == 0
    assert "the budget of 1e-09 s ended it" in found.note


def test_a_loss_that_is_not_finite_ends_at_good_weights() -> None:
    layer = nn.Linear(2, 1)
    views, values = Views.of(torch.ones(4, 2)), iter([1.0, 1.0, float("nan")])
    seen: list[Tensor] = []

    def loss(at: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(layer.weight.detach().clone())
        return layer(views.inputs[at]).square().mean() * next(values)

    meter = Meter(Budget(), 5)
    ended = descend(
        views,
        loss,
        torch.optim.SGD(layer.parameters(), lr=0.1),
        steps=5,
        batch=4,
        generator=torch.Generator().manual_seed(0),
        meter=meter,
        what="steps",
    )
    assert ended == "a loss that was not finite ended it after 2 of 5 steps"
    assert torch.equal(layer.weight, seen[1])
    assert meter.steps == 2


def test_the_step_size_falls_where_it_should() -> None:
    layer, rates = nn.Linear(1, 1), list[float]()
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    views = Views.of(torch.zeros(2, 1))

    def loss(at: tuple[Tensor, Tensor]) -> Tensor:
        rates.append(optimiser.param_groups[0]["lr"])
        return layer(views.inputs[at]).sum() * 0

    descend(
        views,
        loss,
        optimiser,
        steps=8,
        batch=2,
        generator=torch.Generator(),
        meter=Meter(Budget(), 8),
        what="",
        drops=(0.5, 0.75),
    )
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_only_images_have_a_mirrored_view() -> None:
    assert Views.of(torch.rand(5, 3, 4, 4)).inputs.shape == (2, 5, 3, 4, 4)
    assert Views.of(torch.zeros(5, 7, dtype=torch.int64)).inputs.shape == (1, 5, 7)
    assert Views.of(torch.rand(5, 7)).inputs.shape == (1, 5, 7)
    picture = torch.rand(1, 3, 4, 4)
    said = Views.of(picture).said(lambda x: x.flatten(1))
    assert torch.equal(said[1, 0].reshape(3, 4, 4), picture[0].flip(2))


def test_new_weights_have_the_spread_of_their_readers() -> None:
    module = nn.Sequential(nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128))
    module[1].running_mean.fill_(3.0)
    draw_weights(module, torch.Generator().manual_seed(1))
    assert float(module[0].weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert bool((module[1].weight == 1).all()) and bool((module[0].bias == 0).all())
    assert bool((module[1].running_mean == 0).all()) and bool((module[1].running_var == 1).all())


def test_folds_leave_each_sample_out_once_and_every_class_some() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    for rest, fold in left_out_folds(labels):
        assert set(labels[rest].tolist()) == {0, 1, 2}
        assert sorted([*rest.tolist(), *fold.tolist()]) == list(range(8))
    out = torch.cat([fold for _, fold in left_out_folds(torch.arange(3).repeat(6))])
    assert sorted(out.tolist()) == list(range(18))


class Words(nn.Module):
    """A bag of embedded tokens under a hidden layer."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(12, 6), nn.Linear(6, 8)
        self.fc = nn.Linear(8, n_classes)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(torch.relu(self.hidden(self.embed(ids).mean(1))))


def test_donors_of_token_ids_are_probed_tuned_and_teach() -> None:
    torch.manual_seed(3)
    donors = tuple(
        Original(f"w{i}", capture(Words(2).eval(), torch.zeros(2, 5, dtype=torch.int64)), classes)
        for i, classes in enumerate((("a", "b"), ("c", "d")))
    )
    ids = torch.cat([4 * label + torch.randint(0, 4, (5, 5)) for label in range(3)])
    order = Given(donors, ("a", "b", "c"), ids, torch.arange(3).repeat_interleave(5), budget=Budget(steps=4))
    for name in ("probe", "ensemble", "finetune", "camkd"):
        assert BASELINES[name](order).scores(ids).shape == (15, 3)
    with pytest.raises(GraphError, match="order with other baselines"):
        BASELINES["netgraft"](order)
