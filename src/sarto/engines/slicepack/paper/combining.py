"""Combining: the layers that were made one by one are joined front to back, and learn to work on each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sarto.engines.slicepack.paper.adaption import Adapted, train_repaired
from sarto.engines.slicepack.paper.layers import MapKey
from sarto.engines.slicepack.paper.task import Front, Progress, Task, row_mask


def combine(task: Task, adapted: Sequence[Adapted], front: Front, progress: Progress) -> Adapted:
    """All layers replaced, after (10) was taken down for i = 1 .. L.

    At step i the layers 1 .. i are replaced and train with their maps and H; the layers after them are the donor's
    own. H is made once and kept. Each step has a new optimiser, since more trains in it than in the one before.

    Args:
        adapted: what `adapt_layer` gave for each of the donor's layers.
        front: what the first layer reads.

    Reference:
        Slice-and-Pack, equation (10). What trains in it is our reading (NetGraft's second stage): f_1 .. f_i,
        l_1 .. l_i and H.
    """
    layers = task.donor.layers
    kept: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, Tensor] = {}
    maps: dict[MapKey, Tensor] = {}
    head = task.head
    for place, layer in enumerate(layers):
        found = adapted[place]
        kept.update(found.kept)
        # A tensor may make the units of two layers; the later one brings its rows, the earlier keeps its own.
        tensors.update(_joined(task, tensors, found, layer.owned))
        maps.update(found.maps)
        axes: dict[str, tuple[int, ...]] = {}
        for done in layers[: place + 1]:
            for name, at in done.owned.items():
                axes[name] = tuple(sorted({*axes.get(name, ()), *at}))
        masks = {name: row_mask(task, name, at, kept) for name, at in axes.items()}
        begun = Adapted(dict(kept), dict(tensors), dict(maps), head)
        trained = train_repaired(
            f"combining 1..{place + 1} of {len(layers)}",
            task,
            begun,
            masks,
            front,
            task.settings.combine_steps,
            task.generator(2, place),
            progress,
        )
        tensors, maps, head = dict(trained.tensors), dict(trained.maps), trained.head
    return Adapted(kept, tensors, maps, head)


def _joined(
    task: Task, tensors: Mapping[str, Tensor], found: Adapted, owned: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for name, tensor in found.tensors.items():
        before = tensors.get(name)
        if before is None:
            joined[name] = tensor
        else:
            mask = row_mask(task, name, owned[name], found.kept)
            joined[name] = before * (1 - mask) + tensor * mask
    return joined
