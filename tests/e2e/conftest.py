"""A market of three tiny classifiers that know coloured shapes, and everything to order from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sarto import Market, Request, Samples
from sarto.pipeline import Artifact

SIDE = 16
#: Images a class that come with each model.
K = 6
PREPROCESSING = {"size": [SIDE, SIDE], "channels": 3, "mean": [0.5, 0.45, 0.4], "std": [0.25, 0.3, 0.2]}
COLOURS = {"red": (0.9, 0.15, 0.1), "green": (0.15, 0.8, 0.2), "blue": (0.15, 0.25, 0.9)}


class Plain(nn.Module):
    """Two convolutions with batch norm."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 4 * 4, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


class Residual(nn.Module):
    """A residual block."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv1, self.bn1 = nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 4 * 4, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


class Depthwise(nn.Module):
    """A depthwise convolution between two pointwise ones."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.depth, self.bn1 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.point, self.bn2 = nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20)
        self.fc = nn.Linear(20 * 4 * 4, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.depth(F.relu6(self.bn(self.stem(x))))))
        return self.fc(F.max_pool2d(F.relu(self.bn2(self.point(x))), 2).flatten(1))


#: learnware -> (network, what it knows, seed)
DONORS: Mapping[str, tuple[Callable[[int], nn.Module], tuple[str, ...], int]] = {
    "discs": (Plain, ("red disc", "green disc", "blue disc"), 1),
    "crosses": (Residual, ("red cross", "green cross", "blue cross"), 2),
    "bars": (Depthwise, ("red bar", "green bar", "blue bar"), 3),
}


def draw(classes: Sequence[str], count: int, seed: int) -> Samples:
    """`count` noisy images a class of a coloured shape at a random place."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    images = []
    for cls in classes:
        colour, shape = cls.split()
        for _ in range(count):
            y, x, radius = rng.uniform(6, 10), rng.uniform(6, 10), rng.uniform(3.5, 5)
            dy, dx = abs(rows - y), abs(columns - x)
            inside = {
                "disc": dy**2 + dx**2 < radius**2,
                "cross": ((dy < 1.5) | (dx < 1.5)) & (np.maximum(dy, dx) < radius),
                "bar": (dy < 2) & (dx < 1.4 * radius),
            }[shape]
            picture = np.where(inside[..., None], COLOURS[colour], rng.uniform(0.3, 0.6))
            images.append(picture + rng.normal(0, 0.08, picture.shape))
    pixels = (np.clip(np.stack(images), 0, 1) * 255).round().astype(np.uint8)
    return Samples(pixels, np.repeat(np.arange(len(classes)), count), tuple(classes))


def train(factory: Callable[[int], nn.Module], classes: Sequence[str], seed: int) -> nn.Module:
    """A network that knows its classes, after a second of training."""
    torch.manual_seed(seed)
    model = factory(len(classes))
    images, labels = batch_of(draw(classes, 64, seed))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(30):
        chosen = torch.randint(len(labels), (48,))
        optimiser.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimiser.step()
    return model.eval()


def batch_of(samples: Samples) -> tuple[Tensor, Tensor]:
    """Normalised images, shape (n, 3, 16, 16), and labels."""
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = torch.from_numpy(samples.images.transpose(0, 3, 1, 2) / 255).float()
    return (images - mean) / std, torch.from_numpy(samples.labels.copy())


def write_images(samples: Samples, folder: Path) -> Path:
    """The samples as a folder of PNG files a class."""
    for place, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
        path = folder / samples.classes[label] / f"{place:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@dataclass
class Shop:
    """A copy of the market for one test, with the words to order from it.

    Attributes:
        said: every progress message, in order.
        heldout: folder of images that chose nothing.
        models: the trained networks.
    """

    market: Market
    heldout: Path
    models: Mapping[str, nn.Module]
    folder: Path
    said: list[str] = field(default_factory=list)

    draw = staticmethod(draw)
    write_images = staticmethod(write_images)
    preprocessing = PREPROCESSING
    donors = DONORS

    def order(self, *classes: str, **more: Any) -> Request:
        """An order of classes with the held-out images (heldout=None: without)."""
        return Request.parse({"task": {"classes": list(classes)}, "heldout": str(self.heldout), **more})

    def make(self, request: Request, out: str | Path = "out", **more: Any) -> Artifact:
        """The artifact of an order, in a folder beside the market."""
        return self.market.make(request, self.folder / out, progress=self.progress, **more)

    def progress(self, what: str, done: int, total: int) -> None:
        self.said.append(what)

    def sliced(self) -> list[str]:
        """What was sliced since `said` was emptied."""
        return [text for text in self.said if text.startswith("slicing")]

    def add(self, name: str, classes: Sequence[str], model: nn.Module | None = None, **more: Any) -> Any:
        """Stock a model; as the network of the discs and with drawn samples where nothing else is said."""
        given = {"preprocessing": PREPROCESSING, **more}
        if "samples" not in given:
            given["samples"] = draw(classes, K, 77)
        return self.market.add(model or self.models["discs"], name=name, classes=classes, **given)

    def fragments(self) -> dict[str, tuple[str, str]]:
        """Key -> hashes of every stocked fragment."""
        return {f.key: (f.graph_hash, f.weights_hash) for f in self.market.store.fragments()}


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of the last change and bytes of every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture(scope="session")
def models() -> dict[str, nn.Module]:
    """The trained networks."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        return {name: train(factory, known, seed) for name, (factory, known, seed) in DONORS.items()}


@pytest.fixture(scope="session")
def pristine(models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a market and of held-out images; tests get copies of the market."""
    folder = tmp_path_factory.mktemp("shop")
    held = draw([cls for _, known, _ in DONORS.values() for cls in known], 12, 1234)
    write_images(held, folder / "heldout")
    with Market.create(folder / "market") as market:
        for name, (_, known, seed) in DONORS.items():
            market.add(
                models[name],
                name=name,
                classes=known,
                preprocessing=PREPROCESSING,
                samples=draw(known, K, 100 + seed),
                licence="CC0-1.0",
            )
    return folder


def _copy(pristine: Path, models: dict[str, nn.Module], folder: Path) -> Iterator[Shop]:
    shutil.copytree(pristine / "market", folder / "market")
    with Market.open(folder / "market") as market:
        yield Shop(market, pristine / "heldout", models, folder)


@pytest.fixture
def shop(pristine: Path, models: dict[str, nn.Module], tmp_path: Path) -> Iterator[Shop]:
    """A market of one's own, without fragments."""
    yield from _copy(pristine, models, tmp_path)


@pytest.fixture(scope="session")
def files() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    """What tells whether anything in a folder was touched."""
    return files_of


@pytest.fixture(scope="session")
def shared(
    pristine: Path, models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """One market for tests that only read what was made in it."""
    yield from _copy(pristine, models, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def made(shared: Shop) -> Artifact:
    """The delivered model of an order of four classes of three donors."""
    request = shared.order(
        "red disc", "green disc", "blue cross", "red bar", name="shapes", budget={"params": 3_000}
    )
    return shared.make(request, "made")


@pytest.fixture(scope="session")
def photos(made: Artifact) -> NDArray[np.uint8]:
    """Images of the ordered classes that nobody has seen, uint8 (n, 16, 16, 3)."""
    return draw(made.classes, 5, 4321).images
