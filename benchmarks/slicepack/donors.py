"""The originals of a task as donors, and the images that an order may use or is tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.slicepack.images import read, to_unit, train_and_pool
from benchmarks.slicepack.originals import MEAN, STD, load_original
from benchmarks.slicepack.prune_and_tune import Scaled
from benchmarks.slicepack.tasks import Task, task
from sarto import zoo
from sarto.engines.slicepack import Readings, read_donor
from sarto.graph import ModelGraph, block, capture, features, normalise
from sarto.market import Samples, read_samples
from sarto.pipeline.sources import load_source
from sarto.types import Preprocessing

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True, eq=False)
class Donor:
    """An original model, normalisation in front.

    Attributes:
        module: the same as a module, for methods that know modules alone.
        accuracy_test: on its own classes of the test split; for the report only.
    """

    name: str
    classes: tuple[str, ...]
    graph: ModelGraph
    module: nn.Module
    accuracy_test: float | None = None

    @cached_property
    def extractor(self) -> ModelGraph:
        """The graph up to the input of its classifier."""
        return block(self.graph, end=features(self.graph).value)


class Pictures(Protocol):
    """Images in [0, 1], (n, 3, 32, 32), by class."""

    def samples(self, cls: str, k: int, draw: int) -> Tensor:
        """k images of the pool that no original was trained on; another draw takes others."""

    def tested(self, cls: str, n: int) -> Tensor:
        """The first n images of the test split."""


@dataclass(frozen=True)
class Cifar:
    """Samples from the pool, tests from the test split, under SARTO_DATA."""

    data: str
    seed: int

    def samples(self, cls: str, k: int, draw: int) -> Tensor:
        mine = train_and_pool(self.data)[1].of(cls)
        generator = np.random.default_rng([self.seed, draw, sum(cls.encode())])
        return to_unit(mine[generator.permutation(len(mine))[:k]])

    def tested(self, cls: str, n: int) -> Tensor:
        return to_unit(read(self.data, "test").of(cls)[:n])


@dataclass(frozen=True)
class Shipped:
    """The images in examples/; for small runs."""

    def samples(self, cls: str, k: int, draw: int) -> Tensor:
        return to_unit(_examples("samples").take(k, seed=draw).only([cls]).images)

    def tested(self, cls: str, n: int) -> Tensor:
        return to_unit(_examples("heldout").only([cls]).take(n).images)


def setting(name: str, architecture: str, seed: int) -> tuple[Task, list[Donor], Pictures]:
    """Task, donors and images.

    Architecture `shipped` takes the three small donors of examples/ and its images, `shipped-cifar10` the images under
    SARTO_DATA; both for T1.

    Raises:
        FileNotFoundError: an original is not trained yet; says how.
    """
    if architecture in ("shipped", "shipped-cifar10"):
        donors = shipped()
        images = Shipped() if architecture == "shipped" else Cifar("cifar10", seed)
        return Task("T1", "cifar10", tuple(donor.classes for donor in donors)), donors, images
    of = task(name, seed)
    found = []
    for place, classes in enumerate(of.models):
        module, about = load_original(of.originals, architecture, place, seed)
        if tuple(about["classes"]) != classes:
            raise ValueError(f"original {place} of {of.name} knows {about['classes']}, expected {classes}")
        graph = normalise(capture(module, torch.rand(2, 3, 32, 32)), MEAN, STD)
        scaled = Scaled(module, MEAN, STD)
        found.append(Donor(f"{architecture}-{place}", classes, graph, scaled, about["accuracy_test"]))
    return of, found, Cifar(of.data, seed)


def _examples(folder: str) -> Samples:
    found = read_samples(EXAMPLES / "images" / folder)
    if not isinstance(found, Samples):
        raise TypeError(f"examples/images/{folder} holds no images")
    return found


def shipped() -> list[Donor]:
    """The donors of the demo: VGG, ResNet-20 and MobileNetV2 on 4, 3 and 3 classes of CIFAR-10."""
    found = []
    for name in ("vgg", "resnet20", "mobilenetv2"):
        described = json.loads((EXAMPLES / "donors" / f"{name}.json").read_text())
        weights = EXAMPLES / "donors" / f"{name}.safetensors"
        source = load_source(described["factory"], arguments=described["arguments"], weights=weights)
        scale = Preprocessing.parse(described["preprocessing"])
        module = getattr(zoo, described["factory"].split(":")[1])(**described["arguments"])
        module.load_state_dict(
            {name: value.float() for name, value in load_file(weights).items()}, strict=False
        )
        graph = normalise(source.graph, scale.mean, scale.std)
        scaled = Scaled(module.eval(), scale.mean, scale.std)
        found.append(Donor(name, tuple(described["classes"]), graph, scaled))
    return found


def reading(donor: Donor, samples: Mapping[str, Tensor]) -> Readings:
    """One pass of the donor's samples of all its classes."""
    inputs = [samples[cls] for cls in donor.classes]
    labels = torch.repeat_interleave(torch.arange(len(inputs)), torch.tensor([len(part) for part in inputs]))
    return read_donor(donor.graph, torch.cat(inputs), labels, len(inputs))
