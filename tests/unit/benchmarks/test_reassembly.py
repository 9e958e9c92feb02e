"""Benchmarks of reassembly: test images choose nothing, and a zoo holds what is there."""

from __future__ import annotations

import pytest
from torch import Tensor

from benchmarks.reassembly import zero_gradient
from benchmarks.reassembly.zoo import SHIPPED, donor, names, probes, usable


class _Enough(Exception):
    """The skills are known; nothing need be built."""


def test_the_skills_that_choose_a_chain_come_from_the_probe_images(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, truth = probes(SHIPPED, 13)
    skills: list[list[float]] = []

    def told(donors: object, given: list[float], batch: int) -> None:
        skills.append(given)
        raise _Enough

    monkeypatch.setattr(zero_gradient, "zoo_of", told)
    for shift in range(3):
        monkeypatch.setattr(zero_gradient, "tests", lambda *_, shift=shift: (inputs, (truth + shift) % 3))
        with pytest.raises(_Enough):
            zero_gradient.same_depth(
                data=SHIPPED, members=[], n_probes=13, n_blocks=2, n_chains=1, n_tested=13, seed=0
            )
    assert skills == [[_right(name, inputs, truth) for name in names(SHIPPED)]] * 3


def _right(name: str, inputs: Tensor, truth: Tensor) -> float:
    said = donor(SHIPPED, name, inputs).graph(inputs)
    assert isinstance(said, Tensor)
    return float((said.argmax(1) == truth).float().mean())


def test_a_zoo_of_members_that_are_not_trained_holds_none_of_them() -> None:
    assert usable(SHIPPED, ["vit"]) == names(SHIPPED)
    assert usable("cifar10", ["resnet32", "resnet20", "nobody"]) == ["resnet32", "resnet20"]
