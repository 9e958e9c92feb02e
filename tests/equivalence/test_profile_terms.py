"""Terms of a latency at unit counts, without building a subnet, are those of the subnet that is built."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sarto.devices import count, flops_by_node, peak_bytes
from sarto.devices.flops import RULES
from sarto.devices.profiling import ByteCounter
from sarto.devices.profiling.blocks import blocks
from sarto.devices.profiling.features import PRODUCTS, terms_of
from sarto.graph import capture, slice
from sarto.graph.selection import leading
from sarto.testing.random_nets import MOVES, random_net


def test_every_operator_that_counts_flops_has_a_term() -> None:
    assert set(PRODUCTS) == set(RULES)


@settings(max_examples=12)
@given(st.lists(st.sampled_from(MOVES), min_size=1, max_size=4), st.integers(0, 99))
def test_terms_at_counts_are_those_of_the_sliced_graph(moves: list[str], seed: int) -> None:
    model, example = random_net(moves, seed)
    graph = capture(model, example, prove=False)
    terms = terms_of(graph)
    rng = np.random.default_rng(seed)
    counts = {group: int(rng.integers((size + 1) // 2, size + 1)) for group, size in terms.groups.items()}
    sliced = slice(graph, leading(counts))
    own = terms_of(sliced)
    assert own.skeleton == terms.skeleton
    assert [(t.node, t.feature) for t in own.terms] == [(t.node, t.feature) for t in terms.terms]
    np.testing.assert_allclose(terms.at([counts])[0], own.at([{}])[0], rtol=1e-12)
    cost = count(sliced)
    assert list(ByteCounter(graph).bytes_at([counts])[:, 0]) == [cost.size_bytes, cost.memory_bytes]
    is_product = np.array([term.feature == "mflop" for term in terms.terms])
    assert round(terms.at([counts])[0][is_product].sum() * 1e6) == sum(flops_by_node(sliced).values())


def test_many_subnets_at_once_are_each_subnet_alone() -> None:
    model, example = random_net(["conv", "depthwise", "split", "residual"], 3)
    terms = terms_of(capture(model, example, prove=False), batch=4)
    rng = np.random.default_rng(0)
    counts = [{g: int(rng.integers(1, n + 1)) for g, n in terms.groups.items()} for _ in range(9)]
    for width in (1, 8):
        alone = np.stack([terms.at([row], width=width)[0] for row in counts])
        np.testing.assert_array_equal(terms.at(counts, width=width), alone)


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,io->bo", x, self.weight) @ torch.ones(7, 2)


def test_einsum_and_products_of_stored_tensors_are_counted() -> None:
    graph = capture(_Product(), torch.randn(2, 5), prove=False)
    terms = terms_of(graph)
    found = terms.at([{}])[0][[term.feature == "mflop" for term in terms.terms]].sum() * 1e6
    assert found == pytest.approx(sum(flops_by_node(graph).values()))


def test_a_batch_multiplies_products_and_activations_and_no_weights() -> None:
    model, example = random_net(["conv", "dense"], 0)
    graph = capture(model, example, prove=False)
    one, eight = terms_of(graph), terms_of(graph, batch=8)
    assert ByteCounter(graph, batch=8).bytes_at([{}])[1, 0] == peak_bytes(graph, batch=8)
    ratio = eight.at([{}])[0] / one.at([{}])[0]
    fixed = [term.feature in ("weight_mb", "calls") for term in one.terms]
    assert set(ratio[fixed]) == {1.0}
    moved = [term.feature in ("mflop", "read_mb", "write_mb") for term in one.terms]
    assert set(ratio[moved]) == {8.0}


def test_stairs_round_channels_up() -> None:
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 5, 1)), torch.randn(2, 3, 5, 5), prove=False
    )
    terms = terms_of(graph)
    products = [term.feature == "mflop" for term in terms.terms]
    counts = {"0.weight:0": 9}
    assert list(terms.at([counts], width=8)[0][products] * 1e6) == pytest.approx(
        [2 * 9 * 9 * 16 * 8, 2 * 9 * 8 * 16]
    )
    assert list(terms.at([counts])[0][products] * 1e6) == pytest.approx([2 * 9 * 9 * 9 * 3, 2 * 9 * 5 * 9])


def test_layers_go_from_weights_to_the_next_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    terms = terms_of(capture(model.eval(), torch.randn(2, 3, 5, 5), prove=False)).terms
    by_layer = {
        layer: {t.kind for t in terms if t.layer == layer} for layer in dict.fromkeys(t.layer for t in terms)
    }
    assert by_layer == {"0": {"convolution", "norm", "elementwise", "view"}, "4": {"linear"}}


@pytest.mark.parametrize("family", sorted({block.family for block in blocks()}))
def test_each_built_in_block_is_of_its_kind_and_computes(family: str) -> None:
    block = min(
        (found for found in blocks() if found.family == family), key=lambda found: int(np.prod(found.shape))
    )
    graph = block.graph()
    assert family in {term.kind for term in terms_of(graph).terms}
    whole = graph.inputs[0].dtype == "int64"
    given_input = torch.zeros(1, *block.shape, dtype=torch.int64) if whole else torch.rand(1, *block.shape)
    result = graph(given_input)
    assert isinstance(result, Tensor) and torch.isfinite(result).all()
