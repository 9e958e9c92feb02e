"""Which units of a supernet are open for tasks, at every limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sarto.engines.factory.costs import Counts
from sarto.engines.factory.gates import Layout, lowest_limit, most_open, ranked
from sarto.engines.factory.supernet import Supernet

#: Limits that are looked at: one percent to all, and the lowest.
STEPS = 100


@dataclass(frozen=True, eq=False)
class Openings:
    """The subnets for some tasks, one for each limit.

    Attributes:
        order: units that open at any limit, those that open first in front.
        limits: rising (n,).
        counts: open units of each group (n, groups).
        gates: place of a limit -> zeros and ones (units,).
    """

    order: Tensor
    limits: Tensor
    counts: Counts
    gates: Callable[[int], Tensor]


class TaskOrders:
    """Where each unit stands in the order of a task; the assembler is asked once for each task.

    For the nested order, in which the limit is no input of the assembler. The supernet's weights must not change.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet
        self._places: dict[frozenset[str], Tensor] = {}

    def prepare(self, tasks: Iterable[frozenset[str]]) -> None:
        """Ask for all of these tasks at once."""
        new = [task for task in dict.fromkeys(tasks) if task not in self._places]
        if new:
            codes = _codes(self._supernet, new)
            assembler = self._supernet.assembler
            with torch.no_grad():
                scores = assembler.weights(codes, torch.ones(len(new)))
            places = ranked(scores, self._supernet.layout, assembler.least)
            self._places |= dict(zip(new, places, strict=True))

    def places(self, tasks: Sequence[frozenset[str]]) -> Tensor:
        """The first place (units,) of each unit in the orders of the tasks."""
        self.prepare(tasks)
        if len(tasks) == 1:
            return self._places[tasks[0]]
        return torch.stack([self._places[task] for task in tasks]).amin(0)


def openings(
    supernet: Supernet, tasks: Sequence[frozenset[str]], orders: TaskOrders | None = None
) -> Openings:
    """The subnets for tasks of the supernet's space at every limit; for several tasks, the union of their units.

    Args:
        orders: of this supernet, where some are known already.
    """
    assembler, layout = supernet.assembler, supernet.layout
    floor = lowest_limit(layout, assembler.least)
    steps = torch.arange(1, STEPS + 1) / STEPS
    limits = torch.cat([torch.tensor([floor * (1 + 1e-6)]).clamp(max=1), steps[steps > floor * (1 + 1e-6)]])
    limits = torch.unique(assembler.held(limits))
    if assembler.settings.order == "nested":
        first = (orders or TaskOrders(supernet)).places(tasks)
        n_open = most_open(limits, assembler.units)
        return Openings(
            first.argsort(stable=True),
            limits,
            _counted(first, n_open, layout),
            lambda place: (first < n_open[place]).float(),
        )
    codes = _codes(supernet, tasks)
    opened = torch.stack([assembler.gates(code.expand(len(limits), -1), limits) for code in codes]).amax(0)
    with torch.no_grad():
        scores = assembler.weights(codes, torch.ones(len(tasks))).amax(0)
    order = scores.argsort(descending=True, stable=True)
    return Openings(
        # Where the assembler closes a unit at every limit, the task is told by its being closed.
        order[opened.amax(0)[order] > 0],
        limits,
        counted(opened, layout),
        lambda place: opened[place].clone(),
    )


def counted(gates: Tensor, layout: Layout) -> Counts:
    """Open units of each group, shape (n, groups), of gates (n, units)."""
    return torch.stack([gates[:, start:stop].sum(1) for start, stop in layout.values()], 1).long().numpy()


def columns_of(layout: Layout, units: int) -> Counts:
    """The group of each unit (units,), as its place in the layout."""
    columns = np.empty(units, np.int64)
    for column, (start, stop) in enumerate(layout.values()):
        columns[start:stop] = column
    return columns


def _counted(first: Tensor, n_open: Tensor, layout: Layout) -> Counts:
    """Units of each group (n, groups) whose place (units,) is below each number (n,), which rise."""
    limits, groups = len(n_open), len(layout)
    opens_at = np.searchsorted(n_open.numpy(), first.numpy(), side="right")
    cells = opens_at * groups + columns_of(layout, len(first))
    return np.bincount(cells, minlength=(limits + 1) * groups).reshape(-1, groups)[:limits].cumsum(0)


def _codes(supernet: Supernet, tasks: Sequence[frozenset[str]]) -> Tensor:
    return torch.tensor([supernet.space.code(task) for task in tasks], dtype=torch.float32)
