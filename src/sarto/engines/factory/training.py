"""Joint training of supernet and assembler: every sample with a task and a limit of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sarto.engines.factory.data import Judge, TaskData, allowed_outputs, losses, score
from sarto.engines.factory.gates import lowest_limit
from sarto.engines.factory.ramping import Ramp, answered
from sarto.engines.factory.supernet import Joint, Supernet, assembler_for, with_tensors
from sarto.errors import RequestError
from sarto.graph import ModelGraph
from sarto.graph.file import graph_hash
from sarto.training import LoopResult, LoopSettings, draws, has_bfloat16, train_loop
from sarto.types import AssemblerSettings, JointSettings, TaskSpace

#: Streams of random numbers that each of several processes has to itself.
_OWN = 16


@dataclass(frozen=True, eq=False)
class Trained:
    """A supernet and how its training ended."""

    supernet: Supernet
    result: LoopResult


def train_supernet(
    graph: ModelGraph,
    groups: tuple[str, ...],
    space: TaskSpace,
    data: TaskData,
    *,
    assembler: AssemblerSettings | None = None,
    joint: JointSettings | None = None,
    folder: Path | None = None,
    told: Callable[[int, float], None] | None = None,
    shown: Callable[[Supernet], None] | None = None,
    show_every: int = 1000,
    device: str = "cpu",
) -> Trained:
    """A backbone trained jointly with an assembler, for all tasks of a space and all limits at once.

    Args:
        graph: the backbone, pretrained or not, read as its placement does (`as_placed`); it is not changed.
        groups: channel groups with gates (see `placed`).
        folder: for checkpoints; the same call goes on from them, to the same weights.
        told: called after every step with the number of steps done and the loss.
        shown: called every `show_every` steps with the supernet as it is then.

    Raises:
        StoreError: the folder holds checkpoints of another training.
        RequestError: bfloat16 is asked for on a device that does not compute in it.

    Reference:
        NN-Factory, arXiv 2308.15003, section 3.2.
        Differs: limits come down from 1 once tasks begin to be learnt; some samples of every step are at limit 1 and
        at the lowest; answers are balanced.
    """
    settings, shape = joint or JointSettings(), assembler or AssemblerSettings()
    if settings.precision == "bfloat16" and not has_bfloat16(device):
        raise RequestError(
            f"joint.precision is bfloat16, which the {device} here does not compute in itself: training takes many "
            "times as long as in float32; set precision: float32, or train on a device that has bfloat16",
            where="joint.precision",
        )
    rank = torch.distributed.get_rank() if _together() else 0
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        made = assembler_for(graph, groups, space, shape)
        model = Joint(graph, groups, made)
    model.to(device)
    if settings.precision == "bfloat16" and len(graph.inputs[0].shape) == 4:
        model.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(model) if settings.compile else model
    n_seen, tasks = len(space.seen), (*space.seen, *space.combined)
    codes = torch.tensor([space.code(task) for task in tasks], dtype=torch.float32)
    allowed = allowed_outputs(space, tasks)
    floor = lowest_limit(made.layout, made.least)
    schedule = Ramp(settings, by_loss=isinstance(data, Judge))

    def loss_of(step: int) -> Tensor:
        generator = draws(settings.seed, step, stream=_OWN * rank)
        torch.manual_seed(
            draws(settings.seed, step, stream=_OWN * rank + 2).initial_seed()
        )  # what the backbone drops
        chosen = torch.randint(n_seen, (settings.batch,), generator=generator)
        if len(tasks) > n_seen:
            others = torch.randint(n_seen, len(tasks), (settings.batch,), generator=generator)
            extra = torch.rand(settings.batch, generator=generator) < settings.extra_share
            chosen = torch.where(extra, others, chosen)
        inputs, answers = data.draw([tasks[i] for i in chosen], "train", generator)
        opened = schedule.at(step)
        limits = draw_limits(settings, opened, floor, generator)
        hard = torch.rand(settings.batch, generator=generator) < 0.5
        clipped = torch.rand(settings.batch, generator=generator) < settings.clip_share * opened
        noise = None
        if shape.noise:
            noise = shape.noise * torch.randn(settings.batch, made.units, generator=generator)
        batch = [t.to(device) for t in (inputs, codes[chosen], limits, hard, clipped)]
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=settings.precision == "bfloat16"):
            outputs, excess = forward(*batch, noise.to(device) if noise is not None else None)
        outputs, answers, told_apart = outputs.float(), answers.to(device), allowed[chosen].to(device)
        each = losses(space, data, outputs, answers, told_apart)
        if schedule.watches(step):
            seen = torch.stack([each.detach().sum(), each.new_tensor(len(each))])
            seen = seen if schedule.by_loss else answered(outputs, answers, told_apart)
            schedule.see(step, _share_of_all(seen))
        return each.mean() + settings.strength * opened * excess.mean()

    def after(step: int, loss: float) -> None:
        if told is not None:
            told(step, loss)
        if shown is not None and step % show_every == 0 and step < settings.steps:
            shown(finished(graph, space, groups, model))

    with torch.random.fork_rng():
        result = train_loop(
            {"net": model.net, "assembler": model.assembler, "ramp": schedule},
            loss_of,
            LoopSettings(
                steps=settings.steps,
                rates={"net": settings.lr, "assembler": settings.lr_assembler, "ramp": settings.lr},
                decays={"net": settings.decay},
                warmup=settings.warmup,
                clip=settings.clip,
                save_every=settings.save_every,
            ),
            folder=folder,
            identity={
                "joint": settings.to_json(),
                "assembler": shape.to_json(),
                "space": space.to_json(),
                "groups": list(groups),
                "backbone": graph_hash(graph),
            },
            told=after,
            first=rank == 0,
        )
    return Trained(finished(graph, space, groups, model), result)


def _together() -> bool:
    """Whether several processes train as one."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def finished(graph: ModelGraph, space: TaskSpace, groups: tuple[str, ...], model: Joint) -> Supernet:
    """The supernet of trained weights, in evaluation mode on the processor."""
    state = {
        name: value.detach().cpu().clone().contiguous() for name, value in model.net.state_dict().items()
    }
    tensors = {name: state.get(name, value) for name, value in graph.tensors.items()}
    return Supernet(with_tensors(graph, tensors), space, groups, deepcopy(model.assembler).cpu().eval())


def _share_of_all(seen: Tensor) -> float:
    """The ratio of two sums (2,), over the samples of all processes that train together."""
    if _together():
        torch.distributed.all_reduce(seen)
    some, every = seen.tolist()
    return float(some / every) if every else 1.0


def draw_limits(settings: JointSettings, opened: float, floor: float, generator: torch.Generator) -> Tensor:
    """Limits (batch,) for a step: from the lowest that is drawn by now up to 1, some evenly, some on a log scale.

    Args:
        opened: how far limits have come down, in [0, 1].
        floor: the lowest limit at which every group keeps its units.
    """
    n, least = settings.batch, max(settings.lowest, floor)
    lowest = least**opened  # 1 at first, then down evenly on a log scale
    even = lowest + (1 - lowest) * torch.rand(n, generator=generator)
    small = lowest ** torch.rand(n, generator=generator)
    limits = torch.where(torch.rand(n, generator=generator) < settings.low_share, small, even)
    ends = round(settings.sandwich * n)
    limits[:ends], limits[n - ends :] = 1.0, lowest
    # float32 rounding must not take a limit below what every group keeps
    return limits.clamp(min(1.0, lowest * (1 + 1e-6)), 1.0)


@torch.no_grad()
def qualities(
    supernet: Supernet,
    data: TaskData,
    tasks: tuple[frozenset[str], ...],
    limits: tuple[float, ...],
    *,
    n: int = 500,
    seed: int = 0,
    batch: int = 250,
) -> Mapping[tuple[frozenset[str], float], tuple[float, float]]:
    """(task, limit) -> quality on n test samples, and share of open gates."""
    gated = supernet.gated()
    found = {}
    for place, task in enumerate(tasks):
        generator = draws(seed, place, stream=1)
        inputs, answers = data.draw([task] * n, "test", generator)
        code = torch.tensor([supernet.space.code(task)], dtype=torch.float32)
        for limit in limits:
            gates = supernet.assembler.gates(code, torch.tensor([limit]))
            outputs = torch.cat(
                [gated(part, gates.expand(len(part), -1).contiguous()) for part in inputs.split(batch)]  # type: ignore[misc]
            )
            found[task, limit] = (score(supernet.space, data, outputs, answers, task), float(gates.mean()))
    return found
