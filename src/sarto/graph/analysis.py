"""Channel groups: which units can be sliced, and every place that must change with them, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sarto.errors import GraphError, suggest
from sarto.graph import axes
from sarto.graph.axes import Atom, Axis
from sarto.graph.expressions import AxisExpr, Fixed, Product, Sum, Unit, units_in
from sarto.graph.model import ModelGraph, Node, Shape, leaves, shapes_of
from sarto.graph.places import Places, find_places
from sarto.graph.rules import RULES, Context, because, fresh_axes
from sarto.graph.rules._context import BATCH, RawConsumption, RawProducer

#: What a channel group can be. `stream`: written to by several layers that are added up. `head dims`: positions inside
#: heads that queries, keys and values share (a fused projection). `hidden units`: made by a linear layer or a product.
#: `fixed factor`: a factor of an axis whose members differ in what they are for (queries, keys and values of one
#: projection; the gates of a recurrent layer; the pixels of a shuffle). `outputs`: what the model returns. Both are
#: always pinned.
KINDS = (
    "filters",
    "hidden units",
    "heads",
    "query-key pairs",
    "value dims",
    "head dims",
    "recurrent units",
    "stream",
    "fixed factor",
    "outputs",
)
#: Positions inside heads: sliced only when asked for, since whole heads are the unit that runtimes gain from.
INSIDE_HEADS = frozenset(["query-key pairs", "value dims", "head dims"])
_OUTPUT = "output "


@dataclass(frozen=True, slots=True)
class Consumption:
    """A linear operator sums over axis `axis` of argument `arg` of node `node`; `expr` says which units lie there.

    An entry of a list argument is named by its place: `params.3`.
    """

    node: str
    arg: str
    axis: int
    expr: AxisExpr


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An integer argument (entry `index` of it, where it is a list) that always equals the size of `expr`."""

    node: str
    arg: str
    index: int | None
    expr: AxisExpr


@dataclass(frozen=True)
class ChannelGroup:
    """All the places that must be sliced together.

    Attributes:
        id: the stored tensor axis that first makes the units, e.g. `layer1.0.conv1.weight:0`.
        kind: the part that the units play: one of `KINDS`.
        size: number of units.
        granularity: positions that a unit takes where it is made: 1 for a filter, the head size for a head.
        pinned: why it can't be sliced; empty where it can.
        producers: nodes that make the units.
        consumptions: linear operators that read them.
        places: stored tensor axes that hold them.
    """

    id: str
    kind: str
    size: int
    granularity: int
    pinned: tuple[str, ...]
    producers: tuple[str, ...]
    consumptions: tuple[Consumption, ...]
    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Analysis:
    """What surgery needs to know of a graph, free of graph objects.

    Attributes:
        groups: by id, in the order of the stored tensors that make them; pinned ones too.
        tensor_axes: stored tensor -> expression of each axis.
        value_axes: node or input -> expressions of the axes of each output.
        rewrites: integer arguments that follow a size.
        unruled: operators met that have no rule, with the nodes that use them.
        follows_statistics: units go through operators that take statistics over them; else these pin.
    """

    groups: Mapping[str, ChannelGroup]
    tensor_axes: Mapping[str, tuple[AxisExpr, ...]]
    value_axes: Mapping[str, tuple[tuple[AxisExpr, ...], ...]]
    rewrites: tuple[Rewrite, ...]
    consumptions: tuple[Consumption, ...]
    unruled: Mapping[str, tuple[str, ...]]
    follows_statistics: bool = False

    @cached_property
    def places(self) -> Places:
        """Every place that holds sliceable units, as one table."""
        return find_places(self)

    @cached_property
    def sliceable(self) -> tuple[ChannelGroup, ...]:
        """Groups that nothing pins."""
        return tuple(group for group in self.groups.values() if not group.pinned)

    def group(self, name: str) -> ChannelGroup:
        """The group of that id, or of the layer of that name (`layer1.0.conv1`) where it makes or holds one group.

        Fixed factors do not count where a layer has other groups.

        Raises:
            GraphError: there is none, and the nearest names are suggested; or the layer has several, and all of them
                are listed.
        """
        for known in (name, f"{name}.weight:0"):
            if known in self.groups:
                return self.groups[known]
        found = self._of_layer(name)
        choice = [group for group in found if group.kind != "fixed factor"] or found
        if len(choice) == 1:
            return choice[0]
        found = found or [group for group in self.groups.values() if group.id.startswith(f"{name}.")]
        if found:
            listed = ", ".join(f"{group.id!r} ({group.size} {group.kind})" for group in found)
            many = (
                f"{len(found)} channel groups" if len(found) > 1 else "no layer, and a channel group below it"
            )
            raise GraphError(f"{name!r} names {many}; name one by its id: {listed}", where=name)
        layers = [known.rpartition(":")[0].rpartition(".")[0] for known in self.groups]
        near = suggest(name, list(self.groups) if ":" in name else [layer for layer in layers if layer])
        raise GraphError(f"no channel group {name!r} in this graph{near}", where=name)

    def _of_layer(self, name: str) -> list[ChannelGroup]:
        """Groups that a layer makes; if none, those on axis 0 of its weight."""
        groups = self.groups.values()
        made = [group for group in groups if group.id.rpartition(":")[0].rpartition(".")[0] == name]
        return made or [group for group in groups if (f"{name}.weight", 0) in group.places]


def analyse(graph: ModelGraph, *, follow_statistics: bool = False) -> Analysis:
    """Channel groups and axis expressions of a graph, by one walk in topological order.

    Args:
        follow_statistics: let units through layer norm, RMS norm and means over them. Slicing these is no longer exact
            (the statistics are then those of the kept units): only for operations that say so.

    Raises:
        GraphError: a rule contradicts a recorded shape (a defect of the rule, never of the model).
    """
    context = Context(graph, follow_statistics)
    for name, (stored, _) in shapes_of(graph.tensors).items():
        context.tensors[name] = tuple(axes.fresh(size) for size in stored)
    for entry in graph.inputs:
        context.values[entry.name] = fresh_axes(entry.shape, f"input {entry.name!r}")
    unruled: dict[str, list[str]] = {}
    for node in graph.nodes:
        rule = RULES.get(node.op)
        if rule is None:
            unruled.setdefault(node.op, []).append(node.name)
            found = tuple(tuple(result) for result in _pin_unruled(context, node))
        else:
            found = tuple(tuple(result) for result in rule(context, node))
        for shape, result in zip(node.shapes, found, strict=True):
            _check(node, shape, result)
        context.outputs[node.name] = found
        context.values[node.name] = found[0]
    for name in graph.outputs:
        for axis in context.values[name]:
            axes.pin(axis, f"{_OUTPUT}{name!r}")
    _pin_unread(context)
    return _Compiler(context).compile({op: tuple(nodes) for op, nodes in unruled.items()})


def _pin_unruled(context: Context, node: Node) -> tuple[tuple[Axis, ...], ...]:
    """An operator without a rule: nothing that it touches can be sliced."""
    why = f"no rule for {because(node)}"
    for arg in leaves(node.args):
        for axis in context.axes(arg) or ():
            axes.pin(axis, why)
    return tuple(fresh_axes(shape, why) for shape in node.shapes)


def _pin_unread(context: Context) -> None:
    """Units that nothing makes or nothing linear reads are no channel group.

    That nothing reads them is said where no other reason is known: it follows from the others.
    """
    read = {id(atom) for raw in context.consumptions for atom in _atoms(raw.atoms)}
    made = {id(atom) for producer in context.producers for atom in _atoms(producer.atoms)}
    for found in context.tensors.values():
        for axis in found:
            for atom in _atoms(axis):
                if id(atom) not in made:
                    axes.pin((atom,), "no operator makes these units from learned weights")
                elif id(atom) not in read and not atom.pins:
                    axes.pin((atom,), "no linear operator reads these units")


def _check(node: Node, shape: Shape, result: tuple[Axis, ...]) -> None:
    want = [axes.size(axis) for axis in fresh_axes(shape)]
    have = [axes.size(axis) for axis in result]
    if want != have:
        raise GraphError(
            f"the rule for {because(node)} gives sizes {have} where the graph has {want}",
            where=node.name,
        )


def _atoms(axis: Axis) -> Iterator[Atom]:
    for atom in axes.resolve(axis):
        if atom.terms is None:
            yield atom
        else:
            for term in atom.terms:
                yield from _atoms(term)


class _Compiler:
    """Names the leaves that became channel groups and writes every axis in their terms."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.names: dict[int, str] = {}
        self.sizes: dict[str, Atom] = {}
        self.places: dict[str, list[tuple[str, int]]] = {}

    def compile(self, unruled: Mapping[str, tuple[str, ...]]) -> Analysis:
        context = self.context
        made = [(raw.tensor, raw.axis) for raw in context.producers if raw.tensor is not None]
        everywhere = [
            (tensor, axis) for tensor, found in context.tensors.items() for axis in range(len(found))
        ]
        for tensor, axis in dict.fromkeys([*made, *everywhere]):
            self._name(tensor, axis)
        for tensor, axis in everywhere:
            for atom in _atoms(context.tensors[tensor][axis]):
                if id(atom) in self.names:
                    self.places[self.names[id(atom)]].append((tensor, axis))
        consumptions = tuple(self._consumption(raw) for raw in context.consumptions)
        makers: dict[str, list[RawProducer]] = {}
        for raw in context.producers:
            for name in self._named(raw.atoms):
                makers.setdefault(name, []).append(raw)
        readers: dict[str, list[Consumption]] = {}
        for consumption in consumptions:
            for name in units_in(consumption.expr):
                readers.setdefault(name, []).append(consumption)
        # Of pinned groups too, which a consumption's expression does not name.
        read = {name for raw in context.consumptions for name in self._named(raw.atoms)}
        roles: dict[str, set[str]] = {}
        for note in context.notes:
            for name in self._named(note.atoms):
                roles.setdefault(name, set()).add(note.role)
        groups = {
            name: ChannelGroup(
                name,
                self._kind(name, roles.get(name, set()), makers[name], read=name in read),
                atom.size,
                max(axes.size(raw.atoms) // atom.size for raw in makers[name]),
                self._pins(name, atom),
                tuple(dict.fromkeys(raw.node for raw in makers[name])),
                tuple(readers.get(name, ())),
                tuple(dict.fromkeys(self.places[name])),
            )
            for name, atom in self.sizes.items()
            if name in makers
        }
        dropped = (set(self.sizes) - set(groups)) | {name for name in groups if groups[name].pinned}
        self.names = {key: name for key, name in self.names.items() if name not in dropped}
        return Analysis(
            groups,
            {name: tuple(self._expr(axis) for axis in found) for name, found in context.tensors.items()},
            {
                **{
                    e.name: (tuple(self._expr(a) for a in context.values[e.name]),)
                    for e in context.graph.inputs
                },
                **{
                    name: tuple(tuple(self._expr(axis) for axis in result) for result in found)
                    for name, found in context.outputs.items()
                },
            },
            tuple(Rewrite(raw.node, raw.arg, raw.index, self._expr(raw.atoms)) for raw in context.rewrites),
            tuple(self._consumption(raw) for raw in context.consumptions),
            unruled,
            context.follow_statistics,
        )

    def _named(self, axis: Axis) -> set[str]:
        return {self.names[id(atom)] for atom in _atoms(axis) if id(atom) in self.names}

    def _kind(self, name: str, roles: set[str], makers: Sequence[RawProducer], *, read: bool) -> str:
        pins = self.sizes[name].pins
        if pins and not read:
            if any(reason.startswith(_OUTPUT) for reason in pins):
                return "outputs"
            if "." in name.rpartition(":")[2]:
                return "fixed factor"
        if "recurrent units" in roles:
            return "recurrent units"
        if "heads" in roles:
            return "heads"
        inside = roles & {"query-key pairs", "value dims"}
        if inside:
            return "head dims" if len(inside) == 2 else inside.pop()
        if "stream" in roles and len({raw.node for raw in makers}) > 1:
            return "stream"
        by_filter = any("conv" in self.context.graph.node(raw.node).op for raw in makers)
        return "filters" if by_filter else "hidden units"

    def _pins(self, name: str, atom: Atom) -> tuple[str, ...]:
        refused = self.context.graph.refused.get(name)
        return (*atom.pins, f"capture proof: {refused}") if refused else tuple(atom.pins)

    def _name(self, tensor: str, axis: int) -> None:
        found = list(_atoms(self.context.tensors[tensor][axis]))
        for place, atom in enumerate(found):
            if id(atom) in self.names or atom.size == 1:
                continue
            name = f"{tensor}:{axis}" if len(found) == 1 else f"{tensor}:{axis}.{place}"
            self.names[id(atom)] = name
            self.sizes[name] = atom
            self.places[name] = []

    def _consumption(self, raw: RawConsumption) -> Consumption:
        return Consumption(raw.node, raw.arg, raw.axis, self._expr(raw.atoms))

    def _expr(self, axis: Axis) -> AxisExpr:
        parts: list[AxisExpr] = []
        for atom in axes.resolve(axis):
            if atom.terms is not None:
                parts.append(Sum(tuple(self._expr(term) for term in atom.terms)))
            elif id(atom) in self.names and not atom.pins:
                parts.append(Unit(self.names[id(atom)], atom.size))
            else:
                parts.append(Fixed(atom.size))
        if len(parts) == 1:
            return parts[0]
        # A batch folded into an axis with others keeps its place, so that what is per sample can be repeated.
        if all(isinstance(part, Fixed) and part.size != BATCH for part in parts):
            return Fixed(math.prod(part.size for part in parts if isinstance(part, Fixed)))
        return Product(tuple(parts))
