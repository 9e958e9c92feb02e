"""Gates: the paper's formulas by hand, and the order's promises on random weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sarto.engines.factory.codes import check_limits, limit_code
from sarto.engines.factory.gates import (
    cut_to_limit,
    hard_gate,
    limit_loss,
    lowest_limit,
    mixed_gates,
    most_open,
    nested_gates,
    soft_gate,
)
from sarto.errors import RequestError

LAYOUT = {"a": (0, 3), "b": (3, 5), "c": (5, 12)}
UNITS = 12


def test_soft_gate_by_hand() -> None:
    weights = torch.tensor([-10.0, 0.0, 1.0, 10.0], dtype=torch.float64)
    by_hand = [0.0, 0.5, 1.2 / (1 + 2.718281828459045**-1) - 0.1, 1.0]
    assert torch.allclose(soft_gate(weights), torch.tensor(by_hand, dtype=torch.float64))


def test_hard_gate_has_the_soft_gradient() -> None:
    weights = torch.tensor([-3.0, -1.0, 0.5, 3.0], requires_grad=True)
    hard_gate(weights).sum().backward()
    hard = weights.grad
    again = weights.detach().clone().requires_grad_()
    soft_gate(again).sum().backward()
    assert hard_gate(weights).tolist() == [0, 0, 1, 1]
    assert torch.equal(hard, again.grad)
    assert hard[0] == 0 and hard[1] > 0  # beyond ln 11 = 2.398 nothing comes back


def test_half_of_the_samples_take_hard_gates() -> None:
    weights = torch.tensor([[0.3, -0.3], [0.3, -0.3]])
    gates = mixed_gates(weights, torch.tensor([True, False]))
    assert gates[0].tolist() == [1.0, 0.0]
    assert torch.allclose(gates[1], soft_gate(weights[1]))


def test_limit_loss_by_hand() -> None:
    gates = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    found = limit_loss(gates, torch.tensor([0.25, 0.25, 1.0]))
    assert found.tolist() == [0.0625, 0.0, 0.0]


@given(st.integers(1, 400), st.integers(1, 400))
def test_as_many_open_as_a_limit_says(units: int, n: int) -> None:
    n = min(n, units)
    limit = torch.tensor([n / units])  # float32, so perhaps a little less than n / units
    assert most_open(limit.double(), units).item() in (n, n - 1)
    assert most_open(torch.tensor([n / units], dtype=torch.float64), units).item() == n
    assert most_open(limit.double(), units).item() / units <= float(limit) * (1 + 1e-9) + 1e-11 or n == 1


@given(st.integers(0, 10_000), st.floats(0.26, 1.0), st.floats(0.26, 1.0))
def test_lower_limits_open_a_subset(seed: int, one: float, other: float) -> None:
    scores = torch.randn(3, UNITS, generator=torch.Generator().manual_seed(seed))
    low, high = sorted((one, other))
    small = nested_gates(scores, torch.full((3,), low), LAYOUT, least=1, temperature=0.5).round()
    large = nested_gates(scores, torch.full((3,), high), LAYOUT, least=1, temperature=0.5).round()
    assert bool((small <= large).all())
    assert bool((small.mean(1) <= low + 1e-6).all())
    assert bool((small.sum(1) == most_open(torch.tensor([low]), UNITS)).all())
    for start, stop in LAYOUT.values():
        assert bool((small[:, start:stop].sum(1) >= 1).all())


@given(st.integers(0, 10_000), st.floats(0.26, 1.0))
def test_cut_gates_are_the_open_ones_with_the_largest_weights(seed: int, limit: float) -> None:
    weights = torch.randn(1, UNITS, generator=torch.Generator().manual_seed(seed))
    found = cut_to_limit(weights, torch.tensor([limit]), LAYOUT, least=1)[0].bool()
    # By another road: the best of each group first, then the open ones from the largest weight down.
    row = weights[0].tolist()
    kept = [max(range(start, stop), key=row.__getitem__) for start, stop in LAYOUT.values()]
    rest = sorted(
        (u for u in range(UNITS) if u not in kept and row[u] > 0), key=row.__getitem__, reverse=True
    )
    room = int(limit * UNITS + 1e-6)
    n_positive = max(len(kept), sum(w > 0 for w in row))
    by_hand = set(kept + rest[: max(0, min(room, n_positive) - len(kept))])
    missing = min(room, n_positive) - len(by_hand)
    assert by_hand <= set(torch.nonzero(found).flatten().tolist())
    assert int(found.sum()) == len(by_hand) + max(0, missing)
    assert int(found.sum()) <= room


def test_nested_gradient_pushes_scores_around_the_threshold() -> None:
    scores = torch.linspace(-1, 1, UNITS)[None].clone().requires_grad_()
    nested_gates(scores, torch.tensor([0.5]), LAYOUT, least=1, temperature=0.1).sum().backward()
    assert bool((scores.grad > 0).all())
    far, near = scores.grad[0, 0], scores.grad[0, 6]
    assert near > 10 * far


def test_limits_without_room_are_refused() -> None:
    assert lowest_limit(LAYOUT, 1) == 0.25
    with pytest.raises(RequestError, match=r"smallest limit is 0\.25"):
        nested_gates(torch.zeros(1, UNITS), torch.tensor([0.2]), LAYOUT, least=1, temperature=1.0)
    with pytest.raises(RequestError, match=r"in \(0, 1\], got 1.5"):
        check_limits(torch.tensor([0.5, 1.5]))
    with pytest.raises(RequestError, match="got nan"):
        check_limits(torch.tensor([float("nan")]))


def test_limit_codes_differ_and_stay_in_range() -> None:
    codes = limit_code(torch.arange(1, 101) / 100, 32)
    assert codes.shape == (100, 32)
    assert bool((codes.abs() <= 1).all())
    far = torch.cdist(codes, codes) + torch.eye(100)
    assert float(far.min()) > 0.3
    with pytest.raises(RequestError, match="even size"):
        limit_code(torch.tensor([0.5]), 31)
