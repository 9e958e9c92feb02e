"""Trains the original models of a task: python -m benchmarks.slicepack.originals --task T1 --architecture vgg16

A run that was stopped goes on after its last finished epoch, to the same weights. Crop, flip, a one-cycle schedule;
the test split is read once, at the end, for the report.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.slicepack.convolving import quicken
from benchmarks.slicepack.images import Images, read, to_unit, train_and_pool
from benchmarks.slicepack.tasks import NAMES, Task, task
from sarto import zoo
from sarto.training import has_bfloat16

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, MARGIN = 64, 4
#: Largest norm of a step's gradient; without it one VGG16 diverged.
CLIP = 5.0
#: Where trained originals lie; too large for the repository.
FOLDER = Path(os.environ.get("SARTO_ORIGINALS", Path(__file__).parents[1] / "originals"))


@dataclass(frozen=True)
class Recipe:
    """An architecture and how it is trained."""

    build: Callable[[int], nn.Module]
    peak_rate: float
    decay: float = 5e-4
    half_precision: bool = True
    adam: bool = False


RECIPES = {
    "vgg16": Recipe(zoo.vgg16_bn_cifar, 0.03),
    "resnet34": Recipe(lambda n: zoo.resnet34(n, stem="cifar"), 0.02),
    "vit": Recipe(lambda n: zoo.vit_cifar(n, 96, 4, 3, 4.0), 1e-3, decay=0.05, adam=True),
}


def load_original(
    task_name: str, architecture: str, place: int, seed: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """A trained original (float32, eval mode, for normalised images) and what is known of it.

    Raises:
        FileNotFoundError: it was not trained yet; says how.
    """
    path = _path(task_name, architecture, place, seed)
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is not trained; python -m benchmarks.slicepack.originals --task {task_name} "
            f"--architecture {architecture} --seed {seed}"
        )
    about = json.loads(path.with_suffix(".json").read_text())
    model = RECIPES[architecture].build(len(about["classes"]))
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
    return model.eval(), about


def image_sides(epochs: int, grow: bool) -> list[int]:
    """Side of the images in every epoch: 32, or 16 in the first 3/8 of them, 24 up to 5/8 and 32 after that."""
    if not grow:
        return [32] * epochs
    return [16 if 8 * at < 3 * epochs else 24 if 8 * at < 5 * epochs else 32 for at in range(epochs)]


def train(
    recipe: Recipe,
    images: Tensor,
    labels: Tensor,
    n_classes: int,
    sides: list[int],
    seed: int,
    checkpoint: Path,
) -> nn.Module:
    """SGD with Nesterov momentum, or AdamW, and a one-cycle schedule; prints the loss of every epoch.

    Args:
        sides: of the images, one for each epoch; smaller ones are bilinear means.
        checkpoint: written after every epoch; where it exists, training goes on from it.
    """
    epochs = len(sides)
    torch.manual_seed(seed)
    model = quicken(recipe.build(n_classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    padded = F.pad(images, (MARGIN,) * 4)
    steps = len(labels) // BATCH
    optimiser: torch.optim.Optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=recipe.decay, fused=True
    )
    if recipe.adam:
        optimiser = torch.optim.AdamW(model.parameters(), weight_decay=recipe.decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.peak_rate, total_steps=epochs * steps, pct_start=0.25
    )
    first, before = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first = state["epoch"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["generator"])
        # Checkpoints of earlier versions don't say.
        before = state.get("seconds", 0.0)
    begun = time.perf_counter()
    for epoch in range(first, epochs):
        order, total = torch.randperm(len(labels)), 0.0
        for index in order[: steps * BATCH].split(BATCH):
            batch = augment(padded, index)
            if sides[epoch] != batch.shape[-1]:
                batch = F.interpolate(batch, size=(sides[epoch],) * 2, mode="bilinear", antialias=True)
            batch = batch.contiguous(memory_format=torch.channels_last)
            # The plain form of attention: in half precision the fused one's gradient takes twice as long here.
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=recipe.half_precision and has_bfloat16()),
                sdpa_kernel(SDPBackend.MATH),
            ):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), labels[index])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        seconds = before + time.perf_counter() - begun
        state = {
            "epoch": epoch + 1,
            "seconds": seconds,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "generator": torch.get_rng_state(),
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        print(f"  epoch {epoch + 1}/{epochs}  loss {total / steps:.3f}  {seconds:.0f} s", flush=True)
    return model.eval()


def augment(padded: Tensor, index: Tensor) -> Tensor:
    """Random crops (one offset for 16 images) and flips of images (n, 3, 40, 40)."""
    parts = []
    for chunk in index.split(16):
        top, left = torch.randint(0, 2 * MARGIN + 1, (2,)).tolist()
        parts.append(padded[chunk][:, :, top : top + 32, left : left + 32])
    batch = torch.cat(parts)
    flip = torch.rand(len(batch)) < 0.5
    return torch.where(flip[:, None, None, None], batch.flip(3), batch)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that get their label."""
    right = [model(part).argmax(1) for part in images.split(250)]
    return float((torch.cat(right) == labels).float().mean())


def own(images: Images, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Normalised images of these classes, and their labels counted within them."""
    parts = [to_unit(images.of(name)) for name in classes]
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(part) for part in parts]))
    scaled = torch.cat(parts) - torch.tensor(MEAN).view(1, 3, 1, 1)
    return scaled / torch.tensor(STD).view(1, 3, 1, 1), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=[name for name in NAMES if name != "T3h"], required=True)
    parser.add_argument("--architecture", choices=sorted(RECIPES), required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--grow", action="store_true", help="smaller images in the first epochs: faster")
    parser.add_argument("--seed", type=int, default=0, help="of the partition of classes and of the training")
    parser.add_argument("--only", type=int, help="train one of the task's models, counted from 0")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    of = task(given.task, given.seed)
    for place in range(len(of.models)):
        if given.only not in (None, place):
            continue
        if _path(of.name, given.architecture, place, given.seed).with_suffix(".json").exists():
            continue
        train_original(of, given.architecture, place, image_sides(given.epochs, given.grow), given.seed)


def train_original(of: Task, architecture: str, place: int, sides: list[int], seed: int) -> None:
    """Train one of a task's models and keep it; prints what it is and how well it does."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path, classes, recipe = _path(of.name, architecture, place, seed), of.models[place], RECIPES[architecture]
    print(f"{path.stem}: {', '.join(classes)}", flush=True)
    trained, test = train_and_pool(of.data)[0], read(of.data, "test")
    images, labels = own(trained, classes)
    checkpoint = path.with_suffix(".checkpoint")
    model = train(recipe, images, labels, len(classes), sides, 100 * seed + place, checkpoint)
    seconds = torch.load(checkpoint, weights_only=True)["seconds"]
    about = {
        "classes": classes,
        "epochs": len(sides),
        "image_sides": sides,
        "peak_rate": recipe.peak_rate,
        "images_per_class": len(trained.of(classes[0])),
        "accuracy_test": accuracy(model, *own(test, classes)),
        "train_seconds": round(seconds, 1),
    }
    _save(model, path)
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    checkpoint.unlink()
    print(f"  {about['accuracy_test']:.4f} on own classes, {seconds:.0f} s", flush=True)


def _path(task_name: str, architecture: str, place: int, seed: int) -> Path:
    return FOLDER / f"{task_name}-{architecture}-{seed}-{place}.safetensors"


def _save(model: nn.Module, path: Path) -> None:
    """Weights in half precision, vectors in single."""
    state = {
        name: (value.half() if value.ndim > 1 else value).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, path)


if __name__ == "__main__":
    np.random.seed(0)
    main()
