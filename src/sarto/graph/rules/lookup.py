"""Look-ups by integers: embedding, index, index_select, select. The indexed axis is pinned, the others pass.

Why it is right: an index names a position of the whole axis, so that axis must stay as it is; along every other axis
the looked-up slices are untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sarto.graph import axes
from sarto.graph.axes import Axis
from sarto.graph.model import Node
from sarto.graph.rules._context import Axes, Context, Rule, because, fresh_axes, integer, listed
from sarto.graph.rules.pinning import pin_all


def embedding(context: Context, node: Node) -> Sequence[Axes]:
    """Rows of weight (words, width) for indices (...): (..., width)."""
    weight = context.axes(node.args["weight"]) or ()
    indices = context.axes(node.args["indices"]) or ()
    context.pin(weight[0], node)
    context.produce(node, node.args["weight"], 1)
    return ((*indices, weight[1]),)


def index(context: Context, node: Node) -> Sequence[Axes]:
    """Indexed axes make place for those of the indices: where they stood, or in front where they stood apart."""
    given = context.axes(node.args["self"]) or ()
    entries = listed(node, "indices")
    places = [place for place, entry in enumerate(entries) if entry is not None]
    found = [context.axes(entries[place]) or () for place in places]
    rank = max((len(one) for one in found), default=0)
    if len(node.shape) != len(given) - len(places) + rank:
        return pin_all(context, node)
    for place in places:
        context.pin(given[place], node)
    for axis in (axis for one in found for axis in one):
        context.pin(axis, node)
    adjacent = places == list(range(places[0], places[0] + len(places)))
    front = places[0] if adjacent else 0
    new = fresh_axes(node.shape[front : front + rank], because(node))
    rest = [axis for place, axis in enumerate(given) if place not in places]
    return ((*rest[:front], *new, *rest[front:]),)


def index_select(context: Context, node: Node) -> Sequence[Axes]:
    """Axis `dim` is pinned and renewed."""
    given = list(context.axes(node.args["self"]) or ())
    dim = integer(node, "dim") % len(given)
    context.pin(given[dim], node)
    given[dim] = fresh_axes((node.shape[dim],), because(node))[0]
    return (tuple(given),)


def select(context: Context, node: Node) -> Sequence[Axes]:
    """One position of axis `dim`: the axis is pinned and gone."""
    given = list(context.axes(node.args["self"]) or ())
    axis = given.pop(integer(node, "dim") % len(given))
    axes.pin(axis, because(node))
    return (tuple(given),)


def move(context: Context, node: Node) -> Sequence[Axes]:
    """`roll` and `flip`: the moved axes are pinned."""
    given = context.axes(node.args["self"]) or ()
    dims = listed(node, "dims")
    moved: set[int] = {dim % len(given) for dim in dims if isinstance(dim, int)}
    for place in moved or range(len(given)):
        context.pin(given[place], node)
    return (given,)


def sample(context: Context, node: Node) -> Sequence[Axes]:
    """`grid_sampler`: batch and channels of the map pass, space is pinned and renewed."""
    given = context.axes(node.args["input"]) or ()
    grid = context.axes(node.args["grid"]) or ()
    context.unify(given[0], grid[0], node)
    for axis in (*given[2:], *grid[1:]):
        context.pin(axis, node)
    new: tuple[Axis, ...] = fresh_axes(node.shape[2:], because(node))
    return ((*given[:2], *new),)


RULES: Mapping[str, Rule] = {
    "aten.embedding.default": embedding,
    "aten.index.Tensor": index,
    "aten.index_select.default": index_select,
    "aten.select.int": select,
    "aten.roll.default": move,
    "aten.flip.default": move,
    "aten.grid_sampler.default": sample,
    "aten.grid_sampler_2d.default": sample,
}
