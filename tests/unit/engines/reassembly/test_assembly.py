"""Chains of blocks: exact where nothing is lost, counted before they are built, folded only where that is exact."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from sarto import zoo
from sarto.devices import count
from sarto.engines.reassembly.assembly import (
    Assembler,
    Donor,
    Making,
    Piece,
    folded,
    folds,
    reading_layer,
    tidy,
)
from sarto.engines.reassembly.places import anatomy
from sarto.engines.reassembly.stitches import Fit, blank_stitch, fit_stitch
from sarto.errors import GraphError, RequestError
from sarto.graph import ModelGraph, block, capture, prove, relative_difference, slice, uniform_counts
from sarto.graph.selection import leading


class _Plain(nn.Module):
    """A convolution net without shortcuts: stitches fold into it."""

    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.a, self.b = nn.Conv2d(width, 2 * width, 3, padding=padding), nn.Conv2d(2 * width, width, 1)
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.fc(x.mean((2, 3)))


def _donor(key: str, model: nn.Module, inputs: Tensor, seed: int) -> Donor:
    torch.manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.1 * torch.rand_like(tensor))
    graph = capture(model.double().eval(), inputs[:2], prove=False)
    return Donor(key, graph, anatomy(graph), inputs)


@pytest.fixture(scope="module")
def donors() -> tuple[Donor, ...]:
    torch.manual_seed(0)
    inputs = torch.randn(48, 3, 16, 16, dtype=torch.float64)
    return (
        _donor("cnn", zoo.cifar_resnet(n_classes=4, depth=8), inputs, 1),
        _donor("plain", _Plain(5, 1), inputs, 2),
        _donor("unpadded", _Plain(6, 0), inputs, 3),
        _donor("vit", _small_vit(), inputs, 4),
    )


def _small_vit() -> nn.Module:
    return zoo.vit(4, 16, 4, 12, 2, 2, 2.0)


def _chains(donors: tuple[Donor, ...]) -> list[tuple[Piece, ...]]:
    """Chains of three donors through all of them, cut early and late."""
    found = []
    for order in itertools.permutations(range(4), 3):
        cuts = [len(donors[d].anatomy.places) for d in order]
        found.append(
            (Piece(order[0], None, 0), Piece(order[1], 0, cuts[1] - 3), Piece(order[2], cuts[2] - 3, None))
        )
    return found


def test_predicted_costs_are_those_of_the_built_model(donors: tuple[Donor, ...]) -> None:
    for how in (
        Making(Fit(lam=1e-2)),
        Making(Fit(lam=1e-2, kernel=1, rank=2)),
        Making(Fit(lam=1e-2, kernel=1, bias=False)),
    ):
        maker = Assembler(donors, how)
        for pieces in _chains(donors)[::5]:
            built = count(maker.graph(pieces))
            cost = maker.cost(pieces)
            assert (cost.params, cost.flops, cost.size_bytes) == (built.params, built.flops, built.size_bytes)
            assert cost.memory_bytes == built.memory_bytes


def test_a_chain_computes_what_its_parts_do(donors: tuple[Donor, ...]) -> None:
    maker = Assembler(donors, Making(Fit(lam=1e-2)))
    for pieces in _chains(donors)[::4]:
        graph = maker.graph(pieces)
        want = maker.after(tidy(pieces))
        assert relative_difference(graph(donors[0].inputs), want) < 1e-12


@pytest.mark.parametrize("donor", range(4))
def test_a_donor_stitched_to_itself_gives_its_own_logits(donors: tuple[Donor, ...], donor: int) -> None:
    maker = Assembler(donors, Making(Fit(lam=0.0)))
    last = len(donors[donor].anatomy.places)
    pieces = (Piece(donor, None, 1), Piece(donor, 1, last - 2), Piece(donor, last - 2, None))
    graph = maker.graph(pieces, keep_cuts=True)
    own = donors[donor].graph(donors[donor].inputs)
    assert isinstance(own, Tensor)
    assert relative_difference(graph(donors[donor].inputs), own) < 1e-9


@pytest.mark.parametrize("donor", range(4))
def test_blocks_of_one_donor_in_a_row_are_the_donor_bit_by_bit(donors: tuple[Donor, ...], donor: int) -> None:
    maker = Assembler(donors)
    pieces = (Piece(donor, None, 1), Piece(donor, 1, 2), Piece(donor, 2, None))
    assert tidy(pieces) == (Piece(donor, None, None),)
    assert torch.equal(
        _run(maker.graph(pieces), donors[donor].inputs), _run(donors[donor].graph, donors[donor].inputs)
    )
    cost, own = maker.cost(pieces), count(donors[donor].graph)
    assert (cost.params, cost.flops) == (own.params, own.flops)


def test_folding_changes_nothing_but_the_number_of_layers(donors: tuple[Donor, ...]) -> None:
    pieces = (Piece(1, None, 0), Piece(2, 0, None))
    apart, together = (
        Assembler(donors, Making(Fit(lam=1e-2, kernel=1), fold=fold)) for fold in (False, True)
    )
    one, two = apart.graph(pieces), together.graph(pieces)
    assert relative_difference(_run(two, donors[0].inputs), _run(one, donors[0].inputs)) < 1e-12
    assert len(two.nodes) < len(one.nodes)
    assert count(two).params == together.cost(pieces).params < count(one).params


def test_a_bias_does_not_fold_into_a_padded_convolution_but_a_linear_map_does(
    donors: tuple[Donor, ...],
) -> None:
    source, target = donors[0].anatomy.places[1], donors[1].anatomy.places[0]
    part = block(donors[1].graph, target.value)
    maker = Assembler(donors)
    given, wanted = maker.own(0, 1), maker.own(1, 0)
    blank = blank_stitch(source, target, Fit(kernel=1))
    assert reading_layer(part, blank, linear=False) is None
    assert reading_layer(part, blank, linear=True) is not None
    assert not folds(part, source, target, Fit(kernel=1))
    stitch = fit_stitch(source, target, given, wanted, Fit(lam=1e-2, bias=False, kernel=1))
    merged = folded(part, stitch)
    want = part(_run(stitch.graph, given))
    assert isinstance(want, Tensor)
    assert relative_difference(_run(merged, given), want) < 1e-12


def test_the_stream_of_a_residual_net_takes_no_fold(donors: tuple[Donor, ...]) -> None:
    source, target = donors[1].anatomy.places[0], donors[0].anatomy.places[0]
    maker = Assembler(donors)
    stitch = fit_stitch(source, target, maker.own(1, 0), maker.own(0, 0), Fit(lam=1e-2, bias=False, kernel=1))
    with pytest.raises(GraphError, match="no layer after"):
        folded(block(donors[0].graph, target.value), stitch)


def test_a_fold_that_would_make_the_chain_larger_is_left_out(donors: tuple[Donor, ...]) -> None:
    wide, target = donors[0].anatomy.places[1], donors[2].anatomy.places[0]
    part = block(donors[2].graph, target.value)
    assert reading_layer(part, blank_stitch(wide, target, Fit(kernel=1)), linear=False) is not None
    assert not folds(part, wide, target, Fit(kernel=1))


def test_stitches_fitted_in_sequence_follow_the_chain_better(donors: tuple[Donor, ...]) -> None:
    pieces = (Piece(0, None, 1), Piece(1, 0, 1), Piece(2, 1, None))
    target = donors[2].graph(donors[2].inputs)
    assert isinstance(target, Tensor)
    errors = {}
    for sequential in (True, False):
        made = Assembler(donors, Making(Fit(lam=1e-3), sequential=sequential)).graph(pieces)
        errors[sequential] = float((_run(made, donors[0].inputs) - target).square().sum())
    assert errors[True] <= errors[False]


def test_what_chains_share_is_fitted_once(donors: tuple[Donor, ...]) -> None:
    maker = Assembler(donors)
    one = (Piece(0, None, 1), Piece(1, 0, 1), Piece(2, 1, None))
    maker.graph(one)
    first = maker.stitch(one[:2])
    maker.graph((*one[:2], Piece(3, 2, None)))
    assert maker.stitch(one[:2]) is first


def test_a_stitched_model_can_be_sliced_and_proves_itself(donors: tuple[Donor, ...]) -> None:
    graph = Assembler(donors, Making(Fit(lam=1e-2))).graph((Piece(0, None, 2), Piece(1, 0, None)))
    narrow = slice(graph, leading(uniform_counts(graph, 0.5)))
    assert count(narrow).params < count(graph).params
    assert not prove(graph).refused


def test_chains_that_are_none_are_refused(donors: tuple[Donor, ...]) -> None:
    maker = Assembler(donors)
    with pytest.raises(GraphError, match="begins at a donor's input"):
        maker.graph((Piece(0, 0, None),))
    with pytest.raises(GraphError, match="no place inside two donors"):
        maker.graph((Piece(0, None, None), Piece(1, None, None)))
    with pytest.raises(RequestError, match="same probe images"):
        Assembler((donors[0], Donor("x", donors[1].graph, donors[1].anatomy, donors[1].inputs[:3])))


def _run(graph: ModelGraph, inputs: Tensor) -> Tensor:
    found = graph(inputs)
    assert isinstance(found, Tensor)
    return found
