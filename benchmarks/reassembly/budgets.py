"""Networks under one budget after another: a reassembled chain, donors, the paper's own procedure, a pruned donor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.reassembly.zero_gradient import PROXY_IMAGES, accuracy_of, zoo_of
from benchmarks.reassembly.zoo import SHIPPED, donor, probes, tests, usable
from benchmarks.slicepack.images import to_unit, train_and_pool
from sarto.devices import count
from sarto.engines.reassembly import (
    Assembler,
    Donor,
    Limits,
    Making,
    Partition,
    Piece,
    Sides,
    Tuning,
    Wish,
    Zoo,
    best_chains,
    cascade,
    dissect,
    dissect_by_moves,
    layout,
    random_chains,
    tune_chain,
)
from sarto.engines.reassembly.proxies import naswot
from sarto.engines.slicepack import allocate_within, make_fragment, read_donor
from sarto.errors import InfeasibleError
from sarto.graph import ModelGraph, block, features
from sarto.types import Budget

By = Literal["params", "flops"]


@dataclass(frozen=True, eq=False)
class Images:
    """Images in [0, 1] and labels, by what they may do.

    Attributes:
        probes: stitches and slices are fitted on them and skills read from their labels; nobody was trained on them.
        held: choose among what was made and, after training, what would be delivered; nobody was trained on them.
        lessons: everything is trained on them.
        tests: choose nothing.
    """

    probes: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    lessons: tuple[Tensor, Tensor]
    tests: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Contender:
    """A network under a budget, not trained yet."""

    kind: str
    donors: str
    graph: ModelGraph


def budgets(
    *,
    data: str,
    members: list[str],
    by: By,
    limits: list[int],
    n_probes: int,
    n_held: int,
    n_blocks: int,
    n_listed: int,
    n_headed: int,
    n_restarts: int,
    n_draws: int,
    n_pruned: int,
    n_lessons: int,
    epochs: int,
    rate: float,
    batch: int,
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """What each way of making a network of several donors is worth under each budget, all trained by one recipe.

    The chain: exact list by additive value, of its first the ones nearest to their tail donors, of these the best on
    held images. The paper's procedure: its heuristic dissection, random draws within the budget of one block of each
    set, random stitches, the highest NASWOT. The pruned donor: the most skilful donors over the budget in slices for
    all their classes, the best on held images. Donors within the budget as they are. Everything is then trained alike.

    Args:
        limits: of `by`, rising.
        n_listed, n_headed: chains listed, and those of them that answer held images.
        n_pruned: donors that are pruned to each budget.
        epochs, rate, batch: of the recipe, AdamW on `n_lessons` training images; batch norms move.
    """
    given = _images(data, n_probes, n_held, n_lessons, n_tested, seed)
    inputs, truth = given.probes
    donors = [donor(data, name, inputs) for name in usable(data, members)]
    skills = [accuracy_of(one.graph, inputs, truth) for one in donors]
    zoo = zoo_of(donors, skills, min(64, n_probes))
    joint = dissect(zoo, Limits(n_blocks, 0.8), seed=seed)
    moved = dissect_by_moves(zoo.cuts(), Limits(n_blocks, 0.8), restarts=n_restarts, seed=seed)
    how = Tuning("full", epochs * n_lessons // batch, batch, rate, keep_statistics=False, seed=seed)
    whole = [_trained(Contender("donor", one.key, one.graph), given, how) for one in donors]
    maker = Assembler(donors)
    rows: list[dict[str, Any]] = []
    for limit in limits:
        wish = Wish(Budget.parse({by: limit}), Sides(least_donors=min(2, len(donors))))
        made = [
            _chain(zoo, joint, wish, maker, n_listed, n_headed, given.held),
            _by_the_paper(zoo, moved, wish, donors, n_draws, seed),
            _pruned(donors, skills, by, limit, n_pruned, given),
        ]
        told = [dict(row) for row in whole if row[by] <= limit]
        told += [_trained(one, given, how) for one in made if one is not None]
        rows += _ranked(told, limit)
    return {"n_donors": len(donors), "n_steps": how.steps, **_summary(rows, limits), "rows": rows}


def _images(data: str, n_probes: int, n_held: int, n_lessons: int, n_tested: int, seed: int) -> Images:
    pool, truth = probes(data, n_probes + n_held, seed)
    if data == SHIPPED:
        lessons = probes(data, n_lessons, seed + 1)
    else:
        whole = train_and_pool(data)[0]
        order = np.random.default_rng(seed).permutation(len(whole.labels))[:n_lessons]
        lessons = to_unit(whole.pixels[order]), torch.from_numpy(whole.labels[order].copy())
    return Images(
        (pool[:n_probes], truth[:n_probes]),
        (pool[n_probes:], truth[n_probes:]),
        lessons,
        tests(data, n_tested),
    )


def _chain(
    zoo: Zoo,
    parting: Partition,
    wish: Wish,
    maker: Assembler,
    n_listed: int,
    n_headed: int,
    held: tuple[Tensor, Tensor],
) -> Contender | None:
    found = layout(zoo, parting, wish)
    try:
        choices = best_chains(found.problem, n_listed).choices
    except InfeasibleError:
        return None
    ranked = cascade(maker, [(found.chain(choice.path), choice) for choice in choices], checked=n_listed)
    best = max(ranked[:n_headed], key=lambda item: accuracy_of(maker.graph(item.pieces), *held))
    return Contender("chain", _named(best.pieces, maker.donors), maker.graph(best.pieces))


def _by_the_paper(
    zoo: Zoo, parting: Partition, wish: Wish, donors: list[Donor], n_draws: int, seed: int
) -> Contender | None:
    """The blocks of stage j are every model's j-th; those of a chain are of different sets where any draw is."""
    stages = np.tile(np.arange(parting.k), (len(donors), 1))
    found = layout(zoo, replace(parting, labels=stages), replace(wish, fold=False))
    drawn = [found.chain(choice.path) for choice in random_chains(found.problem, n_draws, seed=seed)]
    if not drawn:
        return None
    apart = [
        pieces
        for pieces in drawn
        if len({int(parting.labels[piece.donor, j]) for j, piece in enumerate(pieces)}) == parting.k
    ]
    shown = donors[0].inputs[:PROXY_IMAGES]
    # A random stitch takes nothing but the receiver's mean from the images.
    maker = Assembler([replace(one, inputs=shown) for one in donors], Making(fold=False, random=seed + 1))
    best = max(apart or drawn, key=lambda pieces: naswot(maker.graph(pieces), shown))
    return Contender("paper", _named(best, donors), maker.graph(best))


def _pruned(
    donors: list[Donor], skills: Sequence[float], by: By, limit: int, n: int, given: Images
) -> Contender | None:
    """Of the most skilful donors over the limit, cut to it and repaired in closed form, the best on held images.

    Each is cut twice, with and without the channels of its residual streams: which is better differs between donors.
    """
    over = [i for i in np.argsort(skills)[::-1] if getattr(count(donors[i].graph), by) > limit]
    made = []
    for i in over[:n]:
        graph = donors[i].graph
        extractor = count(block(graph, end=features(graph).value))
        classifier = getattr(count(graph), by) - getattr(extractor, by)
        inputs, _ = given.probes
        # Labels unread: all images are of one class, and no class weighs more than others.
        readings = read_donor(graph, inputs, torch.zeros(len(inputs), dtype=torch.int64), 1)
        for streams in (True, False):
            try:
                keep = allocate_within(readings, {by: limit - classifier}, streams=streams)
            except InfeasibleError:
                continue
            sliced, _ = make_fragment(readings, [], keep, seed=0)
            made.append(Contender("pruned", donors[i].key, sliced))
    return max(made, key=lambda one: accuracy_of(one.graph, *given.held), default=None)


def _named(pieces: Sequence[Piece], donors: Sequence[Donor]) -> str:
    return "+".join(donors[piece.donor].key for piece in pieces)


def _trained(one: Contender, given: Images, how: Tuning) -> dict[str, Any]:
    """A row: what it is and costs, and what it knows; training is kept where held images say that it helps."""
    inputs, labels = given.lessons
    tuned, _ = tune_chain(one.graph, inputs, how, labels=labels, augment=_flipped)
    cost = count(tuned)
    before, after = (accuracy_of(graph, *given.held) for graph in (one.graph, tuned))
    untrained, trained = (accuracy_of(graph, *given.tests) for graph in (one.graph, tuned))
    return {
        "model": one.kind,
        "donors": one.donors,
        "params": cost.params,
        "flops": cost.flops,
        "accuracy_untrained": untrained,
        "accuracy_trained": trained,
        "accuracy_held": max(before, after),
        "accuracy": trained if after > before else untrained,
    }


def _flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    turned = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(turned[:, None, None, None], images.flip(3), images)


def _ranked(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The rows of one budget; held images say which donor stands for all and what would be delivered."""

    def held(row: dict[str, Any]) -> tuple[float, int]:
        return row["accuracy_held"], -row["params"]

    donors = [row for row in rows if row["model"] == "donor"]
    kept = [row for row in rows if row["model"] != "donor"] + ([max(donors, key=held)] if donors else [])
    preferred = max(kept, key=held) if kept else None
    return [row | {"limit": limit, "preferred": row is preferred} for row in kept]


def _summary(rows: Sequence[dict[str, Any]], limits: Sequence[int]) -> dict[str, Any]:
    """By budget: every accuracy, how far the chain is from its best rival, and what would be delivered."""
    numbers: dict[str, Any] = {"n_budgets": len(limits)}
    ahead, right = [], []
    for limit in limits:
        here = {row["model"]: row for row in rows if row["limit"] == limit}
        numbers |= {f"accuracy_{model}_{limit}": row["accuracy"] for model, row in here.items()}
        rivals = [row["accuracy"] for model, row in here.items() if model != "chain"]
        if "chain" in here and rivals:
            ahead.append(100 * (here["chain"]["accuracy"] - max(rivals)))
            numbers[f"chain_ahead_points_{limit}"] = ahead[-1]
        for row in here.values():
            if row["preferred"]:
                numbers[f"accuracy_preferred_{limit}"] = row["accuracy"]
                right.append(row["accuracy"] == max(other["accuracy"] for other in here.values()))
    numbers["n_budgets_chain_on_front"] = sum(points >= 0 for points in ahead)
    numbers["n_budgets_best_preferred"] = sum(right)
    return numbers
