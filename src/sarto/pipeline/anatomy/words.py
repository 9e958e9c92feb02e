"""An anatomy in sentences: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sarto.errors import RequestError, suggest
from sarto.graph import ModelGraph
from sarto.graph.analysis import INSIDE_HEADS
from sarto.graph.model import shapes_of
from sarto.pipeline.anatomy.values import FIXED, Anatomy, Group, Pin, Reading

_TIMES = " \N{MULTIPLICATION SIGN} "


def shape_text(sizes: tuple[int, ...]) -> str:
    """(16, 32, 32) -> "16 x 32 x 32"."""
    return _TIMES.join(str(size) for size in sizes)


def share_text(share: float) -> str:
    """A share in percent that says 100% only where it is all, and 0% only where it is nothing."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}%"
    return f"{min(99.9, max(0.1, round(100 * share, 1))):.1f}%"


def inputs_text(inputs: Sequence[Reading]) -> str:
    """What a model was captured with: "x (float32, 3 x 32 x 32)"."""
    return " and ".join(
        f"{entry.name} ({entry.dtype}{', ' if entry.shape else ''}{shape_text(entry.shape)})"
        for entry in inputs
    )


def counted(number: int, noun: str) -> str:
    """(1, "node") -> "1 node", (3, "node") -> "3 nodes"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def pin_sentence(pin: Pin) -> str:
    """Why groups are pinned: "layer_norm at 25 nodes: 127 axes (1 channel group, 192 units)"."""
    what = (
        f"{counted(pin.axes, 'axis').replace('axiss', 'axes')} "
        f"({counted(len(pin.groups), 'channel group')}, {counted(pin.units, 'unit')})"
    )
    if not pin.operator:
        return f"{pin.reason}: {what}"
    rule = f", {pin.reason}" if pin.reason else ""
    return f"{pin.operator} at {counted(len(pin.nodes), 'node')}{rule}: {what}"


def group_named(anatomy: Anatomy, name: str) -> Group:
    """The channel group of that id, or of the layer of that name.

    Raises:
        RequestError: there is none; the nearest are suggested.
    """
    by_id = {group.id: group for group in anatomy.groups}
    for wanted in (name, f"{name}.weight:0", f"{name}:0"):
        if wanted in by_id:
            return by_id[wanted]
    made = [group for group in anatomy.groups if group.id.rpartition(":")[0].rpartition(".")[0] == name]
    held = made or [group for group in anatomy.groups if f"{name}.weight:0" in group.places]
    held = [group for group in held if group.kind != FIXED] or held
    if len(held) == 1:
        return held[0]
    if held:
        listed = ", ".join(f"{group.id} ({group.kind})" for group in held)
        raise RequestError(
            f"{name!r} makes {len(held)} channel groups; name one of {listed}", where="--group"
        )
    layers = [group.removesuffix(".weight:0") for group in by_id]
    near = suggest(name, list(by_id)) if ":" in name else suggest(name, layers)
    raise RequestError(f"no channel group {name!r} in this model{near}; --all lists them", where="--group")


def explain(graph: ModelGraph, found: Anatomy, group: Group) -> Iterator[tuple[str, str]]:
    """Everything about one channel group as (word, text), a line each."""
    shapes, names = shapes_of(graph.tensors), found.names
    held = (
        f"; a unit takes {counted(group.granularity, 'position')} where it is made"
        if group.granularity > 1
        else ""
    )
    kind = "units of a stream" if group.kind == "stream" else group.kind
    yield "group", f"{group.id}: {group.size:,} {kind}{held}"
    if group.pinned:
        for reason in group.pinned:
            yield "pinned", _because(graph, reason, names)
    else:
        yield (
            "sliceable",
            f"one unit fewer is {group.params_per_unit:,} parameters and {group.flops_per_unit:,} FLOPs fewer",
        )
        if group.kind in INSIDE_HEADS:
            yield "note", "positions inside heads: sliced only where a selection names this group"
    for node in group.producers:
        yield "made by", _told(graph, node, names)
    for node in group.readers:
        yield "read by", _told(graph, node, names)
    for place in group.places:
        tensor, _, axis = place.rpartition(":")
        yield "lies in", f"{tensor}, axis {axis} of {shape_text(shapes[tensor][0])}"


def _because(graph: ModelGraph, reason: str, names: Mapping[str, str]) -> str:
    """A reason that names a node also names the layer."""
    op, at, node = reason.rpartition(" at ")
    if not at or node not in graph.index:
        return reason
    plain = op.removeprefix("no rule for ")
    layer = f" ({names[node]})" if node in names else ""
    return f"by {plain} at node {node}{layer}{', for which there is no rule' if plain != op else ''}"


def _told(graph: ModelGraph, node: str, names: Mapping[str, str]) -> str:
    found = graph.index.get(node)
    if found is None:
        return f"input {node}"
    op = found.op.split(".")[1] if "." in found.op else found.op
    return f"{names[node]} ({op} at node {node})" if node in names else f"{op} at node {node}"
