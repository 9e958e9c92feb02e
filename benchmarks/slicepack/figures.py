"""Figures 5 to 7 of the paper: overlap of fragments, how many models a market offers, time by number of classes."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.slicepack.donors import reading, setting
from benchmarks.slicepack.heads import fitted
from benchmarks.slicepack.methods import CUTS, cut_fragments
from benchmarks.slicepack.tables import Features
from benchmarks.slicepack.tasks import orders
from sarto.engines.slicepack import choose_units, rate_widths
from sarto.graph import ModelGraph, branch, with_head
from sarto.training import PackState


def overlap(
    *, task: str, architecture: str, k: int, share: float, n_classes: int, seed: int
) -> dict[str, Any]:
    """Intersection over union of the units that fragments of one donor keep, mean over layers (Figure 5).

    Chance is beta / (2 - beta) where every layer keeps the same share beta.
    """
    _, donors, pictures = setting(task, architecture, seed)
    donor = donors[0]
    readings = reading(donor, {cls: pictures.samples(cls, k, 0) for cls in donor.classes})
    beta = math.sqrt(share)
    keep = rate_widths(donor.graph, beta)
    numbers: dict[str, Any] = {"iou_share_by_chance": beta / (2 - beta)}
    rows = []
    for criterion in ("css", "energy", "threshold", "random"):
        chosen = [
            choose_units(readings, [label], keep, criterion, wpos=0.33, beta=beta, seed=label).kept
            for label in range(min(n_classes, len(donor.classes)))
        ]
        pairs = []
        for (a, first), (b, second) in itertools.combinations(enumerate(chosen), 2):
            found = statistics.mean(
                len(set(first[name]) & set(second[name])) / len(set(first[name]) | set(second[name]))
                for name in keep
            )
            pairs.append(found)
            rows.append(
                {
                    "criterion": criterion,
                    "class_a": donor.classes[a],
                    "class_b": donor.classes[b],
                    "iou_share": found,
                }
            )
        numbers[f"iou_share_{criterion}"] = statistics.mean(pairs)
        kept = [sum(len(units) for units in one.values()) / sum(keep.values()) * beta for one in chosen]
        numbers[f"kept_units_share_{criterion}"] = statistics.mean(kept)
    return {**numbers, "rows": rows}


def expansion(
    *,
    task: str,
    architecture: str,
    method: str,
    ks: list[int],
    n_orders: int,
    n_tested: int,
    errors: list[float],
    seed: int,
) -> dict[str, Any]:
    """How many usable models a market offers, in multiples of its originals (Figure 6).

    The share of random orders with an error of at most e, times all orders that there are, by the number of originals.
    """
    of, donors, pictures = setting(task, architecture, seed)
    chosen = orders(of, n_orders, seed)
    every = math.prod(len(classes) for classes in of.models)
    owner = {cls: donor for donor in donors for cls in donor.classes}
    numbers: dict[str, Any] = {"n_orders": len(chosen), "n_orders_there_are": every}
    rows: list[dict[str, Any]] = []
    for k in ks:
        cache = Features(pictures, k, 0, n_tested)
        samples = {cls: pictures.samples(cls, k, 0) for donor in donors for cls in donor.classes}
        readings = {donor.name: reading(donor, samples) for donor in donors}
        wanted = sorted({cls for order in chosen for cls in order})
        made = cut_fragments(CUTS[method], owner, readings, wanted, seed)
        graphs = {cls: one.graph for cls, one in made.items()}
        scores = []
        for order in chosen:
            parts = [graphs[cls] for cls in order]
            x, y = cache.matrix(parts, order, "samples")
            head = fitted(x, y).head
            tested, truth = cache.matrix(parts, order, "tested")
            scores.append(float((head.predict(torch.cat(tested, 1)) == truth).float().mean()))
        for error in errors:
            usable = sum(score >= 1 - error for score in scores) / len(scores)
            rows.append(
                {
                    "n_samples_per_class": k,
                    "acceptable_error": error,
                    "usable_share": usable,
                    "expansion_times": usable * every / len(donors),
                }
            )
        print(f"k={k}: mean accuracy {statistics.mean(scores):.3f}", file=sys.stderr, flush=True)
        numbers[f"accuracy_tested_mean_k{k}"] = statistics.mean(scores)
        for error in (0.2, 0.3):
            usable = sum(score >= 1 - error for score in scores) / len(scores)
            numbers[f"expansion_times_error_{round(100 * error)}_k{k}"] = usable * every / len(donors)
    return {**numbers, "rows": rows}


def seconds(*, architecture: str, methods: list[str], k: int, seed: int, n_runs: int = 7) -> dict[str, Any]:
    """Slicing, packing and adding by the number of classes ordered, on T1 (Figure 7).

    Packing fits, scores and calibrates the head on features that are there; adding is the same for one class more than
    a pack has. `forward_seconds` is what adding takes besides: the new samples through all fragments, and all others
    through the new one. Medians of `n_runs`.
    """
    of, donors, pictures = setting("T1", architecture, seed)
    owner = {cls: donor for donor in donors for cls in donor.classes}
    classes = [cls for group in itertools.zip_longest(*of.models) for cls in group if cls is not None]
    begun = time.perf_counter()
    samples = {cls: pictures.samples(cls, k, 0) for cls in classes}
    readings = {donor.name: reading(donor, samples) for donor in donors}
    shared = (time.perf_counter() - begun) / len(classes)
    cache, rows, numbers = Features(pictures, k, 0, 1), list[dict[str, Any]](), dict[str, Any]()
    for method in methods:
        made = cut_fragments(CUTS[method], owner, readings, classes, seed)
        for n in range(2, len(classes) + 1):
            order = tuple(classes[:n])
            parts = [made[cls].graph for cls in order]
            x, y = cache.matrix(parts, order, "samples")
            packing = _median_seconds(partial(_pack, parts, order, x, y), n_runs)
            slicing = statistics.mean(shared + made[cls].seconds for cls in order)
            row = {
                "method": method,
                "n_classes": n,
                "slice_seconds_per_class": slicing,
                "pack_seconds": packing,
                "pack_seconds_per_class": packing / n,
            }
            if n > 2:
                added, forward = _adding(parts, order, x, y, samples, n_runs)
                row |= {"add_seconds": added, "forward_seconds": forward}
            rows.append(row)
        numbers[f"slice_seconds_per_class_{method}"] = slicing
        numbers[f"pack_seconds_{method}"] = packing
        numbers[f"pack_seconds_most_{method}"] = max(
            row["pack_seconds"] for row in rows if row["method"] == method
        )
        numbers[f"add_seconds_{method}"], numbers[f"forward_seconds_{method}"] = added, forward
    return {**numbers, "n_classes": len(classes), "rows": rows}


def _adding(
    parts: list[ModelGraph],
    order: tuple[str, ...],
    features: list[Tensor],
    labels: Tensor,
    samples: Mapping[str, Tensor],
    n_runs: int,
) -> tuple[float, float]:
    """Seconds to add the last class of an order to the pack of the others, and of the forward passes for it."""
    old = labels < len(order) - 1
    whole = _named(features)
    *before, last = whole
    state = PackState.of({part: whole[part][old] for part in before}, labels[old], order[:-1])
    new = {part: whole[part][~old] for part in before}

    def add() -> None:
        _packed(parts, state.with_class(order[-1], new).with_part(last, whole[last]))

    def forward() -> None:
        for part in parts[:-1]:
            part(samples[order[-1]])
        for cls in order:
            parts[-1](samples[cls])

    return _median_seconds(add, n_runs), _median_seconds(forward, 1)


def _pack(
    parts: list[ModelGraph], order: tuple[str, ...], features: list[Tensor], labels: Tensor
) -> ModelGraph:
    return _packed(parts, PackState.of(_named(features), labels, order))


def _packed(parts: list[ModelGraph], state: PackState) -> ModelGraph:
    head = state.head().head
    return with_head(branch(parts), head.weight, head.bias)


def _named(features: list[Tensor]) -> dict[str, Tensor]:
    return {str(place): part for place, part in enumerate(features)}


def _median_seconds(call: Callable[[], object], n_runs: int) -> float:
    taken = []
    for _ in range(n_runs):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)
