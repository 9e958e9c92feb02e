"""Donors of one data set on others: chains of their blocks and single donors under the same closed-form head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.place import data_folder
from benchmarks.reassembly.zero_gradient import accuracy_of, makers_of, zoo_of
from benchmarks.reassembly.zoo import donor, probes, tests, usable
from benchmarks.slicepack.heads import fitted
from sarto.devices import count
from sarto.engines.factory.spaces.numvqa import read_idx
from sarto.engines.reassembly import (
    Limits,
    Sides,
    Tuning,
    Wish,
    best_chains,
    cascade,
    dissect,
    layout,
    random_chains,
    tune_chain,
)
from sarto.engines.reassembly.tuning import Scope
from sarto.errors import RequestError
from sarto.graph import ModelGraph, block, features, with_head

#: Data sets in MNIST's four files, below SARTO_DATA or where Debian's package puts them.
DIGITS = ("mnist", "fashion-mnist")
DEBIAN = Path("/usr/share/datasets")


@dataclass(frozen=True, eq=False)
class Headed:
    """A network under a ridge head that was fitted on the target's labelled images.

    Attributes:
        accuracy_loto: on them, one of each class left out.
    """

    graph: ModelGraph
    accuracy_loto: float


def target_images(target: str, split: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of a target in [0, 1], (n, 3, side, side), and their labels.

    Raises:
        FileNotFoundError: the data set is not there; says where it was looked for.
    """
    if target not in DIGITS:
        return probes(target, n, seed) if split == "train" else tests(target, n)
    places = [data_folder() / target, DEBIAN / target]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"no {target} in {' or '.join(map(str, places))}; Debian has dataset-{target}"
        )
    name = {"train": "train", "test": "t10k"}[split]
    pixels, labels = (
        read_idx(found, f"{name}-images-idx3-ubyte"),
        read_idx(found, f"{name}-labels-idx1-ubyte"),
    )
    order = np.random.default_rng(seed).permutation(len(labels))[:n]
    small = torch.from_numpy(pixels[order].copy()).float()[:, None] / 255
    return F.pad(small, (2,) * 4).expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(
        labels[order].astype(np.int64)
    )


def headed(graph: ModelGraph, inputs: Tensor, labels: Tensor) -> Headed:
    """A classifier, its own last layer replaced by a ridge head for other labels."""
    front = block(graph, end=features(graph).value)
    read = torch.cat([torch.as_tensor(front(part)) for part in inputs.split(250)])
    found = fitted([read], labels)
    weight, bias = (part.to(read.dtype) for part in (found.head.weight, found.head.bias))
    return Headed(with_head(front, weight, bias), found.loto.accuracy or 0.0)


def transfer(
    *,
    data: str,
    members: list[str],
    targets: list[str],
    n_labelled: int,
    n_blocks: int,
    n_listed: int,
    n_headed: int,
    steps: int,
    rates: dict[str, float],
    batch: int,
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """A chain of donors and every donor on other data sets: under a closed-form head, and after a little training.

    The target's labelled images are all that is known of it: heads and stitches are fitted on them, and leaving one of
    each class out says how good each donor is, which chain of the list is taken, and whether chain or donor would be
    delivered. Test images choose nothing.

    Args:
        n_listed: of the best chains by additive value, the first so many answer the target's images.
        n_headed: of these the nearest to their tail donors get a head.
        steps: of training the chain (the paper's frozen protocol, and everything) and the best donor (everything).
    """
    numbers: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for target in targets:
        told = _one_target(
            data,
            usable(data, members),
            target,
            n_labelled,
            n_blocks,
            (n_listed, n_headed),
            n_tested,
            seed,
            {scope: Tuning(scope, steps, batch, rate, seed=seed) for scope, rate in _scopes(rates)},
        )
        rows += told
        numbers |= _summary(told, target.replace("-", "_"))
    return {**numbers, "rows": rows}


def _scopes(rates: dict[str, float]) -> list[tuple[Scope, float]]:
    return [("frozen", rates["frozen"]), ("full", rates["full"])]


def _one_target(
    data: str,
    names: Sequence[str],
    target: str,
    n_labelled: int,
    n_blocks: int,
    listed: tuple[int, int],
    n_tested: int,
    seed: int,
    trainings: dict[Scope, Tuning],
) -> list[dict[str, Any]]:
    inputs, truth = target_images(target, "train", n_labelled, seed)
    images, labels = target_images(target, "test", n_tested, seed)
    donors = [donor(data, name, inputs) for name in names]
    alone = [headed(one.graph, inputs, truth) for one in donors]
    zoo = zoo_of(donors, [one.accuracy_loto for one in alone], min(64, n_labelled))
    found = layout(zoo, dissect(zoo, Limits(n_blocks, 0.8), seed=seed), Wish(sides=Sides(least_donors=2)))
    makers = makers_of(donors, ["sequential", "random"], seed)
    choices = best_chains(found.problem, listed[0]).choices
    ranked = cascade(
        makers["sequential"],
        [(found.chain(choice.path), choice) for choice in choices],
        headed=listed[1],
        labels=truth,
        n_classes=int(truth.max()) + 1,
    )
    pieces = ranked[0].pieces
    drawn = found.chain(random_chains(found.problem, 1, seed=seed)[0].path)
    made = {
        "chain": headed(makers["sequential"].graph(pieces), inputs, truth),
        "chain, random stitches": headed(makers["random"].graph(pieces), inputs, truth),
        "random chain": headed(makers["sequential"].graph(drawn), inputs, truth),
        **{f"donor {name}": one for name, one in zip(names, alone, strict=True)},
    }
    best = max(alone, key=lambda one: one.accuracy_loto)
    rows = []
    for name, one in made.items():
        row: dict[str, Any] = {"target": target, "model": name, "params": count(one.graph).params}
        row["accuracy_loto"] = one.accuracy_loto
        row["accuracy_head"] = accuracy_of(one.graph, images, labels)
        row["best_donor"] = one is best
        for scope, how in trainings.items():
            if name == "chain" or (one is best and scope == "full"):
                try:
                    tuned, _ = tune_chain(one.graph, inputs, how, labels=truth)
                except RequestError as error:  # every stitch was folded: there is none to train
                    row[f"not_trained_{scope}"] = error.detail
                    continue
                row[f"accuracy_{scope}"] = accuracy_of(tuned, images, labels)
        rows.append(row)
    rows[0]["donors"] = "+".join(names[piece.donor] for piece in pieces)
    return rows


def _summary(rows: Sequence[dict[str, Any]], target: str) -> dict[str, Any]:
    chain, best = rows[0], next(row for row in rows if row["best_donor"])
    # A chain that can't be trained says so in its row.
    numbers = {
        f"accuracy_chain_{how}_{target}": chain[f"accuracy_{how}"]
        for how in ("head", "frozen", "full")
        if f"accuracy_{how}" in chain
    }
    numbers |= {f"accuracy_best_donor_{how}_{target}": best[f"accuracy_{how}"] for how in ("head", "full")}
    for name in ("chain, random stitches", "random chain"):
        (row,) = (row for row in rows if row["model"] == name)
        numbers[f"accuracy_{name.replace(', ', '_').replace(' ', '_')}_head_{target}"] = row["accuracy_head"]
    donors = [row["accuracy_head"] for row in rows if row["model"].startswith("donor ")]
    numbers[f"accuracy_donors_head_mean_{target}"] = float(np.mean(donors))
    chosen = max((chain, best), key=lambda row: (row["accuracy_loto"], -row["params"]))
    numbers[f"n_times_chain_preferred_{target}"] = int(chosen is chain)
    numbers[f"accuracy_preferred_{target}"] = chosen["accuracy_head"]
    return numbers
