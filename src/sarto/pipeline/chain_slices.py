"""Slices of a chain of blocks: some of its units, chosen by the order's classes and repaired in closed form."""

from __future__ import annotations

from collections.abc import Iterator

from sarto.devices import count
from sarto.engines.slicepack import slice_node
from sarto.errors import GraphError
from sarto.graph import ModelGraph, leading, restrict, slice, uniform_counts
from sarto.types import ChainNode, Cost, HeadNode, Plan

#: Shares of the units of every group that slices of a chain keep, largest first.
SHARES = (0.75, 0.5, 0.25)


def sliced_chains(
    chain: Plan, sketch: ModelGraph, classes: tuple[str, ...], known: tuple[str, ...], samples_digest: str
) -> Iterator[tuple[Plan, ModelGraph, Cost]]:
    """Plans of a chain under its last donor's classifier that keep a share of its units, with sketch and exact cost.

    The slice reads the whole chain, stitches included: units of every block are chosen for the ordered classes, and the
    dropped ones are given back to those that read them.

    Args:
        sketch: of the chain, up to all outputs of its last donor.
        known: classes of these outputs.
        samples_digest: of the samples that the choice and the repair read.
    """
    name = next(name for name, node in chain.nodes.items() if isinstance(node, ChainNode))
    rows = [known.index(cls) for cls in classes]
    for share in SHARES:
        try:
            small = restrict(slice(sketch, leading(uniform_counts(sketch, share))), rows)
        except GraphError:
            continue
        cut = slice_node({"*": share}, samples_digest).replace(of=name, classes=classes)
        head = HeadNode(of="slice", kind="restrict", classes=classes)
        plan = chain.replace(
            nodes={**chain.nodes, "slice": cut, "head": head},
            out="head",
            note=f"{chain.note}, {share:.0%} of its units by class",
        )
        yield plan, small, count(small)
