"""What class weighting is worth: one model of many classes, sliced for a few of them, with the weights and without."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.slicepack.donors import Cifar, Donor, Shipped, reading, shipped
from benchmarks.slicepack.originals import MEAN, STD, load_original
from benchmarks.slicepack.prune_and_tune import Scaled
from benchmarks.slicepack.tasks import task
from sarto.devices import count
from sarto.engines.slicepack import RepairSettings, allocate, make_fragment
from sarto.engines.slicepack.repair import GRAIL
from sarto.graph import ModelGraph, capture, normalise, restrict

BATCH = 200
#: Method -> (whether the choice and the repair know the wanted classes, how units are chosen, repair).
METHODS: dict[str, tuple[bool, Literal["css", "random"], RepairSettings]] = {
    "ours": (True, "css", RepairSettings()),
    "ours_two_thirds": (True, "css", RepairSettings(wpos=0.67)),
    "agnostic": (False, "css", RepairSettings()),
    "grail": (False, "css", GRAIL),
    "random": (True, "random", RepairSettings()),
}


def class_weighting(
    *,
    of: str,
    architecture: str,
    place: int,
    k: int,
    shares: list[float],
    n_wanted: int,
    n_subsets: int,
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy among the wanted classes, under the model's own classifier; widths are the same for all methods.

    Args:
        of: the task whose original is taken; `shipped` takes the demo's VGG.
        place: which of the task's originals.
        n_wanted: classes of a subset.
        n_subsets: random subsets, the same for every method.
    """
    donor, pictures = _donor(of, architecture, place, seed)
    samples = {cls: pictures.samples(cls, k, 0) for cls in donor.classes}
    readings = reading(donor, samples)
    tested = {cls: pictures.tested(cls, n_tested) for cls in donor.classes}
    rng = np.random.default_rng(seed)
    subsets = [
        sorted(rng.choice(len(donor.classes), n_wanted, replace=False).tolist()) for _ in range(n_subsets)
    ]
    numbers: dict[str, Any] = {"n_subsets": n_subsets, "n_classes_donor": len(donor.classes)}
    if donor.accuracy_test is not None:
        numbers["accuracy_original_own_classes"] = donor.accuracy_test
    numbers["accuracy_donor"] = statistics.mean(
        _right(donor.graph, donor, wanted, tested) for wanted in subsets
    )
    rows = []
    for share in shares:
        keep = allocate(readings, (share,))[share]
        found: dict[str, list[float]] = {method: [] for method in METHODS}
        for wanted in subsets:
            for method, (aware, criterion, repair) in METHODS.items():
                begun = time.perf_counter()
                graph, _ = make_fragment(
                    readings,
                    wanted if aware else [],
                    keep,
                    criterion=criterion,
                    repair=repair,
                    wpos=repair.wpos,
                    seed=seed,
                )
                seconds = time.perf_counter() - begun
                accuracy = _right(graph, donor, wanted, tested)
                found[method].append(accuracy)
                rows.append(
                    {
                        "method": method,
                        "share": share,
                        "wanted": ", ".join(donor.classes[label] for label in wanted),
                        "accuracy_tested": accuracy,
                        "params": count(graph).params,
                        "slice_seconds": seconds,
                    }
                )
        for method, values in found.items():
            name = f"{method}_{round(100 * share)}"
            numbers[f"accuracy_{name}"] = statistics.mean(values)
            against = [100 * (a - b) for a, b in zip(found["ours"], values, strict=True)]
            if method != "ours":
                numbers[f"points_ours_above_{name}"] = statistics.mean(against)
                spread = statistics.stdev(against) if len(against) > 1 else 0.0
                numbers[f"points_ours_above_{name}_error"] = spread / len(against) ** 0.5
            print(f"{name}: {numbers[f'accuracy_{name}']:.4f}", file=sys.stderr, flush=True)
    return {**numbers, "rows": rows}


def _donor(of: str, architecture: str, place: int, seed: int) -> tuple[Donor, Cifar | Shipped]:
    if of == "shipped":
        return shipped()[place], Shipped()
    chosen = task(of, seed)
    module, about = load_original(of, architecture, place, seed)
    graph = normalise(capture(module, torch.rand(2, 3, 32, 32)), MEAN, STD)
    scaled = Scaled(module, MEAN, STD)
    donor = Donor(f"{architecture}-{place}", chosen.models[place], graph, scaled, about["accuracy_test"])
    return donor, Cifar(chosen.data, seed)


def _right(graph: ModelGraph, donor: Donor, wanted: list[int], tested: dict[str, Tensor]) -> float:
    """Share of the wanted classes' test images that get their class among the wanted ones."""
    own = restrict(graph, wanted)
    right = total = 0
    for place, label in enumerate(wanted):
        images = tested[donor.classes[label]]
        said = torch.cat([torch.as_tensor(own(part)).argmax(1) for part in images.split(BATCH)])
        right, total = right + int((said == place).sum()), total + len(images)
    return right / total
