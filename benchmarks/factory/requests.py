"""How long a request takes: from a task and a budget to a model in memory, and to a file that was checked."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sarto import zoo
from sarto.engines.factory.assembler import Assembler
from sarto.engines.factory.costs import CostTable
from sarto.engines.factory.openings import TaskOrders, counted
from sarto.engines.factory.search import search
from sarto.engines.factory.subnets import compared, cut
from sarto.engines.factory.supernet import Supernet, placed
from sarto.graph import capture, gate_layout, write_graph
from sarto.pipeline.factory import read_space
from sarto.types import AssemblerSettings, Budget

#: Rounds of the paper's search: limits from 5 % in steps of 5 % until the budget is broken, 12 on average.
ROUNDS = 12
STEP = 0.05


def requests(
    *, network: str, arguments: dict[str, Any], side: int, n_requests: int, torch_pruning: bool, seed: int
) -> dict[str, Any]:
    """Medians over requests of random tasks and budgets, all ways in turn in one process.

    A supernet that is open asks its assembler for a task's order of units once; those of all trained tasks are known
    here (`orders_ms` for all), and `in_memory_first` is a request for a task that was never asked for.

    Weights are random: no step looks at what they are. The paper's way is a call of the assembler and a prediction a
    round, then Torch-Pruning's trace of the network and its cut of the units.

    Args:
        network: of the zoo.
        side: of the images, in pixels.
    """
    torch.manual_seed(seed)
    net = getattr(zoo, network)(**arguments).eval()
    example = torch.rand(2, 3, side, side)
    graph = capture(net, example, prove=False)
    space, groups = read_space("numvqa"), placed(graph)
    settings = AssemblerSettings()
    assembler = Assembler(len(space.properties), gate_layout(graph, groups), settings).eval()
    supernet = Supernet(graph, space, groups, assembler)
    table, gated = CostTable(graph, groups), supernet.gated()
    generator = torch.Generator().manual_seed(seed)
    tasks = space.seen
    whole = sum(tensor.numel() * tensor.element_size() for tensor in graph.tensors.values())
    floor = table.costs(_least(supernet), ["size_bytes"])["size_bytes"][0]
    seconds: dict[str, list[float]] = {
        name: [] for name in ("in_memory", "in_memory_first", "verified_file", "paper")
    }
    cpu: dict[str, list[float]] = {name: [] for name in seconds}
    differences, slack = [], []
    orders = TaskOrders(supernet)
    begun = _clocks()
    orders.prepare(tasks)
    prepared, _ = _since(begun)
    for place in range(-1, n_requests):
        task = tasks[int(torch.randint(len(tasks), (), generator=generator))]
        share = float(torch.rand((), generator=generator))
        budget = Budget(size_bytes=int(floor + 0.02 * whole + share * 0.2 * (whole - floor)))
        begun = _clocks()
        found = search(supernet, [task], budget, table, orders=orders)
        model = cut(supernet, found.gates)
        took = {"in_memory": _since(begun)}
        with tempfile.TemporaryDirectory() as folder:
            difference = compared(supernet, gated, found.gates, model, range(len(space.answers)))
            write_graph(model, Path(folder))
            took["verified_file"] = _since(begun)
        begun = _clocks()
        cut(supernet, search(supernet, [task], budget, table).gates)
        took["in_memory_first"] = _since(begun)
        used = table.costs(_counts(supernet, found.gates), ["size_bytes"])["size_bytes"][0]
        if torch_pruning and importlib.util.find_spec("torch_pruning") is not None:
            took["paper"] = _papers(net, example, supernet, task, found.gates, table)
        print(f"{place}: {took}", file=sys.stderr)
        if place < 0:
            continue  # the first one warms up
        for name, (wall_ms, cpu_ms) in took.items():
            seconds[name].append(wall_ms)
            cpu[name].append(cpu_ms)
        differences.append(difference)
        slack.append(1 - used / float(budget.size_bytes or 1))
    numbers: dict[str, Any] = {
        "n_requests": n_requests,
        "n_units": assembler.units,
        "supernet_params": sum(graph.tensors[name].numel() for name in graph.parameters),
        "difference_worst": max(differences),
        "unused_budget_share_mean": statistics.fmean(slack),
        "orders_ms": prepared,
    }
    for name, values in seconds.items():
        if values:
            numbers[f"{name}_ms_median"] = statistics.median(values)
            numbers[f"{name}_ms_worst"] = max(values)
            numbers[f"{name}_cpu_ms_median"] = statistics.median(cpu[name])
    if cpu["paper"]:
        numbers["paper_to_ours_cpu_times"] = (
            numbers["paper_cpu_ms_median"] / numbers["in_memory_cpu_ms_median"]
        )
        numbers["paper_to_ours_times"] = numbers["paper_ms_median"] / numbers["in_memory_ms_median"]
    return numbers


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(begun: tuple[float, float]) -> tuple[float, float]:
    """Milliseconds on the wall and of this process."""
    return 1e3 * (time.perf_counter() - begun[0]), 1e3 * (time.process_time() - begun[1])


def _least(supernet: Supernet) -> Any:
    return np.ones((1, len(supernet.layout)), np.int64)


def _counts(supernet: Supernet, gates: torch.Tensor) -> Any:
    return counted(gates[None], supernet.layout)


def _papers(
    net: nn.Module,
    example: torch.Tensor,
    supernet: Supernet,
    task: frozenset[str],
    gates: torch.Tensor,
    table: CostTable,
) -> tuple[float, float]:
    """Milliseconds, wall and CPU, of rounds of assembler and predictor, then trace and cut."""
    tp = importlib.import_module("torch_pruning")

    begun = _clocks()
    code = torch.tensor([supernet.space.code(task)], dtype=torch.float32)
    for turn in range(ROUNDS):
        tried = supernet.assembler.gates(code, torch.tensor([min(1.0, STEP * (1 + turn))]))
        table.costs(_counts(supernet, tried[0]), ["size_bytes"])
    pruned = copy.deepcopy(net)
    traced = tp.DependencyGraph().build_dependency(pruned, example_inputs=example[:1])
    modules = dict(pruned.named_modules())
    for group, (start, stop) in supernet.layout.items():
        closed = torch.nonzero(gates[start:stop] < 0.5).flatten().tolist()
        layer = modules[group.split(":")[0].removesuffix(".weight")]
        if closed:
            cutting: Callable[..., Any] = tp.prune_conv_out_channels
            traced.get_pruning_group(layer, cutting, idxs=closed).prune()
    return _since(begun)
