"""The axis algebra against labels: every element carries the units it came from, through random moves of axes.

Sample u of a batch lights unit u alone, so an element of its values is positive exactly where that unit reaches it.
What the axis expressions say must be the same, for every element of every value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sarto.graph import ModelGraph, Selection, capture, evaluate, relative_difference, slice
from sarto.graph.expressions import full_size, kept_positions, units_in
from sarto.graph.model import Ref
from sarto.testing.tolerances import EXACT

MOVES = (
    "factor",
    "merge",
    "permute",
    "cat",
    "same cat",
    "part",
    "halves",
    "stack",
    "expand",
    "repeat",
    "interleave",
    "add",
    "reshape",
)
#: Larger values are not moved on.
MOST = 300


def _programs(makers: int, most: int) -> st.SearchStrategy[tuple[list[int], list[tuple[str, int]]]]:
    """Widths of so many linear layers at most, and so many moves at most, each with a number that says how."""
    return st.tuples(
        st.lists(st.sampled_from([2, 3, 4, 6, 8, 12]), min_size=1, max_size=makers),
        st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 10**6)), min_size=1, max_size=most),
    )


programs = _programs(3, 7)
short_programs = _programs(2, 5)


class Moves(nn.Module):
    """Linear layers, then moves of the axes of what they make, then one linear layer that reads all that is left."""

    def __init__(self, widths: Sequence[int], program: Sequence[tuple[str, int]]) -> None:
        super().__init__()
        self.makers = nn.ModuleList(nn.Linear(sum(widths), width) for width in widths)
        self.program = tuple(program)
        width = sum(value[0].numel() for value in self.moved(torch.zeros(1, sum(widths))))
        self.head = nn.Linear(width, 2)

    def moved(self, x: Tensor) -> list[Tensor]:
        """The values that are left after the program; each move takes values of the list and puts one in."""
        values = [maker(x) for maker in self.makers]
        for name, number in self.program:
            value = values.pop(number % len(values))
            rest = number // len(values or [0])
            if value[0].numel() > MOST:
                values.append(value)
                continue
            partner = next((place for place, other in enumerate(values) if _fits(name, value, other)), None)
            if partner is not None:
                value = _joined(name, value, values.pop(partner), rest)
            else:
                value = _moved(name, value, rest)
            values.append(value)
        return values

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([value.relu().flatten(1) for value in self.moved(x)], 1))


def _fits(name: str, one: Tensor, two: Tensor) -> bool:
    if name == "cat":
        return one.ndim == two.ndim and one.shape[2:] == two.shape[2:]
    return name in ("add", "stack") and one.shape == two.shape


def _joined(name: str, one: Tensor, two: Tensor, number: int) -> Tensor:
    if name == "cat":
        return torch.cat([one, two], 1)
    return one + two if name == "add" else torch.stack([one, two], 1 + number % one.ndim)


def _moved(name: str, value: Tensor, number: int) -> Tensor:
    axis = 1 + number % (value.ndim - 1)
    size, rest = int(value.shape[axis]), number // 7
    shape = [int(entry) for entry in value.shape[1:]]
    if name == "factor":
        divisors = [factor for factor in range(1, size + 1) if size % factor == 0]
        factor = divisors[rest % len(divisors)]
        shape[axis - 1 : axis] = [factor, size // factor]
        return value.reshape(-1, *shape)
    if name == "merge":
        return value.flatten(axis, min(axis + 1, value.ndim - 1))
    if name == "reshape":
        whole = math.prod(shape)
        divisors = [factor for factor in range(1, whole + 1) if whole % factor == 0]
        factor = divisors[rest % len(divisors)]
        return value.reshape(-1, factor, whole // factor)
    if name == "permute":
        order = np.random.default_rng(number).permutation(value.ndim - 1) + 1
        return value.permute(0, *order.tolist())
    if name == "same cat":
        return torch.cat([value, value], axis)
    if name == "part":
        start = rest % size
        stop = start + max(1, (size - start) // (1 + rest % 2))
        return value[(np.s_[:],) * axis + (np.s_[start:stop],)]
    if name == "halves" and size % 2 == 0:
        one, two = value.chunk(2, axis)
        return one + two if rest % 2 else torch.cat([two, one], axis)
    if name == "expand":
        return value.unsqueeze(axis).expand(-1, *shape[: axis - 1], 2, *shape[axis - 1 :])
    if name == "repeat":
        return value.repeat(1, *(2 if place == axis else 1 for place in range(1, value.ndim)))
    if name == "interleave":
        return value.repeat_interleave(2, dim=axis)
    return value.relu()


def reached(graph: ModelGraph, widths: Sequence[int]) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    """(maker, unit) -> for every value, which elements of a sample that unit reaches; by running the graph.

    Sample u of the batch lights unit u alone: the makers' weights are parts of the identity, their biases zero.
    """
    total, start = sum(widths), 0
    tensors = dict(graph.tensors)
    owners = []
    for maker, width in enumerate(widths):
        tensors[f"makers.{maker}.weight"] = torch.eye(total, dtype=torch.float64)[start : start + width]
        tensors[f"makers.{maker}.bias"] = torch.zeros(width, dtype=torch.float64)
        owners += [(maker, unit) for unit in range(width)]
        start += width
    names = [node.name for node in graph.nodes if node.name not in graph.outputs]
    _, values = evaluate(replace(graph, tensors=tensors), torch.eye(total, dtype=torch.float64), watch=names)
    return {
        owner: {key: values[key][place].numpy() > 0 for key in names} for place, owner in enumerate(owners)
    }


def predicted(graph: ModelGraph, value: str, group: str, unit: int, shape: Sequence[int]) -> np.ndarray:
    """Elements of a value that belong to a unit, by the axis expressions."""
    kept = {group: tuple(other for other in range(graph.analysis.groups[group].size) if other != unit)}
    member = np.zeros(shape, dtype=bool)
    for axis, expr in enumerate(graph.analysis.value_axes[value][0][1:]):
        if group in units_in(expr):
            gone = np.setdiff1d(np.arange(full_size(expr)), kept_positions(expr, kept))
            member[(np.s_[:],) * axis + (gone,)] = True
    return member


Case = tuple[list[int], list[tuple[str, int]]]


def check_expressions(case: Case) -> None:
    """The elements that a unit reaches are those that the expressions say."""
    widths, program = case
    graph = capture(Moves(widths, program).double(), torch.randn(2, sum(widths)).double(), prove=False)
    reach = reached(graph, widths)
    # Copies go with the units that they later meet in a sum, though these do not reach them.
    copies = any(name in ("expand", "interleave") for name, _ in program)
    for group in graph.analysis.sliceable:
        for unit in range(group.size):
            kept = {group.id: tuple(other for other in range(group.size) if other != unit)}
            rows = [
                (int(name.split(".")[1]), int(row))
                for name, axis in group.places
                if name.startswith("makers") and name.endswith("bias")
                for row in np.setdiff1d(
                    np.arange(graph.tensors[name].shape[0]),
                    kept_positions(graph.analysis.tensor_axes[name][axis], kept),
                )
            ]
            assert rows, "a unit lies in what makes it"
            for value in next(iter(reach.values())):
                want = np.logical_or.reduce([reach[row][value] for row in rows])
                have = predicted(graph, value, group.id, unit, want.shape)
                assert not np.any(want & ~have), (
                    group.id,
                    unit,
                    value,
                    "an element that it reaches is missed",
                )
                assert copies or np.array_equal(have, want), (group.id, unit, value)


@settings(max_examples=4)
@given(short_programs)
def test_expressions_say_which_elements_belong_to_which_unit(case: Case) -> None:
    check_expressions(case)


@pytest.mark.slow
@settings(max_examples=100)
@given(programs)
def test_expressions_say_it_for_long_programs(case: Case) -> None:
    check_expressions(case)


def check_slices(case: Case, seed: int) -> None:
    """The rows that slicing took from the makers are read off; what they reach is hidden from the source's head."""
    widths, program = case
    model = Moves(widths, program).double()
    graph = capture(model, torch.randn(2, sum(widths)).double(), prove=False)
    generator = np.random.default_rng(seed)
    selection = Selection(
        {
            group.id: tuple(
                generator.permutation(group.size)[: generator.integers(1, group.size + 1)].tolist()
            )
            for group in graph.analysis.sliceable
        }
    )
    small = slice(graph, selection)
    tagged = slice(replace(graph, tensors={name: _tags(t) for name, t in graph.tensors.items()}), selection)
    reach = reached(graph, widths)
    read = graph.node(graph.outputs[0]).args["input"]
    assert isinstance(read, Ref)
    hidden = np.zeros(model.head.in_features, dtype=bool)
    for maker, width in enumerate(widths):
        for row in set(range(width)) - set(tagged.tensors[f"makers.{maker}.bias"].int().tolist()):
            hidden |= reach[maker, row][read.name]
    x = torch.randn(3, sum(widths), dtype=torch.float64)
    with torch.no_grad():
        seen = torch.cat([value.relu().flatten(1) for value in model.moved(x)], 1)
        want = model.head(seen * torch.from_numpy(~hidden))
    assert relative_difference((small(x),), (want,)) <= EXACT[torch.float64]


@settings(max_examples=4)
@given(short_programs, st.integers(0, 2**16))
def test_slicing_is_hiding_from_the_head_what_the_units_reach(case: Case, seed: int) -> None:
    check_slices(case, seed)


@pytest.mark.slow
@settings(max_examples=100)
@given(programs, st.integers(0, 2**16))
def test_slicing_is_hiding_it_for_long_programs(case: Case, seed: int) -> None:
    check_slices(case, seed)


def _tags(tensor: Tensor) -> Tensor:
    """Every row holds its own number."""
    return (
        torch.arange(tensor.shape[0], dtype=torch.float64)
        .reshape(-1, *[1] * (tensor.ndim - 1))
        .expand(tensor.shape)
    )


class FirstRow(nn.Module):
    """Reads the first of two rows of four: a part of size one, times four."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.head = nn.Linear(3, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maker(x).unflatten(1, (2, 4)).flatten(1)[:, :4])


def test_a_part_of_size_one_is_passed_over() -> None:
    """Unifying (1 x 4) with 4 once never came to an end."""
    model, x = FirstRow().double(), torch.randn(2, 3).double()
    graph = capture(model, x)
    (group,) = graph.analysis.sliceable
    small = slice(graph, Selection({group.id: (1, 3)}))
    with torch.no_grad():
        want = model.head(model.maker(x)[:, :4] * torch.tensor([0, 1, 0, 1]))
    assert relative_difference((small(x),), (want,)) <= EXACT[torch.float64]
