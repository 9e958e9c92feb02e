"""Benchmarks of reassembly: test images choose nothing, and a zoo holds what is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from benchmarks import runner
from benchmarks.reassembly import zero_gradient
from benchmarks.reassembly import zoo as members
from benchmarks.reassembly.zoo import SHIPPED, Member, donor, names, probes, usable
from benchmarks.slicepack.images import Images
from benchmarks.slicepack.originals import Recipe


class _Enough(Exception):
    """The skills are known; nothing need be built."""


@pytest.mark.parametrize("case", ["reassembly-zero-gradient", "reassembly-mixed", "reassembly-budgets"])
def test_the_skills_that_choose_a_chain_come_from_the_probe_images(
    case: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = runner.read_case(repository / f"benchmarks/cases/reassembly/{case}.yaml")
    function = runner.find_function(found.run)
    inputs, truth = probes(SHIPPED, 24)
    skills: list[list[float]] = []

    def told(donors: object, given: list[float], batch: int) -> None:
        skills.append(given)
        raise _Enough

    monkeypatch.setitem(function.__globals__, "zoo_of", told)
    monkeypatch.setattr(members, "_noise", lambda n, seed: (inputs[:n], truth[:n]))
    for shift in range(2):
        shifted = (inputs, (truth + shift) % 3)
        monkeypatch.setitem(function.__globals__, "tests", lambda *_, of=shifted: of)
        with pytest.raises(_Enough):
            function(**found.effective(smoke=True), seed=0)
    assert skills == [[_right(name, inputs, truth) for name in names(SHIPPED)]] * 2


def _right(name: str, inputs: Tensor, truth: Tensor) -> float:
    said = donor(SHIPPED, name, inputs).graph(inputs)
    assert isinstance(said, Tensor)
    return float((said.argmax(1) == truth).float().mean())


def test_a_zoo_of_members_that_are_not_trained_holds_none_of_them() -> None:
    assert usable(SHIPPED, ["vit"]) == names(SHIPPED)
    assert usable("cifar10", ["resnet32", "resnet20", "nobody"]) == ["resnet32", "resnet20"]


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_a_zoo_has_at_least_twelve_members_of_several_kinds(data: str) -> None:
    assert len(set(names(data))) >= 12
    assert {"vit", "convnext"} <= set(names(data)) & members.TRANSFORMERS
    assert all(len(member.sides(data)) >= member.epochs for member in members.TRAINED.values())


class _Mean(nn.Module):
    """Classifies the mean colour."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of plain colours instead of CIFAR-10, and a member that can learn it; the folder of the zoo."""
    labels = np.arange(512) % 10
    shades = np.random.default_rng(0).integers(0, 256, (10, 3))
    pixels = np.broadcast_to(shades[labels][:, None, None], (512, 32, 32, 3)).astype(np.uint8)
    images = Images(pixels, labels, tuple("abcdefghij"))
    monkeypatch.setattr(members, "FOLDER", tmp_path)
    monkeypatch.setattr(members, "train_and_pool", lambda data: (images, images))
    monkeypatch.setattr(members, "read", lambda data, split: images)
    monkeypatch.setitem(members.TRAINED, "mean", Member(Recipe(_Mean, 1.0), 20, 1, 0))
    return tmp_path


def test_a_member_is_trained_on_its_half_and_kept_with_what_it_took(colours: Path) -> None:
    members.train_member("cifar10", "mean")
    about = json.loads((colours / "cifar10-mean.json").read_text())
    assert about["n_images"] == 256 and about["epochs"] == len(about["image_sides"]) == 40
    assert about["accuracy_test"] > 0.5 and about["train_seconds"] >= 0
    assert not list(colours.glob("*.checkpoint"))
    images, labels = members.tests("cifar10", 2000)
    found = zero_gradient.accuracy_of(donor("cifar10", "mean", images).graph, images, labels)
    assert found == pytest.approx(about["accuracy_test"])
    members.graph_of.cache_clear()


def test_measuring_trains_nothing_and_adds_up_the_epochs(
    colours: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_cpu_seconds", lambda data, member, side, steps: steps * side / 1000)
    minutes = members.measure("cifar10", "mean", 0.1)
    assert minutes == pytest.approx(256 / 64 * (15 * 16 + 10 * 24 + 15 * 32) / 1000 / 60)
    assert "256 images, 40 epochs" in capsys.readouterr().out and not list(colours.iterdir())
