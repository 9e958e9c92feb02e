"""Trains the three donors of the demo market: python examples/train_donors.py --data DIR [--only vgg]

Each donor knows its own classes of CIFAR-10 and has never seen the others.
The test split is measured once, at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cifar import Split, read_split, train_and_pool
from safetensors.torch import save_file
from torch import Tensor, nn

from sarto import zoo
from sarto.training import has_bfloat16

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, MARGIN = 128, 4


@dataclass(frozen=True)
class Recipe:
    """One donor: its classes, its architecture and how it is trained."""

    factory: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    epochs: int
    peak_rate: float
    half_precision: bool


RECIPES = {
    "vgg": Recipe("vgg", {}, ("airplane", "cat", "deer", "ship"), 40, 0.15, True),
    "resnet20": Recipe(
        "cifar_resnet", {"depth": 20, "width": 32}, ("automobile", "dog", "frog"), 40, 0.15, True
    ),
    "mobilenetv2": Recipe("mobilenet_v2", {}, ("bird", "horse", "truck"), 36, 0.12, False),
}


def prepare(images: np.ndarray) -> Tensor:
    """Images (n, 32, 32, 3) as normalised float tensors (n, 3, 32, 32)."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def own(split: Split, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The images of these classes, and their labels counted within them."""
    labels = {split.classes.index(name): place for place, name in enumerate(classes)}
    mask = np.isin(split.labels, list(labels))
    return prepare(split.images[mask]), torch.tensor([labels[int(label)] for label in split.labels[mask]])


def augment(padded: Tensor, index: Tensor) -> Tensor:
    """Random crops (one offset for 16 images) and flips."""
    parts = []
    for chunk in index.split(16):
        top, left = torch.randint(0, 2 * MARGIN + 1, (2,)).tolist()
        parts.append(padded[chunk][:, :, top : top + 32, left : left + 32])
    batch = torch.cat(parts)
    flip = torch.rand(len(batch)) < 0.5
    return torch.where(flip[:, None, None, None], batch.flip(3), batch)


def train(recipe: Recipe, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """SGD with momentum and a one-cycle schedule; prints the loss of every epoch."""
    torch.manual_seed(0)
    model = getattr(zoo, recipe.factory)(len(recipe.classes), **recipe.arguments)
    model = model.to(memory_format=torch.channels_last)
    padded = F.pad(images, (MARGIN,) * 4)
    steps = len(labels) // BATCH
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.peak_rate, total_steps=epochs * steps, pct_start=0.2
    )
    started = time.time()
    for epoch in range(epochs):
        order, total = torch.randperm(len(labels)), 0.0
        for step in range(steps):
            index = order[step * BATCH : (step + 1) * BATCH]
            batch = augment(padded, index).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.half_precision and has_bfloat16()):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        print(
            f"epoch {epoch + 1}/{epochs}  loss {total / steps:.3f}  {time.time() - started:.0f} s", flush=True
        )
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that get their label."""
    predicted = torch.cat([model(chunk).argmax(1) for chunk in images.split(250)])
    return float(predicted.eq(labels).float().mean())


def save(
    name: str, recipe: Recipe, model: nn.Module, epochs: int, counts: tuple[int, int], out: Path
) -> dict[str, Any]:
    """Weights in half precision (vectors in single) and a description beside them."""
    state = {
        key: (tensor.half() if tensor.ndim > 1 else tensor).contiguous()
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(state, out / f"{name}.safetensors")
    description = {
        "name": name,
        "factory": f"sarto.zoo:{recipe.factory}",
        "arguments": {"n_classes": len(recipe.classes), **recipe.arguments},
        "classes": list(recipe.classes),
        "preprocessing": {"size": [32, 32], "mean": list(MEAN), "std": list(STD)},
        "training": {
            "data": "CIFAR-10 train images of these classes, without the pool",
            "images": counts[0],
            "epochs": epochs,
            "seed": 0,
            "peak_rate": recipe.peak_rate,
        },
    }
    return description


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 sheets with meta.json")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "donors")
    parser.add_argument("--only", choices=sorted(RECIPES), help="train one donor")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    kept, _ = train_and_pool(read_split(given.data, "train"))
    test = read_split(given.data, "test")
    for name, recipe in RECIPES.items():
        if given.only not in (None, name):
            continue
        images, labels = own(kept, recipe.classes)
        epochs = given.epochs or recipe.epochs
        model = train(recipe, images, labels, epochs)
        finish(name, recipe, model, epochs, test, given.out, len(labels))


def finish(
    name: str, recipe: Recipe, model: nn.Module, epochs: int, test: Split, out: Path, n_train: int
) -> None:
    """Save, then measure once what was saved on the test split."""
    from safetensors.torch import load_file

    images, labels = own(test, recipe.classes)
    description = save(name, recipe, model, epochs, (n_train, len(labels)), out)
    stored = {key: tensor.float() for key, tensor in load_file(out / f"{name}.safetensors").items()}
    model.load_state_dict(stored, strict=False)
    description["test_accuracy"] = round(accuracy(model, images, labels), 4)
    description["test_images"] = len(labels)
    (out / f"{name}.json").write_text(json.dumps(description, indent=1) + "\n")
    print(f"{name}: test accuracy {description['test_accuracy']:.4f} on its own classes", flush=True)


if __name__ == "__main__":
    main()
