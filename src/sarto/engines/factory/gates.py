"""From weights of units to gates: the paper's rounding with a soft gradient, and an order cut at the limit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sarto.errors import RequestError

Layout = Mapping[str, tuple[int, int]]
#: Units that each group keeps at any limit: one number for all, or group -> number.
Least = int | Mapping[str, int]


def kept_least(layout: Layout, least: Least) -> dict[str, int]:
    """Group -> units that it keeps at any limit; never more than it has."""
    return {
        group: min(least if isinstance(least, int) else least[group], stop - start)
        for group, (start, stop) in layout.items()
    }


def soft_gate(weights: Tensor) -> Tensor:
    """Saturating sigmoid: max(0, min(1, 1.2 sigmoid(w) - 0.1)), of any shape.

    Reference:
        NN-Factory, arXiv 2308.15003, equation (2) (Improved SemHash, Kaiser and Bengio 2018).
    """
    return (1.2 * torch.sigmoid(weights) - 0.1).clamp(0.0, 1.0)


def bounded(weights: Tensor, most: float) -> Tensor:
    """Weights within +-most, of any shape: what soft gates read, so that none of them is without a gradient.

    Within the bound the gradient is untouched; beyond it a tenth still brings the weight back.
    """
    return weights.clamp(-most, most) + 0.1 * (weights - weights.detach()) * (weights.abs() > most)


def hard_gate(weights: Tensor) -> Tensor:
    """1 where a weight is above 0, else 0; its gradient is that of the soft gate."""
    soft = soft_gate(weights)
    return (weights > 0).to(soft.dtype) + soft - soft.detach()


def cut_gate(weights: Tensor, cut: Tensor) -> Tensor:
    """The gates of a cut, zeros and ones of any shape; where one is open, its gradient is that of the soft gate."""
    return cut + (soft_gate(weights) - soft_gate(weights).detach()) * cut


def mixed_gates(weights: Tensor, hard: Tensor) -> Tensor:
    """Gates (n, units) of a training batch: hard ones where `hard` (n,) says so, else soft ones.

    Reference:
        NN-Factory, arXiv 2308.15003, section 3.2: half of the samples take the hard gates.
    """
    return torch.where(hard[:, None], hard_gate(weights), soft_gate(weights))


def limit_loss(gates: Tensor, limits: Tensor) -> Tensor:
    """Squared excess (n,) of the share of open gates over the limit; 0 where it is kept.

    Args:
        gates: hard gates (n, units).
        limits: (n,).

    Reference:
        NN-Factory, arXiv 2308.15003, equation (4).
    """
    return (gates.mean(1) - limits).clamp(min=0.0).square()


def most_open(limits: Tensor, units: int) -> Tensor:
    """Units (n,) that limits (n,) allow to be open: the largest number whose share is not above the limit."""
    # A limit of 0.29 of 100 units means 29, though 0.29 * 100 is less in floating point.
    return torch.floor(limits.double() * units * (1 + 1e-12) + 1e-9).long().clamp(min=1, max=units)


def ranked(scores: Tensor, layout: Layout, least: Least) -> Tensor:
    """Place (n, units) of each unit in the order in which units open: 0 opens first.

    The `least` best units of every group come before all others, so that no group has fewer.

    Args:
        scores: (n, units); larger opens earlier.
        layout: group -> its columns.
    """
    boosted = scores.detach().double()
    top = boosted.amax(1, keepdim=True) - boosted.amin(1, keepdim=True) + 1
    first = torch.zeros_like(boosted, dtype=torch.bool)
    for group, n_least in kept_least(layout, least).items():
        start, stop = layout[group]
        best = boosted[:, start:stop].topk(n_least, 1).indices
        first[:, start:stop].scatter_(1, best, True)
    order = torch.argsort(boosted + top * first, dim=1, descending=True, stable=True)
    places = torch.empty_like(order)
    return places.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))


def nested_gates(
    scores: Tensor, limits: Tensor, layout: Layout, *, least: Least, temperature: float
) -> Tensor:
    """Hard gates (n, units) of the units that open first, as many as the limit allows; soft gradient at the threshold.

    The gradient is that of sigmoid((score - threshold) / temperature), where the threshold lies between the last open
    and the first closed unit: pushing a score up opens a gate, and closes the one that it overtakes.
    """
    check_room(limits, layout, least)
    places = ranked(scores, layout, least)
    n_open = most_open(limits, scores.shape[1])[:, None]
    opened = (places < n_open).to(scores.dtype)
    last = torch.where(opened.bool(), scores.detach(), torch.inf).amin(1, keepdim=True)
    next_ = torch.where(opened.bool(), -torch.inf, scores.detach()).amax(1, keepdim=True)
    threshold = torch.where(torch.isfinite(next_), (last + next_) / 2, last - 1)
    soft = torch.sigmoid((scores - threshold) / temperature)
    return opened + soft - soft.detach()


def cut_to_limit(weights: Tensor, limits: Tensor, layout: Layout, *, least: Least) -> Tensor:
    """Gates (n, units) as the weights open them, but at most as many as the limit allows: those of the largest weights.

    At least `least` units of each group are open.

    Reference:
        NN-Factory, arXiv 2308.15003, section 5.3, "pruning based on importance"; importance is the weight that the
        assembler gave (our reading).
    """
    check_room(limits, layout, least)
    places = ranked(weights, layout, least)
    first = sum(kept_least(layout, least).values())
    wanted = torch.maximum((weights > 0).sum(1), torch.tensor(first, device=weights.device))
    n_open = torch.minimum(most_open(limits, weights.shape[1]), wanted)
    return (places < n_open[:, None]).to(weights.dtype)


def lowest_limit(layout: Layout, least: Least) -> float:
    """Smallest limit at which every group keeps its `least` units, and at least one unit is open."""
    units = sum(stop - start for start, stop in layout.values())
    return max(1, sum(kept_least(layout, least).values())) / units


def check_room(limits: Tensor, layout: Layout, least: Least) -> None:
    """Refuse limits that leave no room for the units that every group keeps.

    Raises:
        RequestError: says the smallest limit.
    """
    floor = lowest_limit(layout, least)
    units = sum(stop - start for start, stop in layout.values())
    lowest = float(limits.min())
    if int(most_open(limits.min()[None], units)) < round(floor * units):
        raise RequestError(
            f"at a limit of {lowest:g} there are {int(lowest * units)} of {units} units, fewer than the "
            f"{round(floor * units)} that {len(layout)} groups keep; the smallest limit is {floor:.4g}"
        )
