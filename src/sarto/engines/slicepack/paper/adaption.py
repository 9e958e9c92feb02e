"""Ability adaption: the chosen units of one layer and the map that gives back the others learn to do without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sarto.engines.slicepack.paper.layers import Layer, MapKey
from sarto.engines.slicepack.paper.losses import classification_loss, distillation_loss, repair_loss
from sarto.engines.slicepack.paper.mixing import Kept, dropped
from sarto.engines.slicepack.paper.network import (
    last_output,
    repaired_features,
    repaired_tensors,
    rows_of,
    run,
    sliced_nodes,
    units_read,
)
from sarto.engines.slicepack.paper.task import Front, Learned, Progress, Task, descend, row_mask
from sarto.engines.slicepack.settings import POSITIONS
from sarto.training import cross_moment, position_stride, reconstruction_map, second_moment


@dataclass(frozen=True, eq=False)
class Adapted:
    """Layers in training or trained.

    Attributes:
        kept: U_i of each replaced layer.
        tensors: f_i in the rows of the kept units; the donor's own rows of the dropped ones (f-bar) in the others.
        maps: the l_i, shape (dropped, kept).
        head: H: weight (2, width) and bias (2,).
    """

    kept: Kept
    tensors: Mapping[str, Tensor]
    maps: Mapping[MapKey, Tensor]
    head: tuple[Tensor, Tensor]


def adapt_layer(
    task: Task,
    place: int,
    front: Front,
    pooled: Mapping[str, Tensor],
    units: tuple[int, ...],
    progress: Progress,
) -> Adapted:
    """f_i, l_i and H by (7), one layer replaced; all else is the donor's own and frozen.

    Reference:
        Slice-and-Pack, equation (7) with (8) and (9) for i = j.
    """
    layer = task.donor.layers[place]
    kept = {layer.group: units}
    masks = {name: row_mask(task, name, axes, kept) for name, axes in sorted(layer.owned.items())}
    # f-bar is "composed of the dropped units from m_i", not of those from m_i'.
    rows = {name: torch.where(mask > 0, pooled[name], task.tensors[name]) for name, mask in masks.items()}
    generator = task.generator(1, place)
    maps = start_maps(task, layer, front, pooled, units, generator)
    begun = Adapted(kept, rows, maps, task.head)
    return train_repaired(
        f"adapting {layer.group}", task, begun, masks, front, task.settings.adapt_steps, generator, progress
    )


def train_repaired(
    what: str,
    task: Task,
    begun: Adapted,
    masks: Mapping[str, Tensor],
    front: Front,
    steps: int,
    generator: torch.Generator,
    progress: Progress,
) -> Adapted:
    """Steps down (7), or down (10) where several layers are replaced.

    H and the maps learn by the classification; by the distillation the maps learn only where it is repaired by them.
    """
    settings = task.settings
    tensors = {
        name: tensor.detach().clone().requires_grad_() for name, tensor in sorted(begun.tensors.items())
    }
    maps = {key: matrix.detach().clone().requires_grad_() for key, matrix in sorted(begun.maps.items())}
    head = tuple(part.detach().clone().requires_grad_() for part in begun.head)
    nodes = sliced_nodes(task.donor, begun.kept)

    def loss(rows: Tensor) -> Tensor:
        return repair_losses(task, begun.kept, nodes, tensors, maps, head, front, rows)

    descend(
        what,
        [
            Learned(list(tensors.values()), settings.lr, [masks[name] for name in tensors]),
            Learned([*maps.values(), *head], settings.lr_new),
        ],
        loss,
        steps,
        len(task.inputs),
        settings,
        generator,
        progress,
    )
    return Adapted(
        begun.kept,
        {name: tensor.detach() for name, tensor in tensors.items()},
        {key: matrix.detach() for key, matrix in maps.items()},
        (head[0].detach(), head[1].detach()),
    )


def repair_losses(
    task: Task,
    kept: Kept,
    nodes: Sequence[object],
    tensors: Mapping[str, Tensor],
    maps: Mapping[MapKey, Tensor],
    head: tuple[Tensor, ...],
    front: Front,
    rows: Tensor,
) -> Tensor:
    """The loss (7) or (10) of a batch.

    Args:
        kept: units of the replaced layers; nodes: the extractor with their sizes.
        tensors: rows of the replaced layers, as in `Adapted`.

    Reference:
        Slice-and-Pack, equations (7)-(10).
    """
    donor, settings = task.donor, task.settings
    whole = {**task.tensors, **tensors}
    given, teacher = rows_of(donor, front.values, rows), task.teacher[rows]
    narrow = repaired_tensors(donor, whole, kept, maps)
    values = run(donor, nodes[front.start :], narrow, given, len(rows))  # type: ignore[arg-type]
    features = repaired_features(donor, values[donor.features.value], kept, maps)
    logits = functional.linear(features, head[0], head[1])
    found = classification_loss(logits, task.positive[rows], task.outcome_weights)
    misses: dict[str, Tensor] = {}
    if settings.dis_repair != "dropped":
        misses["linear"] = distillation_loss(features, teacher)
    if settings.dis_repair != "linear":
        full = run(donor, donor.nodes[front.start :], whole, given, len(rows))
        misses["dropped"] = distillation_loss(full[donor.features.value], teacher)
    return repair_loss(found, misses, settings.gamma)


@torch.no_grad()
def start_maps(
    task: Task,
    layer: Layer,
    front: Front,
    pooled: Mapping[str, Tensor],
    units: tuple[int, ...],
    generator: torch.Generator,
) -> dict[MapKey, Tensor]:
    """Where each l_i of a layer starts, shape (dropped, kept)."""
    settings, donor = task.settings, task.donor
    rest = dropped(layer.size, units)
    like = task.tensors[donor.classifier]
    if not rest:
        return {}
    if settings.map_start == "random":
        bound = len(units) ** -0.5
        return {
            key: ((torch.rand(len(rest), len(units), generator=generator) * 2 - 1) * bound).to(like)
            for key in layer.maps
        }
    maps = {key: torch.zeros(len(rest), len(units), dtype=like.dtype) for key in layer.maps}
    seen = {key: at for key, at in layer.maps.items() if at is not None}
    if settings.map_start == "zero" or not seen:
        return maps
    nodes = donor.nodes[front.start : last_output_of(task, layer)]
    original = run(donor, nodes, task.tensors, front.values, len(task.inputs))
    changed = run(donor, nodes, {**task.tensors, **pooled}, front.values, len(task.inputs))
    weights = task.outcome_weights[task.positive.to(torch.int64)]
    weights = weights / weights.sum()
    for key, (output, leaf) in seen.items():
        given = units_read(donor, output, leaf, layer.group, changed)[:, list(units)]
        wanted = units_read(donor, output, leaf, layer.group, original)[:, list(rest)]
        stride = position_stride((given.shape[2],), POSITIONS)
        maps[key] = reconstruction_map(
            second_moment(given, weights, stride=stride),
            cross_moment(wanted, given, weights, stride=stride),
            lam=settings.map_lam,
            towards=torch.zeros(len(rest), len(units), dtype=torch.float64),
        ).to(like.dtype)
    return maps


def last_output_of(task: Task, layer: Layer) -> int:
    """Place after the last node that any map of a layer is fitted on."""
    position = {node.name: place + 1 for place, node in enumerate(task.donor.nodes)}
    ends = [position.get(at[0].value, 0) for at in layer.maps.values() if at is not None]
    return max([last_output(task.donor, layer), *ends])
