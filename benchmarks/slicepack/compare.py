"""The paper's method and the methods that it was compared with, beside ours: same donors, same samples, one run."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.slicepack.donors import Donor, Pictures, reading, setting
from benchmarks.slicepack.heads import fitted
from benchmarks.slicepack.methods import Cut, cut_fragment
from benchmarks.slicepack.prune_and_tune import available, prune_and_tune
from benchmarks.slicepack.tasks import orders
from sarto.engines.baselines import BASELINES, Budget, Given, GrailSettings, Original, largest_units
from sarto.engines.slicepack import GRAIL, Readings, make_fragment, rate_widths
from sarto.engines.slicepack.paper import PaperSettings, paper_fragment, paper_pack
from sarto.graph import ModelGraph, block, features

TRAINED = ("probe", "finetune", "camkd", "netgraft", "ensemble", "prune_and_tune")
CUT = ("ours", "ours_allocated", "random", "energy", "energy_no_repair")
PAPER = ("paper_rate", "paper_rate_ridge", "paper_threshold")
#: GRAIL with either of its selectors, at the widths of the others: its units, its repair, no class weighs more.
OTHERS = ("grail", "grail_wanda")


@dataclass(frozen=True, eq=False)
class Made:
    """A method on one order: its scores of test images, its size, and what it took.

    Attributes:
        steps: updates of weights for the whole order.
        note: what a baseline says of itself.
    """

    scores: Tensor
    params: int
    seconds_per_class: float
    steps: int
    note: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """The extractor of a fragment, seconds that it took, and updates of weights."""

    graph: ModelGraph
    seconds: float
    steps: int = 0


@dataclass(eq=False)
class Bench:
    """Donors, samples and settings that all methods of a run share; fragments are cut once."""

    donors: list[Donor]
    pictures: Pictures
    k: int
    draw: int
    n_tested: int
    beta: float
    paper: Mapping[str, Any]
    steps: int | None
    seed: int

    def __post_init__(self) -> None:
        self.owner = {cls: donor for donor in self.donors for cls in donor.classes}
        self.samples = {cls: self.pictures.samples(cls, self.k, self.draw) for cls in self.owner}
        begun = time.perf_counter()
        self.readings: dict[str, Readings] = {d.name: reading(d, self.samples) for d in self.donors}
        self.read_seconds = (time.perf_counter() - begun) / len(self.owner)
        self.fragments: dict[tuple[str, str], Part] = {}

    def inputs(self, order: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """The order's samples and labels."""
        parts = [self.samples[cls] for cls in order]
        return torch.cat(parts), torch.arange(len(order)).repeat_interleave(self.k)

    def tested(self, order: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Test images of an order's classes and their labels."""
        parts = [self.pictures.tested(cls, self.n_tested) for cls in order]
        counts = torch.tensor([len(part) for part in parts])
        return torch.cat(parts), torch.arange(len(order)).repeat_interleave(counts)

    def make(self, method: str, order: tuple[str, ...]) -> Made:
        """Run a method on an order.

        Raises:
            ValueError: no such method.
        """
        if method in TRAINED:
            return self._trained(method, order)
        if method not in (*CUT, *PAPER, *OTHERS):
            known = ", ".join((*TRAINED, *CUT, *PAPER, *OTHERS))
            raise ValueError(f"no method {method!r}; known: {known}")
        cut = [self.fragment(method.removesuffix("_ridge"), cls) for cls in order]
        graphs, steps = [part.graph for part in cut], sum(part.steps for part in cut)
        inputs, labels = self.inputs(order)
        images, _ = self.tested(order)
        parts, tested = ([_run(graph, x) for graph in graphs] for x in (inputs, images))
        params = sum(graph.tensors[name].numel() for graph in graphs for name in graph.parameters)
        begun = time.perf_counter()
        if method in ("paper_rate", "paper_threshold"):
            settings = self.settings(method)
            pack = paper_pack(parts, labels, len(order), settings)
            steps += settings.pack_steps
            scores = pack.scores(torch.cat(tested, 1))
            params += sum(tensor.numel() for tensor in (*pack.encoder, *pack.classifier))
        else:
            head = fitted(parts, labels).head
            scores = head.scores(torch.cat(tested, 1))
            params += head.weight.numel() + head.bias.numel()
        packing = (time.perf_counter() - begun) / len(order)
        return Made(scores, params, packing + statistics.mean(part.seconds for part in cut), steps)

    def settings(self, method: str) -> PaperSettings:
        """The paper's method as this run trains it."""
        select = "threshold" if method == "paper_threshold" else "rate"
        return PaperSettings.parse({"select": select, "beta": self.beta, "seed": self.seed, **self.paper})

    def fragment(self, method: str, cls: str) -> Part:
        """The fragment of a class by a method; cut once."""
        if (method, cls) not in self.fragments:
            donor = self.owner[cls]
            if method in CUT:
                criterion = "css" if method.startswith("ours") else method.removesuffix("_no_repair")
                cut = Cut(
                    method,
                    self.beta**2,
                    allocated=method == "ours_allocated",
                    criterion=criterion,  # type: ignore[arg-type]
                    repair=method != "energy_no_repair",
                )
                made = cut_fragment(cut, donor, self.readings[donor.name], cls, self.seed)
                self.fragments[method, cls] = Part(made.graph, self.read_seconds + made.seconds)
            elif method in OTHERS:
                self.fragments[method, cls] = self._grail(method, donor)
            else:
                self.fragments[method, cls] = self._paper(method, donor, cls)
        return self.fragments[method, cls]

    def _grail(self, method: str, donor: Donor) -> Part:
        """The whole donor with GRAIL's units and repair; all of its classes share the seconds."""
        begun = time.perf_counter()
        inputs = (
            torch.cat([self.samples[name] for name in donor.classes]) if method == "grail_wanda" else None
        )
        settings = GrailSettings(selector="l1" if inputs is None else "wanda")
        units = largest_units(donor.graph, settings, inputs, counts=rate_widths(donor.graph, self.beta))
        graph, _ = make_fragment(self.readings[donor.name], [], units, repair=GRAIL)
        seconds = (time.perf_counter() - begun) / len(donor.classes)
        return Part(block(graph, end=features(graph).value), self.read_seconds + seconds)

    def _paper(self, method: str, donor: Donor, cls: str) -> Part:
        begun, updates = time.perf_counter(), list[int]()
        inputs = torch.cat([self.samples[name] for name in donor.classes])
        labels = torch.arange(len(donor.classes)).repeat_interleave(self.k)
        keep = None if method == "paper_threshold" else rate_widths(donor.graph, self.beta)
        made = paper_fragment(
            donor.graph,
            inputs,
            labels,
            len(donor.classes),
            donor.classes.index(cls),
            self.settings(method),
            lambda _, done, total: updates.append(1),
            keep=keep,
        )
        seconds = time.perf_counter() - begun
        print(f"{method} {cls}: {seconds:.0f} s", file=sys.stderr, flush=True)
        return Part(block(made.graph, end=features(made.graph).value), seconds, sum(updates))

    def _trained(self, method: str, order: tuple[str, ...]) -> Made:
        inputs, labels = self.inputs(order)
        wanted = {self.owner[cls].name for cls in order}
        originals = tuple(
            Original(
                donor.name, donor.graph, donor.classes, torch.cat([self.samples[c] for c in donor.classes])
            )
            for donor in self.donors
            if donor.name in wanted
        )
        budget = Budget(steps=self.steps) if method not in ("probe", "ensemble") else Budget()
        given = Given(originals, order, inputs, labels, self.seed, budget)
        if method == "prune_and_tune":
            # As large as the packs of the same order.
            limit = self.make("ours", order).params
            found = prune_and_tune(given, {donor.name: donor.module for donor in self.donors}, limit)
        else:
            found = BASELINES[method](given)
        images, _ = self.tested(order)
        seconds = found.seconds / len(order)
        return Made(found.scores(images), found.params, seconds, found.steps, found.note)


def compare(
    *,
    task: str,
    architecture: str,
    k: int,
    n_orders: int,
    n_tested: int,
    beta: float,
    methods: list[str],
    paper: dict[str, Any],
    steps: int | None,
    seed: int,
) -> dict[str, Any]:
    """Accuracy, size, seconds a class and updates of each method, mean over orders; one draw of samples.

    Args:
        beta: share of every layer's units that fragments keep; `ours_allocated` has the same size, solved by layer.
        methods: of `TRAINED`, `CUT`, `PAPER` and `OTHERS`.
        paper: numbers of the paper's method that differ from its defaults.
        steps: updates that each trained baseline may do; None: as its own settings say.
    """
    of, donors, pictures = setting(task, architecture, seed)
    if missing := available():
        print(f"prune_and_tune is left out: {missing}", file=sys.stderr, flush=True)
        methods = [method for method in methods if method != "prune_and_tune"]
    bench = Bench(donors, pictures, k, 0, n_tested, beta, paper, steps, seed)
    chosen = orders(of, n_orders, seed)
    rows: list[dict[str, Any]] = []
    for order in chosen:
        _, truth = bench.tested(order)
        for method in methods:
            made = bench.make(method, order)
            accuracy = float((made.scores.argmax(1) == truth).float().mean())
            rows.append(
                {
                    "method": method,
                    "order": " ".join(order),
                    "accuracy_tested": accuracy,
                    "params": made.params,
                    "seconds_per_class": made.seconds_per_class,
                    "n_steps": made.steps,
                    "note": made.note,
                }
            )
            print(f"{' '.join(order)} {method}: {accuracy:.4f}", file=sys.stderr, flush=True)
    numbers: dict[str, Any] = {"n_orders": len(chosen), "n_samples_per_class": k}
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        numbers[f"accuracy_{method}"] = statistics.mean(row["accuracy_tested"] for row in mine)
        numbers[f"params_{method}"] = statistics.mean(row["params"] for row in mine)
        numbers[f"seconds_per_class_{method}"] = statistics.mean(row["seconds_per_class"] for row in mine)
        numbers[f"n_steps_{method}"] = statistics.mean(row["n_steps"] for row in mine)
    if {"ours", "paper_rate"} <= set(methods):
        numbers["paper_to_ours_seconds_ratio"] = (
            numbers["seconds_per_class_paper_rate"] / numbers["seconds_per_class_ours"]
        )
    if "ensemble" in methods:
        for method in methods:
            share = numbers[f"accuracy_{method}"] / numbers["accuracy_ensemble"]
            numbers[f"share_of_ensemble_accuracy_{method}"] = share
    return {**numbers, "rows": rows}


def _run(graph: ModelGraph, images: Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(graph(part)) for part in images.split(200)])
