"""Supernets: trained from a description, judged, stocked in a market, and read from there again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sarto import zoo
from sarto.devices import count
from sarto.engines.factory.data import TaskData, check_data, open_data
from sarto.engines.factory.gates import lowest_limit
from sarto.engines.factory.subnets import gates_of
from sarto.engines.factory.supernet import Supernet, as_placed, assembler_for, placed, revived
from sarto.engines.factory.training import qualities, train_supernet
from sarto.errors import RequestError, ShapeError, suggest
from sarto.graph import ModelGraph, block, capture, features, with_head
from sarto.graph.model import size_at
from sarto.market import Store
from sarto.pipeline.curves import draw_looks
from sarto.pipeline.progress import Progress, silent
from sarto.types import (
    Backbone,
    FactoryConfig,
    Preprocessing,
    StockedSupernet,
    TaskQuality,
    TaskSpace,
)
from sarto.types.text import write_atomically

#: Stands for hashes and times in a manifest until the market sets them.
_UNKNOWN = "sha256:" + "0" * 64
#: What was seen of the accuracy, beside the checkpoints; drawn in an .svg of the same name.
LOOKED = "accuracy.json"
#: Steps between two looks at the accuracy while training goes on, as a share of all.
LOOKS = 0.1


@dataclass(frozen=True)
class FactoryRun:
    """A supernet that was trained and stocked.

    Attributes:
        stopped: why training ended early, at its last good checkpoint; None where it did not.
    """

    manifest: StockedSupernet
    stopped: str | None
    resumed_from: int


def shipped_spaces() -> tuple[str, ...]:
    """Names of the task spaces that ship."""
    folder = files("sarto.engines.factory.spaces")
    return tuple(
        sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    )


def read_space(which: str, data: Mapping[str, Any] | None = None) -> TaskSpace:
    """A task space that ships, by name, or of a YAML file; its function's arguments may be given.

    Raises:
        RequestError: there is none, or the file describes none.
    """
    if which in shipped_spaces():
        text = files("sarto.engines.factory.spaces").joinpath(f"{which}.yaml").read_text(encoding="utf-8")
        space = TaskSpace.parse(text)
    elif Path(which).is_file():
        space = TaskSpace.read(which)
    else:
        raise RequestError(
            f"no task space {which!r}: neither a file nor one that ships{suggest(which, shipped_spaces())}",
            where="space",
        )
    return space.replace(arguments={**space.arguments, **dict(data or {})})


def data_of(space: TaskSpace) -> TaskData:
    """The data of a space, with `$NAME` in its arguments replaced by the environment's values.

    Raises:
        RequestError: a name is not in the environment, or the data can't be opened.
    """
    told, missing = {}, []
    for key, value in space.arguments.items():
        if isinstance(value, str):
            value = os.path.expandvars(value)
            if "$" in value:
                missing.append(
                    f"data.{key}: {value!r} names a variable that the environment does not have; set it, or give the "
                    "path itself"
                )
        told[key] = value
    if missing:
        raise RequestError(missing[0], problems=missing)
    return open_data(space.replace(arguments=told))


def backbone_graph(
    backbone: Backbone, space: TaskSpace, inputs: Tensor, store: Store | None
) -> tuple[ModelGraph, str]:
    """The backbone with an output for each answer of a space, and where it comes from, in words.

    Args:
        inputs: a few samples, for capturing.

    Raises:
        RequestError: no such learnware or network, or it can't be made with these arguments.
        ShapeError: it does not read what the data give.
    """
    if backbone.learnware is not None:
        if store is None:
            raise RequestError("a learnware as backbone needs a market")
        learnware = store.get(backbone.learnware)
        whole = store.graph(learnware.id)
        wanted = list(size_at(whole.inputs[0].shape[1:], 1))
        if wanted != list(inputs.shape[1:]):
            raise ShapeError(
                f"learnware {learnware.name!r} reads {wanted}, the data of {space.name!r} give {list(inputs.shape[1:])}"
            )
        below = block(whole, end=features(whole).value)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            width = size_at(below.node(below.outputs[0]).shape, 1)[1]
            head = torch.nn.Linear(width, len(space.answers))
        made = with_head(below, head.weight.detach().clone(), head.bias.detach().clone())
        return made, f"learnware {learnware.name} ({learnware.id[7:19]})"
    name = str(backbone.zoo)
    known = [key for key in zoo.__all__ if key[0].islower() and callable(getattr(zoo, key))]
    if name not in known:
        raise RequestError(f"the zoo has no network {name!r}{suggest(name, known)}", where="backbone.zoo")
    function = getattr(zoo, name)
    given = dict(backbone.arguments)
    if "n_classes" in signature(function).parameters:
        given.setdefault("n_classes", len(space.answers))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            net = function(**given).eval()
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"{name} can't be made with {given}: {error}", where="backbone.arguments"
            ) from error
    if backbone.weights is not None:
        _load(net, Path(os.path.expandvars(backbone.weights)))
    return capture(net, inputs, prove=False), f"zoo {name}"


def train_factory(
    config: FactoryConfig,
    store: Store,
    folder: Path,
    *,
    progress: Progress = silent,
    device: str = "cpu",
) -> FactoryRun:
    """A supernet trained and stocked as a description says; stopped at any moment, the same call goes on.

    Args:
        folder: for checkpoints; of several processes (torchrun), all see it.
        progress: told the step, and the accuracy at a few limits as training goes on.

    Raises:
        RequestError: the description does not fit together; all problems of the data at once.
        StoreError: the name is taken, or the folder holds checkpoints of another training.
    """
    rank, device = _joined(device)
    space = read_space(config.space, config.data)
    named = [found for found in store.supernets if found.name == config.name]
    if any(found.joint != config.joint or found.space != space for found in named):
        raise RequestError(
            f"the market holds a supernet {config.name!r} of another training; choose another name, or remove it "
            f"(`sarto factory rm {config.name}`)",
            where="name",
        )
    data = data_of(space)
    example = check_data(space, data)
    graph, origin = backbone_graph(config.backbone, space, example, store)
    problems = _problems(graph, space, config.preprocessing)
    if problems:
        raise RequestError(problems[0], problems=problems)
    graph, groups = as_placed(graph, config.placement), placed(graph, config.placement)
    shape = assembler_for(graph, groups, space, config.assembler)
    floor = lowest_limit(shape.layout, shape.least)
    limits = tuple(limit for limit in config.judging.limits if limit >= floor)
    if not limits:
        raise RequestError(
            f"judging.limits: all are under {floor:.3g}, the smallest limit at which every group keeps "
            f"{config.assembler.least}",
            where="judging.limits",
        )
    looked = _Looks(config, space, data, limits, progress, folder)
    trained = train_supernet(
        graph,
        groups,
        space,
        data,
        assembler=config.assembler,
        joint=config.joint,
        folder=folder,
        told=looked,
        device=device,
        shown=None if rank else looked.seen,
        show_every=max(1, round(LOOKS * config.joint.steps)),
    )
    if trained.result.steps == 0:
        raise RequestError(
            f"training ended before its first checkpoint: {trained.result.stopped}; nothing is stocked"
        )
    if rank:
        torch.distributed.barrier()  # the first process judges and stocks
        return FactoryRun(
            store.supernets.get(config.name), trained.result.stopped, trained.result.resumed_from
        )
    found = judged(trained.supernet, data, config, limits, progress)
    manifest = stock_supernet(store, trained.supernet, config, origin, found)
    if _together():
        torch.distributed.barrier()
    return FactoryRun(manifest, trained.result.stopped, trained.result.resumed_from)


def _joined(device: str) -> tuple[int, str]:
    """This process's place among those that torchrun started (0 where it is alone), and its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0, device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return torch.distributed.get_rank(), device


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Looks:
    """Tells how training goes: the step and the loss, and now and then the accuracy at a few limits."""

    def __init__(
        self,
        config: FactoryConfig,
        space: TaskSpace,
        data: TaskData,
        limits: Sequence[float],
        progress: Progress,
        folder: Path,
    ) -> None:
        self.config, self.space, self.data, self.progress = config, space, data, progress
        self.limits, self.folder, self.step = tuple(limits), folder, 0
        self.words = "training"
        self.mean: float | None = None

    def __call__(self, step: int, loss: float) -> None:
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        self.step = step
        self.progress(f"{self.words}, loss {self.mean:.3f}", step, self.config.joint.steps)

    def seen(self, supernet: Supernet) -> None:
        tasks = spread(self.space.seen, 6)
        found = qualities(supernet, self.data, tasks, self.limits, n=50)
        means = {}
        for limit in self.limits:
            rows = [quality for (_, at), (quality, _) in found.items() if at == limit]
            means[f"{limit:.0%}"] = sum(rows) / len(rows)
        told = ", ".join(f"{limit}: {mean:.0%}" for limit, mean in means.items())
        self.words = f"training ({told})"
        path = self.folder / LOOKED
        seen = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        # What was seen after the checkpoint that training went on from is seen again.
        seen = {step: row for step, row in seen.items() if int(step) < self.step} | {str(self.step): means}
        write_atomically(path, json.dumps(seen))
        draw_looks(seen, path.with_suffix(".svg"))


def judged(
    supernet: Supernet,
    data: TaskData,
    config: FactoryConfig,
    limits: Sequence[float],
    progress: Progress = silent,
) -> list[TaskQuality]:
    """How well tasks are done at each limit, on test samples; tasks without any are left out."""
    judging, space = config.judging, supernet.space
    tasks = [
        *((task, True) for task in spread(space.seen, judging.most_tasks)),
        *((task, False) for task in spread(space.kept_aside, judging.most_tasks)),
    ]
    found = []
    for place, (task, seen) in enumerate(tasks):
        progress("judging", place, len(tasks))
        try:
            rows = qualities(supernet, data, (task,), tuple(limits), n=judging.samples)
        except RequestError:
            continue  # no test samples of this task
        for (_, limit), (quality, ratio) in rows.items():
            found.append(
                TaskQuality(
                    task=space.named(task),
                    limit=limit,
                    ratio=ratio,
                    quality=quality,
                    n_samples=judging.samples,
                    seen=seen,
                )
            )
    progress("judging", len(tasks), len(tasks))
    return found


def stock_supernet(
    store: Store,
    supernet: Supernet,
    config: FactoryConfig,
    backbone: str,
    found: Sequence[TaskQuality] = (),
) -> StockedSupernet:
    """Put a trained supernet into a market.

    Raises:
        StoreError: the name is taken by another one, or writing failed.
    """
    graph = supernet.graph
    smallest = gates_of(
        {group: range(n_least) for group, n_least in supernet.assembler.least.items()}, supernet.layout
    )
    sketch = graph.sketch()
    manifest = StockedSupernet(
        id=_UNKNOWN,
        name=config.name,
        space=supernet.space,
        groups=supernet.groups,
        placement=config.placement,
        preprocessing=config.preprocessing,
        assembler=supernet.assembler.settings,
        joint=config.joint,
        graph_hash=_UNKNOWN,
        weights_hash=_UNKNOWN,
        assembler_hash=_UNKNOWN,
        backbone=backbone,
        input_shape=size_at(graph.inputs[0].shape[1:], 1),
        units=supernet.assembler.units,
        cost=count(sketch),
        floor=count(supernet.subnet(smallest)),
        qualities=tuple(found),
        licence=config.licence,
        notes=config.notes,
        created="",
    )
    return store.supernets.put(manifest, graph, supernet.assembler.state_dict())


def open_supernet(store: Store, which: str) -> tuple[StockedSupernet, Supernet]:
    """A supernet of a market, by name or id.

    Raises:
        StoreError: there is none, or its files are damaged.
    """
    manifest = store.supernets.get(which)
    return manifest, revived(
        manifest, store.supernets.graph(manifest.id), store.supernets.assembler(manifest.id)
    )


def spread(tasks: Sequence[frozenset[str]], most: int) -> tuple[frozenset[str], ...]:
    """At most so many of the tasks, evenly spread over their order."""
    if len(tasks) <= most:
        return tuple(tasks)
    return tuple(tasks[round(place * (len(tasks) - 1) / max(1, most - 1))] for place in range(most))


def _problems(graph: ModelGraph, space: TaskSpace, preprocessing: Preprocessing) -> list[str]:
    problems = []
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        problems.append(
            f"backbone: has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, one of each is needed"
        )
        return problems
    shape = list(size_at(graph.inputs[0].shape[1:], 1))
    wanted = [preprocessing.channels, *(preprocessing.size or shape[1:])]
    if len(shape) == 3 and shape != wanted:
        problems.append(f"preprocessing: makes {wanted}, the data give {shape}")
    out = graph.node(graph.outputs[0]).shape
    if space.kind == "classification" and (len(out) != 2 or out[1] != len(space.answers)):
        problems.append(
            f"backbone: its output has shape {list(out)[1:]}, {len(space.answers)} answers were expected "
            f"({', '.join(space.answers[:8])})"
        )
    return problems


def _load(net: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    try:
        given = load_file(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"backbone.weights: {path} can't be read: {error}") from error
    own = net.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise RequestError(f"backbone.weights: {path} holds no tensor of this network")
    net.load_state_dict({**own, **fitting})
