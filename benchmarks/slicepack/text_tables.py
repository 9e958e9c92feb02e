"""Tables of the paper's text tasks: packs of halved fragments of two text models against the ensemble of both."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.slicepack.heads import fitted
from benchmarks.slicepack.tables import latencies
from benchmarks.slicepack.text import LENGTH, MODELS, Corpus, corpus, original
from sarto.devices import count
from sarto.engines.slicepack import Readings, RepairSettings, make_fragment, read_donor
from sarto.graph import ModelGraph, block, branch, capture, features, with_head

#: Units that count as units of a layer; the dims of word vectors belong to the shared table and stay.
KINDS = ("filters", "recurrent units")


@dataclass(frozen=True, eq=False)
class Reader:
    """A text original as donor."""

    classes: tuple[str, ...]
    graph: ModelGraph

    @property
    def extractor(self) -> ModelGraph:
        return block(self.graph, end=features(self.graph).value)


@dataclass(frozen=True)
class Part:
    """Classes of one donor that come from one fragment."""

    donor: int
    classes: tuple[str, ...]


def text_table(
    *,
    task: str,
    ks: list[int],
    n_draws: int,
    epochs: int,
    share: float,
    paper: dict[str, float] | None = None,
    seed: int,
) -> dict[str, Any]:
    """Accuracy on the test split by reading of the task, one row for each (reading, method, k, draw).

    Reading a: every pair of different classes, one from each model. Reading b: all classes in one order, one fragment
    a donor. Milliseconds of one text are those of the last pair's packs.

    Args:
        task: T6 or T7.
        share: units kept of each layer.
        paper: figures of the paper that stand beside, name -> accuracy.
    """
    data, models = MODELS[task]
    texts = corpus(data)
    found = [original(task, place, seed, epochs) for place in range(len(models))]
    example = torch.zeros(2, LENGTH[data], dtype=torch.int64)
    donors = [
        Reader(classes, capture(module, example)) for classes, (module, _) in zip(models, found, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    packs: dict[str, ModelGraph] = {}
    for k, draw in itertools.product(ks, range(n_draws)):
        drawn = draw_texts(texts, k, seed, draw)
        begun = time.perf_counter()
        readings = [_reading(donor, drawn) for donor in donors]
        read_seconds = (time.perf_counter() - begun) / sum(len(donor.classes) for donor in donors)
        for name, wanted in (("a", _pairs(models)), ("b", [_all(models)])):
            for method in ("ensemble", "ours", "ours_no_repair", "random", "probe"):
                row, pack = _score(method, donors, readings, wanted, texts, drawn, share, seed + draw)
                packs |= {method: pack} if name == "a" else {}
                if row["slice_seconds_per_class"] is not None:
                    row["slice_seconds_per_class"] += read_seconds
                rows.append(
                    {"reading": name, "method": method, "n_samples_per_class": k, "n_draw": draw, **row}
                )
                said = f"{task}{name} k={k} draw={draw} {method}: {row['accuracy_tested']:.4f}"
                print(said, file=sys.stderr, flush=True)
    numbers = {f"accuracy_paper_{name}": value for name, value in (paper or {}).items()}
    for place, (_, accuracy) in enumerate(found):
        numbers[f"accuracy_original_{place}"] = accuracy
    return {**numbers, **_summary(rows, ks), **latencies(packs), "rows": rows}


def _score(
    method: str,
    donors: Sequence[Reader],
    readings: Sequence[Readings],
    wanted: Sequence[Sequence[Part]],
    texts: Corpus,
    drawn: dict[str, Tensor],
    share: float,
    seed: int,
) -> tuple[dict[str, Any], ModelGraph]:
    """The row of a method, mean over orders, and the last pack."""
    scores, params, seconds, packing, costs = [], list[int](), list[float](), list[float](), []
    cut: dict[Part, ModelGraph] = {}
    for parts in wanted:
        order = tuple(dict.fromkeys(cls for part in parts for cls in part.classes))
        graphs = []
        for part in parts:
            if method in ("ensemble", "probe"):
                graphs.append(donors[part.donor].extractor)
                continue
            if part not in cut:
                begun = time.perf_counter()
                cut[part] = _fragment(method, donors[part.donor], readings[part.donor], part, share, seed)
                seconds.append((time.perf_counter() - begun) / len(part.classes))
            graphs.append(cut[part])
        if method == "probe":
            graphs = [_best(graphs, order, drawn)]
        x, y = _matrix(graphs, order, drawn)
        begun = time.perf_counter()
        head = fitted(x, y).head
        pack = with_head(branch(graphs), head.weight, head.bias)
        packing.append(1000 * (time.perf_counter() - begun))
        costs.append(count(pack))
        tested, truth = _matrix(graphs, order, {cls: texts.test.of(cls) for cls in order})
        right = (head.predict(torch.cat(tested, 1)) == truth).float()
        scores.append(float(right.mean()))
        params.append(sum(_layers(graph) for graph in graphs))
    row = {
        "accuracy_tested": statistics.mean(scores),
        "accuracy_tested_deviation": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "n_orders": len(scores),
        "params_mean": statistics.mean(params),
        "flops_mean": statistics.mean(cost.flops for cost in costs),
        "size_bytes_mean": statistics.mean(cost.size_bytes for cost in costs),
        "slice_seconds_per_class": statistics.median(seconds) if seconds else None,
        "pack_ms": statistics.median(packing),
    }
    return row, pack


def _fragment(
    method: str, donor: Reader, readings: Readings, part: Part, share: float, seed: int
) -> ModelGraph:
    groups = [group for group in donor.graph.analysis.sliceable if group.kind in KINDS]
    keep = {group.id: max(1, round(share * group.size)) for group in groups}
    graph, _ = make_fragment(
        readings,
        [donor.classes.index(cls) for cls in part.classes],
        keep,
        criterion="random" if method == "random" else "css",
        repair=None if method == "ours_no_repair" else RepairSettings(),
        seed=seed,
    )
    return block(graph, end=features(graph).value)


def _best(graphs: Sequence[ModelGraph], order: Sequence[str], drawn: dict[str, Tensor]) -> ModelGraph:
    """The donor whose probe does best when samples of the order are left out."""

    def rated(graph: ModelGraph) -> float:
        x, y = _matrix([graph], order, drawn)
        return fitted(x, y).loto.accuracy or 0.0

    return max(graphs, key=rated)


def _matrix(
    graphs: Sequence[ModelGraph], order: Sequence[str], tokens: dict[str, Tensor]
) -> tuple[list[Tensor], Tensor]:
    counts = torch.tensor([len(tokens[cls]) for cls in order])
    whole = torch.cat([tokens[cls] for cls in order])
    parts = [torch.cat([torch.as_tensor(graph(part)) for part in whole.split(500)]) for graph in graphs]
    return parts, torch.repeat_interleave(torch.arange(len(order)), counts)


def _layers(graph: ModelGraph) -> int:
    """Parameters without the table of word vectors, as the paper counts."""
    return sum(graph.tensors[name].numel() for name in graph.parameters if "embedding" not in name)


def draw_texts(texts: Corpus, k: int, seed: int, draw: int) -> dict[str, Tensor]:
    """Token ids of k texts of each class from the pool, which no original was trained on."""
    found = {}
    for cls in texts.pool.classes:
        mine = texts.pool.of(cls)
        generator = np.random.default_rng([seed, draw, sum(cls.encode())])
        found[cls] = mine[torch.from_numpy(generator.permutation(len(mine))[:k])]
    return found


def _reading(donor: Reader, drawn: dict[str, Tensor]) -> Readings:
    inputs = [drawn[cls] for cls in donor.classes]
    labels = torch.repeat_interleave(torch.arange(len(inputs)), torch.tensor([len(x) for x in inputs]))
    return read_donor(donor.graph, torch.cat(inputs), labels, len(inputs))


def _pairs(models: Sequence[tuple[str, ...]]) -> list[list[Part]]:
    return [[Part(0, (a,)), Part(1, (b,))] for a in models[0] for b in models[1] if a != b]


def _all(models: Sequence[tuple[str, ...]]) -> list[Part]:
    return [Part(place, classes) for place, classes in enumerate(models)]


def _summary(rows: list[dict[str, Any]], ks: list[int]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, k in itertools.product("ab", ks):
        at = [row for row in rows if row["reading"] == name and row["n_samples_per_class"] == k]
        means = {
            method: statistics.mean(row["accuracy_tested"] for row in at if row["method"] == method)
            for method in dict.fromkeys(row["method"] for row in at)
        }
        for method, mean in means.items():
            found[f"accuracy_{name}_{method}_k{k}"] = mean
            if method != "ensemble":
                found[f"points_under_ensemble_{name}_{method}_k{k}"] = 100 * (means["ensemble"] - mean)
    for name in "ab":
        sizes = {
            method: statistics.mean(
                row["params_mean"] for row in rows if (row["reading"], row["method"]) == (name, method)
            )
            for method in ("ensemble", "ours")
        }
        found[f"params_{name}_ensemble"], found[f"params_{name}_ours"] = sizes["ensemble"], sizes["ours"]
        found[f"params_ratio_{name}_ours"] = sizes["ours"] / sizes["ensemble"]
    return found
