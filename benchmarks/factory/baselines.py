"""What one would do without an assembler, on NumVQA: train anew, prune and tune, share a model, sample widths."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.factory.numvqa import COUNTS, SAMPLES, count_digits, kept_weights, open_digits
from sarto import zoo
from sarto.devices import count
from sarto.engines.factory.spaces.numvqa import NumVqa
from sarto.engines.factory.subnets import recalibrated
from sarto.engines.factory.supernet import placed
from sarto.graph import ModelGraph, Selection, capture, gate, gate_layout, slice
from sarto.training import draws, has_bfloat16
from sarto.types import TaskSpace

#: Halvings of the interval in which a ratio of pruning is looked for.
BISECTIONS = 7


@dataclass(frozen=True)
class Setting:
    """What all ways have in common.

    Attributes:
        counting: weights of a network of the whole width that counts digits; shared networks begin with them.
    """

    space: TaskSpace
    data: NumVqa
    width: int
    depths: tuple[int, ...]
    batch: int
    lr: float
    seed: int
    counting: Mapping[str, Tensor] = field(default_factory=dict)

    def net(self, outputs: int, width: int | None = None) -> nn.Module:
        """A fresh network, as wide as the shared one unless a width is given."""
        torch.manual_seed(self.seed)
        return zoo.resnet(outputs, 1, self.depths, width or self.width, False, "imagenet")

    def begun(self, outputs: int) -> nn.Module:
        """A network of the whole width that could count digits, with fresh outputs."""
        net = self.net(outputs)
        net.load_state_dict(kept_weights(net, self.counting))
        return net

    def within(self, params: int) -> int:
        """The largest width of a network of one output with at most so many parameters."""
        return max(
            (width for width in range(2, self.width + 1) if n_params(self.net(1, width)) <= params), default=2
        )

    @property
    def side(self) -> int:
        return int(2 * self.data.images["train"].shape[1])


def baselines(
    *,
    width: int,
    depths: list[int],
    pretrain_steps: int,
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
      trained; it has no task input, so every question gets the same units. Batch norm statistics are taken anew for
      each share, on training images, as there.
    - retrain: the whole network for each question, trained on it alone.
    - retrain small: the same with the widest network of no more parameters than the cut of `widths`.
    - prune and tune: the shared model cut by Torch-Pruning to as many parameters, then tuned on the question.

    Shared networks begin with weights that count digits, as the supernet of `numvqa` does.

    Args:
        pretrain_steps: updates of counting.
        steps: updates of the shared models.
        steps_each: updates for each question where a way trains for it.
        limits: shares of the units.

    Reference:
        Widths: Cai et al., Once-for-All, arXiv 1908.09791; statistics: Yu and Huang, arXiv 1903.05134, section 3.3.
    """
    with tempfile.TemporaryDirectory() as folder:
        space, data = open_digits(digits, Path(folder))
        setting = Setting(space, data, width, tuple(depths), batch, lr, seed)
        tasks = space.seen[:: max(1, len(space.seen) // n_tasks)][:n_tasks]
        numbers: dict[str, Any] = {"n_questions": len(tasks), "n_test": n_test}
        counting = setting.net(10 * COUNTS)
        begun = time.process_time()
        count_digits(counting, data, pretrain_steps, batch, seed)
        first = time.process_time() - begun
        setting = replace(setting, counting=counting.state_dict())
        begun = time.process_time()
        shared = _shared(setting, steps, widths=False)
        numbers["shared_prepare_cpu_seconds"] = first + time.process_time() - begun
        begun = time.process_time()
        nested = _shared(setting, steps, widths=True)
        numbers["widths_prepare_cpu_seconds"] = first + time.process_time() - begun
        numbers["accuracy_shared"] = _mean(setting, tasks, n_test, lambda task: _row(shared, space, task))
        numbers["shared_params"] = count(shared).params
        begun = time.process_time()
        whole = {task: _retrained(setting, task, setting.width, steps_each) for task in tasks}
        numbers["retrain_whole_cpu_seconds"] = (time.process_time() - begun) / len(tasks)
        numbers["accuracy_retrain_whole"] = _mean(setting, tasks, n_test, lambda task: whole[task])
        numbers["retrain_whole_params"] = n_params(setting.net(1))
        unlabelled = _drawn(setting, SAMPLES)
        for limit in limits:
            key = f"{round(100 * limit)}"
            small = recalibrated(slice(nested, _first(nested, limit)), unlabelled)
            numbers[f"accuracy_widths_{key}"] = _mean(
                setting, tasks, n_test, lambda task, small=small: _row(small, space, task)
            )
            most = count(small).params
            numbers[f"widths_params_{key}"] = most
            width = setting.within(most)
            begun = time.process_time()
            alone = {task: _retrained(setting, task, width, steps_each) for task in tasks}
            numbers[f"retrain_cpu_seconds_{key}"] = (time.process_time() - begun) / len(tasks)
            numbers[f"retrain_params_{key}"] = n_params(setting.net(1, width))
            numbers[f"accuracy_retrain_{key}"] = _mean(
                setting, tasks, n_test, lambda task, alone=alone: alone[task]
            )
            if importlib.util.find_spec("torch_pruning") is not None:
                begun = time.process_time()
                cut = _pruned(setting, shared, most)
                tuned = {task: _tuned(setting, cut, task, steps_each) for task in tasks}
                numbers[f"prune_tune_cpu_seconds_{key}"] = (time.process_time() - begun) / len(tasks)
                numbers[f"prune_tune_params_{key}"] = n_params(cut)
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
    graph = capture(setting.begun(len(every)).eval(), example, prove=False)
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


def _retrained(setting: Setting, task: frozenset[str], width: int, steps: int) -> Any:
    """A network of a width that was trained on one question alone."""
    net = setting.net(1, width).train()
    _fit(setting, net, task, steps, lambda out: out[:, 0])
    return lambda images: net.eval()(images)[:, 0]


def _pruned(setting: Setting, shared: ModelGraph, most: int) -> nn.Module:
    """The shared model cut by magnitude through Torch-Pruning: the least that brings it to so many parameters.

    The ratio is found by bisection; where none is small enough, that of the smallest network is taken.
    """
    low, high = 0.0, 0.99
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if n_params(_cut(setting, shared, middle)) <= most else (middle, high)
    return _cut(setting, shared, high)


def _cut(setting: Setting, shared: ModelGraph, ratio: float) -> nn.Module:
    tp = importlib.import_module("torch_pruning")

    space = setting.space
    net = setting.net(len((*space.seen, *space.kept_aside)))
    net.load_state_dict({name: tensor.clone() for name, tensor in shared.tensors.items()}, strict=False)
    pruner = tp.pruner.MagnitudePruner(
        net.eval(),
        torch.rand(1, 1, setting.side, setting.side),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[layer for layer in net.modules() if isinstance(layer, nn.Linear)],
    )
    pruner.step()
    return net


def _tuned(setting: Setting, cut: nn.Module, task: frozenset[str], steps: int) -> Any:
    """A copy of the pruned model, tuned on one question."""
    net = copy.deepcopy(cut)
    row = (*setting.space.seen, *setting.space.kept_aside).index(task)
    _fit(setting, net.train(), task, steps, lambda out: out[:, row])
    return lambda images: net.eval()(images)[:, row]


def n_params(net: nn.Module) -> int:
    """Parameters of a network."""
    return sum(value.numel() for value in net.parameters())


def _drawn(setting: Setting, n: int) -> Tensor:
    """Training images of all questions."""
    generator = draws(setting.seed, 0, 8)
    seen = setting.space.seen
    chosen = torch.randint(len(seen), (n,), generator=generator)
    return setting.data.draw([seen[i] for i in chosen], "train", generator)[0]


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
