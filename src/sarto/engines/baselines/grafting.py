"""Parting a donor and its narrower student into blocks that fit into each other through adaptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sarto.errors import GraphError
from sarto.graph import (
    CutPoint,
    Input,
    ModelGraph,
    Node,
    Ref,
    Selection,
    TensorRef,
    chain,
    dissect,
    main_cuts,
    slice,
    uniform_counts,
)
from sarto.graph.expressions import kept_positions
from sarto.graph.model import BatchDim, Shape, elements
from sarto.graph.operators import default_args
from sarto.training import random_units


@dataclass(frozen=True, eq=False)
class Parted:
    """A donor and its student, block by block.

    Attributes:
        cuts: the values between blocks, one fewer than blocks.
        teacher: the donor's blocks; the last one gives its logits.
        student: the student's, with fewer channels inside and between.
        kept: for each cut the teacher's channels that the student's are cut from, and how many the teacher has.
    """

    cuts: tuple[CutPoint, ...]
    teacher: tuple[ModelGraph, ...]
    student: tuple[ModelGraph, ...]
    kept: tuple[tuple[tuple[int, ...], int], ...]


def part(graph: ModelGraph, ratio: float, seed: int) -> Parted:
    """A donor parted where its maps shrink, and a student with that share of every layer's units, drawn at random.

    Raises:
        GraphError: nothing to slice, or no place to part the donor.
    """
    counts = uniform_counts(graph, ratio)
    if not counts:
        raise GraphError("NetGraft narrows layers, and this donor has none that can be narrowed")
    selection = Selection(
        {
            group: tuple(
                random_units(count, graph.analysis.groups[group].size, seed=1_000_003 * seed + place).tolist()
            )
            for place, (group, count) in enumerate(sorted(counts.items()))
        }
    )
    narrow = slice(graph, selection)
    cuts = block_ends(graph)
    if not cuts:
        raise GraphError(
            "NetGraft grafts blocks between maps (batch, channels, height, width), and this donor has no cut between "
            "any; order with other baselines"
        )
    values = [cut.value for cut in cuts]
    kept = []
    for value in values:
        axis = graph.analysis.value_axes[value][0][1]
        positions = tuple(int(position) for position in kept_positions(axis, selection.kept))
        kept.append((positions, _channels(graph.node(value).shape)))
    return Parted(cuts, dissect(graph, values), dissect(narrow, values), tuple(kept))


def block_ends(graph: ModelGraph) -> tuple[CutPoint, ...]:
    """Where blocks end: of the maps of each size the smallest and of these the last; never two without weights between.

    The authors' blocks of VGG end at its poolings; these are the same places, and exist in any network of maps.
    """
    maps: dict[int | None, list[CutPoint]] = {}
    for cut in main_cuts(graph):
        if len(cut.shape) == 4:
            maps.setdefault(cut.stride, []).append(cut)
    ends = [min(reversed(same), key=lambda cut: elements(cut.shape)) for same in maps.values()]
    while ends:
        blocks = dissect(graph, [cut.value for cut in ends])
        bare = [place for place, block in enumerate(blocks) if not _weighs(block)]
        if not bare:
            break
        # Of two ends with nothing between, the later one stays; the last block loses its start.
        del ends[min(max(bare[0] - 1, 0), len(ends) - 1)]
    return tuple(ends)


class Adaption(nn.Module):
    """A 1x1 convolution with bias between the channels of two networks."""

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(wanted, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(wanted))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias)


def to_student(kept: Sequence[int], size: int) -> Tensor:
    """The adaption (kept, size, 1, 1) that picks the student's channels out of the teacher's."""
    return torch.eye(size)[list(kept)].reshape(len(kept), size, 1, 1)


def to_teacher(kept: Sequence[int], size: int) -> Tensor:
    """The adaption (size, kept, 1, 1) that puts the student's channels where the teacher has them; the others are 0."""
    return to_student(kept, size).transpose(0, 1)


def merged(first: Adaption, second: Adaption) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one 1x1 convolution that equals two, one after the other.

    A student block is followed by its way out to the teacher's channels and the next one's way in: only their product
    is kept, on the student's channels.
    """
    outer, inner = (layer.weight.detach().double()[:, :, 0, 0] for layer in (second, first))
    bias = outer @ first.bias.detach().double() + second.bias.detach().double()
    weight = (outer @ inner).reshape(outer.shape[0], inner.shape[1], 1, 1)
    return weight.to(first.weight.dtype), bias.to(first.bias.dtype)


def assemble(blocks: Sequence[ModelGraph], between: Sequence[tuple[Tensor, Tensor]]) -> ModelGraph:
    """One model of the student's blocks and the merged adaptions between them."""
    parts = [blocks[0]]
    for (before, after), (weight, bias) in zip(pairwise(blocks), between, strict=True):
        parts += [
            _adaption_graph(
                before.node(before.outputs[0]).shape, before.node(before.outputs[0]), weight, bias
            ),
            after,
        ]
    return chain(parts)


def _adaption_graph(shape: Shape, made: Node, weight: Tensor, bias: Tensor) -> ModelGraph:
    op, dtype = "aten.conv2d.default", made.dtypes[0]
    entry = Input("adaption_input", shape, dtype)
    args = {
        **default_args(op),
        "input": Ref(entry.name),
        "weight": TensorRef("adaption.weight"),
        "bias": TensorRef("adaption.bias"),
    }
    given: Shape = (BatchDim(1), int(weight.shape[0]), *shape[2:])
    node = Node("adaption", op, args, (given,), (dtype,))
    tensors = {"adaption.weight": weight, "adaption.bias": bias}
    return ModelGraph((entry,), (node,), (node.name,), tensors, frozenset(tensors))


def _channels(shape: Shape) -> int:
    channels = shape[1]
    if not isinstance(channels, int):
        raise GraphError(f"a map's channels stand on axis 1, found {channels}")
    return channels


def _weighs(block: ModelGraph) -> bool:
    return any(block.tensors[name].ndim > 1 for name in block.parameters)
