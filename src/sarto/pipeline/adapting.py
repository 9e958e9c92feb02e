"""What stands in front of a member of a pack: from what the pack reads to what the member reads alone."""

from __future__ import annotations

import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.graph import BatchDim, ModelGraph, Node, Ref, TensorRef
from sarto.graph.merge import Merger
from sarto.graph.model import Arg, Input, Shape
from sarto.graph.operators import default_args
from sarto.market import LUMA, Intake
from sarto.types import Learnware, Preprocessing, TextPreprocessing


def adapt(graph: ModelGraph, own: Intake, joint: Intake) -> ModelGraph:
    """The graph behind what turns the joint input into its own; the graph itself where they are the same.

    Images are made grey by the brightness of their pixels and resized by two fixed matrices, which hold exactly the
    weights of the smoothed bilinear resizing of `to_tensor`: on images of the joint size both give the same numbers
    within rounding. Token ids are cut to the graph's length and looked up in a table from joint ids to its own.
    """
    if isinstance(own.preprocessing, TextPreprocessing) and isinstance(
        joint.preprocessing, TextPreprocessing
    ):
        return _adapt_text(graph, own, joint, own.preprocessing, joint.preprocessing)
    wanted = joint.preprocessing
    if not isinstance(wanted, Preprocessing) or wanted.size is None:
        return graph
    entry = graph.inputs[0]
    channels, height, width = (int(size) for size in entry.shape[1:] if isinstance(size, int))
    if (channels, (height, width)) == (wanted.channels, tuple(wanted.size)):
        return graph
    read = Input(entry.name, (BatchDim(1), wanted.channels, *wanted.size), entry.dtype)
    front = _Front(read)
    if channels != wanted.channels:
        front.grey()
    front.resize((height, width))
    return front.before(graph)


def adapting_cost(own: Intake, donor: Learnware, joint: Intake) -> tuple[int, int, int]:
    """FLOPs, stored bytes and input bytes that `adapt` adds to a member of a pack."""
    wanted, mine = joint.preprocessing, own.preprocessing
    if isinstance(mine, TextPreprocessing) and isinstance(wanted, TextPreprocessing):
        table = 0 if _same_ids(mine, wanted) else 8 * wanted.n_tokens
        return 0, table, 8 * wanted.length if table or mine.length != wanted.length else 0
    if not isinstance(wanted, Preprocessing) or wanted.size is None:
        return 0, 0, 0
    (channels, height, width), (high, wide) = donor.input_shape, wanted.size
    flops = stored = 0
    if wide != width:
        flops, stored = flops + 2 * channels * high * width * wide, stored + 4 * wide * width
    if high != height:
        flops, stored = flops + 2 * channels * height * width * high, stored + 4 * high * height
    if channels != wanted.channels:
        stored += 4 * wanted.channels
    return flops, stored, 4 * wanted.channels * high * wide if stored else 0


def resizing(before: int, after: int) -> Tensor:
    """The matrix (after, before) that resizes one axis as `to_tensor` does: bilinear, smoothed when it shrinks."""
    identity = torch.eye(before)[None, None]
    resized = torch.nn.functional.interpolate(
        identity, size=(after, before), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0, 0]


class _Front:
    """Nodes in front of a graph, one after the other on its input."""

    def __init__(self, read: Input) -> None:
        self.merger = Merger((read,))
        self.last: Input | Node = read
        self.dtype = read.dtype

    def grey(self) -> None:
        dtype = getattr(torch, self.dtype)
        weights = self.merger.store(
            "intake.luma", torch.tensor(LUMA, dtype=dtype).reshape(1, 3, 1, 1), parameter=False
        )
        self.call(
            "intake_weighted", "aten.mul.Tensor", self.shape, {"self": self.ref, "other": TensorRef(weights)}
        )
        batch, _, *space = self.shape
        self.call(
            "intake_grey",
            "aten.sum.dim_IntList",
            (batch, 1, *space),
            {"self": self.ref, "dim": (1,), "keepdim": True},
        )

    def resize(self, size: tuple[int, int]) -> None:
        """By a product from the right along the width, then one from the left along the height."""
        batch, channels, high, wide = self.shape
        if wide != size[1]:
            right = self.matrix("intake.columns", resizing(_int(wide), size[1]).T.contiguous())
            shape = (batch, channels, high, size[1])
            self.call("intake_columns", "aten.matmul.default", shape, {"self": self.ref, "other": right})
        if high != size[0]:
            left = self.matrix("intake.rows", resizing(_int(high), size[0]).contiguous())
            shape = (batch, channels, *size)
            self.call("intake_rows", "aten.matmul.default", shape, {"self": left, "other": self.ref})

    def matrix(self, name: str, values: Tensor) -> TensorRef:
        stored = values.to(getattr(torch, self.dtype))
        return TensorRef(self.merger.store(name, stored, parameter=False))

    @property
    def ref(self) -> Ref:
        return Ref(self.last.name)

    @property
    def shape(self) -> Shape:
        return self.last.shape

    def call(self, name: str, op: str, shape: Shape, args: dict[str, Arg]) -> None:
        node = Node(name, op, {**default_args(op), **args}, (shape,), (self.dtype,))
        self.last = self.merger.nodes[self.merger.call(node)]

    def before(self, graph: ModelGraph) -> ModelGraph:
        values = self.merger.add(graph, {graph.inputs[0].name: self.last.name})
        return self.merger.graph([values.get(output, output) for output in graph.outputs])


def _adapt_text(
    graph: ModelGraph, own: Intake, joint: Intake, mine: TextPreprocessing, wanted: TextPreprocessing
) -> ModelGraph:
    if mine == wanted:
        return graph
    entry = graph.inputs[0]
    front = _Front(Input(entry.name, (BatchDim(1), wanted.length), entry.dtype))
    shape = (BatchDim(1), mine.length)
    if mine.length != wanted.length:
        start = 0 if wanted.side == "end" else wanted.length - mine.length
        end = start + mine.length
        front.call(
            "intake_cut",
            "aten.slice.Tensor",
            shape,
            {"self": front.ref, "dim": 1, "start": start, "end": end, "step": 1},
        )
    if not _same_ids(mine, wanted) and own.vocabulary is not None and joint.vocabulary is not None:
        ids = [own.vocabulary.ids.get(token, mine.unknown_id) for token in joint.vocabulary.tokens]
        ids[wanted.pad_id], ids[wanted.unknown_id] = mine.pad_id, mine.unknown_id
        table = front.merger.store("intake.ids", torch.tensor(ids, dtype=torch.int64), parameter=False)
        front.call(
            "intake_ids", "aten.index.Tensor", shape, {"self": TensorRef(table), "indices": (front.ref,)}
        )
    return front.before(graph)


def _same_ids(one: TextPreprocessing, two: TextPreprocessing) -> bool:
    ids = [(p.vocabulary, p.pad_id, p.unknown_id) for p in (one, two)]
    return ids[0] == ids[1]


def _int(size: int | BatchDim) -> int:
    if not isinstance(size, int):
        raise RequestError("an image has a fixed size")
    return size
