"""A stitch, and the graph that it is: an affine map from what one block gives to what the next one reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.engines.reassembly.places import Place
from sarto.errors import ShapeError
from sarto.graph import BatchDim, Input, ModelGraph, Node, Ref, TensorRef
from sarto.graph.merge import Merger
from sarto.graph.model import Arg, Shape
from sarto.graph.operators import default_args


@dataclass(frozen=True, eq=False)
class Stitch:
    """A fitted stitch.

    Attributes:
        source, target: the places that it joins.
        weight: (channels of the target, channels of the source x kernel x kernel), a patch laid out as `unfold` does.
        bias: (channels of the target,), or (positions, channels) where each position has its own.
        prefix: (prefix tokens x channels of the target, what they are regressed from), and their bias; None where the
            target has none.
        left: (channels of the target, rank) where the weight is a product left @ weight; None for full rank.
        kernel: side of the patch of positions that each position is predicted from.
        lam: ridge strength chosen.
        r2: share of the target's variance on images left out.
    """

    source: Place
    target: Place
    weight: Tensor
    bias: Tensor
    prefix: tuple[Tensor, Tensor] | None = None
    left: Tensor | None = None
    kernel: int = 1
    lam: float = 0.0
    r2: float = float("nan")

    @property
    def graph(self) -> ModelGraph:
        """The stitch as a graph from the source's shape to the target's."""
        return _graph(self)


def by_map(source: Place, target: Place) -> bool:
    """Whether a stitch goes through a map: else it is one linear layer on tokens of one grid, or on vectors."""
    if source.layout == target.layout == "tokens":
        return source.grid != target.grid
    return not source.layout == target.layout == "vector"


def resizing(before: int, after: int) -> Tensor:
    """The matrix (after, before) that resamples one axis: cell means where it shrinks, bilinear where it grows."""
    identity = torch.eye(before, dtype=torch.float64)[None]
    if after <= before:
        return F.adaptive_avg_pool1d(identity, after)[0].T.contiguous()
    return F.interpolate(identity, size=after, mode="linear", align_corners=False)[0].T.contiguous()


def prefix_width(source: Place) -> int:
    """Width of what prefix tokens are regressed from: the source's own, or its mean position."""
    return source.channels * max(source.prefix, 1)


def _graph(stitch: Stitch) -> ModelGraph:
    source, target = stitch.source, stitch.target
    front = _Chain(Input("given", _shape(source), source.dtype))
    prefix = _prefix_nodes(front, stitch) if stitch.prefix is not None else None
    front.at(Ref("given"), _shape(source))
    # A 1 x 1 map and a resampling may trade places; it stands where there are fewer positions.
    shrinks = target.positions <= source.positions or stitch.kernel > 1
    if not by_map(source, target):
        front.drop_prefix(source)
        front.linear(stitch)
    else:
        front.to_map(source)
        if shrinks:
            front.regrid(target.grid)
        front.conv(stitch)
        if not shrinks:
            front.regrid(target.grid)
        front.from_map(target)
    if stitch.bias.ndim == 2:
        front.add_bias(stitch.bias)
    if prefix is not None:
        front.join(prefix, target)
    return front.merger.graph([front.name])


def _shape(place: Place) -> Shape:
    if place.layout == "vector":
        return (BatchDim(1), place.channels)
    if place.layout == "tokens":
        return (BatchDim(1), place.prefix + place.positions, place.channels)
    if place.channels_last:
        return (BatchDim(1), *place.grid, place.channels)
    return (BatchDim(1), place.channels, *place.grid)


class _Chain:
    """Nodes one after the other."""

    def __init__(self, entry: Input) -> None:
        self.merger = Merger((entry,))
        self.name, self.shape, self.dtype = entry.name, entry.shape, entry.dtype

    def at(self, ref: Ref, shape: Shape) -> None:
        self.name, self.shape = ref.name, shape

    def call(self, name: str, op: str, shape: Shape, /, **args: Arg) -> None:
        node = Node(name, op, {**default_args(op), **args}, (shape,), (self.dtype,))
        self.name, self.shape = self.merger.call(node), shape

    def store(self, name: str, tensor: Tensor) -> TensorRef:
        return TensorRef(self.merger.store(name, tensor, parameter=True))

    def drop_prefix(self, place: Place) -> None:
        if place.prefix:
            shape = (BatchDim(1), place.positions, place.channels)
            self.call(
                "stitch_tokens",
                "aten.slice.Tensor",
                shape,
                self=Ref(self.name),
                dim=1,
                start=place.prefix,
                end=2**63 - 1,
            )

    def to_map(self, place: Place) -> None:
        """Any layout as (batch, channels, rows, columns)."""
        shape: Shape = (BatchDim(1), place.channels, *place.grid)
        if place.layout == "tokens":
            self.drop_prefix(place)
            turned = (BatchDim(1), place.channels, place.positions)
            self.call("stitch_turn", "aten.transpose.int", turned, self=Ref(self.name), dim0=1, dim1=2)
            self.call("stitch_map", "aten.reshape.default", shape, self=Ref(self.name), shape=shape)
        elif place.layout == "vector":
            self.call("stitch_map", "aten.reshape.default", shape, self=Ref(self.name), shape=shape)
        elif place.channels_last:
            self.call("stitch_map", "aten.permute.default", shape, self=Ref(self.name), dims=(0, 3, 1, 2))

    def from_map(self, place: Place) -> None:
        """(batch, channels, rows, columns) as the place lays it out, prefix tokens left out."""
        if place.layout == "tokens":
            flat: Shape = (BatchDim(1), place.channels, place.positions)
            self.call("stitch_flat", "aten.reshape.default", flat, self=Ref(self.name), shape=flat)
            turned = (BatchDim(1), place.positions, place.channels)
            self.call("stitch_turn", "aten.transpose.int", turned, self=Ref(self.name), dim0=1, dim1=2)
        elif place.layout == "vector":
            flat = (BatchDim(1), place.channels)
            self.call("stitch_flat", "aten.reshape.default", flat, self=Ref(self.name), shape=flat)
        elif place.channels_last:
            last = (BatchDim(1), *place.grid, place.channels)
            self.call("stitch_last", "aten.permute.default", last, self=Ref(self.name), dims=(0, 2, 3, 1))

    def regrid(self, grid: tuple[int, int]) -> None:
        batch, channels, rows, columns = self.shape
        have = (int(str(rows)), int(str(columns)))
        if have == grid:
            return
        shape: Shape = (batch, channels, *grid)
        if all(h % w == 0 for h, w in zip(have, grid, strict=True)):
            kernel = (have[0] // grid[0], have[1] // grid[1])
            self.call(
                "stitch_pool",
                "aten.avg_pool2d.default",
                shape,
                self=Ref(self.name),
                kernel_size=kernel,
                stride=kernel,
            )
        elif all(h <= w for h, w in zip(have, grid, strict=True)):
            self.call(
                "stitch_grow",
                "aten.upsample_bilinear2d.vec",
                shape,
                input=Ref(self.name),
                output_size=grid,
                align_corners=False,
                scale_factors=None,
            )
        else:
            dtype = getattr(torch, self.dtype)
            right = self.merger.store(
                "stitch.columns", resizing(have[1], grid[1]).T.to(dtype).contiguous(), parameter=False
            )
            left = self.merger.store("stitch.rows", resizing(have[0], grid[0]).to(dtype), parameter=False)
            wide: Shape = (batch, channels, have[0], grid[1])
            self.call(
                "stitch_columns", "aten.matmul.default", wide, self=Ref(self.name), other=TensorRef(right)
            )
            self.call("stitch_rows", "aten.matmul.default", shape, self=TensorRef(left), other=Ref(self.name))

    def conv(self, stitch: Stitch) -> None:
        """1 x 1 convolutions; the bias of all positions alike is that of the last."""
        batch, _, rows, columns = self.shape
        parts = [stitch.weight] if stitch.left is None else [stitch.weight, stitch.left]
        bias = stitch.bias if stitch.bias.ndim == 1 else None
        for i, weight in enumerate(parts):
            last = i == len(parts) - 1
            side = stitch.kernel if i == 0 else 1
            stored = self.store("stitch.weight", weight.reshape(len(weight), -1, side, side))
            self.call(
                "stitch",
                "aten.conv2d.default",
                (batch, int(weight.shape[0]), rows, columns),
                input=Ref(self.name),
                weight=stored,
                bias=self.store("stitch.bias", bias) if last and bias is not None else None,
                padding=(side // 2, side // 2),
            )

    def linear(self, stitch: Stitch) -> None:
        """A linear layer on the last axis."""
        parts = [stitch.weight] if stitch.left is None else [stitch.weight, stitch.left]
        for i, weight in enumerate(parts):
            last = i == len(parts) - 1 and stitch.bias.ndim == 1
            shape = (*self.shape[:-1], int(weight.shape[0]))
            self.call(
                "stitch",
                "aten.linear.default",
                shape,
                input=Ref(self.name),
                weight=self.store("stitch.weight", weight),
                bias=self.store("stitch.bias", stitch.bias) if last else None,
            )

    def add_bias(self, bias: Tensor) -> None:
        stored = self.store("stitch.positions", bias)
        self.call("stitch_positions", "aten.add.Tensor", self.shape, self=Ref(self.name), other=stored)

    def join(self, prefix: str, target: Place) -> None:
        shape = _shape(target)
        self.call("stitch_joined", "aten.cat.default", shape, tensors=(Ref(prefix), Ref(self.name)), dim=1)


def _prefix_nodes(front: _Chain, stitch: Stitch) -> str:
    """Nodes that make the target's prefix tokens; the name of the value (batch, prefix, channels)."""
    source, target = stitch.source, stitch.target
    if stitch.prefix is None:
        raise ShapeError("the stitch makes no prefix tokens")
    weight, bias = stitch.prefix
    width = prefix_width(source)
    flat: Shape = (BatchDim(1), width)
    if source.prefix:
        held: Shape = (BatchDim(1), source.prefix, source.channels)
        front.call(
            "stitch_front", "aten.slice.Tensor", held, self=Ref(front.name), dim=1, start=0, end=source.prefix
        )
        front.call("stitch_front", "aten.reshape.default", flat, self=Ref(front.name), shape=flat)
    elif source.layout == "tokens":
        front.call("stitch_front", "aten.mean.dim", flat, self=Ref(front.name), dim=(1,), keepdim=False)
    elif source.layout == "map":
        axes = (1, 2) if source.channels_last else (2, 3)
        front.call("stitch_front", "aten.mean.dim", flat, self=Ref(front.name), dim=axes, keepdim=False)
    front.call(
        "stitch_prefix",
        "aten.linear.default",
        (BatchDim(1), int(weight.shape[0])),
        input=Ref(front.name),
        weight=front.store("stitch.prefix.weight", weight),
        bias=front.store("stitch.prefix.bias", bias),
    )
    shape: Shape = (BatchDim(1), target.prefix, target.channels)
    front.call("stitch_prefix", "aten.reshape.default", shape, self=Ref(front.name), shape=shape)
    return front.name
