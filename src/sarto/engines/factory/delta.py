"""What a device must download when its task or its budget changes: the numbers that it does not hold yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from sarto.graph import ModelGraph, Selection
from sarto.graph.expressions import AxisExpr, Unit, kept_size, units_in
from sarto.graph.model import shapes_of


@dataclass(frozen=True)
class Delta:
    """From one subnet to another of the same backbone.

    Attributes:
        added: group -> units that are new.
        dropped: group -> units that go.
        download_bytes: numbers of the new subnet that the old one does not hold.
        whole_bytes: all numbers of the new subnet.
    """

    added: Mapping[str, tuple[int, ...]]
    dropped: Mapping[str, tuple[int, ...]]
    download_bytes: int
    whole_bytes: int


def delta(graph: ModelGraph, old: Selection, new: Selection) -> Delta:
    """What changes from one subnet of a backbone to another.

    Both hold the numbers whose units both keep. Where an axis of a tensor is more than the units of one group, the
    tensor counts as new when any of its groups has units that the old subnet lacks.
    """
    before = {group: set(old.kept.get(group, range(graph.analysis.group(group).size))) for group in new.kept}
    added = {group: tuple(sorted(set(units) - before[group])) for group, units in new.kept.items()}
    dropped = {group: tuple(sorted(before[group] - set(units))) for group, units in new.kept.items()}
    shared = {group: len(units) - len(added[group]) for group, units in new.kept.items()}
    download = whole = 0
    for name, (_, dtype) in shapes_of(graph.tensors).items():
        axes = graph.analysis.tensor_axes[name]
        size = dtype.itemsize * prod(kept_size(axis, new.counts) for axis in axes)
        whole += size
        if any(added.get(group) for axis in axes for group in units_in(axis)):
            held = dtype.itemsize * prod(kept_size(axis, shared) for axis in axes) if _plain(axes) else 0
            download += size - held
    return Delta(
        {group: units for group, units in added.items() if units},
        {group: units for group, units in dropped.items() if units},
        download,
        whole,
    )


def _plain(axes: tuple[AxisExpr, ...]) -> bool:
    return all(isinstance(axis, Unit) or not units_in(axis) for axis in axes)
