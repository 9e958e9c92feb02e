"""CIFAR-100 by attributes: which of a few classes of one superclass is it? One supernet for 520 such tasks."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.slicepack.images import read
from sarto import zoo
from sarto.engines.factory.gates import lowest_limit
from sarto.engines.factory.spaces.classes import ClassTasks
from sarto.engines.factory.supernet import placed
from sarto.engines.factory.training import qualities, train_supernet
from sarto.graph import capture
from sarto.market import Samples
from sarto.pipeline.factory import read_space, spread
from sarto.training import draws, has_bfloat16
from sarto.types import AssemblerSettings, JointSettings, TaskSpace

#: Images of each class that are made where there are no real ones.
MADE = 2


def classes(
    *,
    width: int,
    depths: list[int],
    pretrain_steps: int,
    steps: int,
    batch: int,
    lr: float,
    limits: list[float],
    n_tasks: int,
    n_test: int,
    images: str,
    train_on: str,
    seed: int,
) -> dict[str, Any]:
    """Mean recall of the classes of a task, for tasks that were trained and for tasks that were kept aside.

    A backbone is trained on all hundred classes first; it is also what ours is compared with (`shared`): whole, its
    answers among the classes of the task. Then it is trained jointly with the assembler. Test images train nothing.

    Args:
        n_tasks: judged tasks of each kind, spread over all.
        images: "cifar100" (under SARTO_DATA), or "made" for noise that needs no data.
        train_on: "cpu" or "cuda".
    """
    space = read_space("cifar100")
    data = ClassTasks(*(_samples(images, split, space) for split in ("train", "test")))
    torch.manual_seed(seed)
    net = zoo.resnet(len(space.answers), 3, tuple(depths), width, False, "cifar")
    _pretrained(net, data, pretrain_steps, batch, seed, train_on)
    side = data.held["train"][data.classes[0]].shape[1]
    graph = capture(net.eval(), torch.rand(2, 3, side, side), prove=False)
    work = os.environ.get("SARTO_FACTORY_WORK")
    trained = train_supernet(
        graph,
        placed(graph),
        space,
        data,
        assembler=AssemblerSettings(),
        joint=JointSettings(
            steps=steps,
            batch=batch,
            lr=lr,
            precision="bfloat16" if has_bfloat16(train_on) else "float32",
            open_until=0.04,
            ramp_until=0.25,
            lowest=0.05,
            seed=seed,
        ),
        folder=None if work is None else Path(work, "cifar100"),
        told=lambda step, loss: _told("joint", step, loss),
        device=train_on,
    )
    supernet = trained.supernet
    floor = lowest_limit(supernet.layout, supernet.assembler.least)
    numbers: dict[str, Any] = {"n_steps": trained.result.steps, "n_units": supernet.assembler.units}
    rows: list[dict[str, Any]] = []
    for kind, every in (("seen", space.seen), ("unseen", space.kept_aside)):
        tasks = spread(every, n_tasks)
        shared = {task: _among(net, data, space, task, n_test, i) for i, task in enumerate(tasks)}
        numbers[f"accuracy_{kind}_mean_shared"] = statistics.fmean(shared.values())
        numbers[f"accuracy_{kind}_chance"] = statistics.fmean(1 / len(space.outputs(task)) for task in tasks)
        for limit in (limit for limit in limits if limit >= floor):
            found = qualities(supernet, data, tasks, (limit,), n=n_test)
            key = f"{round(100 * limit)}"
            numbers[f"accuracy_{kind}_mean_{key}"] = statistics.fmean(q for q, _ in found.values())
            numbers[f"accuracy_{kind}_worst_{key}"] = min(q for q, _ in found.values())
            numbers[f"ratio_{kind}_largest_{key}"] = max(ratio for _, ratio in found.values())
            rows += [
                {
                    "task": space.named(task),
                    "kind": kind,
                    "limit": limit,
                    "accuracy": quality,
                    "ratio": ratio,
                    "accuracy_shared": shared[task],
                }
                for (task, _), (quality, ratio) in found.items()
            ]
    return {**numbers, "rows": rows}


def _samples(images: str, split: str, space: TaskSpace) -> Samples:
    if images != "made":
        found = read(images, split)
        return Samples(found.pixels, found.labels.astype(np.int64), found.classes)
    n = MADE * len(space.answers)
    noise = np.random.default_rng(0).integers(0, 255, (n, 8, 8, 3), dtype=np.uint8)
    return Samples(noise, np.repeat(np.arange(len(space.answers)), MADE), space.answers)


def _pretrained(net: nn.Module, data: ClassTasks, steps: int, batch: int, seed: int, train_on: str) -> None:
    """Trains a network on all classes at once, in place."""
    net.to(train_on).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=5e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, max(2, steps))
    every = frozenset(data.classes)
    for step in range(steps):
        inputs, answers = data.draw([every] * batch, "train", draws(seed, step, 6))
        with torch.autocast(train_on, torch.bfloat16, enabled=has_bfloat16(train_on)):
            out = net(inputs.to(train_on))
        loss = F.cross_entropy(out.float(), answers.to(train_on), label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        _told("all classes", step + 1, float(loss.detach()))
    net.cpu().eval()


@torch.no_grad()
def _among(
    net: nn.Module, data: ClassTasks, space: TaskSpace, task: frozenset[str], n: int, place: int
) -> float:
    """Mean recall of the whole network among the classes of a task, on the images that subnets are judged on."""
    tasks: Sequence[frozenset[str]] = [task] * n
    inputs, answers = data.draw(tasks, "test", draws(0, place, stream=1))
    kept = torch.tensor(space.outputs(task))
    out: Tensor = torch.cat([net(part) for part in inputs.split(250)])
    chosen = kept[out[:, kept].argmax(1)]
    return statistics.fmean(
        float((chosen[answers == a] == a).double().mean()) for a in answers.unique().tolist()
    )


def _told(name: str, step: int, loss: float) -> None:
    if step % 500 == 0:
        print(f"{name}: step {step}, loss {loss:.3f}", file=sys.stderr)
