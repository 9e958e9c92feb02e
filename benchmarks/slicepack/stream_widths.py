"""Widths of a deep residual net: what streams and faint branches count for, against groups that all count alike."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.export_models import MEAN, STD
from benchmarks.predictor import graph_of
from benchmarks.slicepack.donors import EXAMPLES
from benchmarks.slicepack.images import Images, read, to_unit
from benchmarks.slicepack.tasks import CIFAR10
from sarto import Market
from sarto.devices import count
from sarto.engines.slicepack import Readings, allocate, make_fragment, read_donor
from sarto.graph import ModelGraph, restrict
from sarto.market import Intake, Samples, read_samples
from sarto.pipeline.builder import ready, run

#: Name of a way -> whether streams are cut, and whether all groups count alike.
WAYS: Mapping[str, tuple[bool, bool]] = {
    "counted": (True, False),
    "alike": (True, True),
    "whole": (False, False),
}


def stream_widths(
    *,
    backbone: str,
    shares: Mapping[str, list[float]],
    n_images: int,
    n_draws: int,
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy of one slice for two to four classes under the donor's own classifier, at widths of three ways.

    `counted` is what markets stock; in `alike` every group of channels counts alike, as it was before; in `whole`
    streams are never cut. All three save the same share of the extractor's parameters or FLOPs.

    Args:
        backbone: the donor, of `benchmarks.predictor`.
        shares: objective -> shares of the extractor's cost.
        n_images: of each class, that slices are made from.
        n_draws: sets of classes.
        n_tested: images of each class that slices are tested on; without SARTO_DATA those that they are made from.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sarto-") as folder,
        Market.create(Path(folder, "market")) as market,
    ):
        scale = {"size": [32, 32], "channels": 3, "mean": list(MEAN), "std": list(STD)}
        learnware = market.add(
            graph_of(backbone), name="donor", classes=CIFAR10, preprocessing=scale, samples=_images(n_images)
        )
        graph = ready(market.store.graph("donor"), learnware.preprocessing)
    samples = _images(n_images).only(CIFAR10)
    readings = read_donor(
        graph,
        Intake(learnware.preprocessing, None).tensor(samples),
        torch.from_numpy(samples.labels.copy()),
        10,
    )
    rows = list(_rows(readings, shares, n_draws, n_tested, np.random.default_rng(seed)))
    numbers = {
        f"accuracy_{objective}_{round(100 * share)}_{way}": statistics.fmean(
            row["accuracy"]
            for row in rows
            if (row["objective"], row["share"], row["way"]) == (objective, share, way)
        )
        for objective, found in shares.items()
        for share in found
        for way in WAYS
    }
    return {"n_draws": n_draws, **numbers, "rows": rows}


def _rows(
    readings: Readings,
    shares: Mapping[str, list[float]],
    n_draws: int,
    n_tested: int,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    widths = {
        (objective, way): allocate(readings, found, objective=objective, streams=streams, alike=alike)
        for objective, found in shares.items()
        for way, (streams, alike) in WAYS.items()
    }
    images = _tested(n_tested)
    for draw in range(n_draws):
        classes = [int(place) for place in rng.permutation(10)[: rng.integers(2, 5)]]
        for (objective, way), found in widths.items():
            for share, keep in found.items():
                small = restrict(make_fragment(readings, classes, keep)[0], classes)
                cost = count(small)
                yield {
                    "draw": draw,
                    "n_classes": len(classes),
                    "objective": objective,
                    "share": share,
                    "way": way,
                    "accuracy": _accuracy(small, images, classes),
                    "params": cost.params,
                    "flops": cost.flops,
                }


def _images(n: int) -> Samples:
    found = read_samples(EXAMPLES / "images" / "samples")
    if not isinstance(found, Samples):
        raise TypeError("examples/images/samples holds no images")
    return found.take(n)


def _tested(n: int) -> Images:
    """So many images of each class of the test split; those of the examples where there is no data."""
    if "SARTO_DATA" not in os.environ:
        own = _images(n).only(CIFAR10)
        return Images(own.images, own.labels, CIFAR10)
    every = read("cifar10", "test")
    chosen = np.concatenate([np.flatnonzero(every.labels == label)[:n] for label in range(10)])
    return Images(every.pixels[chosen], every.labels[chosen], every.classes)


def _accuracy(small: ModelGraph, images: Images, classes: list[int]) -> float:
    wanted = [images.classes.index(CIFAR10[place]) for place in classes]
    chosen = np.isin(images.labels, wanted)
    inputs, labels = to_unit(images.pixels[chosen]), images.labels[chosen]
    said = run(small, inputs)
    return float(np.mean(np.array(wanted)[said.argmax(1).numpy()] == labels))
