"""Static models out of a supernet: cut, checked against the gated supernet, and what to expect of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sarto.engines.factory.gates import Layout
from sarto.engines.factory.supernet import Supernet
from sarto.errors import GraphError, RequestError, VerifyError
from sarto.graph import ModelGraph, gate, gate_layout, relative_difference, restrict, through_norms
from sarto.graph.model import Node, Ref, TensorRef, size_at
from sarto.graph.run import Edit, run_node
from sarto.training import draws
from sarto.types import TaskQuality, TaskSpace
from sarto.types.space import nearest

#: Largest relative difference between a subnet and the gated supernet in single precision (design promise 1).
EQUAL = 1e-5
#: Random inputs on which they are compared; every unit of every layer takes part in the outputs of one.
COMPARED = 1
#: Trained tasks that say what to expect of an unseen one.
NEIGHBOURS = 3


@dataclass(frozen=True)
class Expected:
    """What to expect of a subnet.

    Attributes:
        quality: None where nothing near was judged, or not with so few units.
        basis: in words.
        nearest: trained tasks -> share of properties that differ; of an unseen task.
    """

    quality: float | None
    basis: str
    nearest: Mapping[str, float]


def cut(
    supernet: Supernet,
    gates: Tensor,
    tasks: Sequence[frozenset[str]] = (),
    rows: Sequence[int] | None = None,
) -> ModelGraph:
    """The static model of gates (units,): open units alone, and the outputs that the tasks tell apart (none: all).

    Args:
        rows: the outputs that stay, in this order, whatever the tasks.
    """
    wanted = task_outputs(supernet.space, tasks) if rows is None else rows
    return restricted(supernet.space, supernet.subnet(gates), wanted)


def restricted(space: TaskSpace, graph: ModelGraph, rows: Sequence[int]) -> ModelGraph:
    """A model of a space with these outputs, in this order; what is no classifier has all of them."""
    whole = space.kind != "classification" or list(rows) == list(range(len(space.answers)))
    return graph if whole else restrict(graph, rows)


def together(supernet: Supernet, gates: Tensor) -> tuple[ModelGraph, Tensor]:
    """One model for several tasks: the units that any of them opens, with gates as a further input; and each task's.

    The head is shared, so which task is meant is told by the gates. With a task's gates the model gives what the task's
    own subnet gives.

    Args:
        gates: of each task, (tasks, units).

    Returns:
        The graph, whose last input are gates (n, kept units), and the gates of each task (tasks, kept units).
    """
    union = gates.amax(0)
    small = supernet.subnet(union)
    if supernet.graph.analysis.follows_statistics:
        small = through_norms(small)
    left = [
        group for group in supernet.groups if group in small.analysis.groups
    ]  # others' blocks are skipped
    columns = []
    for group in gate_layout(small, left):
        start, stop = supernet.layout[group]
        columns.append(gates[:, start:stop][:, union[start:stop] > 0.5])
    return gate(small, left), torch.cat(columns, 1)


def task_outputs(space: TaskSpace, tasks: Sequence[frozenset[str]]) -> list[int]:
    """Outputs that any of the tasks tells apart, in the order of the answers; all of them for no task."""
    if not tasks or space.kind != "classification":
        return list(range(len(space.answers)))
    return sorted({place for task in tasks for place in space.outputs(task)})


def compared(
    supernet: Supernet, gated: ModelGraph, gates: Tensor, graph: ModelGraph, rows: Sequence[int]
) -> float:
    """Largest relative difference between a subnet and the gated supernet on random inputs.

    Args:
        gated: of the supernet, which is written once for many subnets.
        rows: outputs of the supernet that the subnet has, in its order.

    Raises:
        VerifyError: it is above `EQUAL`: the subnet is not what was trained.
    """
    entry = supernet.graph.inputs[0]
    shape = size_at(entry.shape, COMPARED)
    inputs = torch.randn(shape, generator=draws(0, 0, stream=3))
    whole = gated(inputs, gates.expand(COMPARED, -1).contiguous())
    # Node by node: a module that runs once is not worth being written.
    mine = _walked(graph, inputs)
    if not isinstance(whole, Tensor) or not isinstance(mine, Tensor):
        raise GraphError("a supernet has one output")
    if supernet.space.kind == "classification":
        whole = whole[:, list(rows)]
    difference = relative_difference([mine], [whole])
    if not difference <= EQUAL:
        raise VerifyError(
            f"the extracted subnet differs from the gated supernet by {difference:.2g} (at most {EQUAL:g} is allowed); "
            "it is not delivered. `sarto market` verify finds damaged files; else report this"
        )
    return difference


def gates_of(kept: Mapping[str, Sequence[int]], layout: Layout) -> Tensor:
    """Gates (units,) that open the named units of each group; groups that are not named are open whole.

    Raises:
        RequestError: a group has no gates, or a unit that it does not have is named.
    """
    problems = [f"{group!r} has no gates in this supernet" for group in kept if group not in layout]
    units = max(stop for _, stop in layout.values())
    gates = torch.ones(units)
    for group, (start, stop) in layout.items():
        if group not in kept:
            continue
        outside = [unit for unit in kept[group] if not 0 <= unit < stop - start]
        if outside:
            problems.append(f"{group!r} has units 0 to {stop - start - 1}, {outside[0]} was named")
            continue
        gates[start:stop] = 0.0
        gates[torch.tensor(kept[group], dtype=torch.long) + start] = 1.0
    if problems:
        raise RequestError(problems[0], problems=problems)
    return gates


def expected(
    space: TaskSpace, qualities: Sequence[TaskQuality], task: frozenset[str], ratio: float
) -> Expected:
    """What the judged tasks say of a task at a share of open units.

    Of a task that was judged: its quality between the two nearest judged ratios, in a straight line; above the highest
    that of the highest, and under the lowest nothing. Of another one: the mean over its nearest trained tasks that were
    judged at so few units, weighed by 1 - distance.
    """
    name = space.named(task)
    rows: dict[str, list[TaskQuality]] = {}
    for row in qualities:
        rows.setdefault(row.task, []).append(row)
    near = {} if task in space.seen else {space.named(o): far for o, far in nearest(task, space.seen).items()}
    if name in rows:
        least = min(rows[name], key=lambda row: row.ratio)
        if ratio < least.ratio - 1e-9:
            told = f"; with {least.ratio:.1%} of the units it was {least.quality:.1%}"
            return Expected(None, f"this task was not judged with so few units{told}", near)
        most = max(row.ratio for row in rows[name])
        beyond = f", with {most:.1%} of the units at most" if ratio > most + 1e-9 else ""
        told = f"judged on {least.n_samples} test samples of this task{beyond}"
        return Expected(_between(rows[name], ratio), told, near)
    trained = [other for other in space.seen if space.named(other) in rows]
    # One that shares nothing says nothing.
    sharing = [other for other, far in nearest(task, trained, len(trained)).items() if far < 1]
    judged = [
        other for other in sharing if any(row.ratio <= ratio + 1e-9 for row in rows[space.named(other)])
    ]
    if not judged:
        few = "no task near to this one was judged" + (" with so few units" if sharing else "")
        return Expected(None, few, near)
    weighed = [
        (1 - far, _between(rows[space.named(other)], ratio))
        for other, far in nearest(task, judged, NEIGHBOURS).items()
    ]
    return Expected(
        sum(weight * quality for weight, quality in weighed) / sum(weight for weight, _ in weighed),
        f"mean of the {len(weighed)} nearest judged tasks, weighed by what they share"
        if len(weighed) > 1
        else "that of the one judged task that shares anything",
        near,
    )


def expected_together(
    space: TaskSpace,
    qualities: Sequence[TaskQuality],
    tasks: Sequence[frozenset[str]],
    ratio: float,
    *,
    recalibrated: bool = False,
) -> Expected:
    """What to expect of one model for tasks: of several nothing, for each was judged with its own units alone.

    Args:
        recalibrated: whether the model's batch norm statistics are others than those that were judged.
    """
    told = [expected(space, qualities, task, ratio) for task in dict.fromkeys(tasks)]
    near: dict[str, float] = {}
    for one in told:
        near |= one.nearest
    if len(told) > 1:
        return Expected(None, "several tasks in one model were not judged together", near)
    after = "; judged before batch norm statistics were taken anew" if recalibrated else ""
    return replace(told[0], basis=told[0].basis + after) if told[0].quality is not None else told[0]


def _between(rows: Sequence[TaskQuality], ratio: float) -> float:
    """Quality at a ratio that is not under the lowest judged one."""
    ordered = sorted(rows, key=lambda row: row.ratio)
    below = [row for row in ordered if row.ratio <= ratio + 1e-9]
    above = [row for row in ordered if row.ratio >= ratio - 1e-9]
    if not above:
        return below[-1].quality
    low, high = below[-1], above[0]
    if high.ratio <= low.ratio:
        return high.quality
    share = (ratio - low.ratio) / (high.ratio - low.ratio)
    return low.quality + share * (high.quality - low.quality)


def recalibrated(graph: ModelGraph, inputs: Tensor) -> ModelGraph:
    """The model with the batch norm statistics of these inputs, front to back; the source is unchanged.

    Reference:
        Yu and Huang, Universally Slimmable Networks, arXiv 1903.05134, section 3.3: statistics taken anew for each
        subnet, over all samples at once.
    """
    tensors = dict(graph.tensors.items())

    def newest(node: Node, arg: str, value: Tensor) -> Tensor:
        found = node.args.get(arg)
        return tensors[found.name] if isinstance(found, TensorRef) else value

    def seen(node: Node, env: dict[str, Any]) -> None:
        given = node.args.get("input")
        if node.op != "aten.batch_norm.default" or not isinstance(given, Ref):
            return
        rows = env[given.name].transpose(0, 1).flatten(1).double()
        moments = {"running_mean": rows.mean(1), "running_var": rows.var(1, unbiased=False)}
        for arg, found in moments.items():
            name = node.args.get(arg)
            if isinstance(name, TensorRef):
                tensors[name.name] = found.to(tensors[name.name].dtype)

    _walked(graph, inputs, newest, seen)
    return replace(graph, tensors=tensors)


@torch.no_grad()
def _walked(
    graph: ModelGraph,
    inputs: Tensor,
    edit: Edit | None = None,
    seen: Callable[[Node, dict[str, Any]], None] | None = None,
) -> Any:
    """The single output of a graph, node by node.

    Args:
        seen: called before each node with the values that are at hand.
    """
    last = {name: users[-1] for name, users in graph.readers.items()}
    env: dict[str, Any] = {graph.inputs[0].name: inputs}
    for node in graph.nodes:
        if seen is not None:
            seen(node, env)
        env[node.name] = run_node(graph, node, env, len(inputs), edit)
        for name in [name for name in env if last.get(name) == node.name]:
            del env[name]
    return env[graph.outputs[0]]
