"""The paper's Table 2: joint dissection or random cuts, exact search or random draws, before and after training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.reassembly.zero_gradient import PROXY_IMAGES, accuracy_of, zoo_of
from benchmarks.reassembly.zoo import donor, probes, tests, usable
from sarto.engines.reassembly import (
    Assembler,
    Limits,
    Making,
    Partition,
    Sides,
    Tuning,
    Wish,
    Zoo,
    best_chains,
    cascade,
    dissect,
    layout,
    random_chains,
    tune_chain,
)
from sarto.engines.reassembly.partition import allowed
from sarto.engines.reassembly.planning import Layout
from sarto.engines.reassembly.proxies import naswot


def random_cuts(zoo: Zoo, limits: Limits, seed: int) -> Partition:
    """Every model parted at random within the size limit; blocks are in the order of their stages."""
    cuts, generator = zoo.cuts(), np.random.default_rng(seed)
    fits, _ = allowed(cuts, limits)
    bounds = np.zeros((cuts.n_models, limits.k, 2), dtype=np.int64)
    for model, length in enumerate(cuts.length.tolist()):
        while True:
            inner = np.sort(generator.choice(np.arange(1, length - 1), limits.k - 1, replace=False))
            edges = np.concatenate([[0], inner, [length - 1]])
            if fits[model, edges[:-1], edges[1:]].all():
                break
        bounds[model] = np.stack([edges[:-1], edges[1:]], 1)
    labels = np.tile(np.arange(limits.k), (cuts.n_models, 1))
    return Partition(bounds, labels, 0.0, (0.0,))


def ablation(
    *,
    data: str,
    members: list[str],
    n_probes: int,
    n_blocks: int,
    n_listed: int,
    n_draws: int,
    n_seeds: int,
    n_tested: int,
    n_trained: int = 0,
    steps: int = 0,
    batch: int = 64,
    rate: float = 1e-4,
    seed: int,
) -> dict[str, Any]:
    """Accuracy of the chain that each of the four ways chooses, stitched in closed form; several seeds.

    Donors' skills are their accuracies on the probe images; nothing else reads labels of these. Exact search: the
    `n_listed` best chains by additive value, of these the one whose answers on the unlabelled probe
    images are nearest to its tail donor's. Draws: of `n_draws` random chains the one with the highest NASWOT, with
    random stitches, as the paper scores. Both are then stitched and tested alike. Seeds change probe images, draws and
    random cuts.

    Where steps are given all four are trained alike, too, by the paper's frozen protocol (stitches, first layer and
    classifier), on labelled images of the pool, and tested again.

    Args:
        n_trained: images that they are trained on.
        steps: of training; 0 trains nothing.
    """
    images, labels = tests(data, n_tested)
    chosen = usable(data, members)
    taught = probes(data, n_trained, seed + 1000) if steps else None
    rows: list[dict[str, Any]] = []
    for run in range(n_seeds):
        inputs, truth = probes(data, n_probes, seed + run)
        donors = [donor(data, name, inputs) for name in chosen]
        skills = [accuracy_of(one.graph, inputs, truth) for one in donors]
        zoo = zoo_of(donors, skills, min(64, n_probes))
        limits = Limits(n_blocks, 0.8)
        partings = {
            "joint": dissect(zoo, limits, seed=run),
            "random_cuts": random_cuts(zoo, limits, seed + run),
        }
        row: dict[str, Any] = {"seed": run}
        for cut, parting in partings.items():
            wish = Wish(sides=Sides(least_donors=min(3, len(donors), n_blocks)))
            found = layout(zoo, parting, wish)
            maker = Assembler(donors)
            ways = {
                "exact": _by_search(found, maker, n_listed),
                "draws": _by_draws(found, donors, n_draws, seed + run),
            }
            for way, pieces in ways.items():
                chain = maker.graph(pieces)
                row[f"accuracy_{cut}_{way}"] = accuracy_of(chain, images, labels)
                row[f"blocks_{cut}_{way}"] = " ".join(donors[piece.donor].key for piece in pieces)
                if taught is not None:
                    how = Tuning("frozen", steps=steps, batch=batch, rate=rate, seed=seed + run)
                    tuned, _ = tune_chain(chain, taught[0], how, labels=taught[1])
                    row[f"accuracy_{cut}_{way}_frozen"] = accuracy_of(tuned, images, labels)
        rows.append(row)
    numbers: dict[str, Any] = {"n_donors": len(chosen), "n_seeds": n_seeds, "rows": rows}
    for name in [key for key in rows[0] if key.startswith("accuracy")]:
        values = [row[name] for row in rows]
        numbers[f"{name}_mean"] = float(np.mean(values))
        numbers[f"{name}_spread_difference"] = float(max(values) - min(values))
    return numbers


def _by_search(found: Layout, maker: Assembler, n: int) -> Any:
    listed = best_chains(found.problem, n).choices
    return cascade(maker, [(found.chain(choice.path), choice) for choice in listed])[0].pieces


def _by_draws(found: Layout, donors: Any, n: int, seed: int) -> Any:
    maker = Assembler(donors, replace(Making(), random=1))
    scored = []
    for choice in random_chains(found.problem, n, seed=seed):
        pieces = found.chain(choice.path)
        scored.append((naswot(maker.graph(pieces), donors[0].inputs[:PROXY_IMAGES]), pieces))
    return max(scored, key=lambda pair: pair[0])[1]
