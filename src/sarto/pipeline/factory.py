"""Supernets: trained from a description, judged, stocked in a market, and read from there again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from sarto.devices import count
from sarto.engines.factory.checking import check_data, told_together
from sarto.engines.factory.data import TaskData
from sarto.engines.factory.gates import lowest_limit
from sarto.engines.factory.subnets import gates_of
from sarto.engines.factory.supernet import Supernet, as_placed, assembler_for, placed, revived
from sarto.engines.factory.training import qualities, train_supernet
from sarto.errors import RequestError, suggest
from sarto.graph.file import graph_hash
from sarto.graph.model import size_at
from sarto.market import Store
from sarto.pipeline.backbones import backbone_graph, check_backbone, learnware_notes
from sarto.pipeline.curves import draw_looks
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.task_data import data_of
from sarto.types import FactoryConfig, StockedSupernet, TaskQuality, TaskSpace
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


def train_factory(
    config: FactoryConfig,
    store: Store,
    folder: Path,
    *,
    progress: Progress = silent,
    noted: Callable[[str], None] = lambda text: None,
    device: str = "cpu",
) -> FactoryRun:
    """A supernet trained and stocked as a description says; stopped at any moment, the same call goes on.

    Args:
        folder: for checkpoints; of several processes (torchrun), all see it.
        progress: told the step, and the accuracy at a few limits as training goes on.
        noted: told what one should know of this training, in words: weights that are fresh, tasks that can't be judged.

    Raises:
        RequestError: the description does not fit together, or the name is taken; all problems of the data at once.
        StoreError: the folder holds checkpoints of another training.
    """
    rank, device = _joined(device)
    if rank:
        noted = _unheard
    space = read_space(config.space, config.data)
    data = data_of(space)
    looked = check_data(space, data, leave_out=config.empty_tasks == "leave_out")
    for text in told_together(space, looked.left_out):
        noted(f"left out of training: {text}")
    for text in told_together(space, looked.unjudged):
        noted(f"can't be judged: {text}")
    space = without_tasks(space, looked.left_out)
    graph, origin = backbone_graph(config.backbone, space, looked.inputs, store, noted)
    check_backbone(graph, space, config.preprocessing, data, looked.inputs, looked.answers)
    for text in learnware_notes(config.backbone, config.preprocessing, store):
        noted(text)
    graph, groups = as_placed(graph, config.placement), placed(graph, config.placement)
    begun = graph_hash(graph)
    _check_name(store, config, space, begun, origin)
    shape = assembler_for(graph, groups, space, config.assembler)
    floor = lowest_limit(shape.layout, shape.least)
    limits = tuple(limit for limit in config.judging.limits if limit >= floor)
    if not limits:
        raise RequestError(
            f"judging.limits: all are under {floor:.3g}, the smallest limit at which every group keeps "
            f"{config.assembler.least}",
            where="judging.limits",
        )
    under = [f"{limit:.3g}" for limit in config.judging.limits if limit < floor]
    if under:
        noted(f"not judged at {', '.join(under)}: groups keep {floor:.3g} of the units at any limit")
    if "lowest" in config.joint.model_fields_set and config.joint.lowest < floor:
        noted(
            f"limits come down to {floor:.3g}, which groups keep, not to joint.lowest {config.joint.lowest:.3g}"
        )
    judgeable = [task for task in space.seen if task not in looked.unjudged]
    looks = _Looks(config, judgeable, data, limits, progress, folder)
    trained = train_supernet(
        graph,
        groups,
        space,
        data,
        assembler=config.assembler,
        joint=config.joint,
        folder=folder,
        told=looks,
        device=device,
        shown=None if rank else looks.seen,
        show_every=max(1, round(LOOKS * config.joint.steps)),
    )
    for text in trained.result.damaged:
        noted(f"{text}: an older checkpoint was taken, of step {trained.result.resumed_from:,}")
    if trained.result.steps == 0:
        raise RequestError(
            f"training ended before its first checkpoint: {trained.result.stopped}; nothing is stocked"
        )
    if rank:
        torch.distributed.barrier()  # the first process judges and stocks
        return FactoryRun(
            store.supernets.get(config.name), trained.result.stopped, trained.result.resumed_from
        )
    found, missed = judged(trained.supernet, data, config, limits, progress, looked.unjudged)
    manifest = stock_supernet(
        store,
        trained.supernet,
        config,
        origin,
        found,
        begun=begun,
        steps=trained.result.steps,
        stopped=trained.result.stopped or "",
        unjudged=missed,
    )
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


def _unheard(text: str) -> None:
    """Says nothing: of several processes one speaks."""


def without_tasks(space: TaskSpace, tasks: Collection[frozenset[str]]) -> TaskSpace:
    """The space without some of the tasks and combinations that are trained."""
    if not tasks:
        return space
    kept = [
        [tuple(name for name in space.properties if name in task) for task in every if task not in tasks]
        for every in (space.seen, space.combined)
    ]
    return space.replace(tasks=kept[0], extra=kept[1])


def _check_name(store: Store, config: FactoryConfig, space: TaskSpace, begun: str, origin: str) -> None:
    """Refuse a name that a supernet of another training has: stocking would refuse it after all the steps."""
    for found in store.supernets:
        if found.name != config.name:
            continue
        before = (found.begun, begun) if found.begun is not None else (found.backbone, origin)
        asked = {
            "space": (found.space, space),
            "backbone": before,
            "placement": (found.placement, config.placement),
            "preprocessing": (found.preprocessing, config.preprocessing),
            "assembler": (found.assembler, config.assembler),
            "joint": (found.joint, config.joint),
            "licence": (found.licence, config.licence),
        }
        other = [name for name, (one, two) in asked.items() if one != two]
        if other:
            raise RequestError(
                f"the market holds a supernet {config.name!r} of another training (another "
                f"{', another '.join(other)}); choose another name, or remove it (`sarto factory rm {config.name}`)",
                where="name",
            )


class _Looks:
    """Tells how training goes: the step and the loss, and now and then the accuracy at a few limits."""

    def __init__(
        self,
        config: FactoryConfig,
        tasks: Sequence[frozenset[str]],
        data: TaskData,
        limits: Sequence[float],
        progress: Progress,
        folder: Path,
    ) -> None:
        self.config, self.data, self.progress = config, data, progress
        self.tasks = spread(tasks, 6)
        self.limits, self.folder, self.step = tuple(limits), folder, 0
        self.words = "training"
        self.mean: float | None = None

    def __call__(self, step: int, loss: float) -> None:
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        self.step = step
        self.progress(f"{self.words}, loss {self.mean:.3f}", step, self.config.joint.steps)

    def seen(self, supernet: Supernet) -> None:
        rows: dict[float, list[float]] = {limit: [] for limit in self.limits}
        for task in self.tasks:
            try:
                found = qualities(supernet, self.data, (task,), self.limits, n=50)
            except RequestError:
                continue  # too few test samples; the judging tells which tasks have none
            for (_, limit), (quality, _) in found.items():
                rows[limit].append(quality)
        means = {f"{limit:.0%}": sum(held) / len(held) for limit, held in rows.items() if held}
        if not means:
            return
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
    unjudged: Collection[frozenset[str]] = (),
) -> tuple[list[TaskQuality], list[str]]:
    """How well tasks are done at each limit, on test samples; and the names of those that can't be judged.

    Args:
        unjudged: tasks without test samples.
    """
    judging, space = config.judging, supernet.space
    tasks = [
        (task, seen)
        for every, seen in ((space.seen, True), (space.kept_aside, False))
        for task in spread([task for task in every if task not in unjudged], judging.most_tasks)
    ]
    missed, found = [space.named(task) for task in unjudged], []
    for place, (task, seen) in enumerate(tasks):
        progress("judging", place, len(tasks))
        try:
            rows = qualities(supernet, data, (task,), tuple(limits), n=judging.samples)
        except RequestError:
            missed.append(space.named(task))  # no test samples of this task
            continue
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
    return found, missed


def stock_supernet(
    store: Store,
    supernet: Supernet,
    config: FactoryConfig,
    backbone: str,
    found: Sequence[TaskQuality] = (),
    *,
    begun: str | None = None,
    steps: int | None = None,
    stopped: str = "",
    unjudged: Sequence[str] = (),
) -> StockedSupernet:
    """Put a trained supernet into a market.

    Args:
        backbone: where the backbone came from, in words.
        found: what it was judged by.
        begun: content hash of the backbone before training.
        steps: updates that the weights have seen.
        stopped: why training ended early.
        unjudged: names of the tasks without test samples.

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
        unjudged=tuple(unjudged),
        begun=begun,
        steps=steps,
        stopped=stopped,
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
