"""NumVQA on a CPU: a small ResNet and its assembler trained in minutes, judged on real MNIST test digits."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.place import data_folder
from sarto import zoo
from sarto.engines.factory.data import score
from sarto.engines.factory.gates import lowest_limit
from sarto.engines.factory.spaces.numvqa import DIGITS, NumVqa
from sarto.engines.factory.subnets import cut, recalibrated
from sarto.engines.factory.supernet import Supernet, placed
from sarto.engines.factory.training import qualities, train_supernet
from sarto.graph import capture
from sarto.pipeline.factory import read_space, spread
from sarto.pipeline.task_data import open_data
from sarto.training import draws, has_bfloat16
from sarto.types import AssemblerSettings, JointSettings, TaskSpace

#: Rows of the paper's Table 2: question and limit.
TABLE_2 = (
    ("has+digit_0", 0.03),
    ("has+digit_0", 0.05),
    ("has+digit_0", 0.1),
    ("exactly_2+digit_1", 0.03),
    ("exactly_3+digit_2", 0.03),
    ("exactly_4+digit_5", 0.03),
    ("exactly_1+digit_0", 0.05),
    ("exactly_3+digit_0", 0.05),
    ("exactly_1+digit_3", 0.05),
    ("exactly_2+odd", 0.03),
    ("exactly_2+odd", 0.05),
)
#: Limit at which statistics of batch norms are taken anew, and from how many samples.
RECALIBRATED = 0.1
SAMPLES = 256
#: Limits, tasks and images of each by which training is watched, that many times; they choose nothing.
WATCHED, FEW, LOOKED_AT, LOOKS = (0.1, 0.5), 6, 100, 10
#: Tasks whose open units are compared, as in the paper's figure 15; the third is never trained.
ALIKE = (
    "exactly_1+digit_0",
    "exactly_3+digit_0",
    "exactly_2+digit_0",
    "has+digit_0",
    "exactly_1+digit_3",
    "exactly_2+odd",
)
#: Counts of one digit: none to four.
COUNTS = DIGITS + 1


def numvqa(
    *,
    width: int,
    depths: list[int],
    pretrain_steps: int,
    steps: int,
    batch: int,
    lr: float,
    limits: list[float],
    n_test: int,
    n_tasks: int | None,
    digits: str,
    transformer: dict[str, Any] | None = None,
    seed: int,
) -> dict[str, Any]:
    """Train, then judge every question at every limit on fresh images of test digits, half of the answers yes.

    The backbone is trained first to count digits, on training digits; then jointly with the assembler. Both count as
    training. With SARTO_FACTORY_WORK, a folder, training goes on there after it was stopped.

    Args:
        n_tasks: judge so many questions of each kind at most; None: all.
        digits: "mnist" (under SARTO_DATA), or "made" for ten shapes that need no data.
        transformer: arguments of `zoo.vit`; then the backbone is one, and `width` and `depths` say nothing.
    """

    def network(outputs: int) -> nn.Module:
        if transformer is None:
            return zoo.resnet(outputs, 1, tuple(depths), width, False, "imagenet")
        return zoo.vit(outputs, side, **transformer, in_channels=1)

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(os.environ.get("SARTO_FACTORY_WORK", temporary))
        work.mkdir(parents=True, exist_ok=True)
        space, data = open_digits(digits, Path(temporary))
        side = 2 * data.images["train"].shape[1]
        torch.manual_seed(seed)
        counting = network(10 * COUNTS)
        clock = _Clock(work / "seconds.json")
        share = _pretrained(counting, data, pretrain_steps, batch, seed, work / "counting.safetensors", clock)
        net = network(len(space.answers))
        net.load_state_dict(kept_weights(net, counting.state_dict()))
        graph = capture(net.eval(), torch.rand(2, 1, side, side), prove=False)

        watch = _Watch(work / "progress.json", space, data, clock)

        def told(step: int, loss: float) -> None:
            clock.tick()
            watch.step = step
            if step % 100 == 0:
                print(f"step {step}, loss {loss:.3f}, {clock.minutes:.1f} CPU minutes", file=sys.stderr)

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
                precision="bfloat16" if has_bfloat16() else "float32",
                open_until=0.04,
                ramp_until=0.25,
                lowest=0.03,
                save_every=100,
                seed=seed,
            ),
            folder=work / "joint",
            told=told,
            shown=watch,
            show_every=max(1, steps // LOOKS),
        )
    supernet = trained.supernet
    numbers: dict[str, Any] = {
        "train_cpu_minutes": clock.minutes,
        "n_steps": trained.result.steps,
        "n_units": supernet.assembler.units,
        "pretrained_counts_accuracy": share,
    }
    rows = []
    for kind, tasks in (("seen", space.seen), ("unseen", space.kept_aside)):
        for limit in limits:
            found = qualities(supernet, data, tasks[:n_tasks], (limit,), n=n_test)
            values = [quality for quality, _ in found.values()]
            key = f"{round(100 * limit)}"
            numbers[f"accuracy_{kind}_mean_{key}"] = statistics.fmean(values)
            numbers[f"accuracy_{kind}_worst_{key}"] = min(values)
            numbers[f"ratio_{kind}_largest_{key}"] = max(ratio for _, ratio in found.values())
            rows += [
                {"task": space.named(task), "kind": kind, "limit": limit, "accuracy": quality, "ratio": ratio}
                for (task, _), (quality, ratio) in found.items()
            ]
        if RECALIBRATED in limits and transformer is None:  # which has no batch norms
            plain, anew = recalibration(supernet, data, tasks[:n_tasks], RECALIBRATED, n_test)
            numbers[f"accuracy_{kind}_before_recalibration"] = plain
            numbers[f"accuracy_{kind}_recalibrated"] = anew
    table = [
        next(iter(qualities(supernet, data, (space.task(name),), (limit,), n=n_test).values()))[0]
        for name, limit in TABLE_2[:n_tasks]
        if limit >= lowest_limit(supernet.layout, 1)
    ]
    if table:
        numbers["accuracy_table_2_mean"] = statistics.fmean(table)
        numbers["accuracy_table_2_worst"] = min(table)
    return {**numbers, "rows": [*rows, *watch.rows(), *overlaps(supernet, space)]}


def overlaps(supernet: Supernet, space: TaskSpace) -> list[dict[str, Any]]:
    """Open units that two tasks have in common, over those that either has, with a tenth of the units."""
    limit = max(0.1, lowest_limit(supernet.layout, supernet.assembler.least) * (1 + 1e-6))
    codes = torch.tensor([space.code(space.task(name)) for name in ALIKE], dtype=torch.float32)
    gates = supernet.assembler.gates(codes, torch.full((len(codes),), limit))
    return [
        {
            "kind": "overlap",
            "task": one,
            "other": two,
            "limit": limit,
            "overlap": float((gates[i] * gates[j]).sum() / torch.maximum(gates[i], gates[j]).sum()),
        }
        for i, one in enumerate(ALIKE)
        for j, two in enumerate(ALIKE)
    ]


def recalibration(
    supernet: Supernet, data: NumVqa, tasks: Sequence[frozenset[str]], limit: float, n_test: int
) -> tuple[float, float]:
    """Mean accuracy of the tasks' subnets as extracted, and with batch norm statistics of unlabelled samples.

    The samples are images of the question made of training digits; both are judged on the same images of test digits.
    """
    space, found = supernet.space, []
    for place, task in enumerate(tasks):
        code = torch.tensor([space.code(task)], dtype=torch.float32)
        model = cut(supernet, supernet.assembler.gates(code, torch.tensor([limit]))[0], [task])
        unlabelled, _ = data.draw([task] * SAMPLES, "train", draws(0, place, stream=5))
        inputs, answers = data.draw([task] * n_test, "test", draws(0, place, stream=1))
        found.append(
            [
                score(space, data, torch.as_tensor(graph(inputs)), answers, task)
                for graph in (model, recalibrated(model, unlabelled))
            ]
        )
    plain, anew = zip(*found, strict=True)
    return statistics.fmean(plain), statistics.fmean(anew)


class _Clock:
    """CPU minutes of training, kept in a file so that they add up over interruptions."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, time.process_time()
        self.before = float(json.loads(path.read_text())) if path.is_file() else 0.0

    def tick(self) -> None:
        now = time.process_time()
        self.before, self.last = self.before + now - self.last, now
        self.path.write_text(json.dumps(self.before))

    @property
    def minutes(self) -> float:
        return self.before / 60


class _Watch:
    """Mean accuracy of a few trained tasks as training goes on, kept in a file; it counts as no training."""

    def __init__(self, path: Path, space: TaskSpace, data: NumVqa, clock: _Clock) -> None:
        self.path, self.space, self.data, self.clock, self.step = path, space, data, clock, 0
        self.seen: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}

    def __call__(self, supernet: Supernet) -> None:
        floor = lowest_limit(supernet.layout, supernet.assembler.least)
        limits = tuple(limit for limit in WATCHED if limit >= floor)
        found = qualities(supernet, self.data, spread(self.space.seen, FEW), limits, n=LOOKED_AT)
        self.seen[str(self.step)] = {
            str(limit): statistics.fmean(quality for (_, at), (quality, _) in found.items() if at == limit)
            for limit in limits
        }
        self.path.write_text(json.dumps(self.seen))
        self.clock.last = time.process_time()

    def rows(self) -> list[dict[str, Any]]:
        """A row for each look and limit."""
        return [
            {"kind": "progress", "step": int(step), "limit": float(limit), "accuracy": accuracy}
            for step, found in self.seen.items()
            for limit, accuracy in found.items()
        ]


def open_digits(digits: str, folder: Path) -> tuple[TaskSpace, NumVqa]:
    """The space and its data: real digits under SARTO_DATA, or ten shapes."""
    if digits == "mnist":
        space = read_space("numvqa", {"folder": str(data_folder() / "mnist")})
    else:
        shapes = np.repeat(np.random.default_rng(0).integers(0, 255, (10, 16, 16), dtype=np.uint8), 4, 0)
        labels = np.repeat(np.arange(10), 4)
        np.savez(
            folder / "digits.npz",
            train_images=shapes,
            train_labels=labels,
            test_images=shapes,
            test_labels=labels,
        )
        space = read_space("numvqa", {"folder": str(folder)})
    data = open_data(space)
    if not isinstance(data, NumVqa):
        raise TypeError(f"the space's function gave a {type(data).__name__}")
    return space, data


def _pretrained(
    net: nn.Module, data: NumVqa, steps: int, batch: int, seed: int, path: Path, clock: _Clock
) -> float:
    """As `count_digits`; what an earlier run saved is taken over."""
    from safetensors.torch import load_file, save_file

    if path.is_file():
        held = load_file(path)
        share = float(held.pop("share"))
        net.load_state_dict(held)
        return share
    share = count_digits(net, data, steps, batch, seed, clock.tick)
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file({**state, "share": torch.tensor(share)}, path)
    return share


def kept_weights(net: nn.Module, counting: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of a net with the weights of one that counts, all but the last layer's, whose shapes differ."""
    fresh = net.state_dict()
    return {**fresh, **{n: value for n, value in counting.items() if value.shape == fresh[n].shape}}


def count_digits(
    net: nn.Module, data: NumVqa, steps: int, batch: int, seed: int, ticked: Callable[[], None] = lambda: None
) -> float:
    """Trains a network to count each digit, in place; share of the last images whose ten counts were all right.

    Args:
        ticked: called after each step.
    """
    net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, max(2, steps))
    rng, right = np.random.default_rng(seed), []
    for step in range(steps):
        drawn = rng.integers(0, 10, (batch, DIGITS))
        # One digit fills several places in most images, so that high counts occur.
        for row in np.flatnonzero(rng.random(batch) < 0.6):
            drawn[row, : rng.integers(0, COUNTS)] = rng.integers(0, 10)
        counts = torch.from_numpy(np.stack([(drawn == digit).sum(1) for digit in range(10)], 1))
        images = data.pictures(drawn, "train", rng).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            out = net(images)
        out = out.float().view(-1, 10, COUNTS)
        loss = F.cross_entropy(out.flatten(0, 1), counts.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        right.append(float((out.argmax(2) == counts).all(1).float().mean()))
        ticked()
        if (step + 1) % 50 == 0:
            print(f"counting {step + 1}, {statistics.fmean(right[-50:]):.3f} right", file=sys.stderr)
    net.eval()
    return statistics.fmean(right[-20:])
