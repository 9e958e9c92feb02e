"""The paper's order at low limits: which units stay, and that training sees what is delivered."""

from __future__ import annotations

import pytest
import torch

from sarto.engines.factory.assembler import Assembler
from sarto.engines.factory.gates import bounded, soft_gate
from sarto.types import AssemblerSettings

LAYOUT = {"a": (0, 20), "b": (20, 60), "c": (60, 100)}
CODES, LIMITS = torch.eye(4), torch.tensor([0.05, 0.1, 0.3, 0.9])


def assembler(spread: float, shift: float = 0.0, **settings: object) -> Assembler:
    """An assembler whose weights are spread so far around a value."""
    torch.manual_seed(0)
    shape = AssemblerSettings(order="paper", hidden=8, gaters=2, limit_dims=8, **settings)  # type: ignore[arg-type]
    made = Assembler(4, LAYOUT, shape).eval()
    with torch.no_grad():
        for layer in made.layers:
            layer.bias.copy_(shift + spread * torch.randn(len(layer.bias)))  # type: ignore[arg-type, union-attr]
    return made


def test_of_units_that_are_all_wide_open_the_most_important_stay() -> None:
    made = assembler(3.0, 20.0)
    weights = made.weights(CODES, LIMITS).detach()
    assert float(weights.min()) > made.settings.clamp
    for row, gates in zip(weights, made.gates(CODES, LIMITS), strict=True):
        # The best of each group stay at any limit; the others by their weight, whatever the group.
        first = {start + int(row[start:stop].argmax()) for start, stop in LAYOUT.values()}
        rest = [unit for unit in row.argsort(descending=True).tolist() if unit not in first]
        wanted = first | set(rest[: int(gates.sum()) - len(first)])
        assert set(gates.nonzero().flatten().tolist()) == wanted
    assert len({int(unit) // 20 for unit in made.gates(CODES, LIMITS)[1].nonzero()}) > 2


@pytest.mark.parametrize(("spread", "shift"), [(0.5, 0.0), (3.0, 20.0), (0.5, -5.0)])
def test_samples_that_are_cut_train_with_the_gates_that_are_delivered(spread: float, shift: float) -> None:
    made = assembler(spread, shift)
    clipped = torch.tensor([True, True, True, False])
    gates, _ = made.training_gates(CODES, LIMITS, hard=~clipped, clipped=clipped)
    delivered = made.gates(CODES, LIMITS)
    assert torch.equal(gates[:3], delivered[:3])
    for start, stop in LAYOUT.values():
        assert bool((delivered[:, start:stop].sum(1) >= 1).all())  # also where all weights are under 0
    gates[:3].sum().backward()
    changed = made.layers[0].bias.grad
    assert changed is not None and bool((changed[delivered[:3, :20].amax(0) > 0] != 0).all())


def test_soft_gates_read_bounded_weights() -> None:
    weights = torch.tensor([-9.0, -1.0, 0.5, 9.0], requires_grad=True)
    read = bounded(weights, 2.3)
    assert read.tolist() == pytest.approx([-2.3, -1.0, 0.5, 2.3])
    read.sum().backward()
    assert weights.grad is not None and weights.grad.tolist() == pytest.approx([0.1, 1, 1, 0.1])
    assert float(soft_gate(read.detach())[-1]) < 1, "its gradient is not gone"
