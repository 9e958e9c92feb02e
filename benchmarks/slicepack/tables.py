"""Tables of the paper: accuracy and size of packs against the ensemble, by task, samples a class, and method."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.slicepack.donors import Donor, Pictures, reading, setting
from benchmarks.slicepack.heads import fitted
from benchmarks.slicepack.methods import CUTS, cut_fragments
from benchmarks.slicepack.tasks import orders
from sarto.devices import count, interleaved, load_onnx, onnx_call
from sarto.export import to_onnx
from sarto.graph import ModelGraph, branch, with_head

BATCH = 200


@dataclass(eq=False)
class Features:
    """Features of samples and of test images under extractors, each computed once."""

    pictures: Pictures
    k: int
    draw: int
    n_tested: int
    found: dict[tuple[int, str, str], Tensor] = field(default_factory=dict)
    kept: list[ModelGraph] = field(default_factory=list)

    def of(self, graph: ModelGraph, kind: str, cls: str) -> Tensor:
        """Features (n, width) of one class: `samples` or `tested` images."""
        key = (id(graph), kind, cls)
        if key not in self.found:
            self.kept.append(graph)
            images = (
                self.pictures.samples(cls, self.k, self.draw)
                if kind == "samples"
                else self.pictures.tested(cls, self.n_tested)
            )
            parts = [torch.as_tensor(graph(part)) for part in images.split(BATCH)]
            self.found[key] = torch.cat(parts)
        return self.found[key]

    def matrix(
        self, graphs: list[ModelGraph], order: tuple[str, ...], kind: str
    ) -> tuple[list[Tensor], Tensor]:
        """Features of each graph for all images of an order's classes, and their labels."""
        parts = [torch.cat([self.of(graph, kind, cls) for cls in order]) for graph in graphs]
        counts = torch.tensor([len(self.of(graphs[0], kind, cls)) for cls in order])
        return parts, torch.repeat_interleave(torch.arange(len(order)), counts)


@dataclass(frozen=True, eq=False)
class Tried:
    """A method on one draw of samples.

    Attributes:
        scores: accuracy on the test images of each order.
        pack: of the first order; None for a probe.
    """

    row: dict[str, Any]
    scores: tuple[float, ...]
    pack: ModelGraph | None = None


def table(
    *,
    task: str,
    architecture: str,
    ks: list[int],
    n_orders: int,
    n_draws: int,
    n_tested: int,
    methods: list[str],
    paper: Mapping[str, float] | None = None,
    seed: int,
) -> dict[str, Any]:
    """Accuracy on the test split over orders and draws of samples, one row for each (method, k, draw).

    Args:
        task: T1 to T5 or T3h.
        architecture: vgg16 or resnet34; `shipped` for the small donors in examples/.
        methods: names of `CUTS`, `ensemble`, `probe`.
        paper: figures of the paper that stand beside, name -> accuracy.
        seed: of partition, orders and draws.
    """
    of, donors, pictures = setting(task, architecture, seed)
    chosen = orders(of, n_orders, seed)
    tried: list[Tried] = []
    for k in ks:
        for draw in range(n_draws):
            tried = [one if one.pack is None else replace(one, pack=None) for one in tried]
            cache = Features(pictures, k, draw, n_tested)
            tried += _one_draw(cache, donors, chosen, methods, seed)
            for one in tried[-len(methods) :]:
                said = f"{task} {architecture} k={k} draw={draw} {one.row['method']}"
                print(f"{said}: {one.row['accuracy_tested']:.4f}", file=sys.stderr, flush=True)
    rows = [one.row for one in tried]
    numbers: dict[str, Any] = {
        "n_orders": len(chosen),
        "n_draws": n_draws,
        **{f"accuracy_paper_{name}": value for name, value in (paper or {}).items()},
        **summary(rows, methods, ks),
        **errors(tried),
        **latencies({one.row["method"]: one.pack for one in tried if one.pack is not None}),
    }
    own = [donor.accuracy_test for donor in donors if donor.accuracy_test is not None]
    if own:
        numbers["accuracy_originals_own_classes"] = statistics.mean(own)
    return {**numbers, "rows": rows}


def summary(rows: list[dict[str, Any]], methods: list[str], ks: list[int]) -> dict[str, float]:
    """Means by method and k; the share of the ensemble's accuracy that is kept, and of its parameters."""
    found: dict[str, float] = {}
    for k in ks:
        at = [row for row in rows if row["n_samples_per_class"] == k]
        whole = [row["accuracy_tested"] for row in at if row["method"] == "ensemble"]
        for method in methods:
            mine = [row for row in at if row["method"] == method]
            mean = statistics.mean(row["accuracy_tested"] for row in mine)
            found[f"accuracy_{method}_k{k}"] = mean
            if whole and method != "ensemble":
                found[f"points_under_ensemble_{method}_k{k}"] = 100 * (statistics.mean(whole) - mean)
                found[f"share_of_ensemble_accuracy_{method}_k{k}"] = mean / statistics.mean(whole)
    whole_params = [row["params_mean"] for row in rows if row["method"] == "ensemble"]
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        params = statistics.mean(row["params_mean"] for row in mine)
        found[f"params_{method}"] = params
        if whole_params:
            found[f"params_ratio_{method}"] = params / statistics.mean(whole_params)
        seconds = [
            row["slice_seconds_per_class"] for row in mine if row["slice_seconds_per_class"] is not None
        ]
        if seconds:
            found[f"slice_seconds_per_class_{method}"] = statistics.median(seconds)
        found[f"pack_ms_{method}"] = statistics.median(row["pack_ms"] for row in mine)
    return found


def errors(tried: Sequence[Tried]) -> dict[str, float]:
    """Standard error, over orders, of the points that each method lies under the ensemble, by k."""
    scores: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for one in tried:
        scores.setdefault((one.row["method"], one.row["n_samples_per_class"]), []).append(one.scores)
    found = {}
    for (method, k), mine in scores.items():
        whole = scores.get(("ensemble", k))
        if whole is None or method == "ensemble" or len(mine[0]) < 2:
            continue
        # Draws of one order are averaged first: they share its test images.
        under = [
            statistics.mean(w[order] - m[order] for w, m in zip(whole, mine, strict=True))
            for order in range(len(mine[0]))
        ]
        error = 100 * statistics.stdev(under) / math.sqrt(len(under))
        found[f"points_under_ensemble_{method}_k{k}_error"] = error
    return found


def latencies(packs: Mapping[str, ModelGraph]) -> dict[str, float]:
    """Milliseconds of each pack for one image in ONNX Runtime, one thread, in turns; their ratio to the ensemble's."""
    calls = [onnx_call(load_onnx(to_onnx(pack).SerializeToString())) for pack in packs.values()]
    timings = dict(zip(packs, interleaved(calls, threads=1), strict=True))
    found = {f"latency_ms_{method}": timing.median_ms for method, timing in timings.items()}
    if "ensemble" in timings:
        whole = timings["ensemble"].median_ms
        found |= {f"latency_ratio_{method}": timing.median_ms / whole for method, timing in timings.items()}
    return found


def _one_draw(
    cache: Features, donors: list[Donor], chosen: list[tuple[str, ...]], methods: list[str], seed: int
) -> list[Tried]:
    """All methods on one draw of samples."""
    owner = {cls: donor for donor in donors for cls in donor.classes}
    begun = time.perf_counter()
    samples = {
        cls: cache.pictures.samples(cls, cache.k, cache.draw) for donor in donors for cls in donor.classes
    }
    readings = {donor.name: reading(donor, samples) for donor in donors}
    shared = (time.perf_counter() - begun) / sum(len(donor.classes) for donor in donors)
    rows = []
    for method in methods:
        seconds: list[float] = []
        if method == "probe":
            rows.append(_probe(cache, donors, chosen))
            continue
        if method == "ensemble":
            body: Callable[[str], ModelGraph] = lambda cls: owner[cls].extractor  # noqa: E731
        else:
            wanted = sorted({cls for order in chosen for cls in order})
            made = cut_fragments(CUTS[method], owner, readings, wanted, seed + cache.draw)
            fragments = {cls: one.graph for cls, one in made.items()}
            seconds = [shared + one.seconds for one in made.values()]
            body = fragments.__getitem__
        rows.append(_row(cache, method, chosen, body, statistics.median(seconds) if seconds else None))
    return rows


def _row(
    cache: Features,
    method: str,
    chosen: list[tuple[str, ...]],
    body: Callable[[str], ModelGraph],
    slice_seconds: float | None,
) -> Tried:
    scores, params, flops, sizes, packing = [], [], [], [], []
    first: ModelGraph | None = None
    for order in chosen:
        graphs = [body(cls) for cls in order]
        parts, labels = cache.matrix(graphs, order, "samples")
        begun = time.perf_counter()
        head = fitted(parts, labels).head
        packed = with_head(branch(graphs), head.weight, head.bias)
        packing.append(1000 * (time.perf_counter() - begun))
        first = packed if first is None else first
        tested, truth = cache.matrix(graphs, order, "tested")
        scores.append(float((head.predict(torch.cat(tested, 1)) == truth).float().mean()))
        cost = count(packed)
        params.append(cost.params)
        flops.append(cost.flops)
        sizes.append(cost.size_bytes)
    row = {
        "method": method,
        "n_samples_per_class": cache.k,
        "n_draw": cache.draw,
        "n_orders": len(chosen),
        "accuracy_tested": statistics.mean(scores),
        "accuracy_tested_deviation": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "params_mean": statistics.mean(params),
        "flops_mean": statistics.mean(flops),
        "size_bytes_mean": statistics.mean(sizes),
        "slice_seconds_per_class": slice_seconds,
        "pack_ms": statistics.median(packing),
    }
    return Tried(row, tuple(scores), first)


def _probe(cache: Features, donors: list[Donor], chosen: list[tuple[str, ...]]) -> Tried:
    """A linear probe on the donor that does best on the order's own samples."""
    scores, params, packing = [], [], []
    for order in chosen:
        begun = time.perf_counter()
        rated = []
        for donor in donors:
            x, y = cache.matrix([donor.extractor], order, "samples")
            rated.append((fitted(x, y), donor))
        found, best = max(rated, key=lambda pair: pair[0].loto.accuracy or 0.0)
        head = found.head
        packing.append(1000 * (time.perf_counter() - begun))
        tested, truth = cache.matrix([best.extractor], order, "tested")
        scores.append(float((head.predict(tested[0]) == truth).float().mean()))
        params.append(count(best.extractor).params)
    row = {
        "method": "probe",
        "n_samples_per_class": cache.k,
        "n_draw": cache.draw,
        "n_orders": len(chosen),
        "accuracy_tested": statistics.mean(scores),
        "accuracy_tested_deviation": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "params_mean": statistics.mean(params),
        "flops_mean": None,
        "size_bytes_mean": None,
        "slice_seconds_per_class": None,
        "pack_ms": statistics.median(packing),
    }
    return Tried(row, tuple(scores))
