"""Chains of convolutional nets alone, and chains that mix them with transformers, without a gradient step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.reassembly.zero_gradient import accuracy_of, makers_of, measured, self_stitch, zoo_of
from benchmarks.reassembly.zoo import TRANSFORMERS, donor, probes, tests, usable
from sarto.engines.reassembly import (
    Choice,
    Limits,
    Piece,
    Sides,
    Wish,
    best_chains,
    cascade,
    dissect,
    layout,
    random_chains,
)
from sarto.engines.reassembly.planning import Layout

#: Kinds of chains that are reported; one of transformers alone is not.
KINDS = ("cnn", "mixed")
WAYS = ("sequential", "independent", "random")
#: Chains that are drawn, or listed best first, to find some of each kind among them.
DRAWN, LISTED = 400, 500


def mixed(
    *,
    data: str,
    members: list[str],
    n_probes: list[int],
    n_blocks: list[int],
    n_chains: int,
    n_checked: int,
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracy that chains keep of their tail donor's, by kind, number of blocks and number of unlabelled images.

    Chains are random choices of donors for the stages of the joint dissection, at least three donors each, and for each
    kind one that is chosen: of the best by additive value the one whose answers on the probe images are nearest to its
    tail donor's. The solver knows the donors' skills from the labels of the probe images; test images choose nothing.

    Args:
        n_chains: drawn of each kind.
        n_checked: chains of each kind whose answers are looked at before one is chosen.
    """
    images, labels = tests(data, n_tested)
    names = usable(data, members)
    numbers: dict[str, Any] = {"n_donors": len(names)}
    rows: list[dict[str, Any]] = []
    for n in n_probes:
        inputs, truth = probes(data, n, seed)
        donors = [donor(data, name, inputs) for name in names]
        own = [accuracy_of(one.graph, images, labels) for one in donors]
        zoo = zoo_of(donors, [accuracy_of(one.graph, inputs, truth) for one in donors], min(64, n))
        makers = makers_of(donors, WAYS, seed)
        for k in n_blocks:
            parting = dissect(zoo, Limits(k, 0.8), seed=seed)
            found = layout(zoo, parting, Wish(sides=Sides(least_donors=min(3, len(donors), k))))
            drawn = _by_kind(found, random_chains(found.problem, DRAWN, seed=seed), names)
            best = _by_kind(found, best_chains(found.problem, LISTED).choices, names)
            for kind in KINDS:
                chains = [(found.chain(choice.path), "drawn") for choice in drawn[kind][:n_chains]]
                ranked = cascade(
                    makers["sequential"],
                    [(found.chain(choice.path), choice) for choice in best[kind][:n_checked]],
                )
                chains += [(item.pieces, "chosen") for item in ranked[:1]]
                told = [
                    measured(makers, pieces, own, images, labels)
                    | {"chosen": how, "kind": kind, "n_blocks": k, "n_probes": n}
                    for pieces, how in chains
                ]
                rows += told
                numbers |= _summary(told, f"{kind}_{k}_blocks_{n}_probes")
            selfs = [self_stitch(donors, i, parting.bounds[i], images, labels) for i in range(len(donors))]
            kept = [a / max(b, 1e-9) for a, b in zip(selfs, own, strict=True)]
            numbers[f"kept_share_self_stitch_mean_{k}_blocks_{n}_probes"] = float(np.mean(kept))
    numbers["n_costs_not_as_predicted"] = sum(not row.pop("costs_as_predicted") for row in rows)
    return {**numbers, "rows": rows}


def _by_kind(found: Layout, choices: Sequence[Choice], names: Sequence[str]) -> dict[str, list[Choice]]:
    """Choices of each kind, in their order."""
    kinds = [kind_of(found.chain(choice.path), names) for choice in choices]
    return {kind: [one for one, of in zip(choices, kinds, strict=True) if of == kind] for kind in KINDS}


def kind_of(pieces: Sequence[Piece], names: Sequence[str]) -> str:
    """`cnn`, `mixed` or `transformer`: what the donors of a chain are."""
    among = {names[piece.donor] in TRANSFORMERS for piece in pieces}
    return "mixed" if len(among) == 2 else "transformer" if True in among else "cnn"


def _summary(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Means over drawn chains, the best of them, and the chosen one; nothing where there are none."""
    drawn, chosen = ([row for row in rows if row["chosen"] == how] for how in ("drawn", "chosen"))
    numbers: dict[str, Any] = {f"n_chains_{name}": len(drawn)}
    if drawn:
        shares = [row["kept_share"] for row in drawn]
        numbers |= {f"kept_share_mean_{name}": float(np.mean(shares)), f"kept_share_best_{name}": max(shares)}
        for way in ("tail", *WAYS):
            numbers[f"accuracy_{way}_mean_{name}"] = float(np.mean([row[f"accuracy_{way}"] for row in drawn]))
    if chosen:
        numbers[f"kept_share_chosen_{name}"] = chosen[0]["kept_share"]
    return numbers
