"""Seconds of dissecting and choosing in zoos of synthetic models, beside integer programming and random draws."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sarto.engines.reassembly import (
    Cuts,
    Joint,
    Limits,
    Problem,
    Sketcher,
    Stage,
    best_by_milp,
    best_chains,
    cka,
    dissect_by_moves,
    dissect_zoo,
    random_chains,
)
from sarto.engines.reassembly.signatures import signature_length
from sarto.market import Samples
from sarto.market.indices import Indices
from sarto.types.reassembly import IndexedModel, PlaceRecord, ProbeIndexAbout


def synthetic(n_models: int, n_cuts: int, width: int, seed: int) -> Cuts:
    """Models whose cut points drift along one common path, with noise and parameters of their own."""
    generator = np.random.default_rng(seed)
    line = generator.standard_normal((6, width)).astype(np.float32)
    spots = np.sort(generator.random((n_models, n_cuts)), axis=1) * 4.999
    low = spots.astype(int)
    part = (spots - low)[:, :, None].astype(np.float32)
    points = line[low] * (1 - part) + line[low + 1] * part
    points += 0.4 * generator.standard_normal(points.shape).astype(np.float32)
    vectors = points.reshape(-1, width)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sizes = np.cumsum(generator.lognormal(10, 1, (n_models, n_cuts)), axis=1)
    rows = np.arange(n_models * n_cuts).reshape(n_models, n_cuts)
    return Cuts(vectors, rows, sizes, np.full(n_models, n_cuts))


def problem_of(cuts: Cuts, k: int, seed: int) -> Problem:
    """The choice among the blocks of a dissection, every model after every other, under budgets of two costs."""
    generator = np.random.default_rng(seed)
    parting = dissect_zoo(cuts, Limits(k, 0.8), restarts=1, seed=seed)
    n, every = cuts.n_models, np.arange(cuts.n_models)
    skill = generator.uniform(0.6, 0.9, n)
    stages, joints = [], []
    for j in range(k):
        start, end = (cuts.sizes[every, parting.bounds[:, j, side]] for side in (0, 1))
        params = end - start + 1
        costs = np.stack([params, params * generator.lognormal(4, 0.5, n)], 1)
        stages.append(Stage(every, skill / k, costs, np.ones(n)))
    for j in range(k - 1):
        left, right = (
            cuts.vectors[cuts.rows[every, parting.bounds[:, i, side]]] for i, side in ((j, 1), (j + 1, 0))
        )
        loss = 0.5 * (1 - np.clip(cka(left, right), 0, 1))
        widths = generator.integers(16, 512, n).astype(float)
        params = np.outer(widths, generator.integers(16, 512, n).astype(float))
        costs = np.stack([params, params * 64], 2)
        loss[every, every], costs[every, every] = 0.0, 0.0
        joints.append(Joint(loss, costs))
    typical = [float(np.median(sum(stage.costs[:, r] for stage in stages))) for r in (0, 1)]
    return Problem(tuple(stages), tuple(joints), ("params", "flops"), (0.8 * typical[0], 0.8 * typical[1]))


def scaling(
    *, n_models: int, n_cuts: int, k: int, n_listed: int, width: int, n_small: int, n_restarts: int, seed: int
) -> dict[str, Any]:
    """One zoo of the full size, and a small one in which the paper's heuristic and the integer program take part."""
    cuts = synthetic(n_models, n_cuts, width, seed)
    begun = time.process_time()
    found = dissect_zoo(cuts, Limits(k, 0.8), seed=seed)
    dissect_seconds = time.process_time() - begun
    problem = problem_of(cuts, k, seed)
    begun = time.process_time()
    listed = best_chains(problem, n_listed)
    list_seconds = time.process_time() - begun
    begun = time.process_time()
    drawn = random_chains(problem, 500, seed=seed)
    draw_seconds = time.process_time() - begun
    small = synthetic(n_small, n_cuts, width, seed + 1)
    begun = time.process_time()
    moved = dissect_by_moves(small, Limits(k, 0.8), restarts=n_restarts, seed=seed)
    moves_seconds = time.process_time() - begun
    begun = time.process_time()
    exact = dissect_zoo(small, Limits(k, 0.8), seed=seed)
    small_seconds = time.process_time() - begun
    little = problem_of(small, k, seed)
    begun = time.process_time()
    by_milp = best_by_milp(little)
    milp_seconds = time.process_time() - begun
    first = best_chains(little)
    return {
        "n_models": n_models,
        "n_cuts": n_cuts,
        "n_blocks": k,
        "n_listed": len(listed.choices),
        "dissect_cpu_seconds": dissect_seconds,
        "list_cpu_seconds": list_seconds,
        "list_is_exact_share": float(listed.exact),
        "add_cpu_seconds": add_seconds(n_cuts, seed),
        "n_rounds": len(found.history),
        "share_best": listed.choices[0].value,
        "share_last_listed": listed.choices[-1].value,
        "share_best_of_500_draws": max((c.value for c in drawn), default=-math.inf) if drawn else 0.0,
        "draw_cpu_seconds": draw_seconds,
        "n_small_models": n_small,
        "small_similarity_ratio_exact": exact.value / (n_small * k),
        "small_similarity_ratio_moves": moved.value / (n_small * k),
        "small_exact_cpu_seconds": small_seconds,
        "small_moves_cpu_seconds": moves_seconds,
        "small_milp_cpu_seconds": milp_seconds,
        "small_milp_to_astar_difference": by_milp.choices[0].value - first.choices[0].value,
    }


def add_seconds(n_cuts: int, seed: int, n_probes: int = 512) -> float:
    """CPU seconds of entering a model into an index, beside its forward pass: sketches, writing, syncing."""
    generator = np.random.default_rng(seed)
    probes = Samples(
        generator.integers(0, 255, (n_probes, 4, 4, 3)).astype(np.uint8),
        np.zeros(n_probes, np.int64),
        ("probe",),
    )
    length = signature_length(n_probes)
    sketcher = Sketcher(length)
    about = ProbeIndexAbout(
        name="zoo",
        probe_hash=probes.digest,
        n_probes=n_probes,
        batch=64,
        length=length,
        sketch=sketcher.size,
    )
    rows = generator.standard_normal((n_cuts, length)).astype(np.float32)
    features = [generator.standard_normal((n_probes, 64)).astype(np.float32) for _ in range(n_cuts)]
    hash_ = "sha256:" + "0" * 64
    table = tuple(range(n_cuts + 1))
    place = PlaceRecord(value="v", layout="map", channels=64, rows=8, columns=8)
    model = IndexedModel(
        learnware=hash_,
        name="m",
        graph_hash=hash_,
        weights_hash=hash_,
        places=(place,) * n_cuts,
        params=table,
        flops=table,
        sizes=table,
        peaks=table,
        first_row=0,
        first_number=0,
        digest=hash_,
    )
    with tempfile.TemporaryDirectory() as folder:
        index = Indices(Path(folder)).create(about, probes)
        begun = time.process_time()
        index.add(model, rows, sketcher(rows), features, probes.digest)
        return time.process_time() - begun
