"""From a chain of blocks to one model: stitches fitted one after the other on what the chain so far really gives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from sarto.devices import count
from sarto.engines.reassembly.places import Anatomy, Place
from sarto.engines.reassembly.stitch import Stitch
from sarto.engines.reassembly.stitches import Fit, blank_stitch, fit_stitch, joinable, random_stitch
from sarto.errors import GraphError, RequestError
from sarto.graph import ModelGraph, Node, Ref, TensorRef, block, chain, evaluate
from sarto.graph.model import leaves, rename_refs
from sarto.graph.repair import fold_weight
from sarto.types import Cost

#: Images that run at once.
BATCH = 64
#: Bytes of activations that are kept for other chains.
KEPT_BYTES = 2 << 30
#: Readers that a stitch can be folded into.
_FOLDS = ("aten.conv2d.default", "aten.linear.default")


@dataclass(frozen=True, eq=False)
class Donor:
    """A model that blocks come from.

    Attributes:
        key: what it is known by; blocks of donors of one key are of one model.
        graph: as it reads images, normalisation in it.
        anatomy: its places.
        inputs: the probe images as this donor reads them, shape (n, ...).
    """

    key: str
    graph: ModelGraph
    anatomy: Anatomy
    inputs: Tensor


@dataclass(frozen=True)
class Piece:
    """The part of a donor between two of its places by number; None stands for its input or output."""

    donor: int
    start: int | None
    end: int | None


def tidy(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The same chain with neighbouring blocks of one donor that continue each other as one block."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if (
            last is not None
            and last.donor == piece.donor
            and last.end is not None
            and last.end == piece.start
        ):
            found[-1] = Piece(last.donor, last.start, piece.end)
        else:
            found.append(piece)
    return tuple(found)


@dataclass(frozen=True)
class Making:
    """How a chain is made.

    Attributes:
        fit: of the stitches.
        sequential: fit each stitch on what the chain so far gives, not on what its donor gives.
        fold: multiply a stitch into the layer that reads it where that is exact.
        random: seed of random stitches, the control; None: fitted ones.
    """

    fit: Fit = field(default_factory=Fit)
    sequential: bool = True
    fold: bool = True
    random: int | None = None


class Assembler:
    """Makes models of chains of blocks; what chains share, their beginnings, is computed and fitted once."""

    def __init__(
        self, donors: Sequence[Donor], making: Making | None = None, *, kept_bytes: int = KEPT_BYTES
    ) -> None:
        """Args:
        kept_bytes: activations that are kept at most.

        Raises:
            RequestError: the donors were given different numbers of probe images.
        """
        self.donors: tuple[Donor, ...] = ()
        for donor in donors:
            self.add(donor)
        self.making = making or Making()
        self._kept: OrderedDict[object, Tensor] = OrderedDict()
        self._kept_bytes, self._limit = 0, kept_bytes
        self._stitches: dict[tuple[tuple[Piece, ...], bool], Stitch] = {}
        self._blocks: dict[Piece, ModelGraph] = {}

    def add(self, donor: Donor) -> int:
        """The number of a donor that chains may take blocks of from now on.

        Raises:
            RequestError: it was given another number of probe images than the others.
        """
        counts = {one.key: len(one.inputs) for one in (*self.donors, donor)}
        if len(set(counts.values())) > 1:
            raise RequestError(f"all donors read the same probe images, got {counts}")
        self.donors = (*self.donors, donor)
        return len(self.donors) - 1

    def place(self, piece: Piece, *, end: bool) -> Place:
        """The place where a piece begins or ends.

        Raises:
            GraphError: it begins at the donor's input or ends at its output.
        """
        number = piece.end if end else piece.start
        if number is None:
            raise GraphError("only a place inside a donor can be stitched")
        return self.donors[piece.donor].anatomy.places[number]

    def block(self, piece: Piece) -> ModelGraph:
        """The graph of a piece."""
        if piece not in self._blocks:
            donor = self.donors[piece.donor]
            names = [None if n is None else donor.anatomy.places[n].value for n in (piece.start, piece.end)]
            self._blocks[piece] = block(donor.graph, *names)
        return self._blocks[piece]

    def stitch(self, pieces: Sequence[Piece]) -> Stitch:
        """The stitch into the last piece of a chain."""
        key = (tuple(pieces), self.making.sequential)
        if key not in self._stitches:
            before, after = pieces[-2], pieces[-1]
            source, target = self.place(before, end=True), self.place(after, end=False)
            if self.making.random is not None:
                seed = self.making.random * 1000 + len(pieces)
                self._stitches[key] = random_stitch(source, target, seed, self.own(after.donor, after.start))
            else:
                given = (
                    self.after(pieces[:-1]) if self.making.sequential else self.own(before.donor, before.end)
                )
                wanted = self.own(after.donor, after.start)
                self._stitches[key] = fit_stitch(source, target, given, wanted, self.making.fit)
        return self._stitches[key]

    def own(self, donor: int, number: int | None) -> Tensor:
        """What a donor itself has at a place on the probe images, shape (n, ...)."""
        key = ("own", donor, number)
        if key not in self._kept:
            of = self.donors[donor]
            value = of.graph.outputs[0] if number is None else of.anatomy.places[number].value
            parts = []
            for start in range(0, len(of.inputs), BATCH):
                _, kept = evaluate(of.graph, of.inputs[start : start + BATCH], watch=[value])
                parts.append(kept[value])
            self._keep(key, torch.cat(parts))
        return self._kept[key]

    def after(self, pieces: Sequence[Piece]) -> Tensor:
        """What a chain gives on the probe images, shape (n, ...)."""
        key = ("chain", tuple(pieces))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if len(pieces) == 1:
            if pieces[0].start is None:
                return self.own(pieces[0].donor, pieces[0].end)
            raise GraphError("a chain begins at a donor's input")
        given = self.after(pieces[:-1])
        joint, last = self.stitch(pieces).graph, self.block(pieces[-1])
        parts = []
        for start in range(0, len(given), BATCH):
            parts.append(_one(last(_one(joint(given[start : start + BATCH])))))
        return self._keep(key, torch.cat(parts))

    def graph(self, pieces: Sequence[Piece], *, keep_cuts: bool = False) -> ModelGraph:
        """The model of a chain, from the first donor's input to the last donor's output.

        Args:
            keep_cuts: stitch also where neighbouring blocks continue each other: the control of cutting itself.

        Raises:
            GraphError: the chain does not begin at an input, end at an output, or go forward.
        """
        chained = tuple(pieces) if keep_cuts else tidy(pieces)
        check_chain(chained)
        parts = [named(self.block(chained[0]), "b0")]
        for i in range(1, len(chained)):
            joint, part = self.stitch(chained[: i + 1]), self.block(chained[i])
            if self.making.fold and folds(part, joint.source, joint.target, self.making.fit):
                parts.append(named(folded(part, joint), f"b{i}"))
            else:
                parts += [named(joint.graph, f"s{i}"), named(part, f"b{i}")]
        return chain(parts)

    def sketch(self, pieces: Sequence[Piece]) -> ModelGraph:
        """The model of a chain with shapes instead of weights; no images and no weights are read.

        Raises:
            GraphError: the chain does not begin at an input, end at an output, or go forward.
        """
        chained = tidy(pieces)
        check_chain(chained)
        parts = [named(self.block(chained[0]).sketch(), "b0")]
        for i, (before, after) in enumerate(pairwise(chained), 1):
            blank = blank_stitch(self.place(before, end=True), self.place(after, end=False), self.making.fit)
            part = self.block(after).sketch()
            if self.making.fold and folds(part, blank.source, blank.target, self.making.fit):
                parts.append(named(folded(part, blank), f"b{i}"))
            else:
                parts += [named(blank.graph, f"s{i}"), named(part, f"b{i}")]
        return chain(parts)

    def cost(self, pieces: Sequence[Piece]) -> Cost:
        """What the model of a chain costs, from the donors' tables and blank stitches; nothing is built."""
        chained = tidy(pieces)
        costs = [self.donors[chained[0].donor].anatomy.cost(chained[0].start, chained[0].end)]
        for before, after in pairwise(chained):
            own = self.donors[after.donor].anatomy.cost(after.start, after.end)
            source, target = self.place(before, end=True), self.place(after, end=False)
            part = self.block(after)
            if self.making.fold and folds(part, source, target, self.making.fit):
                costs.append(count(folded(part.sketch(), blank_stitch(source, target, self.making.fit))))
            else:
                costs += [count(blank_stitch(source, target, self.making.fit).graph), own]
        return add_costs(costs)

    def _keep(self, key: object, value: Tensor) -> Tensor:
        self._kept[key] = value
        self._kept_bytes += value.numel() * value.element_size()
        while self._kept_bytes > self._limit and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._kept_bytes -= old.numel() * old.element_size()
        return value


def check_chain(pieces: Sequence[Piece]) -> None:
    """Refuse a chain that is none.

    Raises:
        GraphError: says which end or joint is wrong.
    """
    if not pieces or pieces[0].start is not None or pieces[-1].end is not None:
        raise GraphError("a chain begins at a donor's input and ends at a donor's output")
    for i, (before, after) in enumerate(pairwise(pieces)):
        if before.end is None or after.start is None:
            raise GraphError(f"joint {i} of the chain is no place inside two donors")


@dataclass(frozen=True)
class Shift:
    """What a stitch changes; may be below zero. Memory is the peak of its own layers."""

    params: int
    flops: int
    size_bytes: int
    memory_bytes: int


def joint_shift(source: Place, target: Place, after: ModelGraph, how: Fit, *, fold: bool) -> Shift:
    """What a stitch changes in parameters, FLOPs and bytes, and its own peak memory.

    Args:
        after: the block that it leads into, at least up to the first layer that reads.
    """
    blank = blank_stitch(source, target, how)
    if fold and folds(after, source, target, how):
        sketch = after.sketch()
        old, new = count(sketch), count(folded(sketch, blank))
        return Shift(
            new.params - old.params, new.flops - old.flops, new.size_bytes - old.size_bytes, new.memory_bytes
        )
    cost = count(blank.graph)
    return Shift(cost.params, cost.flops, cost.size_bytes, cost.memory_bytes)


def add_costs(costs: Sequence[Cost]) -> Cost:
    """The cost of parts that run one after the other: sums; of memory, the most of any part."""
    return Cost(
        params=sum(cost.params for cost in costs),
        flops=sum(cost.flops for cost in costs),
        memory_bytes=max(cost.memory_bytes for cost in costs),
        size_bytes=sum(cost.size_bytes for cost in costs),
        basis="predicted",
    )


def folds(after: ModelGraph, source: Place, target: Place, how: Fit) -> bool:
    """Whether a stitch is multiplied into the block's first layer: where that is exact and the chain gets no larger."""
    blank = blank_stitch(source, target, how)
    if reading_layer(after, blank, linear=not how.bias) is None:
        return False
    sketch = after.sketch()
    apart, old, new = count(blank.graph), count(sketch), count(folded(sketch, blank))
    return new.params <= old.params + apart.params and new.flops <= old.flops + apart.flops


def reading_layer(after: ModelGraph, stitch: Stitch, *, linear: bool) -> Node | None:
    """The layer that a stitch can be multiplied into without changing what the chain computes; None: there is none.

    It must be the only reader of the block's input, on the same grid and layout. With zero padding a bias does not
    fold: the border reads zeros, not the bias.

    Args:
        linear: the stitch has no bias.
    """
    source, target = stitch.source, stitch.target
    entry = after.inputs[0].name
    readers = after.readers.get(entry, ())
    same = (source.layout, source.grid, source.prefix, source.channels_last) == (
        target.layout,
        target.grid,
        target.prefix,
        target.channels_last,
    )
    plain = stitch.kernel == 1 and stitch.left is None and stitch.bias.ndim == 1
    if not same or target.prefix or not plain or len(readers) != 1:
        return None
    node = after.node(readers[0])
    if node.op not in _FOLDS or node.args.get("input") != Ref(entry) or after.outputs[0] == entry:
        return None
    weight = node.args["weight"]
    users = [other for other in after.nodes if weight in list(leaves(other.args))]
    if not isinstance(weight, TensorRef) or len(users) > 1 or node.args.get("groups", 1) != 1:
        return None
    if node.op == "aten.conv2d.default" and (target.channels_last or (_padded(node) and not linear)):
        return None
    return node


def folded(after: ModelGraph, stitch: Stitch) -> ModelGraph:
    """The block with a stitch multiplied into its first layer, which then reads what the stitch reads.

    Raises:
        GraphError: the block has no layer that takes it; `folds` tells.
    """
    node = reading_layer(after, stitch, linear=True)
    weight = node.args["weight"] if node is not None else None
    if node is None or not isinstance(weight, TensorRef):
        raise GraphError(f"no layer after {stitch.target.value!r} takes the stitch into its weights")
    bias = node.args.get("bias")
    tensors = dict(after.tensors.items())
    old = tensors[weight.name]
    meta = old.is_meta or stitch.weight.is_meta
    if meta:
        shape = (old.shape[0], stitch.source.channels, *old.shape[2:])
        tensors[weight.name] = torch.empty(shape, dtype=old.dtype, device="meta")
    else:
        tensors[weight.name] = fold_weight(old, stitch.weight)
    parameters, changed = set(after.parameters), node
    if not _padded(node):
        shift = torch.empty(old.shape[0], dtype=old.dtype, device="meta")
        if not meta:
            spread = old.to(torch.float64).flatten(2).sum(2) if old.ndim > 2 else old.to(torch.float64)
            shift = (spread @ stitch.bias.to(torch.float64)).to(old.dtype)
        stem = weight.name.rpartition(".")[0] or f"{weight.name}_of"
        name = bias.name if isinstance(bias, TensorRef) else f"{stem}.shift"
        held = tensors.get(name)
        tensors[name] = shift if held is None or meta else held + shift
        parameters.add(name)
        changed = node.with_args(bias=TensorRef(name))
    entry = after.inputs[0]
    shape_read = list(entry.shape)
    shape_read[1 if stitch.target.layout == "map" else -1] = stitch.source.channels
    return replace(
        after,
        inputs=(replace(entry, shape=tuple(shape_read)), *after.inputs[1:]),
        nodes=tuple(changed if other.name == node.name else other for other in after.nodes),
        tensors=tensors,
        parameters=frozenset(parameters),
    )


def _padded(node: Node) -> bool:
    return node.op == "aten.conv2d.default" and any(pad != 0 for pad in leaves(node.args["padding"]))


def named(graph: ModelGraph, prefix: str) -> ModelGraph:
    """The same graph whose values and tensors begin with a prefix, so that parts of a chain stay apart."""
    values: Mapping[str, str] = {node.name: f"{prefix}_{node.name}" for node in graph.nodes}
    tensors = {name: f"{prefix}.{name}" for name in graph.tensors}
    nodes = tuple(
        replace(
            node,
            name=values[node.name],
            args={key: rename_refs(arg, values, tensors) for key, arg in node.args.items()},
        )
        for node in graph.nodes
    )
    refused = {}
    for group, why in graph.refused.items():
        tensor, colon, place = group.rpartition(":")
        refused[f"{tensors.get(tensor, tensor)}{colon}{place}"] = why
    return replace(
        graph,
        nodes=nodes,
        outputs=tuple(values.get(name, name) for name in graph.outputs),
        tensors={tensors[name]: tensor for name, tensor in graph.tensors.items()},
        parameters=frozenset(tensors[name] for name in graph.parameters),
        refused=refused,
    )


def reachable(source: Place, target: Place) -> bool:
    """Whether a stitch leads from one place to another."""
    return joinable(source, target) is None


def _one(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    if isinstance(result, Tensor):
        return result
    raise GraphError("a block inside a chain gives one value")
