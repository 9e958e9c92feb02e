"""Where models can be parted: layouts, grids, prefix tokens, and costs that add up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sarto import zoo
from sarto.devices import count
from sarto.engines.reassembly.places import anatomy
from sarto.errors import GraphError
from sarto.graph import ModelGraph, block, capture, evaluate
from sarto.testing.pico import pico


def _graph(model: nn.Module, side: int = 16) -> ModelGraph:
    return capture(model.eval(), torch.randn(2, 3, side, side), prove=False)


@pytest.fixture(scope="module")
def donors() -> dict[str, ModelGraph]:
    return {
        "cnn": _graph(zoo.cifar_resnet(n_classes=4, depth=8), 16),
        "vit": _graph(zoo.vit_cifar(4, 24, 2, 3, 2.0), 32),
        "convnext": _graph(zoo.convnext_cifar(4), 32),
    }


@pytest.mark.parametrize("name", ["cnn", "vit", "convnext"])
def test_costs_of_any_block_follow_from_sums(donors: dict[str, ModelGraph], name: str) -> None:
    graph = donors[name]
    found = anatomy(graph)
    last = len(found.places)
    for start, end in ((None, 1), (0, 2), (1, last - 1), (last - 2, None), (None, None)):
        names = [None if i is None else found.places[i].value for i in (start, end)]
        want = count(block(graph, *names))
        cost = found.cost(start, end)
        assert (cost.params, cost.flops, cost.size_bytes) == (want.params, want.flops, want.size_bytes)


def test_layouts_grids_and_prefix_tokens_are_found(donors: dict[str, ModelGraph]) -> None:
    cnn = anatomy(donors["cnn"]).places
    assert {place.layout for place in cnn} == {"map", "vector"}
    assert cnn[0].grid == (16, 16) and cnn[-1].layout == "vector"
    vit = anatomy(donors["vit"]).places
    assert [place.prefix for place in vit if place.layout == "tokens"][:3] == [0, 1, 1]
    assert {place.grid for place in vit if place.layout == "tokens"} == {(8, 8)}
    convnext = anatomy(donors["convnext"]).places
    assert any(place.channels_last for place in convnext) and not all(
        place.channels_last for place in convnext
    )
    # The last map is read by a mean and then by a layer norm, which knows nothing of the map's axes.
    last = [place for place in convnext if place.layout == "map"][-1]
    assert not last.channels_last and last.grid[0] == last.grid[1]


@pytest.mark.parametrize("name", ["cnn", "vit", "convnext"])
def test_spread_and_pooled_activations_have_the_sizes_that_places_say(
    donors: dict[str, ModelGraph], name: str
) -> None:
    graph = donors[name]
    places = anatomy(graph).places
    side = 16 if name == "cnn" else 32
    _, kept = evaluate(graph, torch.randn(2, 3, side, side), watch={place.value for place in places})
    for place in places:
        spread = place.spread(kept[place.value])
        assert spread.shape == (2, *place.grid, place.channels)
        assert torch.allclose(place.pooled(kept[place.value]), spread.mean((1, 2)), atol=1e-6)
    wide = places[0].pooled(kept[places[0].value], 2)
    assert wide.shape == (2, 4 * places[0].channels)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(torch.relu(self.b(torch.relu(self.a(x)))))
        return self.fc(torch.relu(x))


def test_no_cut_parts_the_users_of_tied_weights() -> None:
    graph = capture(_Tied().eval(), torch.randn(2, 6), prove=False)
    found = anatomy(graph)
    assert len(found.places) == 1
    assert found.cost(None, 0).params + found.cost(0, None).params == count(graph).params


class _Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def test_a_model_without_cut_points_is_refused_in_words() -> None:
    graph = capture(_Joined().eval(), torch.randn(2, 6), prove=False)
    with pytest.raises(GraphError, match="no cut point"):
        anatomy(graph)


def test_blocks_go_forward() -> None:
    model, example = pico("residual")
    found = anatomy(capture(model, example, prove=False))
    with pytest.raises(GraphError, match="to a later one"):
        found.cost(1, 1)
