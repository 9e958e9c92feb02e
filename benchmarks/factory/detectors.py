"""Detectors of the generated AttrOD: their scarce training images, what each way trains, and how all are judged."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from sarto import zoo
from sarto.engines.factory.data import Split
from sarto.engines.factory.spaces.attrod import CATEGORIES, COLOURS, OBJECTS, Drawn, asks_for
from sarto.engines.factory.spaces.detection import average_precision, boxes_of, detection_loss, thinned
from sarto.graph import ModelGraph
from sarto.training import draws, has_bfloat16
from sarto.types import TaskSpace

#: What the shared model tells apart: every category in every colour.
PAIRS = tuple((category, colour) for category in CATEGORIES for colour in COLOURS)
#: Images that are judged at once.
JUDGED = 100


@dataclass(frozen=True)
class Scarce:
    """The generated data set with as many training images for each task as it is given; tests draw new ones.

    An image is drawn anew from its number whenever it comes up.
    """

    whole: Drawn
    space: TaskSpace
    n_of: Mapping[frozenset[str], int]
    n_else: int
    seed: int

    def draw(
        self, tasks: Sequence[frozenset[str]], split: Split, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images and wanted boxes, as `Drawn.draw`."""
        if split == "test":
            return self.whole.draw(tasks, split, generator)
        found = [self.whole.draw([task], "train", self._numbered(task, generator)) for task in tasks]
        images, boxes = zip(*found, strict=True)
        return torch.cat(images), torch.cat(boxes)

    def everything(
        self, tasks: Sequence[frozenset[str]], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The same images, and the boxes of each kind of object (n, pairs, most, 5)."""
        images, boxes = [], torch.zeros(len(tasks), len(PAIRS), OBJECTS[1], 5)
        for place, task in enumerate(tasks):
            numbered = self._numbered(task, generator)
            rng = np.random.default_rng(int(torch.randint(2**62, (), generator=numbered)))
            image, objects = self.whole.scene(task, "train", rng)
            images.append(torch.from_numpy(np.array(image)))
            for row, (category, colour, box) in enumerate(objects):
                boxes[place, PAIRS.index((category, colour)), row] = torch.tensor((1, *box))
        pixels = torch.stack(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        return pixels.contiguous(), boxes

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Loss of each sample (n,)."""
        return self.whole.loss(outputs, answers)

    def score(self, outputs: Tensor, answers: Tensor) -> float:
        """Average precision at an overlap of one half."""
        return self.whole.score(outputs, answers)

    def _numbered(self, task: frozenset[str], generator: torch.Generator) -> torch.Generator:
        n = self.n_of.get(task, self.n_else)
        which = int(torch.randint(n, (), generator=generator))
        every = (*self.space.seen, *self.space.kept_aside)
        return draws(self.seed, which, stream=100 + every.index(task))


@dataclass(frozen=True, eq=False)
class Setting:
    """What all ways have in common.

    Attributes:
        clock: seconds: of the processor, or with a GPU of the clock on the wall.
    """

    data: Scarce
    width: int
    depths: tuple[int, ...]
    batch: int
    lr: float
    device: str
    seed: int
    clock: Callable[[], float] = field(default=time.process_time)

    @property
    def side(self) -> int:
        return self.data.whole.side

    def net(self, width: int, kinds: int = 1) -> zoo.CentreDetector:
        """A fresh detector with the maps of so many kinds of objects."""
        torch.manual_seed(self.seed)
        net = zoo.centre_detector(3, self.depths, width)
        if kinds > 1:
            net.out = nn.Conv2d(net.out.in_channels, 5 * kinds, 1)
        return net


def shared_detector(setting: Setting, steps: int) -> zoo.CentreDetector:
    """One detector of every kind of object, trained on the images of all tasks."""
    net, tasks = setting.net(setting.width, len(PAIRS)), setting.data.space.seen

    def loss_of(step: int) -> Tensor:
        generator = draws(setting.seed, step, 5)
        chosen = torch.randint(len(tasks), (setting.batch,), generator=generator)
        images, boxes = setting.data.everything([tasks[i] for i in chosen], generator)
        maps = net(images.to(setting.device)).float()
        each = maps.unflatten(1, (len(PAIRS), 5)).flatten(0, 1)
        return detection_loss(each, boxes.flatten(0, 1).to(setting.device), setting.side).mean()

    _fit(setting, net, loss_of, steps, "shared")
    return net


def tuned_alone(
    setting: Setting, net: zoo.CentreDetector, task: frozenset[str], steps: int
) -> zoo.CentreDetector:
    """The net trained on one task."""

    def loss_of(step: int) -> Tensor:
        images, boxes = setting.data.draw([task] * setting.batch, "train", draws(setting.seed, step, 7))
        maps = net(images.to(setting.device)).float()
        return detection_loss(maps, boxes.to(setting.device), setting.side).mean()

    _fit(setting, net, loss_of, steps, "+".join(sorted(task)))
    return net


def _fit(setting: Setting, net: nn.Module, loss_of: Callable[[int], Tensor], steps: int, name: str) -> None:
    net.to(setting.device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=setting.lr, weight_decay=1e-3, fused=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = setting.lr * min(1.0, (1 + step) / 20) * (1 - step / max(1, steps))
        with torch.autocast(
            setting.device.split(":")[0], torch.bfloat16, enabled=has_bfloat16(setting.device)
        ):
            loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        told(name, step + 1, float(loss.detach()))
    net.cpu().eval()


def pruned(setting: Setting, shared: zoo.CentreDetector, width: int) -> zoo.CentreDetector:
    """The shared detector cut by magnitude to a share of its width, with fresh maps of one kind."""
    tp = importlib.import_module("torch_pruning")

    net = setting.net(setting.width, len(PAIRS))
    net.load_state_dict(shared.state_dict())
    pruner = tp.pruner.MagnitudePruner(
        net.eval(),
        torch.rand(1, 3, setting.side, setting.side),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - width / setting.width,
        ignored_layers=[net.out],
    )
    pruner.step()
    net.out = nn.Conv2d(net.out.in_channels, 5, 1)
    return net


@torch.no_grad()
def judged(
    setting: Setting, task: frozenset[str], found: Callable[[Tensor], list[Tensor]], n_test: int
) -> float:
    """Average precision on new images of a task, drawn with outlines that nothing was trained on."""
    images, wanted = setting.data.draw([task] * n_test, "test", draws(setting.seed, 0, stream=1))
    boxes = [box for part in images.split(JUDGED) for box in found(part)]
    return average_precision(boxes, wanted)


def plain(setting: Setting, net: nn.Module) -> Callable[[Tensor], list[Tensor]]:
    """Boxes of a detector of one kind."""
    return lambda images: boxes_of(net(images), setting.side)


def maps_of(graph: ModelGraph, images: Tensor) -> Tensor:
    """What a delivered model says: it reads images in [0, 1]."""
    return torch.as_tensor(graph(images / 2 + 0.5))


def of_kinds(setting: Setting, shared: nn.Module, task: frozenset[str], images: Tensor) -> list[Tensor]:
    """Boxes of all kinds that a task asks for, strongest first; of overlapping ones of two kinds the weaker goes."""
    maps = shared(images).unflatten(1, (len(PAIRS), 5))
    kinds = [
        boxes_of(maps[:, place], setting.side) for place, pair in enumerate(PAIRS) if asks_for(task, *pair)
    ]
    every = [torch.cat(rows) for rows in zip(*kinds, strict=True)]
    return [thinned(rows[rows[:, 0].argsort(descending=True)]) for rows in every]


def told(name: str, step: int, loss: float) -> None:
    """Prints every five hundredth step."""
    if step % 500 == 0:
        print(f"{name}: step {step}, loss {loss:.3f}", file=sys.stderr)
