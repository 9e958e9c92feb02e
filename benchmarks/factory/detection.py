"""AttrOD (generated): precision of boxes under latency and memory budgets, beside what one would do without a factory.

The paper's Table 3, and with the seconds of the same run its Table 4.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.predictor import blocks_of
from sarto import Market, zoo
from sarto.devices import count
from sarto.engines.factory.data import Split
from sarto.engines.factory.spaces.attrod import CATEGORIES, COLOURS, OBJECTS, Drawn, asks_for, drawn
from sarto.engines.factory.spaces.detection import average_precision, boxes_of, detection_loss
from sarto.engines.factory.supernet import placed
from sarto.engines.factory.training import train_supernet
from sarto.export import to_onnx
from sarto.graph import ModelGraph, capture
from sarto.pipeline.factory import backbone_graph, read_space, stock_supernet
from sarto.pipeline.profiles import measure_profile
from sarto.pipeline.subnets import ReadySupernet
from sarto.pipeline.verify import latency_on
from sarto.training import draws
from sarto.types import AssemblerSettings, Device, FactoryConfig, Request, TaskSpace

NAME = "attrod"
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


def detection(
    *,
    width: int,
    depths: list[int],
    side: int,
    steps: int,
    steps_shared: int,
    steps_each: int,
    batch: int,
    lr: float,
    devices: list[dict[str, Any]],
    shares: list[list[float]],
    n_tasks: int,
    n_few: int,
    few_samples: int,
    many_samples: int,
    n_test: int,
    n_subnets: int,
    n_blocks: int,
    seconds: float,
    train_on: str,
    seed: int,
) -> dict[str, Any]:
    """Precision (average precision at an overlap of one half) of each task's model under its budget, by four ways.

    Every task has a budget of latency and memory on one of the devices. Ours is an order through the whole pipeline:
    the subnet for the task that fills the budget as measured. Beside it:

    - shared: one detector with maps of all twenty kinds of objects, whole: it keeps no budget.
    - retrain: the whole network, trained for the task alone; it keeps no budget either, as in the paper.
    - retrain small: the widest network of the same kind that keeps the budget as measured, trained for the task alone.
    - prune and tune: the shared detector cut by Torch-Pruning to that width, then tuned on the task.

    All of them see the same images of each task. Seconds are those of a processor, or with a GPU those on the wall.

    Args:
        shares: of the span from the smallest subnet to the whole network that budgets allow, of latency and of memory.
        n_few: so many of the tasks have `few_samples` training images, all others `many_samples`.
        train_on: "cpu" or "cuda".
    """
    space = read_space("attrod", {"side": side})
    tasks = space.seen[:: max(1, len(space.seen) // n_tasks)][:n_tasks]
    few = tasks[:: max(1, len(tasks) // max(1, n_few))][:n_few]
    data = Scarce(drawn(side), space, dict.fromkeys(few, few_samples), many_samples, seed)
    clock = time.process_time if train_on == "cpu" else time.perf_counter
    setting = Setting(data, width, tuple(depths), batch, lr, train_on, seed, clock)
    numbers: dict[str, Any] = {
        "n_tasks": len(tasks),
        "n_tasks_few": len(few),
        "few_samples_count": few_samples,
    }
    with (
        tempfile.TemporaryDirectory(prefix="sarto-") as folder,
        Market.create(Path(folder, "market")) as market,
    ):
        begun = clock()
        graph = _trained(setting, space, market, steps)
        numbers["prepare_seconds_ours"] = clock() - begun
        begun = clock()
        shared = _shared(setting, steps_shared)
        numbers["prepare_seconds_shared"] = clock() - begun
        wholes = [
            _held(market, given, place, graph, n_subnets, n_blocks, seconds, seed)
            for place, given in enumerate(devices)
        ]
        rows = []
        for place, task in enumerate(tasks):
            held, device = wholes[place % len(devices)]
            budget = _budget(held, graph, task, shares[(place // len(devices)) % len(shares)])
            row = {"task": space.named(task), "runtime": device.runtime, "few": task in few, **budget}
            out = Path(folder, f"order-{place}")
            row |= _ours(setting, market, device, task, budget, out, n_test)
            row |= _others(setting, shared, held, device, task, budget, steps_each, n_test)
            print(row, file=sys.stderr)
            rows.append(row)
    return {**numbers, **_numbers(rows), "rows": rows}


def _trained(setting: Setting, space: TaskSpace, market: Market, steps: int) -> ModelGraph:
    """Trains and stocks the supernet; its backbone."""
    example = setting.data.draw(space.seen[:2], "train", draws(setting.seed, 0, 9))[0]
    config = FactoryConfig.parse(
        {
            "name": NAME,
            "space": "attrod",
            "backbone": {
                "zoo": "centre_detector",
                "arguments": {"depths": list(setting.depths), "width": setting.width},
            },
            "preprocessing": {
                "size": [setting.side, setting.side],
                "channels": 3,
                "mean": [0.5] * 3,
                "std": [0.5] * 3,
            },
            "joint": {
                "steps": steps,
                "batch": setting.batch,
                "lr": setting.lr,
                "precision": "bfloat16",
                "lowest": 0.05,
                "seed": setting.seed,
            },
        }
    )
    graph, origin = backbone_graph(config.backbone, space, example, None)
    work = os.environ.get("SARTO_FACTORY_WORK")
    trained = train_supernet(
        graph,
        placed(graph),
        space,
        setting.data,
        assembler=AssemblerSettings(),
        joint=config.joint,
        folder=None if work is None else Path(work, "attrod"),
        told=lambda step, loss: _told("supernet", step, loss),
        device=setting.device,
    )
    stock_supernet(market.store, trained.supernet, config, origin)
    return trained.supernet.graph


def _shared(setting: Setting, steps: int) -> zoo.CentreDetector:
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


def _alone(setting: Setting, net: zoo.CentreDetector, task: frozenset[str], steps: int) -> zoo.CentreDetector:
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
        with torch.autocast(setting.device.split(":")[0], torch.bfloat16):
            loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        _told(name, step + 1, float(loss.detach()))
    net.cpu().eval()


def _held(
    market: Market,
    given: Mapping[str, Any],
    place: int,
    graph: ModelGraph,
    n_subnets: int,
    n_blocks: int,
    seconds: float,
    seed: int,
) -> tuple[ReadySupernet, Device]:
    device = Device.parse({**given, "profile": f"device-{place}"})
    journals = os.environ.get("SARTO_JOURNALS")
    profile = measure_profile(
        f"device-{place}",
        device,
        backbones={NAME: graph},
        n_subnets=n_subnets,
        built_in=blocks_of(n_blocks),
        memory=False,
        journal=None if journals is None else Path(journals, f"attrod-{device.runtime}.journal"),
        seconds=seconds,
        seed=seed,
    )
    market.store.profiles.put(profile)
    return ReadySupernet.open(market.store, NAME, profile), device


def _budget(
    held: ReadySupernet, graph: ModelGraph, task: frozenset[str], shares: Sequence[float]
) -> dict[str, Any]:
    """Latency and memory that the task's model may take."""
    least = held.cost((task,), held.smallest((task,)), held.classes((task,)))
    units = np.array([[stop - start for start, stop in held.supernet.layout.values()]])
    whole_ms, whole = float(held.table.latency_ms(units)[1, 0]), count(held.ready(graph))
    floor_ms = 1.02 * float(least.latency_high_ms or 0.0)
    memory = least.memory_bytes + shares[1] * (whole.memory_bytes - least.memory_bytes)
    return {
        "budget_ms": floor_ms + shares[0] * max(0.0, whole_ms - floor_ms),
        "budget_memory_bytes": round(memory),
    }


def _ours(
    setting: Setting,
    market: Market,
    device: Device,
    task: frozenset[str],
    budget: Mapping[str, Any],
    out: Path,
    n_test: int,
) -> dict[str, Any]:
    request = Request.parse(
        {
            "task": {"properties": sorted(task), "space": NAME},
            "budget": {"latency_ms": budget["budget_ms"], "memory_bytes": budget["budget_memory_bytes"]},
            "device": device.model_dump(mode="json"),
        }
    )
    begun = setting.clock()
    artifact = market.make(request, out)
    took, graph = setting.clock() - begun, artifact.graph
    measured = artifact.report.measured
    return {
        "map_ours": _judged(
            setting, task, lambda images: boxes_of(_maps(graph, images), setting.side), n_test
        ),
        "latency_ms_ours": measured.latency_ms,
        "memory_bytes_ours": measured.memory_bytes,
        "customise_seconds_ours": took,
    }


def _others(
    setting: Setting,
    shared: zoo.CentreDetector,
    held: ReadySupernet,
    device: Device,
    task: frozenset[str],
    budget: Mapping[str, Any],
    steps_each: int,
    n_test: int,
) -> dict[str, Any]:
    whole = _costs(setting, held, device, shared)
    row: dict[str, Any] = {
        "map_shared": _judged(setting, task, lambda images: _of_kinds(setting, shared, task, images), n_test),
        "latency_ms_shared": whole[0],
        "memory_bytes_shared": whole[1],
    }
    small, costs = _widest(setting, held, device, budget)
    whole = _costs(setting, held, device, setting.net(setting.width))
    for way, width, found in (("retrain", setting.width, whole), ("retrain_small", small, costs)):
        begun = setting.clock()
        alone = _alone(setting, setting.net(width), task, steps_each)
        row |= {
            f"customise_seconds_{way}": setting.clock() - begun,
            f"map_{way}": _judged(setting, task, _plain(setting, alone), n_test),
            f"latency_ms_{way}": found[0],
            f"memory_bytes_{way}": found[1],
            f"keeps_{way}": found[0] <= budget["budget_ms"] and found[1] <= budget["budget_memory_bytes"],
        }
    if importlib.util.find_spec("torch_pruning") is not None:
        begun = setting.clock()
        tuned = _alone(setting, _pruned(setting, shared, small), task, steps_each)
        row |= {
            "customise_seconds_prune_tune": setting.clock() - begun,
            "map_prune_tune": _judged(setting, task, _plain(setting, tuned), n_test),
        }
    return row


def _pruned(setting: Setting, shared: zoo.CentreDetector, width: int) -> zoo.CentreDetector:
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


def _widest(
    setting: Setting, held: ReadySupernet, device: Device, budget: Mapping[str, Any]
) -> tuple[int, tuple[float, int]]:
    """The widest network that keeps a budget as measured (else the narrowest one), and its latency and memory."""
    low, high = 2, setting.width
    found = low, _costs(setting, held, device, setting.net(low).eval())
    while low < high:
        middle = (low + high + 1) // 2
        costs = _costs(setting, held, device, setting.net(middle).eval())
        if costs[0] <= budget["budget_ms"] and costs[1] <= budget["budget_memory_bytes"]:
            low, found = middle, (middle, costs)
        else:
            high = middle - 1
    return found


def _costs(setting: Setting, held: ReadySupernet, device: Device, net: nn.Module) -> tuple[float, int]:
    """Measured latency in milliseconds, and bytes of activations."""
    example = torch.rand(2, 3, setting.side, setting.side)
    graph = held.ready(capture(net.eval(), example, prove=False))
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        path = Path(folder, "model.onnx")
        if device.runtime != "torch":
            path.write_bytes(to_onnx(graph).SerializeToString())
        return latency_on(graph, device, path, example[:1]).median_ms, count(graph).memory_bytes


@torch.no_grad()
def _judged(
    setting: Setting, task: frozenset[str], found: Callable[[Tensor], list[Tensor]], n_test: int
) -> float:
    """Average precision on new images of a task, drawn with outlines that nothing was trained on."""
    images, wanted = setting.data.draw([task] * n_test, "test", draws(setting.seed, 0, stream=1))
    boxes = [box for part in images.split(JUDGED) for box in found(part)]
    return average_precision(boxes, wanted)


def _plain(setting: Setting, net: nn.Module) -> Callable[[Tensor], list[Tensor]]:
    return lambda images: boxes_of(net(images), setting.side)


def _maps(graph: ModelGraph, images: Tensor) -> Tensor:
    """What a delivered model says: it reads images in [0, 1]."""
    return torch.as_tensor(graph(images / 2 + 0.5))


def _of_kinds(setting: Setting, shared: nn.Module, task: frozenset[str], images: Tensor) -> list[Tensor]:
    """Boxes of all kinds that a task asks for, strongest first."""
    maps = shared(images).unflatten(1, (len(PAIRS), 5))
    kinds = [
        boxes_of(maps[:, place], setting.side) for place, pair in enumerate(PAIRS) if asks_for(task, *pair)
    ]
    every = [torch.cat(rows) for rows in zip(*kinds, strict=True)]
    return [rows[rows[:, 0].argsort(descending=True)] for rows in every]


def _told(name: str, step: int, loss: float) -> None:
    if step % 500 == 0:
        print(f"{name}: step {step}, loss {loss:.3f}", file=sys.stderr)


def _numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "within_latency_share": statistics.fmean(row["latency_ms_ours"] <= row["budget_ms"] for row in rows),
        "latency_shared_to_ours_times": statistics.fmean(
            row["latency_ms_shared"] / row["latency_ms_ours"] for row in rows
        ),
        "latency_retrain_to_ours_times": statistics.fmean(
            row["latency_ms_retrain"] / row["latency_ms_ours"] for row in rows
        ),
        "memory_shared_to_ours_times": statistics.fmean(
            row["memory_bytes_shared"] / row["memory_bytes_ours"] for row in rows
        ),
    }
    for way in ("ours", "shared", "retrain", "retrain_small", "prune_tune"):
        if any(f"map_{way}" not in row for row in rows):
            continue
        numbers[f"map_share_mean_{way}"] = statistics.fmean(row[f"map_{way}"] for row in rows)
        some = [row[f"map_{way}"] for row in rows if row["few"]]
        if some:
            numbers[f"map_share_mean_few_{way}"] = statistics.fmean(some)
        if f"customise_seconds_{way}" in rows[0]:
            numbers[f"customise_seconds_{way}"] = statistics.median(
                row[f"customise_seconds_{way}"] for row in rows
            )
    return numbers
