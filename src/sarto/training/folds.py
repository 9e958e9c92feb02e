"""Folds that leave out one sample of each class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError


@dataclass(frozen=True, eq=False)
class Folds:
    """Sets of samples to leave out.

    left_out: (F, m) sample indices, padded with -1.
    pairing: (F,) which random pairing a fold belongs to; folds of a pairing stand side by side.
    per_pairing: folds in a pairing.
    skipped_classes: classes with one sample (or one group), which can't be left out.
    """

    left_out: Tensor
    pairing: Tensor
    per_pairing: int
    skipped_classes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.left_out.shape[0])

    def training_mask(self, n: int) -> Tensor:
        """Bool (F, n): True where a sample stays in the training set of the fold."""
        mask = torch.ones(self.count, n + 1, dtype=torch.bool)
        mask.scatter_(1, torch.where(self.left_out < 0, n, self.left_out), False)
        return mask[:, :n]


def one_of_each(
    labels: Tensor,
    n_classes: int,
    *,
    pairings: int = 5,
    seed: int = 0,
    groups: Tensor | None = None,
    max_folds: int = 40,
) -> Folds:
    """Folds that leave out one sample of each class at a time, so that the rest keeps its balance.

    A pairing orders each class at random and fold j takes the j-th of each; smaller classes start over, so
    each fold holds every class. Classes with more samples than `max_folds` leave out several at a time.

    Args:
        labels: (n,), 0..n_classes-1.
        n_classes: q.
        pairings: random pairings, each leaving out every sample at least once.
        seed: of the pairings.
        groups: (n,) integers; samples of one group (near-duplicates, bursts) are left out together.
        max_folds: bound on the folds of a pairing.

    Raises:
        ShapeError: not one group for each sample.
        RequestError: a group with samples of two classes, or pairings or max_folds out of range.
    """
    if pairings < 1 or max_folds < 2:
        raise RequestError(f"pairings >= 1 and max_folds >= 2 were asked for, got {pairings} and {max_folds}")
    units = _units(labels, n_classes, groups)
    skipped = tuple(cls for cls, members in enumerate(units) if len(members) == 1)
    counted = [members for members in units if len(members) > 1]
    if not counted:
        return Folds(torch.empty(0, 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 0, skipped)
    generator = torch.Generator().manual_seed(seed)
    per_pairing = min(max(len(members) for members in counted), max_folds)
    rows: list[list[int]] = []
    for _ in range(pairings):
        folds: list[list[int]] = [[] for _ in range(per_pairing)]
        for members in counted:
            order = torch.randperm(len(members), generator=generator).tolist()
            for fold, taken in enumerate(_shares(order, per_pairing)):
                folds[fold].extend(sample for unit in taken for sample in members[unit])
        rows.extend(folds)
    width = max(len(row) for row in rows)
    left_out = torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int64)
    return Folds(left_out, torch.arange(pairings).repeat_interleave(per_pairing), per_pairing, skipped)


def _shares(order: list[int], folds: int) -> list[list[int]]:
    """The order dealt to the folds: every unit once when there are enough, else again from the start."""
    if len(order) < folds:
        return [[order[fold % len(order)]] for fold in range(folds)]
    size = len(order) / folds
    edges = [math.floor(fold * size) for fold in range(folds)] + [len(order)]
    return [order[edges[fold] : edges[fold + 1]] for fold in range(folds)]


def _units(labels: Tensor, n_classes: int, groups: Tensor | None) -> list[list[list[int]]]:
    """For each class its groups, each a list of samples."""
    if groups is None:
        return [
            [[sample] for sample in torch.nonzero(labels == cls).flatten().tolist()]
            for cls in range(n_classes)
        ]
    if groups.shape != labels.shape:
        raise ShapeError(
            f"one group for each of the {labels.shape[0]} samples was asked for, got {tuple(groups.shape)}"
        )
    members: dict[int, list[int]] = {}
    for sample, group in enumerate(groups.tolist()):
        members.setdefault(int(group), []).append(sample)
    mixed = [group for group, samples in members.items() if len(set(labels[samples].tolist())) > 1]
    if mixed:
        problems = [
            f"group {group} holds samples of classes {sorted(set(labels[members[group]].tolist()))}; "
            "near-duplicates must carry one label"
            for group in mixed
        ]
        raise RequestError(problems[0], problems=problems)
    units: list[list[list[int]]] = [[] for _ in range(n_classes)]
    for samples in members.values():
        units[int(labels[samples[0]])].append(samples)
    return units
