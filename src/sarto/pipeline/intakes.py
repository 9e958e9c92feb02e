"""What a packed model reads where its donors read different images or other vocabularies, and how each gets its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.graph import BatchDim, ModelGraph, Node, Ref, TensorRef
from sarto.graph.merge import Merger
from sarto.graph.model import Arg, Input, Shape
from sarto.graph.operators import default_args
from sarto.market import LUMA, Intake, Labelled, Samples, Store, joint_vocabulary, to_tensor, with_channels
from sarto.types import Learnware, Plan, Preprocessing, SourceNode, TextPreprocessing, reads

#: Ids of the padding and of the unknown token in a vocabulary that sarto makes.
PAD_ID, UNKNOWN_ID = 0, 1


def intake_of(store: Store, learnware: Learnware) -> Intake:
    """What the graph of a learnware reads once its normalisation stands in it: images in [0, 1], or token ids.

    Raises:
        StoreError: the vocabulary is missing or damaged.
    """
    said = learnware.preprocessing
    if isinstance(said, Preprocessing):
        return Intake(_plain(said.size, said.channels, said.resize))
    return Intake(said, store.vocabulary(learnware.id))


def joint_problems(donors: Sequence[Learnware]) -> list[str]:
    """Why one model can't read for all of these donors; empty where it can."""
    kinds = {donor.preprocessing.TAG for donor in donors}
    if len(kinds) > 1:
        told = ", ".join(f"{donor.name} reads {donor.preprocessing.TAG}s" for donor in _once(donors))
        return [
            f"the donors read different kinds of samples ({told}); one model reads one kind: order classes of donors "
            "of one kind, or name another donor with learnware:class"
        ]
    return _image_problems(donors) if kinds == {"image"} else _text_problems(donors)


def joint_intake(donors: Sequence[tuple[Learnware, Intake]]) -> Intake:
    """What a model of several donors reads.

    Images: the size of the donor with the most pixels, three channels where one donor has three. Texts: the longest
    length; where vocabularies differ, one with the tokens of all.

    Raises:
        RequestError: they can't be read for together.
    """
    problems = joint_problems([donor for donor, _ in donors])
    if problems:
        raise RequestError(problems[0], problems=problems)
    intakes = [intake for _, intake in donors]
    said = [intake.preprocessing for intake in intakes]
    images = [p for p in said if isinstance(p, Preprocessing)]
    texts = [p for p in said if isinstance(p, TextPreprocessing)]
    if images:
        shapes = [donor.input_shape for donor, _ in donors]
        resize = "bilinear" if all(p.resize == "bilinear" for p in images) else "refuse"
        if len(set(shapes)) == 1:
            size = next((p.size for p in images if p.size is not None), None)
            return Intake(_plain(size, images[0].channels, resize))
        largest = max(shapes, key=lambda shape: shape[1] * shape[2])
        return Intake(_plain((largest[1], largest[2]), max(p.channels for p in images), resize))
    length = max(p.length for p in texts)
    first = texts[0].replace(length=length)
    if all(p.replace(length=length) == first for p in texts):
        return Intake(first, intakes[0].vocabulary)
    vocabulary = joint_vocabulary(intake.vocabulary for intake in intakes if intake.vocabulary is not None)
    joint = first.replace(
        vocabulary=vocabulary.digest, n_tokens=vocabulary.size, pad_id=PAD_ID, unknown_id=UNKNOWN_ID
    )
    return Intake(joint, vocabulary)


def sources(plan: Plan, name: str) -> Iterator[str]:
    """Ids of the learnwares below a node."""
    node = plan.nodes[name]
    if isinstance(node, SourceNode):
        yield node.of
    else:
        for below in reads(node):
            yield from sources(plan, below)


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


def conform(samples: Labelled, joint: Intake) -> Labelled:
    """Images of the joint size and channels, whole numbers again; texts as they are.

    Raises:
        ShapeError: images that may not be resized, or of other channels.
    """
    wanted = joint.preprocessing
    if not isinstance(samples, Samples) or not isinstance(wanted, Preprocessing) or wanted.size is None:
        return samples
    if samples.images.shape[1:] == (*wanted.size, wanted.channels):
        return samples
    pixels = to_tensor(with_channels(samples.images, wanted.channels), wanted).permute(0, 2, 3, 1)
    return Samples((pixels * 255).round().numpy().astype(np.uint8), samples.labels, samples.classes)


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


def _image_problems(donors: Sequence[Learnware]) -> list[str]:
    problems = []
    shapes = {donor.name: donor.input_shape for donor in donors}
    told = ", ".join(f"{name} reads {shape[1]}x{shape[2]}" for name, shape in shapes.items())
    channels = {donor.input_shape[0] for donor in donors}
    if len(channels) > 1 and channels != {1, 3}:
        told_channels = ", ".join(f"{name} reads {shape[0]}" for name, shape in shapes.items())
        problems.append(
            f"the donors read different channels ({told_channels}); only grey and colour images can be read for "
            "together: order classes of donors of the same channels"
        )
    if len({shape[1:] for shape in shapes.values()}) > 1:
        fixed = [d for d in _once(donors) if isinstance(d.preprocessing, Preprocessing)]
        refusing = [d.name for d in fixed if getattr(d.preprocessing, "resize", "") != "bilinear"]
        if refusing:
            problems.append(
                f"the donors read images of different sizes ({told}), and {', '.join(refusing)} may not be given "
                "resized images (resize='refuse'): add them again with --resize bilinear, or order classes of donors "
                "of one size, naming another donor with learnware:class"
            )
    return problems


def _text_problems(donors: Sequence[Learnware]) -> list[str]:
    said = [
        (d.name, d.preprocessing) for d in _once(donors) if isinstance(d.preprocessing, TextPreprocessing)
    ]
    rules = {(p.rule, p.lower, p.side) for _, p in said}
    libraries = {p for _, p in said if p.rule == "tokenizers"}
    cure = "order classes of donors that part texts alike, or name another donor with learnware:class"
    if len(rules) > 1:
        told = ", ".join(
            f"{name} by {p.rule}{', small letters' if p.lower and p.rule == 'words' else ''}, padded at the {p.side}"
            for name, p in said
        )
        return [f"the donors part texts in different ways ({told}); {cure}"]
    if len(libraries) > 1:
        told = ", ".join(name for name, _ in said)
        return [f"the donors have tokenisers of their own or other lengths ({told}); {cure}"]
    return []


def _once(donors: Sequence[Learnware]) -> list[Learnware]:
    return list({donor.id: donor for donor in donors}.values())


def _plain(size: tuple[int, int] | None, channels: int, resize: str) -> Preprocessing:
    return Preprocessing.parse(
        {
            "size": size,
            "channels": channels,
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
            "resize": resize,
        }
    )


def _int(size: int | BatchDim) -> int:
    if not isinstance(size, int):
        raise RequestError("an image has a fixed size")
    return size
