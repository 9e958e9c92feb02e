"""Widths of a deep residual net: what streams and faint branches count for, against groups that all count alike."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.desk import add_donor, images_of
from benchmarks.slicepack.images import Images, read, to_unit
from benchmarks.slicepack.tasks import CIFAR10
from sarto import Market
from sarto.devices import count
from sarto.engines.slicepack import Readings, allocate, make_fragment, read_donor
from sarto.graph import ModelGraph, restrict
from sarto.market import Intake
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
    data: str,
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
        data: `cifar10` for its test split, or `shipped` for the images that slices are made from, to try it out.
        shares: objective -> shares of the extractor's cost.
        n_images: of each class, that slices are made from.
        n_draws: sets of classes.
        n_tested: images of each class that slices are tested on.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sarto-") as folder,
        Market.create(Path(folder, "market")) as market,
    ):
        learnware = add_donor(market, backbone, n_images)
        graph = ready(market.store.graph("donor"), learnware.preprocessing)
    samples = images_of(n_images).only(CIFAR10)
    readings = read_donor(
        graph,
        Intake(learnware.preprocessing, None).tensor(samples),
        torch.from_numpy(samples.labels.copy()),
        10,
    )
    rows = list(_rows(readings, shares, n_draws, _tested(data, n_tested), np.random.default_rng(seed)))
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
    images: Images,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    widths = {
        (objective, way): allocate(readings, found, objective=objective, streams=streams, alike=alike)
        for objective, found in shares.items()
        for way, (streams, alike) in WAYS.items()
    }
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


def _tested(data: str, n: int) -> Images:
    """So many images of each class."""
    if data == "shipped":
        own = images_of(n).only(CIFAR10)
        return Images(own.images, own.labels, CIFAR10)
    every = read(data, "test")
    chosen = np.concatenate([np.flatnonzero(every.labels == label)[:n] for label in range(10)])
    return Images(every.pixels[chosen], every.labels[chosen], every.classes)


def _accuracy(small: ModelGraph, images: Images, classes: list[int]) -> float:
    wanted = [images.classes.index(CIFAR10[place]) for place in classes]
    chosen = np.isin(images.labels, wanted)
    inputs, labels = to_unit(images.pixels[chosen]), images.labels[chosen]
    said = run(small, inputs)
    return float(np.mean(np.array(wanted)[said.argmax(1).numpy()] == labels))
