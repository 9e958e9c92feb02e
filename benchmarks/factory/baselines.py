"""What one would do without an assembler, on NumVQA: train anew, prune and tune, share a model, sample widths."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.factory.numvqa import open_digits
from sarto import zoo
from sarto.devices import count
from sarto.engines.factory.spaces.numvqa import NumVqa
from sarto.engines.factory.supernet import placed
from sarto.graph import ModelGraph, Selection, capture, gate, gate_layout, slice
from sarto.training import draws, has_bfloat16
from sarto.types import TaskSpace


@dataclass(frozen=True)
class Setting:
    """What all ways have in common."""

    space: TaskSpace
    data: NumVqa
    width: int
    depths: tuple[int, ...]
    batch: int
    lr: float
    seed: int

    def net(self, outputs: int, share: float = 1.0) -> nn.Module:
        """A fresh network, of a share of the width."""
        torch.manual_seed(self.seed)
        return zoo.resnet(outputs, 1, self.depths, max(2, round(share * self.width)), False, "imagenet")

    @property
    def side(self) -> int:
        return int(2 * self.data.images["train"].shape[1])


def baselines(
    *,
    width: int,
    depths: list[int],
    steps: int,
    steps_each: int,
    batch: int,
    lr: float,
    limits: list[float],
    n_tasks: int,
    n_test: int,
    digits: str,
    seed: int,
) -> dict[str, Any]:
    """Mean accuracy over a few questions, and what each way costs to prepare and to customise.

    - shared: one model with an output for each question, trained on all of them.
    - widths: the same, with the first units of every layer open up to a drawn share, as once-for-all networks are
      trained; it has no task input, so every question gets the same units.
    - retrain: a network of the share's width for each question, trained on it alone.
    - prune and tune: the shared model cut by Torch-Pruning to the share of its units, then tuned on the question.

    Args:
        steps: updates of the shared models.
        steps_each: updates for each question where a way trains for it.
        limits: shares of the units.
    """
    with tempfile.TemporaryDirectory() as folder:
        space, data = open_digits(digits, Path(folder))
        setting = Setting(space, data, width, tuple(depths), batch, lr, seed)
        tasks = space.seen[:: max(1, len(space.seen) // n_tasks)][:n_tasks]
        numbers: dict[str, Any] = {"n_questions": len(tasks), "n_test": n_test}
        begun = time.process_time()
        shared = _shared(setting, steps, widths=False)
        numbers["shared_prepare_cpu_seconds"] = time.process_time() - begun
        begun = time.process_time()
        nested = _shared(setting, steps, widths=True)
        numbers["widths_prepare_cpu_seconds"] = time.process_time() - begun
        numbers["accuracy_shared"] = _mean(setting, tasks, n_test, lambda task: _row(shared, space, task))
        numbers["shared_params"] = count(shared).params
        for limit in limits:
            key = f"{round(100 * limit)}"
            small = slice(nested, _first(nested, limit))
            numbers[f"accuracy_widths_{key}"] = _mean(
                setting, tasks, n_test, lambda task, small=small: _row(small, space, task)
            )
            begun = time.process_time()
            alone = {task: _retrained(setting, task, limit, steps_each) for task in tasks}
            numbers[f"retrain_cpu_seconds_{key}"] = (time.process_time() - begun) / len(tasks)
            numbers[f"accuracy_retrain_{key}"] = _mean(
                setting, tasks, n_test, lambda task, alone=alone: alone[task]
            )
            if importlib.util.find_spec("torch_pruning") is not None:
                begun = time.process_time()
                tuned = {task: _tuned(setting, shared, task, limit, steps_each) for task in tasks}
                numbers[f"prune_tune_cpu_seconds_{key}"] = (time.process_time() - begun) / len(tasks)
                numbers[f"accuracy_prune_tune_{key}"] = _mean(
                    setting, tasks, n_test, lambda task, tuned=tuned: tuned[task]
                )
            print(f"limit {limit}: {numbers}", file=sys.stderr)
        return numbers


def _shared(setting: Setting, steps: int, *, widths: bool) -> ModelGraph:
    """A network with an output for each question; with `widths` also at shares of the first units."""
    space = setting.space
    every = (*space.seen, *space.kept_aside)
    example = torch.rand(2, 1, setting.side, setting.side)
    graph = capture(setting.net(len(every)).eval(), example, prove=False)
    layout = gate_layout(graph, placed(graph))
    units = max(stop for _, stop in layout.values())
    module = gate(graph, placed(graph)).module(train=True)
    optimiser = torch.optim.AdamW(module.parameters(), lr=setting.lr, weight_decay=1e-3, fused=True)
    for step in range(steps):
        generator = draws(setting.seed, step)
        chosen = torch.randint(len(space.seen), (setting.batch,), generator=generator)
        inputs, answers = setting.data.draw([space.seen[i] for i in chosen], "train", generator)
        gates = torch.ones(setting.batch, units)
        if widths:
            share = torch.rand(setting.batch, generator=generator).square()
            share[0], share[1] = 1.0, 0.03
            for start, stop in layout.values():
                n_open = (share * (stop - start)).ceil().clamp(min=1)
                gates[:, start:stop] = (torch.arange(stop - start) < n_open[:, None]).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            out = module(inputs, gates)
        logit = out.float().gather(1, chosen[:, None])[:, 0]
        _step(optimiser, F.binary_cross_entropy_with_logits(logit, answers.float()), step, steps, setting.lr)
    state = module.state_dict()
    tensors = {name: state.get(name, value).detach() for name, value in graph.tensors.items()}
    return replace(graph, tensors=tensors)


def _retrained(setting: Setting, task: frozenset[str], limit: float, steps: int) -> Any:
    """A network of the share's width that was trained on one question alone."""
    net = setting.net(1, limit).train()
    _fit(setting, net, task, steps, lambda out: out[:, 0])
    return lambda images: net.eval()(images)[:, 0]


def _tuned(setting: Setting, shared: ModelGraph, task: frozenset[str], limit: float, steps: int) -> Any:
    """The shared model cut by magnitude through Torch-Pruning, then tuned on one question."""
    tp = importlib.import_module("torch_pruning")

    space = setting.space
    every = (*space.seen, *space.kept_aside)
    net = setting.net(len(every))
    net.load_state_dict({name: tensor.clone() for name, tensor in shared.tensors.items()}, strict=False)
    example = torch.rand(1, 1, setting.side, setting.side)
    head = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    pruner = tp.pruner.MagnitudePruner(
        net.eval(),
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - limit,
        ignored_layers=head,
    )
    pruner.step()
    row = every.index(task)
    _fit(setting, net.train(), task, steps, lambda out: out[:, row])
    return lambda images: net.eval()(images)[:, row]


def _fit(setting: Setting, net: nn.Module, task: frozenset[str], steps: int, picked: Any) -> None:
    optimiser = torch.optim.AdamW(net.parameters(), lr=setting.lr, weight_decay=1e-3, fused=True)
    for step in range(steps):
        inputs, answers = setting.data.draw([task] * setting.batch, "train", draws(setting.seed, step, 7))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
            out = net(inputs)
        loss = F.binary_cross_entropy_with_logits(picked(out.float()), answers.float())
        _step(optimiser, loss, step, steps, setting.lr)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, step: int, steps: int, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr * min(1.0, (1 + step) / 20) * (1 - step / max(1, steps))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _first(graph: ModelGraph, limit: float) -> Selection:
    kept = {}
    for group, (start, stop) in gate_layout(graph, placed(graph)).items():
        kept[group] = tuple(range(max(1, -int(-limit * (stop - start) // 1))))
    return Selection(kept)


def _row(graph: ModelGraph, space: TaskSpace, task: frozenset[str]) -> Any:
    place = (*space.seen, *space.kept_aside).index(task)

    def said(images: Tensor) -> Tensor:
        out = graph(images)
        return out[:, place] if isinstance(out, Tensor) else out[0][:, place]

    return said


@torch.no_grad()
def _mean(setting: Setting, tasks: Sequence[frozenset[str]], n: int, model_of: Any) -> float:
    """Mean over questions of the mean recall of yes and no, on test digits."""
    found = []
    for place, task in enumerate(tasks):
        images, answers = setting.data.draw([task] * n, "test", draws(setting.seed, place, stream=1))
        yes = model_of(task)(images) > 0
        recalls = [float((yes[answers == a] == bool(a)).double().mean()) for a in answers.unique()]
        found.append(statistics.fmean(recalls))
    return statistics.fmean(found)
