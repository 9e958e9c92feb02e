"""Ability pooling: one layer is trained until few of its units speak for the class, then those are chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sarto.engines.slicepack.paper.layers import Layer
from sarto.engines.slicepack.paper.losses import l21_norm, pooling_loss, unit_scores
from sarto.engines.slicepack.paper.network import last_output, layer_units, rows_of, run
from sarto.engines.slicepack.paper.task import Front, Learned, Progress, Task, descend, row_mask
from sarto.training import above_threshold, top
from sarto.types import PaperSettings


def pool_layer(task: Task, place: int, front: Front, progress: Progress) -> dict[str, Tensor]:
    """The tensors of m_i': those that make the layer's units, all else is the donor's own and frozen.

    Each layer starts from the donor ("each f_i is trained separately").

    Args:
        place: of the layer among the donor's.

    Reference:
        Slice-and-Pack, equations (2) and (3).
    """
    donor, settings, layer = task.donor, task.settings, task.donor.layers[place]
    learned = {name: task.tensors[name].detach().clone().requires_grad_() for name in sorted(layer.owned)}
    whole = {layer.group: tuple(range(layer.size))}
    masks = [row_mask(task, name, layer.owned[name], whole) for name in learned]
    nodes, normalised = donor.nodes[front.start :], settings.l21 == "normalised"
    n, generator = len(task.inputs), task.generator(0, place)

    def loss(rows: Tensor) -> Tensor:
        tensors = {**task.tensors, **learned}
        values = run(donor, nodes, tensors, rows_of(donor, front.values, rows), len(rows))
        own = torch.nonzero(task.positive[rows]).flatten()
        if len(rows) < n:  # the norm is over all of the class's samples, however few of them are in the batch
            own, values_own = task.own, _layer_values(task, layer, front, tensors, task.own)
        else:
            values_own = values
        parts = layer_units(donor, layer, values_own)
        units = [part[own] if values_own is values else part for part in parts]
        first = pooling_loss(
            values[donor.features.value],
            task.teacher[rows],
            units[0],
            settings.alpha / len(units),
            normalised=normalised,
        )
        rest = [l21_norm(part, normalised=normalised) for part in units[1:]]
        return first + settings.alpha / len(units) * torch.stack(rest).sum() if rest else first

    descend(
        f"pooling {layer.group}",
        [Learned(list(learned.values()), settings.lr, masks)],
        loss,
        settings.pool_steps,
        n,
        settings,
        generator,
        progress,
    )
    return {name: tensor.detach() for name, tensor in learned.items()}


@torch.no_grad()
def scores_of(task: Task, layer: Layer, front: Front, pooled: dict[str, Tensor]) -> Tensor:
    """Score of each unit on the class's samples after pooling, over the largest, shape (units,), 0..1.

    Where several values hold the units, the mean of their scores.
    """
    values = _layer_values(task, layer, front, {**task.tensors, **pooled}, task.own)
    scores = [unit_scores(units) for units in layer_units(task.donor, layer, values)]
    tiny = torch.finfo(scores[0].dtype).tiny
    return torch.stack([score / score.max().clamp_min(tiny) for score in scores]).mean(0)


def select_units(scores: Tensor, settings: PaperSettings, count: int | None = None) -> tuple[int, ...]:
    """U_i: units by rate or by threshold, rising; at least one, ties by index.

    Args:
        scores: shape (units,), >= 0.
        count: how many to keep by rate; None: the beta share, rounded.

    Reference:
        Slice-and-Pack, equations (4) and (5). Scores are divided by the largest, which the paper leaves open.
    """
    if settings.select == "threshold":
        chosen = above_threshold(scores, settings.beta)
    else:
        chosen = top(scores, count if count is not None else max(1, round(settings.beta * len(scores))))
    return tuple(int(unit) for unit in chosen.tolist())


def _layer_values(
    task: Task, layer: Layer, front: Front, tensors: dict[str, Tensor], rows: Sequence[int] | Tensor
) -> dict[str, Tensor]:
    """Values up to the layer's output for some samples."""
    rows = torch.as_tensor(rows)
    nodes = task.donor.nodes[front.start : last_output(task.donor, layer)]
    return run(task.donor, nodes, tensors, rows_of(task.donor, front.values, rows), len(rows))
