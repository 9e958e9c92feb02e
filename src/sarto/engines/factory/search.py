"""From a task and a budget to the gates of the largest subnet that keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sarto.engines.factory.costs import CostTable, Counts, Floats
from sarto.engines.factory.gates import Layout, most_open
from sarto.engines.factory.openings import Openings, TaskOrders, columns_of, counted, openings
from sarto.engines.factory.supernet import Supernet
from sarto.errors import InfeasibleError, RequestError
from sarto.types import Budget

#: Numbers of units that are tried at once when a budget is filled up.
PROBES = 16
#: Share of a latency budget that a measured search leaves: what is measured again varies by so much.
MARGIN = 0.03


@dataclass(frozen=True, eq=False)
class Found:
    """A subnet that keeps a budget.

    Attributes:
        gates: zeros and ones (units,).
        ratio: share of units that are open.
        limit: the assembler's limit that the search started from.
        filled: units that were opened one by one after that.
    """

    gates: Tensor
    ratio: float
    limit: float
    filled: int


@dataclass(frozen=True)
class Point:
    """One subnet of a task's curve.

    Attributes:
        latency_ms: prediction; None without a profile.
    """

    limit: float
    ratio: float
    size_bytes: float
    memory_bytes: float
    latency_ms: float | None
    latency_high_ms: float | None


def search(
    supernet: Supernet,
    tasks: Sequence[frozenset[str]],
    budget: Budget,
    table: CostTable,
    *,
    fill: bool = True,
    orders: TaskOrders | None = None,
) -> Found:
    """Gates of the largest subnet for a task (for several: of the union of their units) that keeps a budget.

    All limits are tried at once; then units are opened one by one, in the assembler's order, while the budget holds:
    also those that cost nothing because the device computes them anyway.

    Args:
        orders: of this supernet, where many requests are made: no task is then asked for twice.

    Raises:
        InfeasibleError: the smallest subnet is over the budget; names the floor and the nearest budget.
        RequestError: a set of properties is no task of the space; all problems at once.

    Reference:
        NN-Factory, arXiv 2308.15003, algorithm 1.
        Differs: all limits in one batch instead of one after the other until the first that is over; equality keeps a
        budget; what is left of the budget is filled.
    """
    asked = _asked(supernet, tasks, orders)
    fitting = table.fits(asked.counts, budget)
    if not fitting.any():
        raise _infeasible(supernet, tasks, budget, table, asked.counts)
    best = int(np.where(fitting, asked.counts.sum(1), -1).argmax())
    gates, filled = asked.gates(best), 0
    if fill:
        most = int(most_open(supernet.assembler.held(torch.ones(1)), supernet.assembler.units))
        gates, filled = _filled(gates, asked.order, budget, table, supernet.layout, most)
    return Found(gates, float(gates.mean()), float(asked.limits[best]), filled)


def widened(
    supernet: Supernet,
    tasks: Sequence[frozenset[str]],
    found: Found,
    budget: Budget,
    table: CostTable,
    *,
    orders: TaskOrders | None = None,
) -> Found:
    """A subnet with the units that a profiled device computes anyway: the bound of its latency stays, no limit breaks.

    A device that is quick at multiples of a few channels gets whole multiples, as far as the other limits go.

    Args:
        found: for these tasks; it keeps the budget, or stays as it is.

    Raises:
        RequestError: the table knows no latency, or a set of properties is no task of the space.
    """
    counts = counted(found.gates[None], supernet.layout)
    # Sums of the same terms may differ in the last digits.
    bound = (1 + 1e-9) * float(table.latency_ms(counts)[2, 0])
    limited = budget.replace(latency_ms=min(bound, budget.latency_ms or bound))
    if not table.fits(counts, budget).all():
        return found
    most = int(most_open(supernet.assembler.held(torch.ones(1)), supernet.assembler.units))
    order = _asked(supernet, tasks, orders).order
    gates, filled = _filled(found.gates, order, limited, table, supernet.layout, most)
    return Found(gates, float(gates.mean()), found.limit, found.filled + filled)


def search_measured(
    supernet: Supernet,
    tasks: Sequence[frozenset[str]],
    budget: Budget,
    table: CostTable,
    measure: Callable[[Tensor], float],
    *,
    probes: int = 7,
    orders: TaskOrders | None = None,
) -> tuple[Found, float]:
    """The same with real measurements in the loop: bisection on the nested order; the subnet and its milliseconds.

    The numbers of units that are tried are each one, or in a larger supernet as many as the probes tell apart, evenly
    from the fewest to the most that keep the other limits. `MARGIN` of the latency is left.

    Args:
        measure: gates (units,) -> measured latency in milliseconds.
        probes: measurements at most, and one more where the smallest subnet decides.

    Raises:
        InfeasibleError: the smallest subnet is over the budget as measured.
        RequestError: the supernet's order is not nested, so that more units are not always slower; or the budget has
            no latency.
    """
    if supernet.assembler.settings.order != "nested":
        raise RequestError(
            "measuring in the loop bisects, which needs the nested order; this supernet has the paper's"
        )
    limit = budget.latency_ms
    if limit is None:
        raise RequestError("measuring in the loop needs a budget of latency_ms")
    others = budget.replace(latency_ms=None)
    asked = _asked(supernet, tasks, orders)
    if not table.fits(asked.counts[:1], others).all():
        raise _infeasible(supernet, tasks, others, table, asked.counts)
    fewest, most = (int(counts.sum()) for counts in (asked.counts[0], asked.counts[-1]))
    columns = columns_of(supernet.layout, supernet.assembler.units)[asked.order.numpy()]
    most = fewest + _longest(columns[fewest:most], asked.counts[0], others, table)
    tried = np.unique(np.linspace(fewest, most, min(2**probes - 1, most - fewest + 1)).round()).astype(int)
    low, high = 0, len(tried) - 1
    found: tuple[int, float] | None = None
    taken = math.inf
    while low <= high:
        middle = (low + high + 1) // 2
        taken = measure(_first(asked, int(tried[middle])))
        if taken <= (1 - MARGIN) * limit:
            found, low = (middle, taken), middle + 1
        else:
            high = middle - 1
    if found is None:
        if taken > limit:
            taken = min(taken, measure(_first(asked, fewest)))  # the smallest one is judged twice
        if taken > limit:
            raise InfeasibleError(
                f"the smallest subnet takes {taken:.3g} ms as measured, {limit:.3g} ms were asked for; "
                f"raise latency_ms to {_enough('latency_ms', taken)}",
                floor={"latency_ms": taken},
                nearest={"latency_ms": taken},
                where="budget",
            )
        found = (0, taken)
    return _found(asked, int(tried[found[0]])), found[1]


def fewer(
    supernet: Supernet, tasks: Sequence[frozenset[str]], n_units: int, *, orders: TaskOrders | None = None
) -> Found:
    """The subnet of the units that open first in the nested order: so many, or as few as tasks can have.

    Raises:
        RequestError: the supernet's order is not nested, or a set of properties is no task of the space.
    """
    if supernet.assembler.settings.order != "nested":
        raise RequestError("so many units that open first are known in the nested order alone")
    asked = _asked(supernet, tasks, orders)
    return _found(asked, max(n_units, int(asked.counts[0].sum())))


def curve(supernet: Supernet, task: frozenset[str], table: CostTable, *, profiled: bool) -> list[Point]:
    """Costs of a task's subnets over all limits, from one call of the assembler."""
    asked = _asked(supernet, [task])
    costs = table.costs(asked.counts, ["size_bytes", "memory_bytes"])
    latency = table.latency_ms(asked.counts) if profiled else None
    return [
        Point(
            limit=float(asked.limits[i]),
            ratio=float(asked.gates(i).mean()),
            size_bytes=float(costs["size_bytes"][i]),
            memory_bytes=float(costs["memory_bytes"][i]),
            latency_ms=float(latency[1, i]) if latency is not None else None,
            latency_high_ms=float(latency[2, i]) if latency is not None else None,
        )
        for i in range(len(asked.limits))
    ]


def floor_costs(
    supernet: Supernet,
    tasks: Sequence[frozenset[str]],
    table: CostTable,
    limits: Sequence[str],
    orders: TaskOrders | None = None,
) -> dict[str, float]:
    """Cost of the smallest subnet for tasks: limit -> number."""
    counts = _asked(supernet, tasks, orders).counts
    # In the paper's order a lower limit may open more units.
    costs = table.costs(counts if supernet.assembler.settings.order == "paper" else counts[:1], limits)
    return {name: float(values.min()) for name, values in costs.items()}


def _first(asked: Openings, n_units: int) -> Tensor:
    """Gates (units,) of so many units that open first."""
    return torch.zeros(len(asked.order)).index_fill(0, asked.order[:n_units], 1.0)


def _found(asked: Openings, n_units: int) -> Found:
    """So many units that open first, as opened one by one from the largest limit that has no more."""
    sizes = asked.counts.sum(1)
    place = int(np.flatnonzero(sizes <= n_units)[-1])
    gates = _first(asked, n_units)
    return Found(gates, float(gates.mean()), float(asked.limits[place]), n_units - int(sizes[place]))


def _asked(supernet: Supernet, tasks: Sequence[frozenset[str]], orders: TaskOrders | None = None) -> Openings:
    """The subnets for tasks at every limit.

    Raises:
        RequestError: there is no task, or a set of properties is none of the space's; all problems at once.
    """
    if not tasks:
        raise RequestError("a subnet is for at least one task")
    problems = [why for task in tasks for why in supernet.space.problems(task)]
    if problems:
        raise RequestError(f"no task: {problems[0]}", problems=problems)
    return openings(supernet, tasks, orders)


def _filled(
    gates: Tensor, order: Tensor, budget: Budget, table: CostTable, layout: Layout, most: int
) -> tuple[Tensor, int]:
    """Gates with as many more units as the budget holds, tried in order, `most` in all; and how many these are.

    Units are opened in order up to the first that does not fit; then groups of which not one more unit fits are given
    up, and the others go on. No cost falls when a unit is added, so what is given up would not fit later either.
    """
    unit_order = order.numpy()
    columns = columns_of(layout, len(gates))
    opened = gates.numpy() > 0.5
    counts = np.bincount(columns[opened], minlength=len(layout))
    left = unit_order[~opened[unit_order]]
    added: list[int] = []
    one_more = np.eye(len(layout), dtype=np.int64)
    while len(left) and int(counts.sum()) < most:
        groups = np.unique(columns[left])
        fitting = groups[table.fits(counts[None] + one_more[groups], budget)]
        left = left[np.isin(columns[left], fitting)]
        room = most - int(counts.sum())
        taken = _longest(columns[left[:room]], counts, budget, table)
        added += left[:taken].tolist()
        counts = counts + np.bincount(columns[left[:taken]], minlength=len(layout))
        left = left[taken:]
    filled = gates.clone()
    filled[added] = 1.0
    return filled, len(added)


def _longest(columns: npt.NDArray[np.int64], counts: Counts, budget: Budget, table: CostTable) -> int:
    """How many units of a sequence, given by their groups, fit on top of unit counts."""
    low, high = 0, len(columns) + 1  # `low` fits, `high` does not
    while high - low > 1:
        tried = np.unique(np.linspace(low, high, min(PROBES, high - low) + 1).astype(np.int64)[1:-1])
        if not len(tried):
            tried = np.array([low + 1])
        rows = np.stack([counts + np.bincount(columns[:n], minlength=len(counts)) for n in tried])
        fits = table.fits(rows, budget)
        n_fit = int(fits.argmin()) if not fits.all() else len(tried)
        low, high = (
            (int(tried[n_fit - 1]) if n_fit else low),
            (int(tried[n_fit]) if n_fit < len(tried) else high),
        )
    return low


def _infeasible(
    supernet: Supernet, tasks: Sequence[frozenset[str]], budget: Budget, table: CostTable, counts: Counts
) -> InfeasibleError:
    limits = budget.limits()
    costs = table.costs(counts, list(limits))
    excess: Floats = np.max([costs[name] / limit for name, limit in limits.items()], 0)
    nearest = int(excess.argmin())
    floor = {name: _whole(name, float(costs[name].min())) for name in limits}
    needs = {name: max(limit, _whole(name, float(costs[name][nearest]))) for name, limit in limits.items()}
    asked = ", ".join(f"{name} <= {_plain(name, limit)}" for name, limit in limits.items())
    named = " and ".join(supernet.space.named(task) for task in tasks)
    return InfeasibleError(
        f"no subnet for {named} keeps {asked}: the smallest has "
        f"{', '.join(f'{name} {_enough(name, value)}' for name, value in floor.items())}. Raise "
        + ", ".join(
            f"{name} to {_enough(name, value)}" for name, value in needs.items() if value > limits[name]
        ),
        floor=floor,
        nearest=needs,
        where="budget",
    )


def _whole(name: str, value: float) -> int | float:
    """A cost as a limit that it keeps: milliseconds as they are, all else in whole numbers."""
    return value if name == "latency_ms" else math.ceil(value)


def _plain(name: str, limit: float) -> str:
    return f"{limit:g}" if name == "latency_ms" else f"{limit:.0f}"


def _enough(name: str, value: float) -> str:
    """A cost in words, not less than it is: milliseconds to four digits, all else in whole numbers."""
    if name != "latency_ms":
        return str(math.ceil(value))
    step = 10.0 ** (math.floor(math.log10(value)) - 3) if value > 0 else 1.0
    told = f"{math.ceil(value / step) * step:.10g}"
    return told if float(told) >= value else f"{(math.ceil(value / step) + 1) * step:.10g}"
