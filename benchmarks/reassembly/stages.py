"""The paper's Figure 4: one stage of a donor is replaced by that of another one, for every pair, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.reassembly.mixed import kind_of
from benchmarks.reassembly.zero_gradient import accuracy_of, makers_of, measured, zoo_of
from benchmarks.reassembly.zoo import donor, probes, tests, usable
from sarto.engines.reassembly import Limits, Partition, Piece, Zoo, dissect, kendall


def replaced(
    *, data: str, members: list[str], n_probes: int, n_blocks: int, n_tested: int, seed: int
) -> dict[str, Any]:
    """Accuracy kept when a stage of one donor is replaced by that of another, beside how similar the two stages are.

    Stages are those of the joint dissection. The classifier is the host's, or the guest's where the last stage is
    replaced; its owner is the tail that accuracy is compared with. Controls are random stitches.
    """
    inputs, _ = probes(data, n_probes, seed)
    images, labels = tests(data, n_tested)
    names = usable(data, members)
    donors = [donor(data, name, inputs) for name in names]
    own = [accuracy_of(one.graph, images, labels) for one in donors]
    zoo = zoo_of(donors, [1.0] * len(donors), min(64, n_probes))
    parting = dissect(zoo, Limits(n_blocks, 0.8), seed=seed)
    makers = makers_of(donors, ["sequential", "random"], seed)
    rows: list[dict[str, Any]] = []
    for host in range(len(donors)):
        for stage in range(n_blocks):
            for guest in set(range(len(donors))) - {host}:
                pieces = exchanged(parting, host, guest, stage)
                row = measured(makers, pieces, own, images, labels)
                row |= {"host": names[host], "guest": names[guest], "stage": stage + 1}
                row["kind"] = kind_of(pieces, names)
                row["similarity"] = _similarity(zoo, parting, (host, guest), stage)
                rows.append(row)
    numbers: dict[str, Any] = {"n_donors": len(names), "n_exchanges": len(rows)}
    numbers["n_costs_not_as_predicted"] = sum(not row.pop("costs_as_predicted") for row in rows)
    numbers["accuracy_random_mean"] = float(np.mean([row["accuracy_random"] for row in rows]))
    for stage in range(1, n_blocks + 1):
        numbers |= _summary([row for row in rows if row["stage"] == stage], f"stage_{stage}")
    for kind in sorted({row["kind"] for row in rows}):
        numbers |= _summary([row for row in rows if row["kind"] == kind], kind)
    return {**numbers, "rows": rows}


def exchanged(parting: Partition, host: int, guest: int, stage: int) -> tuple[Piece, ...]:
    """The host's chain of stages, one of them the guest's."""
    found = []
    for at in range(parting.k):
        model = guest if at == stage else host
        start, end = (int(bound) for bound in parting.bounds[model, at])
        found.append(Piece(model, start if at else None, end if at < parting.k - 1 else None))
    return tuple(found)


def _similarity(zoo: Zoo, parting: Partition, pair: tuple[int, int], stage: int) -> float:
    """CKA of what goes into two models' blocks plus that of what comes out, at most 2."""
    ends = [zoo.vectors[zoo.entries[model].rows[parting.bounds[model, stage]]] for model in pair]
    return float((ends[0] * ends[1]).sum())


def _summary(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    shares = [row["kept_share"] for row in rows]
    tau = kendall([row["similarity"] for row in rows], shares)
    numbers = {f"kept_share_mean_{name}": float(np.mean(shares)), f"kept_share_worst_{name}": min(shares)}
    return numbers if tau is None else numbers | {f"tau_similarity_{name}": tau}
