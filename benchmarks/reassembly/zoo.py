"""The zoo of classifiers that reassembly is measured on: real CIFAR-10 ResNets, and small nets that are trained here.

python -m benchmarks.reassembly.zoo --data cifar100 [--only mobile] trains what is missing; a run that was stopped goes
on after its last finished epoch. `--measure 20` trains nothing: it says for each member how many images a second of one
core trains, from so many seconds, and what the whole zoo takes. Donors differ in architecture, seed, half of the images
and recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
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
from benchmarks.slicepack.originals import BATCH, MEAN, STD, Recipe, accuracy, image_sides, train
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
    """A classifier of the zoo that is trained here.

    Attributes:
        epochs: on CIFAR-100; `EPOCHS` says how many times as many on another data set.
        half: of the images, the only ones that it sees; None: all.
        grow: its first epochs have smaller images.
    """

    recipe: Recipe
    epochs: int
    half: int | None
    seed: int
    grow: bool = True

    def sides(self, data: str) -> list[int]:
        """Side of the images in every epoch."""
        return image_sides(self.epochs * EPOCHS[data], self.grow)


#: data set -> epochs are so many times those of CIFAR-100; of CIFAR-10 two fifths of the images are at hand.
EPOCHS = {"cifar10": 2, "cifar100": 1}


def _sgd(build: Callable[[int], nn.Module], rate: float, *, half_precision: bool = True) -> Recipe:
    return Recipe(build, rate, half_precision=half_precision)


def _adam(build: Callable[[int], nn.Module], rate: float) -> Recipe:
    return Recipe(build, rate, decay=0.05, adam=True)


def _resnet(depth: int, width: int = 16) -> Callable[[int], nn.Module]:
    return lambda n: zoo.cifar_resnet(n_classes=n, depth=depth, width=width)


#: Small forms of families that a CPU is slow on, so that a zoo takes some 90 minutes of one core.
MOBILE = ((4, 24, 2, 2), (4, 48, 2, 2), (4, 96, 2, 1))
VGG = (32, "M", 64, "M", 128, 128, "M", 256, 256, "M")
#: name -> how it is made.
TRAINED: dict[str, Member] = {
    "resnet8-a": Member(_sgd(_resnet(8), 0.15), 16, 0, 1),
    "resnet8-b": Member(_sgd(_resnet(8), 0.10), 16, 1, 2),
    "resnet8-wide": Member(_sgd(_resnet(8, 32), 0.15), 10, None, 10),
    "resnet14": Member(_sgd(_resnet(14), 0.15), 10, None, 3),
    "resnet20-c": Member(_sgd(_resnet(20), 0.15), 16, 0, 4),
    "vgg": Member(_sgd(lambda n: zoo.vgg(n, VGG), 0.05), 10, None, 11),
    "densenet": Member(_sgd(lambda n: zoo.densenet_cifar(n, depth=22), 0.10), 8, 1, 12),
    "mobile": Member(
        _sgd(lambda n: zoo.mobilenet_v2(n, 16, MOBILE, 256), 0.10, half_precision=False), 8, 1, 5
    ),
    "mobile3": Member(
        _sgd(lambda n: zoo.mobilenet_v3_cifar(n, width_ratio=0.5), 0.10, half_precision=False), 8, 0, 6
    ),
    "shuffle": Member(_sgd(lambda n: zoo.shufflenet_v2_cifar(n), 0.10, half_precision=False), 8, 1, 7),
    "convnext": Member(
        _adam(lambda n: zoo.convnext_cifar(n, depths=(1, 1, 2, 1), widths=(32, 64, 128, 256)), 2e-3), 12, 0, 8
    ),
    "vit": Member(_adam(lambda n: zoo.vit_cifar(n, 96, 4, 3, 2.0), 1e-3), 16, 1, 9, grow=False),
}
#: Members that read their layers' inputs through layer norms: transformers and what is like them.
TRANSFORMERS = frozenset({"vit", "convnext", "small-vit"})


#: Steps before what is timed.
WARM = 8


def n_classes(data: str) -> int:
    """Classes of a data set."""
    return {"cifar10": 10, "cifar100": 100, SHIPPED: 3}[data]


def names(data: str) -> list[str]:
    """Every member of the zoo of a data set; `shipped` is a zoo of small untrained nets, for small runs."""
    if data == SHIPPED:
        return ["small-0", "small-1", "small-2", "small-vit"]
    return [*(REAL if data == "cifar10" else ()), *TRAINED]


@cache
def graph_of(data: str, name: str) -> ModelGraph:
    """A member as it reads images in [0, 1], float32.

    Raises:
        FileNotFoundError: it is not trained yet; says how.
    """
    example = torch.rand(2, 3, 32, 32)
    if data == SHIPPED:
        with torch.random.fork_rng():
            torch.manual_seed(names(data).index(name))
            small = (
                zoo.vit(3, 16, 4, 24, 4, 2) if name == "small-vit" else zoo.cifar_resnet(n_classes=3, depth=8)
            )
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
    model = TRAINED[name].recipe.build(n_classes(data))
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
    """Of the given members those that can be used now; in small runs every small one where none of them is given."""
    there = ready(data)
    found = [name for name in members if name in there]
    return found or (there if data == SHIPPED else [])


def probes(data: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unlabelled images of the pool, and their labels for those who may read them.

    No member that is trained here saw them; the published ResNets were trained on every training image of CIFAR-10.
    """
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


def trained_on(data: str, member: Member) -> tuple[Tensor, Tensor]:
    """The images in [0, 1] that a member is trained on, and their labels."""
    whole = train_and_pool(data)[0]
    chosen = np.arange(len(whole.labels))
    if member.half is not None:
        chosen = np.random.default_rng(100).permutation(len(chosen))[member.half :: 2]
    return to_unit(whole.pixels[chosen]), torch.from_numpy(whole.labels[chosen].copy())


def scaled(images: Tensor) -> Tensor:
    """Images in [0, 1] as the members that are trained here read them."""
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def train_member(data: str, name: str) -> None:
    """Train a member and keep it with its accuracy on 2,000 test images, which choose nothing."""
    member, path = TRAINED[name], _path(data, name)
    images, labels = trained_on(data, member)
    sides, checkpoint = member.sides(data), path.with_suffix(".checkpoint")
    print(name, flush=True)
    model = train(member.recipe, scaled(images), labels, n_classes(data), sides, member.seed, checkpoint)
    test, truth = tests(data, 2000)
    about = {
        "accuracy_test": accuracy(model, scaled(test), truth),
        "epochs": len(sides),
        "image_sides": sides,
        "n_images": len(labels),
        "n_params": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(torch.load(checkpoint, weights_only=True)["seconds"], 1),
    }
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    path.with_suffix(".json").write_text(json.dumps(about) + "\n")
    checkpoint.unlink()
    print(f"  {about['accuracy_test']:.4f}, {about['train_seconds']:.0f} s", flush=True)


def measure(data: str, name: str, seconds: float) -> float:
    """CPU minutes that a member's training takes, from so many seconds of each of its image sides; prints both."""
    member, rates = TRAINED[name], {}
    for side in sorted(set(member.sides(data))):
        warm = _cpu_seconds(data, member, side, WARM)
        steps = max(WARM, int(seconds / warm * WARM))
        rates[side] = BATCH * steps / _cpu_seconds(data, member, side, steps)
    n = len(trained_on(data, member)[1])
    minutes = sum(n / rates[side] for side in member.sides(data)) / 60
    told = ", ".join(f"{rate:.0f}/s at {side}" for side, rate in rates.items())
    print(
        f"{name}: {told}; {n:,} images, {len(member.sides(data))} epochs, {minutes:.1f} minutes", flush=True
    )
    return minutes


def _cpu_seconds(data: str, member: Member, side: int, steps: int) -> float:
    images, labels = torch.rand(steps * BATCH, 3, 32, 32), torch.zeros(steps * BATCH, dtype=torch.int64)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        begun = time.process_time()
        train(member.recipe, images, labels, n_classes(data), [side], 0, Path(folder) / "timed.checkpoint")
        return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=sorted(EPOCHS), default="cifar10")
    parser.add_argument("--only", choices=sorted(TRAINED))
    parser.add_argument(
        "--measure", type=float, metavar="SECONDS", help="train nothing, say what it would take"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in TRAINED if given.only in (None, name)]
    if given.measure:
        minutes = sum(measure(given.data, name, given.measure) for name in chosen)
        print(f"{len(chosen)} members, {minutes:.0f} minutes of one core")
        return
    for name in chosen:
        if not _path(given.data, name).exists():
            train_member(given.data, name)


def _path(data: str, name: str) -> Path:
    return FOLDER / f"{data}-{name}.safetensors"


if __name__ == "__main__":
    main()
