"""The models of the table of exports: architectures of the zoo, with real weights where SARTO_DATA has them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sarto import zoo
from sarto.graph import ModelGraph, capture

#: CIFAR-10 weights: depth -> file under SARTO_DATA/weights, and what their images are normalised with.
RESNETS = {
    20: "cifar10_resnet20-12fca82f",
    32: "cifar10_resnet32-d509ac18",
    56: "cifar10_resnet56-4bfd9763",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORDS, LENGTH = 2_000, 32


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to export.

    Attributes:
        inputs: what it is compared and calibrated on, shape (n, ...).
        labels: the right outputs, where the weights are real and there are images.
    """

    graph: ModelGraph
    inputs: Tensor
    calibration: Tensor
    labels: Tensor | None


class Normalised(nn.Module):
    """A model of images in [0, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mean = nn.Buffer(torch.tensor(MEAN)[:, None, None])
        self.std = nn.Buffer(torch.tensor(STD)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model((x - self.mean) / self.std)
        return result


def subject(name: str, n_samples: int, n_calibration: int) -> Subject:
    """A model by its name in `MODELS`, or `cifar-resnet20`, `-32`, `-56` with published weights and real images."""
    if name.startswith("cifar-resnet"):
        return _cifar(int(name.removeprefix("cifar-resnet")), n_samples, n_calibration)
    model, make = MODELS[name]
    inputs = make(n_samples + n_calibration)
    graph = capture(model().eval(), inputs[:2], prove=False)
    return Subject(graph, inputs[:n_samples], inputs[n_samples:], None)


def _cifar(depth: int, n_samples: int, n_calibration: int) -> Subject:
    from benchmarks.place import data_folder
    from benchmarks.slicepack.images import read

    folder = data_folder()
    model = zoo.cifar_resnet(10, depth, shortcut="pad")
    model.load_state_dict(load_file(folder / "weights" / f"{RESNETS[depth]}.safetensors"), strict=True)
    parts = []
    for split, n in (("test", n_samples), ("train", n_calibration)):
        whole = read("cifar10", split)
        chosen = np.random.default_rng(0).permutation(len(whole.labels))[:n]
        pixels = torch.from_numpy(whole.pixels[chosen].transpose(0, 3, 1, 2).copy()) / 255
        parts.append((pixels, torch.from_numpy(whole.labels[chosen])))
    (inputs, labels), (calibration, _) = parts
    graph = capture(Normalised(model).eval(), inputs[:2], prove=False)
    return Subject(graph, inputs, calibration, labels)


def _detector() -> nn.Module:
    model = zoo.fastestdet()
    path = Path(os.environ.get("SARTO_DATA", ""), "weights", "fastestdet_coco_ap05_0.2532.safetensors")
    if path.is_file():
        model.load_state_dict(load_file(path), strict=True)
    return model


def _images(side: int) -> Callable[[int], Tensor]:
    """Noise around a level of its own in each image."""

    def make(n: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        level = torch.rand((n, 1, 1, 1), generator=generator)
        return (torch.rand((n, 3, side, side), generator=generator) + level) / 2

    return make


def _words(n: int) -> Tensor:
    return torch.randint(1, WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(0))


MODELS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "resnet50": (lambda: zoo.resnet50(), _images(224)),
    "mobilenet-v2": (lambda: zoo.mobilenet_v2_imagenet(), _images(224)),
    "vit-small": (lambda: zoo.vit(1000, 224, 16, 384, 12, 6), _images(224)),
    "gru": (lambda: zoo.recurrent(6, "gru", WORDS), _words),
    "text-cnn": (lambda: zoo.text_cnn(6, WORDS), _words),
    "fastestdet": (_detector, _images(352)),
    "resnet8": (lambda: zoo.cifar_resnet(10, 8), _images(32)),
}
