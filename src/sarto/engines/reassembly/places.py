"""Cut points as places for stitches: which axis holds channels, which the grid, and what a block between two costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from sarto.devices import count, flops_by_node
from sarto.errors import GraphError
from sarto.graph import CutPoint, ModelGraph, Node, TensorRef, block, main_cuts
from sarto.graph.model import leaves, shapes_of
from sarto.types import Cost

Layout = Literal["map", "tokens", "vector"]

#: Readers whose channels lie on the last axis, and those whose channels lie on axis 1.
_LAST = frozenset(["aten.layer_norm.default", "aten.linear.default", "aten.rms_norm.default"])
_FIRST = (
    "aten.conv",
    "aten.batch_norm",
    "aten.group_norm",
    "aten.max_pool",
    "aten.avg_pool",
    "aten.adaptive",
)
#: Prefix tokens (class token, registers) that a grid of tokens may have in front.
MAX_PREFIX = 16


@dataclass(frozen=True)
class Place:
    """A cut point as a stitch sees it.

    Attributes:
        value: the value in the donor's graph.
        layout: map, tokens or vector.
        channels: width of one position.
        grid: rows and columns of positions; (1, 1) for a vector.
        prefix: tokens before those of the grid.
        channels_last: of a map (batch, rows, columns, channels).
        dtype: of the value.
    """

    value: str
    layout: Layout
    channels: int
    grid: tuple[int, int]
    prefix: int = 0
    channels_last: bool = False
    dtype: str = "float32"

    @property
    def positions(self) -> int:
        """Positions of the grid, prefix tokens left out."""
        return self.grid[0] * self.grid[1]

    @property
    def kind(self) -> tuple[str, int, tuple[int, int], int, bool, str]:
        """What a stitch depends on: everything but the name."""
        return (self.layout, self.channels, self.grid, self.prefix, self.channels_last, self.dtype)

    def spread(self, value: Tensor) -> Tensor:
        """Activations (n, ...) as positions, shape (n, rows, columns, channels); prefix tokens left out."""
        if self.layout == "map":
            return value if self.channels_last else value.permute(0, 2, 3, 1)
        if self.layout == "tokens":
            return value[:, self.prefix :].reshape(value.shape[0], *self.grid, self.channels)
        return value[:, None, None, :]

    def pooled(self, value: Tensor, cells: int = 1) -> Tensor:
        """Mean activations over `cells` x `cells` parts of the grid, shape (n, cells * cells * channels)."""
        spread = self.spread(value)
        if cells == 1 or self.layout == "vector":
            return spread.mean((1, 2))
        parts = torch.nn.functional.adaptive_avg_pool2d(spread.permute(0, 3, 1, 2), cells)
        return parts.flatten(1)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Where a model can be parted and what lies between; the costs of every block follow by subtraction.

    Attributes:
        places: cut points in order, the stem's output first, the classifier's input last.
        params, flops: of everything before each place, one entry a place; then of the whole model.
        peaks: peak activation bytes of each step: input to the first place, place to place, last place to the output.
    """

    places: tuple[Place, ...]
    params: tuple[int, ...]
    flops: tuple[int, ...]
    peaks: tuple[int, ...]
    sizes: tuple[int, ...]

    def cost(self, start: int | None, end: int | None) -> Cost:
        """Cost of the block between two places by number; None stands for the model's input and output."""
        first = -1 if start is None else start
        last = len(self.places) if end is None else end
        if not -1 <= first < last <= len(self.places):
            raise GraphError(f"a block goes from a cut to a later one, asked from {start} to {end}")

        def between(table: tuple[int, ...]) -> int:
            return table[last] - (table[first] if first >= 0 else 0)

        return Cost(
            params=between(self.params),
            flops=between(self.flops),
            memory_bytes=max(self.peaks[first + 1 : last + 1]),
            size_bytes=between(self.sizes),
            basis="predicted",
        )

    @cached_property
    def number(self) -> Mapping[str, int]:
        """Value -> its number among the places."""
        return {place.value: i for i, place in enumerate(self.places)}


def anatomy(graph: ModelGraph) -> Anatomy:
    """Places and block costs of a model, from shapes alone.

    Cuts that part the users of one tensor (tied weights) are left out, so that parameters of blocks add up.

    Raises:
        GraphError: the graph has no cut point with weights on both sides.
    """
    sketch = graph.sketch()
    places = tuple(place_of(sketch, cut) for cut in _untied(sketch, main_cuts(sketch)))
    if not places:
        raise GraphError(
            "the model has no cut point: no value alone carries everything from its input to its output, so it "
            "can't be parted into blocks; it can still be used as a whole"
        )
    bounds: list[str | None] = [None, *(place.value for place in places), None]
    costs = [count(block(sketch, start, end)) for start, end in pairwise(bounds)]
    return Anatomy(
        places,
        tuple(_sums([cost.params for cost in costs])),
        tuple(_sums([cost.flops for cost in costs])),
        tuple(cost.memory_bytes for cost in costs),
        tuple(_sums([cost.size_bytes for cost in costs])),
    )


def place_of(graph: ModelGraph, cut: CutPoint) -> Place:
    """A cut point with its channel axis, its grid and its prefix tokens."""
    sizes = tuple(int(size) for size in cut.shape[1:] if isinstance(size, int))
    node = graph.index.get(cut.value)
    dtype = node.dtypes[0] if node is not None else graph.inputs[0].dtype
    given = graph.inputs[0].shape
    space = tuple(int(size) for size in given[2:] if isinstance(size, int)) if len(given) == 4 else ()
    if len(sizes) == 1:
        return Place(cut.value, "vector", sizes[0], (1, 1), dtype=dtype)
    if len(sizes) == 2:
        prefix, grid = _token_grid(sizes[0], space)
        return Place(cut.value, "tokens", sizes[1], grid, prefix, dtype=dtype)
    if len(sizes) != 3:
        raise GraphError(f"a stitch can't stand at {cut.value!r} of {len(sizes)} axes", where=cut.value)
    if _channels_last(graph, cut.value, sizes):
        return Place(cut.value, "map", sizes[2], (sizes[0], sizes[1]), channels_last=True, dtype=dtype)
    return Place(cut.value, "map", sizes[0], (sizes[1], sizes[2]), dtype=dtype)


def _untied(graph: ModelGraph, cuts: Sequence[CutPoint]) -> list[CutPoint]:
    """Cuts that no tensor is read on both sides of, and at which a stitch can stand."""
    where = {node.name: i for i, node in enumerate(graph.nodes)}
    spans: dict[str, tuple[int, int]] = {}
    learned = graph.parameters
    for i, node in enumerate(graph.nodes):
        for arg in leaves(node.args):
            if isinstance(arg, TensorRef) and arg.name in learned:
                first, _ = spans.get(arg.name, (i, i))
                spans[arg.name] = (first, i)
    tied = [span for span in spans.values() if span[0] < span[1]]
    return [
        cut
        for cut in cuts
        if 2 <= len(cut.shape) <= 4
        and (cut.value in where)
        and not any(first <= where[cut.value] < last for first, last in tied)
    ]


def _token_grid(tokens: int, space: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """Prefix tokens and the grid of the others: the fewest in front that leave the image's grid at some stride."""
    if len(space) == 2:
        height, width = space
        common = math.gcd(height, width)
        grids = {
            (height // s) * (width // s): (height // s, width // s)
            for s in range(1, common + 1)
            if height % s == 0 and width % s == 0
        }
        for prefix in range(min(MAX_PREFIX, tokens - 1) + 1):
            if tokens - prefix in grids and tokens - prefix > 1:
                return prefix, grids[tokens - prefix]
    return 0, (1, tokens)


def _channels_last(graph: ModelGraph, value: str, sizes: tuple[int, ...]) -> bool:
    """Whether a map's channels lie on its last axis: what reads it first knows."""
    for reader in _first_readers(graph, value):
        if reader.op in _LAST:
            return True
        if reader.op.startswith(_FIRST):
            return False
        if reader.op == "aten.mean.dim":
            # What a mean over the grid gives has its channels last, wherever they were.
            dims = [dim % 4 for dim in leaves(reader.args["dim"]) if isinstance(dim, int)]
            return sorted(dims) == [1, 2]
    return sizes[0] == sizes[1] != sizes[2]


def _first_readers(graph: ModelGraph, value: str) -> list[Node]:
    """What reads a value, and what reads that; an order in which the deciding one comes soon."""
    found = [graph.node(name) for name in graph.readers.get(value, ())]
    return found + [graph.node(name) for node in found for name in graph.readers.get(node.name, ())]


def _sums(values: Sequence[int]) -> list[int]:
    total, sums = 0, []
    for value in values:
        total += value
        sums.append(total)
    return sums


def stored_bytes(graph: ModelGraph) -> int:
    """Bytes of all stored tensors."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes_of(graph.tensors).values())


def total_flops(graph: ModelGraph) -> int:
    """FLOPs of a graph for one sample."""
    return sum(flops_by_node(graph).values())
