"""What `sarto inspect` finds in a model, as values that can be written down and drawn."""

from __future__ import annotations

from typing import Literal

from sarto.types import Cost, Value

Layout = Literal["map", "tokens", "vector"]
#: Kind of a group that is merely a factor of an axis: queries, keys and values of one projection, the gates of an RNN.
FIXED = "fixed factor"
StepKind = Literal["input", "layer", "norm", "weights", "join"]


class Reading(Value):
    """One input that a model was captured with.

    Attributes:
        name: of the argument.
        shape: of one sample, without the batch.
        dtype: of its numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


class Group(Value):
    """A channel group: units that can only be kept or dropped together.

    Attributes:
        id: the stored tensor axis that first makes the units.
        kind: what the units are: filters, heads, units of a stream, ...
        size: number of units.
        granularity: positions on the producer's axis that one unit takes.
        positions_per_unit: the most positions that one unit takes on any axis.
        pinned: why it can't be sliced; empty where it can.
        producers: nodes that make the units.
        readers: linear operators that sum over them.
        places: stored tensor axes that hold them, written `tensor:axis`.
        params: parameters of all tensors that hold them.
        params_per_unit: parameters that the model loses with one unit.
        flops_per_unit: FLOPs of one sample that it loses with one unit.
    """

    id: str
    kind: str
    size: int
    granularity: int
    positions_per_unit: int
    pinned: tuple[str, ...]
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    places: tuple[str, ...]
    params: int
    params_per_unit: int
    flops_per_unit: int


class Pin(Value):
    """One reason for pinned groups.

    Attributes:
        operator: the operator that pins, such as `layer_norm`; empty where the reason is none.
        reason: in words.
        nodes: nodes of that operator that pin.
        groups: ids of the groups that they pin.
        axes: places of those groups in stored tensors.
        units: of all those groups.
    """

    operator: str
    reason: str
    nodes: tuple[str, ...]
    groups: tuple[str, ...]
    axes: int
    units: int


class Cut(Value):
    """A value at which the model can be parted, and what lies before it.

    Attributes:
        value: the node that makes it.
        shape: of one sample, without the batch.
        layout: `map` (channels, space...), `tokens` (tokens, channels) or `vector` (channels).
        stride: how many times smaller its space is than that of the input, where both are maps.
        canonical: whether it is the one that stands for its neighbours, from which only elementwise or shape
            operators part it.
        params: trainable parameters before it.
        flops: of one sample before it.
    """

    value: str
    shape: tuple[int, ...]
    layout: Layout
    stride: int | None
    canonical: bool
    params: int
    flops: int


class Block(Value):
    """The part between two neighbouring canonical cuts.

    Attributes:
        name: what the names of its layers have in common; its operators where it has no layer.
        start: value that it reads; empty for the input.
        end: value that it makes; empty for the output.
        layers: how many layers own weights in it, norms left out.
        params: trainable parameters; a tensor that several blocks read counts in the first.
        flops: of one sample.
        memory_bytes: most activation bytes that are alive while it runs, for one sample.
    """

    name: str
    start: str
    end: str
    layers: int
    params: int
    flops: int
    memory_bytes: int


class Step(Value):
    """What the picture draws: a layer, a norm, or a place where values meet; all between is left out.

    Attributes:
        id: the node, or the input.
        name: of the layer that owns the weights, otherwise the node.
        op: operator without namespace, such as `conv2d`.
        kind: `layer`, `norm`, `weights` (elementwise with weights of its own), `join` or `input`.
        channels: of what it makes.
        sliceable: of those channels, the ones that lie on a sliceable group.
        positions: of space, or tokens, of what it makes.
        shape: of what it makes for one sample, channels first for maps.
        groups: ids of the sliceable groups of its channels.
        weight: shape of its largest stored tensor.
        absorbed: names of the norms and weights right behind it, which it holds too.
        params: trainable parameters; a tensor that several steps read counts in the first.
        flops: of one sample.
        reads: ids of the steps whose values it reads.
        block: number of the block that holds it, from 0.
    """

    id: str
    name: str
    op: str
    kind: StepKind
    channels: int
    sliceable: int
    positions: int
    shape: tuple[int, ...]
    groups: tuple[str, ...]
    weight: tuple[int, ...]
    absorbed: tuple[str, ...]
    params: int
    flops: int
    reads: tuple[str, ...]
    block: int


class Anatomy(Value):
    """Everything that `sarto inspect` shows of a model.

    Attributes:
        inputs: what the model was captured with; costs are those of one such sample.
        n_nodes: operators of the graph.
        cost: of the whole model.
        sliceable_params: parameters that lie on at least one sliceable axis.
        groups: all channel groups, the pinned ones and fixed factors too.
        pins: why groups other than fixed factors are pinned, the reason that pins most units first.
        unruled: operators without a rule, with the nodes that use them.
        cut_points: in order; every one, `canonical` tells the ones that stand for their neighbours.
        blocks: between neighbouring canonical cuts, first to last.
        steps: in the order in which the picture draws them.
    """

    inputs: tuple[Reading, ...]
    n_nodes: int
    cost: Cost
    sliceable_params: int
    groups: tuple[Group, ...]
    pins: tuple[Pin, ...]
    unruled: dict[str, tuple[str, ...]]
    cut_points: tuple[Cut, ...]
    blocks: tuple[Block, ...]
    steps: tuple[Step, ...]

    @property
    def sliceable(self) -> tuple[Group, ...]:
        """Groups that nothing pins."""
        return tuple(group for group in self.groups if not group.pinned)

    @property
    def pinned(self) -> tuple[Group, ...]:
        """Groups that something pins; fixed factors are none, since nobody would slice them."""
        return tuple(group for group in self.groups if group.pinned and group.kind != FIXED)

    @property
    def n_groups(self) -> int:
        """Number of groups, without the fixed factors of axes."""
        return len(self.sliceable) + len(self.pinned)

    @property
    def names(self) -> dict[str, str]:
        """Node -> name of the layer or norm that it is, for the nodes that own weights."""
        return {step.id: step.name for step in self.steps if step.kind not in ("input", "join")}

    @property
    def sliceable_share(self) -> float:
        """Share of the parameters that lie on at least one sliceable axis."""
        return self.sliceable_params / self.cost.params if self.cost.params else 0.0
