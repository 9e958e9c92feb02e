"""A ViT and a GRU sliced by class at half of their hidden units, against the whole model on its own classes."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.slicepack.donors import Cifar, Shipped
from benchmarks.slicepack.heads import fitted
from benchmarks.slicepack.originals import FOLDER, MEAN, RECIPES, STD, load_original, train, train_original
from benchmarks.slicepack.tasks import task
from benchmarks.slicepack.text import LENGTH, MODELS, corpus, original
from benchmarks.slicepack.text_tables import draw_texts
from sarto.devices import count, params_by_tensor
from sarto.engines.slicepack import Readings, RepairSettings, make_fragment, read_donor
from sarto.graph import ModelGraph, block, branch, capture, features, normalise, with_head
from sarto.graph.model import TensorRef

BATCH = 250
#: Method -> (a fragment for each class or one for all, how units are chosen, repair). `donor` is the whole model.
CUTS = {
    "ours": (True, "css", True),
    "ours_together": (False, "css", True),
    "random": (True, "random", True),
    "ours_no_repair": (True, "css", False),
}
METHODS = ("donor", *CUTS)
#: A head that is fitted on the k samples of each class, as an order's; or the donor's own classifier, of which each
#: fragment gives the scores of its classes.
HEADS = ("new_head", "own_head")


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model and the data of its own classes.

    Attributes:
        graph: the whole model, normalisation in front.
        kinds: channel groups that are cut, by their kind.
        samples: (k, draw) -> class -> inputs that training did not see.
        tested: class -> inputs of the test split.
        about: how the model came to be; for the report only.
    """

    name: str
    classes: tuple[str, ...]
    graph: ModelGraph
    kinds: tuple[str, ...]
    samples: Callable[[int, int], Mapping[str, Tensor]]
    tested: Mapping[str, Tensor]
    about: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Pack:
    """Fragments of one model, and for each class which of them speaks for it under the donor's own head."""

    graphs: tuple[ModelGraph, ...]
    speakers: tuple[int, ...]
    seconds: float

    @property
    def extractors(self) -> list[ModelGraph]:
        return [block(graph, end=features(graph).value) for graph in self.graphs]


def vit(
    *, data: str, place: int, epochs: int, ks: list[int], n_draws: int, n_tested: int, share: float, seed: int
) -> dict[str, Any]:
    """A small ViT on one model's classes of T1; trained where it is missing.

    Args:
        data: cifar10 under SARTO_DATA, or `shipped`: the images in examples/, for small runs; nothing is kept then.
        place: which of T1's models.
        share: hidden units kept of each feed-forward layer; attention stays whole.
    """
    of = task("T1", seed)
    classes = of.models[place]
    pictures = Shipped() if data == "shipped" else Cifar(data, seed)
    if data == "shipped":
        images = torch.cat([pictures.samples(cls, 16, 0) for cls in classes])
        labels = torch.arange(len(classes)).repeat_interleave(16)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "vit.checkpoint"
            module = train(RECIPES["vit"], images, labels, len(classes), [32] * epochs, seed, checkpoint)
        about: dict[str, Any] = {"epochs": epochs}
    else:
        path = FOLDER / f"{of.name}-vit-{seed}-{place}.json"
        if not path.exists():
            train_original(of, "vit", place, [32] * epochs, seed)
        module, about = load_original(of.name, "vit", place, seed)
        if about["epochs"] != epochs:
            raise ValueError(
                f"{path.name} says {about['epochs']} epochs, asked for {epochs}; delete it to train anew"
            )
    subject = Subject(
        "vit",
        classes,
        normalise(capture(module, torch.rand(2, 3, 32, 32)), MEAN, STD),
        ("hidden units",),
        lambda k, draw: {cls: pictures.samples(cls, k, draw) for cls in classes},
        {cls: pictures.tested(cls, n_tested) for cls in classes},
        _told(about),
    )
    return compare(subject, ks, n_draws, share, seed)


def gru(*, task: str, epochs: int, ks: list[int], n_draws: int, share: float, seed: int) -> dict[str, Any]:
    """A two-way GRU on all classes of its texts; trained where it is missing.

    Args:
        task: one of `text.MODELS`; its first model is taken.
        share: hidden units kept of each direction; word vectors stay whole.
    """
    data, models = MODELS[task]
    texts, classes = corpus(data), models[0]
    module, _ = original(task, 0, seed, epochs)
    path = FOLDER / f"{task}-{seed}-0-{epochs}.json"
    about = json.loads(path.read_text()) if path.exists() else {}
    subject = Subject(
        "gru",
        classes,
        capture(module, torch.zeros(2, LENGTH[data], dtype=torch.int64)),
        ("recurrent units",),
        lambda k, draw: draw_texts(texts, k, seed, draw),
        {cls: texts.test.of(cls) for cls in classes},
        _told({"epochs": epochs, **about}),
    )
    return compare(subject, ks, n_draws, share, seed)


def compare(subject: Subject, ks: Sequence[int], n_draws: int, share: float, seed: int) -> dict[str, Any]:
    """Accuracy on the test split of the model's own classes, one row for each (method, head, k, draw)."""
    whole = Pack((subject.graph,), (0,) * len(subject.classes), 0.0)
    tested, truth = _joined(subject.classes, subject.tested)
    donor_seen = [_run(graph, tested) for graph in whole.extractors]
    rows: list[dict[str, Any]] = []
    for k, draw in itertools.product(ks, range(n_draws)):
        drawn, labels = _joined(subject.classes, subject.samples(k, draw))
        begun = time.perf_counter()
        readings = read_donor(subject.graph, drawn, labels, len(subject.classes))
        shared = time.perf_counter() - begun
        for method in METHODS:
            pack = whole if method == "donor" else cut_pack(method, subject, readings, share, seed + draw)
            bodies = pack.extractors
            seen = donor_seen if method == "donor" else [_run(graph, tested) for graph in bodies]
            head = fitted([_run(graph, drawn) for graph in bodies], labels).head
            heads = {"new_head": (head.weight, head.bias), "own_head": own_head(pack)}
            for name in HEADS:
                weight, bias = heads[name]
                scores = torch.cat(seen, 1).double() @ weight.double().T + bias.double()
                # Fragments of one model share what lies before the first cut; it is run and counted once.
                packed = with_head(branch(bodies), weight.float(), bias.float())
                rows.append(
                    {
                        "model": subject.name,
                        "method": method,
                        "head": name,
                        "n_samples_per_class": k,
                        "n_draw": draw,
                        "accuracy_tested": float((scores.argmax(1) == truth).float().mean()),
                        "n_fragments": len(bodies),
                        "params": _layers(packed),
                        "flops": count(packed).flops,
                        "slice_seconds_per_class": (shared + pack.seconds) / len(subject.classes)
                        if method != "donor"
                        else None,
                    }
                )
                said = f"{subject.name} k={k} draw={draw} {method} {name}: {rows[-1]['accuracy_tested']:.4f}"
                print(said, file=sys.stderr, flush=True)
    numbers = {
        "n_tested": len(truth),
        "n_classes": len(subject.classes),
        "n_draws": n_draws,
        **{f"{name}_donor": value for name, value in subject.about.items()},
    }
    return {**numbers, **summary(rows, ks), "rows": rows}


def cut_pack(method: str, subject: Subject, readings: Readings, share: float, seed: int) -> Pack:
    """Fragments of all own classes of a model: one for each class, or one for all."""
    each, criterion, repaired = CUTS[method]
    every = range(len(subject.classes))
    groups = [group for group in subject.graph.analysis.sliceable if group.kind in subject.kinds]
    keep = {group.id: max(1, round(share * group.size)) for group in groups}
    begun = time.perf_counter()
    made = tuple(
        make_fragment(
            readings,
            classes,
            keep,
            criterion="random" if criterion == "random" else "css",
            repair=RepairSettings() if repaired else None,
            # Random units differ from class to class, as ours may.
            seed=100 * seed + place,
        )[0]
        for place, classes in enumerate([[label] for label in every] if each else [list(every)])
    )
    seconds = time.perf_counter() - begun
    return Pack(made, tuple(every) if each else (0,) * len(every), seconds)


def own_head(pack: Pack) -> tuple[Tensor, Tensor]:
    """The donor's classifier on features side by side: the score of a class is what its fragment says.

    Returns:
        weight (n_classes, joined width), bias (n_classes,).
    """
    widths = [features(graph).width for graph in pack.graphs]
    starts = [0, *itertools.accumulate(widths)]
    weight = torch.zeros(len(pack.speakers), starts[-1])
    bias = torch.zeros(len(pack.speakers))
    for label, speaker in enumerate(pack.speakers):
        graph = pack.graphs[speaker]
        args = graph.node(features(graph).classifier).args
        for name, into in (
            ("weight", weight[:, starts[speaker] : starts[speaker + 1]]),
            ("bias", bias),
        ):
            arg = args.get(name)
            if isinstance(arg, TensorRef):
                into[label] = graph.tensors[arg.name][label]
    return weight, bias


def summary(rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> dict[str, float]:
    """Means over draws by method, head and k; points under the whole model with its own head, and the worst draw."""
    found: dict[str, float] = {}

    def at(method: str, head: str, k: int) -> list[Mapping[str, Any]]:
        wanted = (method, head, k)
        return [row for row in rows if (row["method"], row["head"], row["n_samples_per_class"]) == wanted]

    for k, method, head in itertools.product(ks, METHODS, HEADS):
        mine, full = at(method, head, k), at("donor", "own_head", k)
        name = f"{method}_{head}_k{k}"
        found[f"accuracy_{name}"] = statistics.mean(row["accuracy_tested"] for row in mine)
        if (method, head) != ("donor", "own_head"):
            under = [
                100 * (whole["accuracy_tested"] - row["accuracy_tested"])
                for whole, row in zip(full, mine, strict=True)
            ]
            found[f"points_under_donor_{name}"] = statistics.mean(under)
            found[f"points_under_donor_worst_{name}"] = max(under)
    for method in METHODS:
        # Heads of one method have the same size; sizes don't depend on the samples but for shared parts.
        mine, full = at(method, "own_head", ks[-1]), at("donor", "own_head", ks[-1])
        for cost in ("params", "flops"):
            found[f"{cost}_{method}"] = statistics.mean(row[cost] for row in mine)
            whole_cost = statistics.mean(row[cost] for row in full)
            found[f"{cost}_ratio_{method}"] = found[f"{cost}_{method}"] / whole_cost
        if method != "donor":
            found[f"slice_seconds_per_class_{method}"] = statistics.median(
                row["slice_seconds_per_class"] for row in mine
            )
    return found


def _joined(classes: Sequence[str], inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([len(inputs[cls]) for cls in classes])
    return torch.cat([inputs[cls] for cls in classes]), torch.repeat_interleave(
        torch.arange(len(classes)), counts
    )


def _run(graph: ModelGraph, inputs: Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(graph(part)) for part in inputs.split(BATCH)])


def _layers(graph: ModelGraph) -> int:
    """Parameters without the table of word vectors, as in the tables of texts."""
    counted = params_by_tensor(graph)
    return sum(size for name, size in counted.items() if "embedding" not in name)


def _told(about: Mapping[str, Any]) -> dict[str, float]:
    """Numbers that the report shows, under names with a unit."""
    names = {"epochs": "n_epochs", "accuracy_test": "accuracy_test", "train_seconds": "train_seconds"}
    return {new: about[old] for old, new in names.items() if about.get(old) is not None}
