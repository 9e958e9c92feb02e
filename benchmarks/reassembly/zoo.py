"""The zoo of classifiers that reassembly is measured on: real CIFAR-10 ResNets, and small nets that are trained here.

python -m benchmarks.reassembly.zoo --data cifar10 [--only mobile-0] trains what is missing; a run that was stopped goes
on after its last finished epoch. Donors differ in architecture, seed, half of the images and recipe.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.place import data_folder
from benchmarks.slicepack.images import read, to_unit, train_and_pool
from benchmarks.slicepack.originals import MEAN, STD, Recipe, accuracy, train
from sarto import zoo
from sarto.engines.reassembly import Donor, anatomy
from sarto.graph import ModelGraph, capture, normalise

FOLDER = Path(os.environ.get("SARTO_ZOO", Path(__file__).parents[1] / "originals" / "zoo"))
#: Real weights below SARTO_DATA/weights: name -> (file, depth).
REAL = {
    "resnet20": ("cifar10_resnet20-12fca82f.safetensors", 20),
    "resnet32": ("cifar10_resnet32-d509ac18.safetensors", 32),
    "resnet56": ("cifar10_resnet56-4bfd9763.safetensors", 56),
}
#: The zoo of small runs.
SHIPPED = "shipped"
REAL_MEAN, REAL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Member:
    """A classifier of the zoo that is trained here."""

    recipe: Recipe
    epochs: int
    half: int | None
    seed: int


def _member(
    build: Callable[[int], nn.Module],
    rate: float,
    epochs: int,
    half: int | None,
    seed: int,
    *,
    adam: bool = False,
) -> Member:
    return Member(Recipe(build, rate, decay=0.05 if adam else 5e-4, adam=adam), epochs, half, seed)


#: name -> how it is made; `half` is the half of the images that it sees, None: all.
TRAINED: dict[str, Member] = {
    "resnet8-a": _member(lambda n: zoo.cifar_resnet(n_classes=n, depth=8), 0.15, 6, 0, 1),
    "resnet8-b": _member(lambda n: zoo.cifar_resnet(n_classes=n, depth=8), 0.10, 6, 1, 2),
    "resnet14": _member(lambda n: zoo.cifar_resnet(n_classes=n, depth=14), 0.15, 6, None, 3),
    "resnet20-c": _member(lambda n: zoo.cifar_resnet(n_classes=n, depth=20), 0.15, 8, 0, 4),
    "mobile": _member(lambda n: zoo.mobilenet_v2(n), 0.10, 6, 1, 5),
    "mobile3": _member(lambda n: zoo.mobilenet_v3_cifar(n), 0.10, 6, None, 6),
    "shuffle": _member(lambda n: zoo.shufflenet_v2_cifar(n), 0.10, 6, None, 7),
    "convnext": _member(lambda n: zoo.convnext_cifar(n), 2e-3, 8, None, 8, adam=True),
    "vit": _member(lambda n: zoo.vit_cifar(n, 96, 4, 3, 2.0), 1e-3, 15, None, 9, adam=True),
}


def names(data: str) -> list[str]:
    """Every member of the zoo of a data set; `shipped` is a zoo of small untrained nets, for small runs."""
    if data == SHIPPED:
        return ["small-0", "small-1", "small-2"]
    return [*(REAL if data == "cifar10" else ()), *TRAINED]


@cache
def graph_of(data: str, name: str) -> ModelGraph:
    """A member as it reads images in [0, 1], float32.

    Raises:
        FileNotFoundError: it is not trained yet; says how.
    """
    n_classes = 10 if data == "cifar10" else 100
    example = torch.rand(2, 3, 32, 32)
    if data == SHIPPED:
        with torch.random.fork_rng():
            torch.manual_seed(int(name[-1]))
            small = zoo.cifar_resnet(n_classes=3, depth=8)
        return capture(small.eval(), torch.rand(2, 3, 16, 16), prove=False)
    if name in REAL:
        file, depth = REAL[name]
        model: nn.Module = zoo.cifar_resnet(n_classes=10, depth=depth, shortcut="pad")
        state = load_file(data_folder() / "weights" / file)
        model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
        return normalise(capture(model.eval(), example, prove=False), REAL_MEAN, REAL_STD)
    path = _path(data, name)
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is not trained; python -m benchmarks.reassembly.zoo --data {data} --only {name}"
        )
    model = TRAINED[name].recipe.build(n_classes)
    model.load_state_dict(load_file(path), strict=False)
    return normalise(capture(model.eval(), example, prove=False), MEAN, STD)


def ready(data: str) -> list[str]:
    """Members that can be used now."""
    return [name for name in names(data) if data == SHIPPED or name in REAL or _path(data, name).exists()]


def donor(data: str, name: str, inputs: Tensor) -> Donor:
    """A member with the probe images."""
    graph = graph_of(data, name)
    return Donor(name, graph, anatomy(graph), inputs)


def usable(data: str, members: Sequence[str]) -> list[str]:
    """Of the given members those that can be used now; every member of the zoo of small runs."""
    there = ready(data)
    return [name for name in (there if data == SHIPPED else members) if name in there]


def probes(data: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unlabelled images that no member was trained on (the pool), and their labels for those who may read them."""
    if data == SHIPPED:
        return _noise(n, seed)
    pool = train_and_pool(data)[1]
    order = np.random.default_rng(seed).permutation(len(pool.labels))[:n]
    return to_unit(pool.pixels[order]), torch.from_numpy(pool.labels[order].copy())


def tests(data: str, n: int) -> tuple[Tensor, Tensor]:
    """Test images, spread over the classes, and their labels."""
    if data == SHIPPED:
        return _noise(n, 1)
    test = read(data, "test")
    order = np.random.default_rng(0).permutation(len(test.labels))[:n]
    return to_unit(test.pixels[order]), torch.from_numpy(test.labels[order].copy())


def _noise(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 16, 16, generator=generator), torch.arange(n) % 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=["cifar10", "cifar100"], default="cifar10")
    parser.add_argument("--only", choices=sorted(TRAINED))
    given = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    whole = train_and_pool(given.data)[0]
    n_classes = 10 if given.data == "cifar10" else 100
    for name, member in TRAINED.items():
        path = _path(given.data, name)
        if given.only not in (None, name) or path.exists():
            continue
        chosen = np.arange(len(whole.labels))
        if member.half is not None:
            order = np.random.default_rng(100).permutation(len(chosen))
            chosen = order[member.half :: 2]
        images = (to_unit(whole.pixels[chosen]) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(
            STD
        ).view(1, 3, 1, 1)
        labels = torch.from_numpy(whole.labels[chosen].copy())
        print(name, flush=True)
        model = train(
            member.recipe,
            images,
            labels,
            n_classes,
            [32] * member.epochs,
            member.seed,
            path.with_suffix(".checkpoint"),
        )
        test, truth = tests(given.data, 2000)
        scaled = (test - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
        share = accuracy(model, scaled, truth)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
        path.with_suffix(".json").write_text(
            json.dumps({"accuracy_test": share, "epochs": member.epochs}) + "\n"
        )
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
        print(f"  {share:.4f}", flush=True)


def _path(data: str, name: str) -> Path:
    return FOLDER / f"{data}-{name}.safetensors"


if __name__ == "__main__":
    main()
