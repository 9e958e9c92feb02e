"""What chains of blocks know without a gradient step, beside their donors and beside controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.reassembly.zoo import donor, probes, tests, usable
from sarto.devices import count
from sarto.engines.reassembly import (
    Assembler,
    Donor,
    Entry,
    Fit,
    Limits,
    Making,
    Piece,
    Wish,
    Zoo,
    best_chains,
    cascade,
    dissect,
    final_features,
    kendall,
    layout,
    probe,
    random_chains,
)
from sarto.engines.reassembly.problem import Sides
from sarto.engines.reassembly.proxies import PROXIES
from sarto.graph import ModelGraph

#: Images that zero-cost proxies look at.
PROXY_IMAGES = 32
#: How chains are stitched: the default, and what it is compared with.
WAYS = {
    "sequential": Making(),
    "independent": Making(sequential=False),
    "random": Making(),
    "narrow": Making(Fit(kernel=1)),
}


def accuracy_of(graph: ModelGraph, inputs: Tensor, labels: Tensor) -> float:
    """Share of images that get their label."""
    said = []
    for part in inputs.split(250):
        out = graph(part)
        if isinstance(out, Tensor):
            said.append(out.argmax(1))
    return float((torch.cat(said) == labels).float().mean())


def zoo_of(donors: list[Donor], skills: list[float], batch: int) -> Zoo:
    """The index of donors, in memory."""
    rows, at, entries = [], 0, []
    for one, skill in zip(donors, skills, strict=True):
        found = probe(one.graph, one.anatomy, one.inputs, batch=batch)
        rows.append(found.signatures)
        n = len(found.signatures)
        entries.append(Entry(one.key, one.anatomy, np.arange(at, at + n), skill, one.graph))
        at += n
    return Zoo(tuple(entries), np.concatenate(rows))


def same_depth(
    *,
    data: str,
    members: list[str],
    n_probes: int,
    n_blocks: int,
    n_chains: int,
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """Chains of blocks of different donors, dissected jointly, stitched in closed form; nothing is trained.

    Chains are random choices of donors for the stages of the joint dissection, at least three donors each (two where
    the zoo has no more); the share of the tail donor's accuracy that they keep is averaged over chains. The solver
    knows the donors' skills from the labels of the probe images; test images choose nothing.
    """
    inputs, truth = probes(data, n_probes, seed)
    images, labels = tests(data, n_tested)
    donors = [donor(data, name, inputs) for name in usable(data, members)]
    own = [accuracy_of(one.graph, images, labels) for one in donors]
    zoo = zoo_of(donors, [accuracy_of(one.graph, inputs, truth) for one in donors], min(64, n_probes))
    parting = dissect(zoo, Limits(n_blocks, 0.8), seed=seed)
    found = layout(zoo, parting, Wish(sides=Sides(least_donors=min(3, len(donors), n_blocks))))
    paths = [choice.path for choice in random_chains(found.problem, n_chains, seed=seed)]
    best = best_chains(found.problem, 1).choices[0].path
    makers = makers_of(donors, [*WAYS], seed)
    told = [measured(makers, found.chain(path), own, images, labels) for path in [best, *paths]]
    rows = [
        row | {"chosen": "solver" if path == best else "drawn"}
        for row, path in zip(told, [best, *paths], strict=True)
    ]
    drawn = [row for row in rows if row["chosen"] == "drawn"]
    selfs = [self_stitch(donors, i, parting.bounds[i], images, labels) for i in range(len(donors))]
    numbers: dict[str, Any] = {
        f"accuracy_{name}_mean": float(np.mean([row[f"accuracy_{name}"] for row in drawn])) for name in WAYS
    }
    return {
        **numbers,
        "accuracy_tail_mean": float(np.mean([row["accuracy_tail"] for row in drawn])),
        "kept_share_mean": float(np.mean([row["kept_share"] for row in drawn])),
        "kept_share_best": float(max(row["kept_share"] for row in rows)),
        "kept_share_solver": rows[0]["kept_share"],
        "kept_share_self_stitch_mean": float(np.mean([a / b for a, b in zip(selfs, own, strict=True)])),
        "n_costs_not_as_predicted": sum(not row["costs_as_predicted"] for row in rows),
        "n_donors": len(donors),
        "n_chains": len(drawn),
        "rows": [{k: v for k, v in row.items() if k != "costs_as_predicted"} for row in rows],
    }


def _proxies(graphs: list[ModelGraph], images: Tensor) -> dict[str, list[float]]:
    """Every zero-cost proxy of every chain."""
    return {name: [proxy(graph, images) for graph in graphs] for name, proxy in PROXIES.items()}


def makers_of(donors: Sequence[Donor], ways: Sequence[str], seed: int) -> dict[str, Assembler]:
    """One maker of chains for each of some `WAYS`."""
    return {
        name: Assembler(donors, replace(WAYS[name], random=seed + 1) if name == "random" else WAYS[name])
        for name in ways
    }


def measured(
    makers: Mapping[str, Assembler],
    pieces: Sequence[Piece],
    own: Sequence[float],
    images: Tensor,
    labels: Tensor,
) -> dict[str, Any]:
    """A chain: its donors, accuracy by each way of stitching beside the tail donor's, whether costs are as predicted.

    Args:
        own: accuracy of each donor on the same images.
    """
    sequential = makers["sequential"]
    keys, tail = [sequential.donors[p.donor].key for p in pieces], pieces[-1].donor
    row: dict[str, Any] = {"donors": "+".join(keys), "tail": keys[-1], "accuracy_tail": own[tail]}
    for name, maker in makers.items():
        row[f"accuracy_{name}"] = accuracy_of(maker.graph(pieces), images, labels)
    built, cost = count(sequential.graph(pieces)), sequential.cost(pieces)
    row["params"] = built.params
    row["costs_as_predicted"] = (built.params, built.flops) == (cost.params, cost.flops)
    row["kept_share"] = row["accuracy_sequential"] / max(own[tail], 1e-9)
    return row


def self_stitch(donors: list[Donor], i: int, bounds: np.ndarray, images: Tensor, labels: Tensor) -> float:
    """Accuracy of a donor cut where it is dissected and joined by fitted stitches."""
    ends: list[int | None] = [None, *(int(b[1]) for b in bounds[:-1]), None]
    pieces = [Piece(i, ends[j], ends[j + 1]) for j in range(len(ends) - 1)]
    return accuracy_of(Assembler(donors).graph(pieces, keep_cuts=True), images, labels)


def ranking(
    *, data: str, members: list[str], n_probes: int, n_blocks: int, n_listed: int, n_tested: int, seed: int
) -> dict[str, Any]:
    """How the steps of the cascade order a list of chains: Kendall's tau with their measured accuracy."""
    inputs, truth = probes(data, n_probes, seed)
    images, labels = tests(data, n_tested)
    donors = [donor(data, name, inputs) for name in usable(data, members)]
    own = [accuracy_of(one.graph, inputs, truth) for one in donors]
    zoo = zoo_of(donors, own, min(64, n_probes))
    found = layout(zoo, dissect(zoo, Limits(n_blocks, 0.8), seed=seed), Wish(sides=Sides(least_donors=2)))
    maker = Assembler(donors)
    listed = random_chains(found.problem, n_listed, seed=seed)
    ordered = sorted(((found.chain(c.path), c) for c in listed), key=lambda pair: -pair[1].value)
    ranked = cascade(
        maker,
        ordered,
        checked=len(ordered),
        headed=len(ordered),
        labels=truth,
        n_classes=len(set(truth.tolist())),
    )
    measured = [accuracy_of(maker.graph(item.pieces), images, labels) for item in ranked]
    scores = {
        "additive": [item.value for item in ranked],
        "agreement": [item.agreement or 0.0 for item in ranked],
        "divergence": [-(item.divergence or 0.0) for item in ranked],
        "closeness": [item.closeness or 0.0 for item in ranked],
        "head": [item.accuracy_loto or 0.0 for item in ranked],
        "params": [float(maker.cost(item.pieces).params) for item in ranked],
    }
    scores |= _proxies([maker.graph(item.pieces) for item in ranked], inputs[:PROXY_IMAGES])
    found_taus = {f"tau_{name}": kendall(values, measured) for name, values in scores.items()}
    taus = {name: tau for name, tau in found_taus.items() if tau is not None}
    return {
        **taus,
        "n_chains": len(ranked),
        "accuracy_first": measured[0],
        "accuracy_mean": float(np.mean(measured)),
        "accuracy_best": max(measured),
        "n_features": int(final_features(maker, ranked[0].pieces).shape[1]),
    }
