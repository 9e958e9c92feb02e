"""From an indexed zoo to the problem that is solved, and from a solution back to blocks of donors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from sarto.devices import count
from sarto.engines.reassembly.assembly import Piece, Shift, joint_shift
from sarto.engines.reassembly.partition import Cuts, Limits, Partition, dissect_zoo
from sarto.engines.reassembly.places import Anatomy, Place
from sarto.engines.reassembly.problem import Floats, Joint, Problem, Sides, Stage
from sarto.engines.reassembly.signatures import LAMS, cka, loo_source, loo_target
from sarto.engines.reassembly.stitches import Fit, blank_stitch, joinable
from sarto.errors import InfeasibleError, RequestError
from sarto.graph import ModelGraph, block
from sarto.types import Budget

#: The limits that add up over blocks; peak memory is a limit of each block instead.
SUMMED = ("params", "flops", "size_bytes", "latency_ms")
#: How much a joint between entirely different places takes off, as a share of accuracy.
JOINT_WEIGHT = 0.5


@dataclass(frozen=True, eq=False)
class Entry:
    """A model of the zoo.

    Attributes:
        key: what it is known by.
        anatomy: its places.
        rows: row of each place in the zoo's vectors.
        skill: its accuracy on what is wanted, between 0 and 1.
        graph: shapes alone will do; None: stitches into it are never folded.
        tail: whether its own classifier may end a chain.
        head: what the head that the order asks for adds to its own costs, by name; below zero where it is smaller.
        latency_ms: of everything before each place and of the whole, as `Anatomy.flops`; empty where unknown.
    """

    key: str
    anatomy: Anatomy
    rows: NDArray[np.int64]
    skill: float
    graph: ModelGraph | None = None
    tail: bool = True
    head: Mapping[str, float] = field(default_factory=dict)
    latency_ms: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Zoo:
    """Indexed models and the signatures of their places.

    Attributes:
        vectors: one row a place, each of length 1.
        r2: (row of a source, row of a target) -> how well a ridge stitch predicts images left out; empty: not used.
    """

    entries: tuple[Entry, ...]
    vectors: NDArray[np.float32]
    r2: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def cuts(self) -> Cuts:
        """What is dissected: the cut points of every model, with the parameters before each."""
        models = []
        for entry in self.entries:
            sizes = entry.anatomy.params[: len(entry.anatomy.places)]
            models.append((entry.rows.tolist(), list(sizes)))
        return Cuts.of(self.vectors, models)


@dataclass(frozen=True)
class Wish:
    """What is asked of a chain.

    Attributes:
        budget: limits; peak memory holds for each block and stitch.
        sides: constraints on donors.
        fit: of the stitches, for their costs.
        fold: whether stitches are folded where that is exact.
        joint_weight: what a joint between entirely different places takes off.
    """

    budget: Budget = field(default_factory=Budget)
    sides: Sides = field(default_factory=Sides)
    fit: Fit = field(default_factory=Fit)
    fold: bool = True
    joint_weight: float = JOINT_WEIGHT


@dataclass(frozen=True, eq=False)
class Layout:
    """A problem with the blocks that its numbers stand for: stage -> blocks."""

    problem: Problem
    pieces: tuple[tuple[Piece, ...], ...]

    def chain(self, path: Sequence[int]) -> tuple[Piece, ...]:
        """The blocks of a choice, first to last."""
        return tuple(stage[v] for stage, v in zip(self.pieces, path, strict=True))


def dissect(zoo: Zoo, limits: Limits, *, restarts: int = 2, seed: int = 0) -> Partition:
    """The joint dissection of a zoo.

    Raises:
        RequestError: fewer than two models.
        InfeasibleError: a model has too few cut points.
    """
    if len(zoo.entries) < 2:
        raise RequestError(
            f"a zoo to dissect has at least two models, this one has {len(zoo.entries)}: index more donors, or order "
            "the donor itself"
        )
    return dissect_zoo(zoo.cuts(), limits, restarts=restarts, seed=seed)


def with_r2(zoo: Zoo, found: Partition, features: Mapping[int, NDArray[np.float32]]) -> Zoo:
    """The zoo with the directed stitch error of every joint of a dissection, on images left out one at a time.

    A matrix product for each ridge strength of `LAMS`; of each pair the best strength counts.

    Args:
        features: row -> pooled activations on the probe images, shape (n, channels).
    """
    told: dict[tuple[int, int], float] = {}
    for stage in range(found.k - 1):
        pairs = [
            (_row(zoo, found, i, stage, 1), _row(zoo, found, i, stage + 1, 0))
            for i in range(len(zoo.entries))
        ]
        sources = sorted({source for source, _ in pairs if source is not None})
        targets = sorted({target for _, target in pairs if target is not None})
        if not sources or not targets:
            continue
        wanted = torch.stack([loo_target(torch.from_numpy(np.array(features[t]))).flatten() for t in targets])
        best = torch.full((len(sources), len(targets)), -math.inf, dtype=torch.float64)
        for lam in LAMS:
            given = [loo_source(torch.from_numpy(np.array(features[s])), lam).flatten() for s in sources]
            best = torch.maximum(best, 1.0 - torch.stack(given) @ wanted.T)
        told |= {(s, t): float(best[i, j]) for i, s in enumerate(sources) for j, t in enumerate(targets)}
    return replace(zoo, r2=told)


def _row(zoo: Zoo, found: Partition, model: int, stage: int, side: int) -> int | None:
    places = np.flatnonzero(found.labels[model] == stage)
    return int(zoo.entries[model].rows[found.bounds[model, places[0], side]]) if len(places) else None


def layout(zoo: Zoo, found: Partition, wish: Wish) -> Layout:
    """The layered graph of a dissected zoo under a budget.

    Values: each block is worth its model's skill / k; a joint takes off `joint_weight` times the mean of 1 - CKA and of
    its rank among what could lead into the same place (and of 1 - R2 of the stitch and its rank, where known).

    Raises:
        InfeasibleError: a stage has no block, for instance because no classifier may end the chain.
    """
    k = found.k
    pieces: list[tuple[Piece, ...]] = []
    for stage in range(k):
        here = [_piece(i, found, stage) for i in range(len(zoo.entries))]
        kept = [p for p in here if p is not None and (stage < k - 1 or zoo.entries[p.donor].tail)]
        if not kept:
            why = "no model's classifier knows the wanted classes" if stage == k - 1 else "all models skip it"
            raise InfeasibleError(f"stage {stage + 1} of {k} has no block: {why}")
        pieces.append(tuple(kept))
    names = [name for name in SUMMED if getattr(wish.budget, name) is not None]
    if "latency_ms" in names and not all(entry.latency_ms for entry in zoo.entries):
        names.remove("latency_ms")
    stages = tuple(_stage(zoo, here, names, k) for here in pieces)
    joints = tuple(_joint(zoo, before, after, names, wish) for before, after in pairwise(pieces))
    limit = wish.budget.memory_bytes
    problem = Problem(
        stages,
        joints,
        tuple(names),
        tuple(float(getattr(wish.budget, name)) for name in names),
        math.inf if limit is None else float(limit),
        wish.sides,
    )
    return Layout(problem, tuple(pieces))


def _piece(model: int, found: Partition, stage: int) -> Piece | None:
    places = np.flatnonzero(found.labels[model] == stage)
    if not len(places):
        return None
    start, end = (int(v) for v in found.bounds[model, places[0]])
    return Piece(model, None if stage == 0 else start, None if stage == found.k - 1 else end)


def _stage(zoo: Zoo, pieces: Sequence[Piece], names: Sequence[str], k: int) -> Stage:
    costs = np.zeros((len(pieces), len(names)))
    peaks = np.zeros(len(pieces))
    for i, piece in enumerate(pieces):
        entry = zoo.entries[piece.donor]
        cost = entry.anatomy.cost(piece.start, piece.end)
        peaks[i] = cost.memory_bytes
        for r, name in enumerate(names):
            costs[i, r] = _latency(entry, piece) if name == "latency_ms" else getattr(cost, name)
            if piece.end is None:
                costs[i, r] = max(costs[i, r] + entry.head.get(name, 0.0), 0.0)
    donors = np.array([piece.donor for piece in pieces], dtype=np.int64)
    skill = np.array([zoo.entries[piece.donor].skill for piece in pieces])
    return Stage(donors, skill / k, costs, peaks)


def _latency(entry: Entry, piece: Piece) -> float:
    first = 0.0 if piece.start is None else entry.latency_ms[piece.start]
    last = entry.latency_ms[-1 if piece.end is None else piece.end]
    return max(last - first, 0.0)


def _joint(
    zoo: Zoo, before: Sequence[Piece], after: Sequence[Piece], names: Sequence[str], wish: Wish
) -> Joint:
    shape = (len(before), len(after))
    loss = _losses(zoo, before, after) * wish.joint_weight
    costs = np.zeros((*shape, len(names)))
    shifts: dict[object, Shift] = {}
    tails: dict[Piece, ModelGraph | None] = {}
    for u, one in enumerate(before):
        for v, two in enumerate(after):
            source, target = _end(zoo, one), _start(zoo, two)
            if one.donor == two.donor and one.end == two.start:
                loss[u, v] = 0.0
                continue
            if joinable(source, target) is not None:
                loss[u, v] = math.inf
                continue
            key = (source.kind, two.donor, two.start)
            if key not in shifts:
                if two not in tails:
                    tails[two] = _tail(zoo.entries[two.donor], two) if wish.fold else None
                shifts[key] = _shift(source, target, tails[two], wish.fit)
            shift = shifts[key]
            if wish.budget.memory_bytes is not None and shift.memory_bytes > wish.budget.memory_bytes:
                loss[u, v] = math.inf
            for r, name in enumerate(names):
                costs[u, v, r] = getattr(shift, name, 0.0)
    return Joint(loss, costs)


def _losses(zoo: Zoo, before: Sequence[Piece], after: Sequence[Piece]) -> Floats:
    """What each joint loses, between 0 and 1: mean of the distances and of their ranks within each receiver."""
    sources = np.array([zoo.entries[p.donor].rows[_number(p.end)] for p in before])
    targets = np.array([zoo.entries[p.donor].rows[_number(p.start)] for p in after])
    far = 1.0 - np.clip(cka(zoo.vectors[sources], zoo.vectors[targets]), 0.0, 1.0)
    parts = [far, _ranks(far)]
    if zoo.r2:
        told = np.array([[zoo.r2.get((int(s), int(t)), 0.0) for t in targets] for s in sources])
        missed = 1.0 - np.clip(told, 0.0, 1.0)
        parts += [missed, _ranks(missed)]
    return np.asarray(np.mean(parts, axis=0), dtype=np.float64)


def _ranks(values: Floats) -> Floats:
    """Ranks within each column as shares between 0 and 1."""
    return np.asarray((rankdata(values, axis=0) - 1) / max(len(values) - 1, 1), dtype=np.float64)


def _number(number: int | None) -> int:
    if number is None:
        raise RequestError("a joint lies inside two donors")
    return number


def _end(zoo: Zoo, piece: Piece) -> Place:
    return zoo.entries[piece.donor].anatomy.places[_number(piece.end)]


def _start(zoo: Zoo, piece: Piece) -> Place:
    return zoo.entries[piece.donor].anatomy.places[_number(piece.start)]


def _tail(entry: Entry, piece: Piece) -> ModelGraph | None:
    if entry.graph is None or piece.start is None:
        return None
    end = None if piece.end is None else entry.anatomy.places[piece.end].value
    return block(entry.graph.sketch(), entry.anatomy.places[piece.start].value, end)


def _shift(source: Place, target: Place, after: ModelGraph | None, fit: Fit) -> Shift:
    if after is not None:
        return joint_shift(source, target, after, fit, fold=True)
    cost = count(blank_stitch(source, target, fit).graph)
    return Shift(cost.params, cost.flops, cost.size_bytes, cost.memory_bytes)
