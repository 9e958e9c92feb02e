"""Backbones of supernets: weights that fit or don't, and what is held against the data before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sarto import Market, Samples, zoo
from sarto.engines.factory.spaces.attrod import Drawn, drawn
from sarto.errors import RequestError
from sarto.graph import ModelGraph, capture
from sarto.pipeline.backbones import backbone_graph, check_backbone, learnware_notes
from sarto.types import Backbone, Preprocessing, TaskSpace

SMALL = {"in_channels": 1, "depths": [1, 1], "width": 4, "stem": "cifar"}


def space(**change: Any) -> TaskSpace:
    plain = {"name": "few", "groups": {"what": ["a", "b"]}, "function": "none:none", "answers": ["no", "yes"]}
    return TaskSpace.parse({**plain, **change})


def small(n_classes: int = 2) -> torch.nn.Module:
    torch.manual_seed(5)
    return zoo.resnet(n_classes, 1, (1, 1), 4, False, "cifar").eval()


def read(path: Path) -> tuple[ModelGraph, str, list[str]]:
    notes: list[str] = []
    backbone = Backbone.parse({"zoo": "resnet", "arguments": SMALL, "weights": str(path)})
    graph, origin = backbone_graph(backbone, space(), torch.rand(2, 1, 8, 8), None, notes.append)
    return graph, origin, notes


def test_weights_that_fit_are_read_and_the_fresh_ones_are_named(tmp_path: Path) -> None:
    other = small(n_classes=7)  # the trunk fits, the classifier has another shape
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    graph, origin, notes = read(tmp_path / "w.safetensors")
    state = small().state_dict()
    n = sum(not name.endswith("num_batches_tracked") for name in state)
    assert origin == f"zoo resnet, {n - 2} of {n} tensors from w.safetensors; fresh: fc.weight ([7, 8] in the " \
        "file, [2, 8] here), fc.bias ([7] in the file, [2] here)"  # fmt: skip
    assert notes == [f"backbone.weights: {origin.partition(', ')[2]}"]
    assert torch.equal(graph.tensors["conv1.weight"], other.state_dict()["conv1.weight"])
    save_file(small().state_dict(), tmp_path / "all.safetensors")
    assert read(tmp_path / "all.safetensors")[1] == f"zoo resnet, {n} of {n} tensors from all.safetensors"


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    renamed = {f"module.{name}": value for name, value in small().state_dict().items()}
    save_file({**renamed, "bn1.bias": torch.zeros(4)}, tmp_path / "w.safetensors")
    with pytest.raises(
        RequestError, match=r"holds 0% of this network's parameters.*module\.bn1.*other names"
    ):
        read(tmp_path / "w.safetensors")
    codes = {
        name: value.to(torch.int8) if value.is_floating_point() else value
        for name, value in small().state_dict().items()
    }
    save_file(codes, tmp_path / "int8.safetensors")
    with pytest.raises(RequestError, match="holds 0% of this network's parameters"):
        read(tmp_path / "int8.safetensors")


def test_pickles_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"it may hold code that runs when it is read.*convert it once"):
        read(tmp_path / "w.pt")
    (tmp_path / "w.pt").rename(tmp_path / "pickled.safetensors")
    with pytest.raises(RequestError, match="it may hold code that runs when it is read"):
        read(tmp_path / "pickled.safetensors")
    save_file(small().state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"backbone\.weights: .*w\.safetensors can't be read"):
        read(tmp_path / "w.safetensors")
    with pytest.raises(RequestError, match=r"nowhere\.safetensors can't be read"):
        read(tmp_path / "nowhere.safetensors")


class Scaled:
    """Data that say how they draw."""

    def __init__(self, mean: object = None, std: object = None) -> None:
        self.mean, self.std = mean, std

    def draw(
        self, tasks: Sequence[frozenset[str]], split: str, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(tasks), 1, 8, 8), torch.zeros(len(tasks), dtype=torch.int64)


@pytest.mark.parametrize(
    ("mean", "std", "wrong"),
    [
        (0.5, 0.5, []),
        (None, None, []),
        ([0.5], (0.5,), []),
        (0.485, 0.5, ["mean"]),
        ([0.485], torch.tensor([0.229]), ["mean", "std"]),
        (0.0, 1, ["mean", "std"]),
    ],
)
def test_data_that_draw_otherwise_than_preprocessing_says_are_refused(
    mean: object, std: object, wrong: list[str]
) -> None:
    graph = capture(small(), torch.rand(2, 1, 8, 8), prove=False)
    asked = Preprocessing(channels=1, mean=(0.5,), std=(0.5,))
    data = Scaled(mean, std)
    inputs, answers = data.draw([frozenset("a")] * 2, "train", torch.Generator())
    if not wrong:
        check_backbone(graph, space(), asked, data, inputs, answers)
        return
    with pytest.raises(RequestError) as caught:
        check_backbone(graph, space(), asked, data, inputs, answers)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        f"preprocessing.{name}" for name in wrong
    ]
    assert "is [0.5], the data of 'few' draw with [" in caught.value.problems[0]


def detector(net: torch.nn.Module, data: Drawn) -> None:
    """Check a network as the backbone of a detector."""
    objects = space(kind="detection", groups={"category": ["car", "person"]}, answers=["object"])
    inputs, boxes = data.draw([frozenset({"car"})] * 2, "train", torch.Generator().manual_seed(0))
    asked = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
    check_backbone(capture(net.eval(), inputs, prove=False), objects, asked, data, inputs, boxes)


def test_a_classifier_is_no_backbone_of_a_detector() -> None:
    detector(zoo.centre_detector(3, (1, 1), 4), drawn(32))
    with pytest.raises(RequestError, match=r"^backbone: its outputs have shape \(2, 1\).*centre_detector"):
        detector(zoo.resnet(1, 3, (1,), 4, False, "cifar"), drawn(32))


@pytest.mark.parametrize(
    ("loss", "score", "says"),
    [
        (
            lambda outputs, answers: outputs.mean(),
            0.5,
            r"\.loss gave \(\) for them; one number for each sample",
        ),
        (lambda outputs, answers: outputs.mean((1, 2, 3)) * torch.nan, 0.5, "numbers were expected"),
        (
            lambda outputs, answers: outputs.mean((1, 2, 3)),
            50.0,
            r"score gave 50.0 for them; a share in \[0, 1\]",
        ),
        (lambda outputs, answers: outputs["boxes"], 0.5, "can't judge them: "),
    ],
)
def test_a_loss_and_a_score_of_ones_own_are_tried_before_training(loss: Any, score: float, says: str) -> None:
    class Own(Drawn):
        def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
            made: Tensor = loss(outputs, answers)
            return made

        def score(self, outputs: Tensor, answers: Tensor) -> float:
            return score

    with pytest.raises(RequestError, match=says):
        detector(zoo.centre_detector(3, (1, 1), 4), Own(32))


def test_a_learnware_that_knows_other_inputs_is_noted(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 1), np.uint8)
    with Market.create(tmp_path / "market") as market:
        market.add(
            small(),
            name="donor",
            classes=("a", "b"),
            preprocessing={"size": [8, 8], "channels": 1, "mean": [0.485], "std": [0.229]},
            samples=Samples(images, np.array([0, 0, 1, 1]), ("a", "b")),
        )
        backbone = Backbone.parse({"learnware": "donor"})
        for mean, std, n in ((0.485, 0.229, 0), (0.5, 0.5, 1)):
            asked = Preprocessing(channels=1, mean=(mean,), std=(std,))
            notes = list(learnware_notes(backbone, asked, market.store))
            assert len(notes) == n
    assert "trained with mean [0.485] and std [0.229], here it reads mean [0.5] and std [0.5]" in notes[0]
