"""Training chains: only what a scope names changes, losses fall, and an interrupted run ends at the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sarto.engines.reassembly.assembly import Assembler, Donor, Making, Piece
from sarto.engines.reassembly.places import anatomy
from sarto.engines.reassembly.stitches import Fit
from sarto.engines.reassembly.tuning import Tuning, trained_names, tune_chain
from sarto.errors import RequestError
from sarto.graph import ModelGraph, capture, evaluate, features


class _Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def chain() -> tuple[ModelGraph, Tensor, Tensor]:
    """A chain of two nets, images, and what its classifier's donor reads on them."""
    torch.manual_seed(0)
    inputs = torch.randn(24, 3, 6, 6)
    donors = []
    for width in (5, 6):
        graph = capture(_Net(width).eval(), inputs[:2], prove=False)
        donors.append(Donor(f"w{width}", graph, anatomy(graph), inputs))
    graph = Assembler(donors, Making(Fit(lam=1.0))).graph((Piece(0, None, 1), Piece(1, 1, None)))
    _, kept = evaluate(donors[1].graph, inputs, watch=[features(donors[1].graph).value])
    return graph, inputs, kept[features(donors[1].graph).value]


def _changed(before: ModelGraph, after: ModelGraph) -> set[str]:
    return {name for name, tensor in before.tensors.items() if not torch.equal(tensor, after.tensors[name])}


@pytest.mark.parametrize("scope", ["stitches", "frozen", "full"])
def test_only_what_the_scope_names_is_trained(chain: tuple[ModelGraph, Tensor, Tensor], scope: str) -> None:
    graph, inputs, _ = chain
    how = Tuning(scope=scope, steps=3, batch=8)  # type: ignore[arg-type]
    tuned, _ = tune_chain(graph, inputs, how, labels=torch.arange(24) % 3)
    names = trained_names(graph, scope)  # type: ignore[arg-type]
    assert _changed(graph, tuned) <= names
    assert {name for name in names if name.endswith("weight")} <= _changed(graph, tuned)
    stitches = {name for name in graph.parameters if name.startswith("s1.")}
    assert stitches <= names
    assert ("b0.stem.weight" in names) == (scope != "stitches")
    assert ("b0.a.weight" in names) == (scope == "full")


def test_features_are_matched_better_without_any_label(chain: tuple[ModelGraph, Tensor, Tensor]) -> None:
    graph, inputs, wanted = chain
    tuned, result = tune_chain(graph, inputs, Tuning(steps=60, batch=24, rate=1e-2), wanted=wanted)
    read = features(graph).value
    errors = [
        float((evaluate(g, inputs, watch=[read])[1][read] - wanted).square().mean()) for g in (graph, tuned)
    ]
    assert errors[1] < 0.7 * errors[0]
    assert result.stopped is None


def test_an_interrupted_training_ends_at_the_same_bits(
    chain: tuple[ModelGraph, Tensor, Tensor], tmp_path: Path
) -> None:
    graph, inputs, wanted = chain
    how = Tuning(steps=8, batch=8)
    whole, _ = tune_chain(graph, inputs, how, wanted=wanted)
    calls = []

    class _StopError(Exception):
        pass

    def breaking(images: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise _StopError
        return images

    labels = torch.arange(24) % 3
    with pytest.raises(_StopError):
        tune_chain(graph, inputs, how, labels=labels, augment=breaking, folder=tmp_path)
    resumed, result = tune_chain(graph, inputs, how, labels=labels, folder=tmp_path)
    straight, _ = tune_chain(graph, inputs, how, labels=labels)
    assert result.resumed_from > 0
    assert all(torch.equal(straight.tensors[name], tensor) for name, tensor in resumed.tensors.items())
    assert whole.tensors.keys() == straight.tensors.keys()


def test_what_can_not_be_trained_is_told(chain: tuple[ModelGraph, Tensor, Tensor]) -> None:
    graph, inputs, wanted = chain
    with pytest.raises(RequestError, match="give one"):
        tune_chain(graph, inputs)
    with pytest.raises(RequestError, match="give one"):
        tune_chain(graph, inputs, labels=torch.zeros(24, dtype=torch.int64), wanted=wanted)
    plain = capture(_Net(4).eval(), inputs[:2], prove=False)
    with pytest.raises(RequestError, match="no stitches of its own"):
        tune_chain(plain, inputs, labels=torch.zeros(24, dtype=torch.int64))
