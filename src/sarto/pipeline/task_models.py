"""Subnets of an order by task: cut out, compared with the gated supernet, written, measured on the device."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sarto.engines.factory.search import Found
from sarto.engines.factory.subnets import recalibrated
from sarto.errors import RequestError
from sarto.export import export_onnx
from sarto.graph import ModelGraph
from sarto.graph.model import size_at
from sarto.market import Intake, Labelled, read_unlabelled
from sarto.pipeline.exporting import texts_inside
from sarto.pipeline.filling_subnets import Round, filled_by_measuring
from sarto.pipeline.intakes import intake_of
from sarto.pipeline.on_device import measured_on, weighed
from sarto.pipeline.reference import reference_of_supernet
from sarto.pipeline.subnets import ReadySupernet, Subnets
from sarto.types import Cost, DeviceFile, Plan, Request, SubnetNode

#: Random images that an exported model is compared on where the order gives none.
COMPARED = 4
#: Samples that int8 is calibrated and compared on at most.
CALIBRATED = 256


@dataclass(frozen=True, eq=False)
class Made:
    """A subnet that was built and compared with the gated supernet."""

    held: ReadySupernet
    plan: Plan
    node: SubnetNode
    gates: Tensor
    graph: ModelGraph
    classes: tuple[str, ...]
    difference: float
    reads: Intake
    found: Found | None = None


@dataclass(frozen=True, eq=False)
class Built:
    """A subnet and its files.

    Attributes:
        path: its ONNX file.
        difference: that file's from eager, relative.
        agreement: share of inputs on which both decide alike.
        place: folder of what the order's device runs, where that is another file: `file`.
        raw_ms: milliseconds as they were, where the cost has them at the speed of the device's profile.
    """

    made: Made
    path: Path
    difference: float
    agreement: float
    place: Path
    file: DeviceFile | None
    raw_ms: float | None = None


Turn = Round[Built]


def rounds_of(
    held: Subnets, plan: Plan, samples: Labelled | None, request: Request, folder: Path, *, given: bool
) -> tuple[Turn, ...]:
    """The plan's model as measured; where it misses the latency budget or leaves much of it, others that fill it.

    Args:
        given: whether this plan was ordered; then no other is built.
    """
    first = made_of(held, plan, samples)
    names = (folder / str(place) for place in itertools.count())

    def made(one: Plan, found: Found | None) -> tuple[Built, Cost]:
        built = first if one is plan else replace(made_of(held, one, samples), found=found)
        return measured(built, request, next(names))

    if given:
        built, cost = made(plan, None)
        return (Round(plan, None, built, cost, cost.over(request.budget)),)
    return filled_by_measuring(
        first.held,
        plan,
        first.held.tasks(first.node.tasks),
        request.budget,
        made,
        classes=first.classes,
        samples=first.node.samples,
    )


def made_of(held: Subnets, plan: Plan, samples: Labelled | None) -> Made:
    """The subnet of a plan, compared with the gated supernet.

    Raises:
        RequestError: the plan is of another kind, or takes statistics from samples that are not given.
        StoreError: the supernet is missing or damaged.
    """
    nodes = [node for node in plan.nodes.values() if isinstance(node, SubnetNode)]
    if len(nodes) != 1 or len(plan.nodes) > 2:
        raise RequestError(
            "an order by task is a subnet and the outputs that it keeps; this plan does more: order its classes instead"
        )
    one = held.get(nodes[0].of)
    tasks = one.tasks(nodes[0].tasks)
    classes = plan.classes or one.classes(tasks)
    gates, rows = one.gates(nodes[0]), one.rows(classes)
    graph = one.cut(gates, tasks, rows)
    difference = one.compared(gates, graph, rows)
    made, reads = one.ready(graph), intake_of(held.store, one.manifest)
    if nodes[0].samples is not None:
        if samples is None or samples.digest != nodes[0].samples:
            raise RequestError("the plan takes statistics from samples that the order does not give")
        made = recalibrated(made, reads.tensor(samples))
    return Made(one, plan, nodes[0], gates, made, classes, difference, reads)


def measured(made: Made, request: Request, name: Path) -> tuple[Built, Cost]:
    """A subnet's files, whose names begin alike, and its cost as measured."""
    path, place = name.with_suffix(".onnx"), name.with_suffix(".device")
    inputs = inputs_for(made.graph, made.reads, request, real=True)
    # The graph normalises by itself: what it reads are images in [0, 1].
    metadata = texts_inside(made.classes, made.reads, made.plan.key())
    exported = export_onnx(made.graph, path, metadata=metadata, samples=inputs)
    with reference_of_supernet(made.held, request.device) as reference:
        found = measured_on(
            made.graph, request.device, path, inputs, place, metadata=metadata, reference=reference
        )
    built = Built(
        made, path, exported.max_relative_difference, exported.agreement, place, found.file, found.raw_ms
    )
    cost = found.cost(made.graph)
    if request.budget.process_bytes is not None:
        file = None if found.file is None else place / found.file.name
        cost = weighed(
            cost, made.graph, request.device, path, file, budget=request.budget, profile=made.held.profile
        )
    return built, cost


def inputs_for(graph: ModelGraph, reads: Intake, request: Request, *, real: bool = False) -> Tensor:
    """What files are compared on: random images, or the order's samples, which int8 is always made for.

    Args:
        real: to take the order's samples in any precision, where it has some.
    """
    if request.samples and (real or request.device.precision == "int8"):
        return reads.tensor(read_unlabelled(Path(request.samples)))[:CALIBRATED]
    shape = size_at(graph.inputs[0].shape, max(COMPARED, request.device.batch))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))
