"""Chains of one order: what they share is fitted once, and each is what it would be alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sarto import zoo
from sarto.engines.reassembly import anatomy, assembly
from sarto.graph import ModelGraph, capture
from sarto.pipeline.chaining import Chains
from sarto.types import ChainNode

SAMPLES = f"sha256:{0:064d}"


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 9, 3), nn.Conv2d(9, 7, 3)
        self.fc = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.a, self.b):
            x = torch.relu(layer(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def donors() -> dict[str, ModelGraph]:
    torch.manual_seed(0)
    models = {"plain": _Plain(), "other": _Plain(), "cnn": zoo.cifar_resnet(n_classes=4, depth=8)}
    return {name: capture(model.eval(), torch.rand(2, 3, 16, 16)) for name, model in models.items()}


def chained(donors: dict[str, ModelGraph], *names: str) -> ChainNode:
    """Each block but the first begins at its donor's second place, and ends at its third."""
    places = {name: [place.value for place in anatomy(donors[name]).places] for name in names}
    joints = [(places[a][2 if i else 0], places[b][1]) for i, (a, b) in enumerate(pairwise(names))]
    return ChainNode(of=names, joints=joints, samples=SAMPLES)


def test_a_beginning_that_two_chains_share_is_fitted_once(
    donors: dict[str, ModelGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[object] = []
    fit = assembly.fit_stitch
    monkeypatch.setattr(assembly, "fit_stitch", lambda *given: fitted.append(given[:2]) or fit(*given))
    inputs, chains = torch.rand(40, 3, 16, 16), Chains()
    first, second = chained(donors, "plain", "cnn", "other"), chained(donors, "plain", "cnn", "plain")

    def made(by: Chains, node: ChainNode, read: str = "these") -> ModelGraph:
        return by.graph([(name, donors[name]) for name in node.of], node, inputs, read)

    made(chains, first)
    assert len(fitted) == 2
    shared = made(chains, second)
    assert len(fitted) == 3
    alone = made(Chains(), second)
    assert len(fitted) == 5
    assert shared.tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(shared.tensors[name], tensor) for name, tensor in alone.tensors.items())
    # Other images, or stitches of another kind, have nothing in common with these.
    made(chains, second, "others")
    assert len(fitted) == 7
    made(chains, second.replace(stitch=second.stitch.replace(lam=0.5)))
    assert len(fitted) == 9
