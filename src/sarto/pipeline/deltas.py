"""What a device must download when its order changes: from one subnet of a supernet to another."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from sarto.engines.factory.delta import Delta, Held, delta
from sarto.engines.factory.search import search
from sarto.engines.factory.subnets import cut, task_outputs
from sarto.engines.factory.supernet import Supernet
from sarto.errors import RequestError
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.curves import priced, ready
from sarto.pipeline.subnets import ReadySupernet, subnet_of
from sarto.types import Budget, StockedSupernet
from sarto.types.profile import DeviceProfile


def changed(
    manifest: StockedSupernet, supernet: Supernet, old: str, new: str, profile: DeviceProfile | None = None
) -> Delta:
    """What a device must download when an order changes, from one model as it is delivered to another.

    Args:
        old: "task@limit", "task@latency_ms=12", or the folder of a delivered subnet, which measuring may have made
            another one than its order alone says; for instance "exactly_2+digit_7@0.1".
        new: the same.

    Raises:
        RequestError: a text is no order of this kind and no folder, or no task of the space; or a folder holds no
            subnet of this supernet.
        StoreError: a folder holds no finished artifact, or a damaged one.
        InfeasibleError: a budget is under the floor.
    """
    before, after = (_held(manifest, supernet, text, profile) for text in (old, new))
    return delta(supernet.graph, before, after)


def _held(manifest: StockedSupernet, supernet: Supernet, text: str, profile: DeviceProfile | None) -> Held:
    """The model of an order as a device has it."""
    if Path(text).is_dir():
        return _delivered(manifest, supernet, Path(text))
    task, at, amount = text.rpartition("@")
    if not at:
        raise RequestError(
            f"{text!r}: write task@limit, for instance {text}@0.1, or the folder of a delivered subnet"
        )
    asked = supernet.space.task(task)
    name, equals, number = amount.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        raise RequestError(f"{text!r}: {number!r} is no number") from None
    if equals and not math.isfinite(value):
        raise RequestError(f"{text!r}: {number!r} is no finite number")
    if equals:
        budget = Budget.parse({name.strip(): value if name == "latency_ms" else int(value)})
        gates = search(supernet, [asked], budget, priced(manifest, supernet, asked, profile)).gates
    else:
        code = torch.tensor([supernet.space.code(asked)], dtype=torch.float32)
        gates = supernet.assembler.gates(code, torch.tensor([value]))[0]
    rows = task_outputs(supernet.space, [asked])
    graph = ready(manifest, cut(supernet, gates, rows=rows))
    return Held(graph, supernet.selection(gates), rows if supernet.space.kind == "classification" else None)


def _delivered(manifest: StockedSupernet, supernet: Supernet, folder: Path) -> Held:
    """The model of a folder that an order was delivered to."""
    artifact = Artifact.read(folder)
    plan = artifact.plan
    node = subnet_of(plan)
    if node is None or node.of != manifest.id:
        of = "no subnet alone" if node is None else f"a subnet of the supernet {node.of[:19]}"
        raise RequestError(
            f"{folder} holds {of}; a delta is between subnets of {manifest.name!r} ({manifest.id[:19]}): give its "
            "supernet, or the folder of one of its subnets"
        )
    gates = ReadySupernet(manifest, supernet).gates(node)
    rows = [supernet.space.answers.index(cls) for cls in artifact.classes]
    return Held(
        artifact.graph, supernet.selection(gates), rows if supernet.space.kind == "classification" else None
    )
