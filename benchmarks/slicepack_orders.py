"""Closed-form slicepack against the ensemble of the whole donors, and against what else one would do."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sarto.engines.baselines import finetune_donor
from sarto.engines.slicepack import Readings, RepairSettings, allocate, make_fragment, read_donor
from sarto.graph import ModelGraph, block, branch, features, normalise, uniform_counts, with_head
from sarto.market import Samples, read_images, to_tensor
from sarto.pipeline.sources import load_source
from sarto.training import fit_head, logistic_head, logistic_loto
from sarto.types import Preprocessing

EXAMPLES = Path(__file__).parent.parent / "examples"
PIXELS = Preprocessing(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)


@dataclass(frozen=True, eq=False)
class Donor:
    """A donor with normalisation in front."""

    name: str
    classes: tuple[str, ...]
    graph: ModelGraph

    @property
    def extractor(self) -> ModelGraph:
        return extractor(self.graph)


@dataclass(frozen=True)
class Variant:
    """How fragments are cut; `share` of the extractor's parameters, allocated or the same ratio in every layer."""

    name: str
    share: float
    allocated: bool = True
    criterion: str = "css"
    repair: bool = True


VARIANTS = (
    Variant("css_share_25", 0.25),
    Variant("css_beta_50", 0.25, allocated=False),
    Variant("css_beta_25", 0.0625, allocated=False),
    Variant("random_share_25", 0.25, criterion="random"),
    Variant("random_beta_50", 0.25, allocated=False, criterion="random"),
    Variant("energy_beta_50", 0.25, allocated=False, criterion="energy"),
    Variant("energy_beta_50_no_repair", 0.25, allocated=False, criterion="energy", repair=False),
)


def orders(
    *,
    data: str,
    ks: list[int],
    n_draws: int,
    n_orders: int,
    n_heldout: int,
    n_finetuned: int,
    variants: list[str],
    seed: int,
) -> dict[str, Any]:
    """Accuracy on held-out images over orders of one class from each donor.

    Args:
        data: `cifar10` draws samples from the pool of 100 a class under SARTO_DATA, `repository` from the 20 shipped.
        n_orders: of all combinations, evenly spread.
        n_finetuned: orders of each (k, draw) for which the best probed donor is fine-tuned too.
    """
    pool, held = _images(data)
    donors = _donors()
    every = list(itertools.product(*(donor.classes for donor in donors)))
    chosen = every[:: max(1, len(every) // n_orders)][:n_orders]
    heldout = {cls: _tensor(held.only([cls]).take(n_heldout)) for cls in held.classes}
    rows: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = {"slice": [], "pack": []}
    for k, draw in itertools.product(ks, range(n_draws)):
        drawn = pool.take(k, seed=1000 * seed + draw)
        samples = {cls: _tensor(drawn.only([cls])) for cls in drawn.classes}
        begun = time.perf_counter()
        readings = [_read(donor, samples) for donor in donors]
        read_seconds = (time.perf_counter() - begun) / sum(len(donor.classes) for donor in donors)
        bodies: dict[str, Callable[[str], ModelGraph]] = {"ensemble": _whole(donors)}
        for variant in VARIANTS:
            if variant.name in variants:
                bodies[variant.name] = _sliced(
                    variant, donors, readings, read_seconds, seconds["slice"], seed + draw
                )
        for name, body in bodies.items():
            cache = _Cache(body, samples, heldout)
            scores = [
                _score(cache, order, k, seconds["pack"] if name == "css_share_25" else []) for order in chosen
            ]
            row = _row(name, k, draw, scores, [_params(cache, order) for order in chosen])
            rows.append(row)
            print(f"k={k} draw={draw} {name}: {row['accuracy_heldout']:.4f}", file=sys.stderr, flush=True)
        rows += _single_donors(donors, chosen, samples, heldout, k, draw, n_finetuned, seed)
    return {**_summary(rows, ks, seconds), "rows": rows}


class _Cache:
    """Features of samples and held-out images under the fragment of a class, computed once."""

    def __init__(
        self, body: Callable[[str], ModelGraph], samples: Mapping[str, Tensor], heldout: Mapping[str, Tensor]
    ) -> None:
        self.body, self.images = body, {"samples": samples, "heldout": heldout}
        self.found: dict[tuple[int, str, str], Tensor] = {}

    def features(self, of: str, kind: str, seen: str) -> Tensor:
        graph = self.body(of)
        key = (id(graph), kind, seen)
        if key not in self.found:
            self.found[key] = _run(graph, self.images[kind][seen])
        return self.found[key]

    def matrix(self, order: tuple[str, ...], kind: str) -> tuple[list[Tensor], Tensor]:
        parts = [torch.cat([self.features(of, kind, seen) for seen in order]) for of in order]
        counts = [len(self.images[kind][seen]) for seen in order]
        return parts, torch.repeat_interleave(torch.arange(len(order)), torch.tensor(counts))


def _score(cache: _Cache, order: tuple[str, ...], k: int, seconds: list[float]) -> float:
    parts, labels = cache.matrix(order, "samples")
    begun = time.perf_counter()
    head = fit_head(torch.cat(parts, 1), labels, len(order), blocks=tuple(p.shape[1] for p in parts)).head
    with_head(branch([cache.body(of) for of in order]), head.weight, head.bias)
    seconds.append(time.perf_counter() - begun)
    tested, truth = cache.matrix(order, "heldout")
    return float((head.predict(torch.cat(tested, 1)) == truth).float().mean())


def _single_donors(
    donors: list[Donor],
    chosen: list[tuple[str, ...]],
    samples: Mapping[str, Tensor],
    heldout: Mapping[str, Tensor],
    k: int,
    draw: int,
    n_finetuned: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The best donor of each order by its score on the order's own samples: probed, and (a few) fine-tuned."""
    caches = [_Cache(_one(donor.extractor), samples, heldout) for donor in donors]
    probes, tuned = [], []
    every = max(1, len(chosen) // n_finetuned) if n_finetuned else 0
    for place, order in enumerate(chosen):
        scored = []
        for cache in caches:
            x, y = cache.matrix(order, "samples")
            scored.append(logistic_loto(x[0], y, len(order), pairings=1).accuracy or 0.0)
        best = scored.index(max(scored))
        cache, donor = caches[best], donors[best]
        x, y = cache.matrix(order, "samples")
        head = logistic_head(x[0], y, len(order))
        tested, truth = cache.matrix(order, "heldout")
        probes.append(float((head.predict(tested[0]) == truth).float().mean()))
        if every and place % every == 0 and place // every < n_finetuned:
            graph = with_head(donor.extractor, head.weight, head.bias)
            inputs = torch.cat([samples[cls] for cls in order])
            predict = finetune_donor(graph, inputs, y, seed=seed, estimate=False).predict
            said = predict(torch.cat([heldout[cls] for cls in order]))
            tuned.append((probes[-1], float((said == truth).float().mean())))
    params = [sum(d.extractor.tensors[n].numel() for n in d.extractor.parameters) for d in donors]
    rows = [_row("best_donor_probe", k, draw, probes, [max(params)])]
    if tuned:
        rows.append(_row("best_donor_finetuned", k, draw, [b for _, b in tuned], [max(params)]))
        rows.append(_row("best_donor_probe_same_orders", k, draw, [a for a, _ in tuned], [max(params)]))
    return rows


def _row(name: str, k: int, draw: int, scores: list[float], params: list[int]) -> dict[str, Any]:
    return {
        "variant": name,
        "n_samples_per_class": k,
        "n_draw": draw,
        "n_orders": len(scores),
        "accuracy_heldout": statistics.mean(scores),
        "accuracy_worst_order": min(scores),
        "params_mean": statistics.mean(params),
    }


def _summary(rows: list[dict[str, Any]], ks: list[int], seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    def mean(name: str, k: int | None = None) -> float | None:
        found = [
            row["accuracy_heldout"]
            for row in rows
            if row["variant"] == name and k in (None, row["n_samples_per_class"])
        ]
        return statistics.mean(found) if found else None

    summary: dict[str, Any] = {}
    for name in dict.fromkeys(row["variant"] for row in rows):
        summary[f"accuracy_{name}"] = mean(name)
        summary.update({f"accuracy_{name}_k{k}": mean(name, k) for k in ks})
    whole, ours = mean("ensemble"), mean("css_share_25")
    if whole is not None and ours is not None:
        summary["ensemble_gap_points"] = 100 * (whole - ours)
    of = {
        name: statistics.mean(r["params_mean"] for r in rows if r["variant"] == name)
        for name in ("ensemble", "css_share_25")
        if mean(name) is not None
    }
    if len(of) == 2:
        summary["params_ratio"] = of["css_share_25"] / of["ensemble"]
    if seconds["slice"]:
        summary["slice_seconds_per_class_median"] = statistics.median(seconds["slice"])
        summary["slice_seconds_per_class_max"] = max(seconds["slice"])
    if seconds["pack"]:
        summary["pack_seconds_median"] = statistics.median(seconds["pack"])
        summary["pack_seconds_max"] = max(seconds["pack"])
    return summary


def _sliced(
    variant: Variant,
    donors: list[Donor],
    readings: list[Readings],
    read_seconds: float,
    seconds: list[float],
    seed: int,
) -> Callable[[str], ModelGraph]:
    made: dict[str, ModelGraph] = {}
    for donor, reading in zip(donors, readings, strict=True):
        if variant.allocated:
            keep = allocate(reading, (variant.share,))[variant.share]
        else:
            keep = uniform_counts(donor.graph, variant.share**0.5)
        for label, cls in enumerate(donor.classes):
            begun = time.perf_counter()
            graph, _ = make_fragment(
                reading,
                [label],
                keep,
                criterion=variant.criterion,  # type: ignore[arg-type]
                repair=RepairSettings() if variant.repair else None,
                seed=seed,
            )
            if variant.name == "css_share_25":
                seconds.append(read_seconds + time.perf_counter() - begun)
            made[cls] = extractor(graph)
    return made.__getitem__


def _whole(donors: list[Donor]) -> Callable[[str], ModelGraph]:
    graphs = {cls: body for donor in donors for body in [donor.extractor] for cls in donor.classes}
    return graphs.__getitem__


def _one(graph: ModelGraph) -> Callable[[str], ModelGraph]:
    return lambda _: graph


def _params(cache: _Cache, order: tuple[str, ...]) -> int:
    graphs = {id(graph): graph for graph in (cache.body(of) for of in order)}
    return sum(graph.tensors[name].numel() for graph in graphs.values() for name in graph.parameters)


def _read(donor: Donor, samples: Mapping[str, Tensor]) -> Readings:
    inputs = [samples[cls] for cls in donor.classes]
    labels = torch.repeat_interleave(torch.arange(len(inputs)), torch.tensor([len(part) for part in inputs]))
    return read_donor(donor.graph, torch.cat(inputs), labels, len(inputs))


def extractor(graph: ModelGraph) -> ModelGraph:
    """The graph up to the input of its classifier."""
    return block(graph, end=features(graph).value)


def _run(graph: ModelGraph, images: Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(graph(part)) for part in images.split(200)])


def _tensor(samples: Samples) -> Tensor:
    return to_tensor(samples.images, PIXELS)


def _donors() -> list[Donor]:
    found = []
    for name in ("vgg", "resnet20", "mobilenetv2"):
        described = json.loads((EXAMPLES / "donors" / f"{name}.json").read_text())
        weights = EXAMPLES / "donors" / f"{name}.safetensors"
        source = load_source(described["factory"], arguments=described["arguments"], weights=weights)
        scale = Preprocessing.parse(described["preprocessing"])
        found.append(Donor(name, tuple(described["classes"]), normalise(source.graph, scale.mean, scale.std)))
    return found


def _images(data: str) -> tuple[Samples, Samples]:
    """Samples to draw from, and held-out images."""
    if data == "repository":
        return read_images(EXAMPLES / "images" / "samples"), read_images(EXAMPLES / "images" / "heldout")
    root = os.environ.get("SARTO_DATA")
    if data != "cifar10" or not root:
        raise ValueError(f"data must be 'repository', or 'cifar10' with SARTO_DATA set; got {data!r}")
    sys.path.insert(0, str(EXAMPLES))
    from cifar import read_split, train_and_pool  # type: ignore[import-not-found]

    _, pool = train_and_pool(read_split(Path(root) / "cifar10", "train"))
    test = read_split(Path(root) / "cifar10", "test")
    return Samples(pool.images, pool.labels, pool.classes), Samples(test.images, test.labels, test.classes)
