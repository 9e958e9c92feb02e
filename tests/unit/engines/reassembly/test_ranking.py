"""The cascade and the proxies on chains whose worth is known, and proxies against their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sarto.engines.reassembly.assembly import Assembler, Donor, Making, Piece
from sarto.engines.reassembly.astar import best_chains
from sarto.engines.reassembly.partition import Limits
from sarto.engines.reassembly.places import anatomy
from sarto.engines.reassembly.planning import Entry, Wish, Zoo, dissect, layout, with_r2
from sarto.engines.reassembly.probing import probe
from sarto.engines.reassembly.problem import Sides
from sarto.engines.reassembly.proxies import PROXIES, naswot, near, swap, zico
from sarto.engines.reassembly.ranking import cascade, final_features, kendall, likeness
from sarto.engines.reassembly.signatures import LAMS, loo_r2, loo_source, loo_target
from sarto.engines.reassembly.stitches import Fit
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import capture
from sarto.types import Budget


class _Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.a = (
            nn.Conv2d(3, width, 3, padding=1),
            nn.Conv2d(width, width + 2, 3, stride=2, padding=1),
        )
        self.b, self.c = nn.Conv2d(width + 2, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.a, self.b, self.c):
            x = torch.relu(layer(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def donors() -> tuple[Donor, ...]:
    torch.manual_seed(0)
    inputs = torch.randn(32, 3, 8, 8, dtype=torch.float64)
    found = []
    for seed, width in enumerate((6, 8, 7)):
        torch.manual_seed(seed)
        graph = capture(_Net(width).double().eval(), inputs[:2], prove=False)
        found.append(Donor(f"d{seed}", graph, anatomy(graph), inputs))
    return tuple(found)


def _zoo(donors: tuple[Donor, ...]) -> Zoo:
    entries, rows, at = [], [], 0
    for donor in donors:
        found = probe(donor.graph, donor.anatomy, donor.inputs, batch=16)
        rows.append(torch.from_numpy(found.signatures))
        n = len(found.signatures)
        entries.append(Entry(donor.key, donor.anatomy, torch.arange(at, at + n).numpy(), 0.5, donor.graph))
        at += n
    return Zoo(tuple(entries), torch.cat(rows).numpy())


def test_a_zoo_goes_all_the_way_from_probes_to_ranked_models(donors: tuple[Donor, ...]) -> None:
    zoo = _zoo(donors)
    found = layout(zoo, dissect(zoo, Limits(3, None)), Wish(sides=Sides(least_donors=2), fit=Fit(lam=1e-2)))
    maker = Assembler(donors, Making(Fit(lam=1e-2)))
    choices = best_chains(found.problem, 6).choices
    chains = [(found.chain(choice.path), choice) for choice in choices]
    labels = torch.arange(32) % 3
    ranked = cascade(maker, chains, checked=4, headed=2, labels=labels, n_classes=3)
    assert len(ranked) == len(choices)
    assert [item.accuracy_loto is not None for item in ranked] == [True, True] + [False] * (len(ranked) - 2)
    assert all(item.divergence is not None and item.divergence >= 0 for item in ranked[:4])
    assert all(item.agreement is None for item in ranked[4:])
    told = [item.divergence or 0.0 for item in ranked[2:4]]
    assert told == sorted(told)


def test_likeness_is_the_mean_divergence_and_the_share_of_equal_decisions() -> None:
    generator = torch.Generator().manual_seed(3)
    made, own = torch.randn(2, 40, 5, generator=generator, dtype=torch.float64)
    found = likeness(made, own)
    p, q = own.softmax(1), made.softmax(1)
    assert found.divergence == pytest.approx(float((p * (p / q).log()).sum() / 40), rel=1e-12)
    assert (
        found.agreement
        == sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(made, own, strict=True)) / 40
    )
    # It is not the divergence the other way round, and nothing is more like a model than itself.
    assert found.divergence != pytest.approx(likeness(own, made).divergence, rel=1e-3)
    assert likeness(own, own).divergence == 0.0 and likeness(own, own + 3.0).divergence < 1e-12
    assert math.isnan(likeness(made * math.inf, own).divergence)


def test_the_donor_itself_agrees_with_itself(donors: tuple[Donor, ...]) -> None:
    maker = Assembler(donors)
    last = len(donors[0].anatomy.places) - 1
    pieces = (Piece(0, None, 1), Piece(0, 1, None))
    choice = best_chains(
        layout(_zoo(donors), dissect(_zoo(donors), Limits(2, None)), Wish()).problem
    ).choices[0]
    (item,) = cascade(maker, [(pieces, choice)])
    assert item.agreement == 1.0
    assert item.divergence == pytest.approx(0.0, abs=1e-12)
    assert item.closeness == pytest.approx(1.0)
    assert torch.equal(final_features(maker, pieces), maker.own(0, last))


def test_the_problem_s_costs_are_those_of_the_built_chain(donors: tuple[Donor, ...]) -> None:
    zoo = _zoo(donors)
    budget = Budget(params=10**9, flops=10**12)
    found = layout(zoo, dissect(zoo, Limits(3, None)), Wish(budget=budget))
    maker = Assembler(donors, Making())
    for path in itertools.product(range(3), repeat=3):
        costs = dict(zip(found.problem.resources, found.problem.costs(path), strict=True))
        real = maker.cost(found.chain(path))
        assert (costs["params"], costs["flops"]) == (real.params, real.flops)


def test_directed_errors_are_those_of_leaving_out_and_change_the_losses(donors: tuple[Donor, ...]) -> None:
    zoo = _zoo(donors)
    parting = dissect(zoo, Limits(2, None))
    features = {}
    for entry, donor in zip(zoo.entries, donors, strict=True):
        for i, row in enumerate(entry.rows):
            features[int(row)] = probe(donor.graph, donor.anatomy, donor.inputs, batch=16).features[i]
    directed = with_r2(zoo, parting, features)
    ends = [int(e.rows[parting.bounds[i, 0, 1]]) for i, e in enumerate(zoo.entries)]
    starts = [int(e.rows[parting.bounds[i, 1, 0]]) for i, e in enumerate(zoo.entries)]
    x, y = (torch.from_numpy(features[row]) for row in (ends[0], starts[1]))
    want = max(loo_r2(loo_source(x, lam), loo_target(y)) for lam in LAMS)
    assert directed.r2[ends[0], starts[1]] == pytest.approx(want, abs=1e-12)
    plain, told = (layout(z, parting, Wish()).problem.joints[0].loss for z in (zoo, directed))
    assert not np.allclose(plain, told)
    assert np.array_equal(plain == 0, told == 0) or (told >= 0).all()


def test_no_classifier_that_knows_the_classes_is_told(donors: tuple[Donor, ...]) -> None:
    zoo = _zoo(donors)
    blind = Zoo(
        tuple(Entry(e.key, e.anatomy, e.rows, e.skill, e.graph, tail=False) for e in zoo.entries), zoo.vectors
    )
    with pytest.raises(InfeasibleError, match="no model's classifier knows"):
        layout(blind, dissect(blind, Limits(2, None)), Wish())
    with pytest.raises(RequestError, match="at least two models, this one has 1"):
        dissect(Zoo(zoo.entries[:1], zoo.vectors), Limits(2, None))


def test_kendalls_tau_of_known_lists() -> None:
    assert kendall([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(1.0)
    assert kendall([1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1]) == pytest.approx(-1.0)
    assert kendall([1, 1, 1], [1, 2, 3]) is None
    assert kendall([1, 2], [1, 2]) is None


def test_naswot_is_the_log_determinant_of_agreements(donors: tuple[Donor, ...]) -> None:
    graph, inputs = donors[0].graph, donors[0].inputs[:5]
    codes = []
    x = inputs
    for name in ("stem", "a", "b", "c"):
        stride = 2 if name == "a" else 1
        x = torch.relu(
            torch.nn.functional.conv2d(
                x, graph.tensors[f"{name}.weight"], graph.tensors[f"{name}.bias"], stride, 1
            )
        )
        codes.append((x > 0).flatten(1))
    signs = torch.cat(codes, 1)
    kernel = torch.tensor([[float((a == b).sum()) for b in signs] for a in signs], dtype=torch.float64)
    assert naswot(graph, inputs) == pytest.approx(
        float(torch.linalg.slogdet(kernel).logabsdet) / 5, rel=1e-12
    )
    patterns = sum(len({tuple(column.tolist()) for column in part.T}) for part in codes)
    assert swap(graph, inputs) == patterns


def test_near_is_largest_for_activations_of_full_rank(donors: tuple[Donor, ...]) -> None:
    graph, inputs = donors[0].graph, donors[0].inputs
    same = inputs[:1].expand(8, -1, -1, -1)
    assert near(graph, same) == pytest.approx(4.0, rel=1e-6)
    assert near(graph, inputs[:8]) > 8.0


def test_every_proxy_gives_a_number_and_changes_nothing(donors: tuple[Donor, ...]) -> None:
    graph = donors[1].graph
    before = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    for name, proxy in PROXIES.items():
        assert math.isfinite(proxy(graph, donors[1].inputs[:8])), name
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.tensors.items())
    with pytest.raises(RequestError, match="at least 2 batches"):
        zico(graph, donors[1].inputs[:1])
