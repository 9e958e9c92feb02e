"""What a little training adds to a chain, by what changes and how many steps; a student and its tail donor too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.reassembly.zero_gradient import accuracy_of, zoo_of
from benchmarks.reassembly.zoo import donor, probes, tests, usable
from sarto.devices import count
from sarto.engines.reassembly import (
    Assembler,
    Limits,
    Sides,
    Tuning,
    Wish,
    best_chains,
    dissect,
    layout,
    tune_chain,
)
from sarto.engines.reassembly.tuning import Scope
from sarto.graph import ModelGraph, block, features

#: What is trained towards what: the features of the tail donor, labels unread, or labels.
WAYS: tuple[tuple[str, Scope], ...] = (
    ("features", "stitches"),
    ("features", "full"),
    ("labels", "stitches"),
    ("labels", "frozen"),
    ("labels", "full"),
)


def protocols(
    *,
    data: str,
    members: list[str],
    n_probes: int,
    n_blocks: int,
    steps: list[int],
    rates: dict[str, float],
    batch: int,
    n_tested: int,
    seed: int,
) -> dict[str, Any]:
    """The solver's chain after each kind of training on the probe images, on test images that choose nothing.

    The student has the chain's layers with new weights and learns the tail donor's features under its classifier, for
    as many steps; from scratch the same layers learn labels. The tail donor, whole, is trained on labels too.

    Args:
        steps: of separate trainings, each with its own schedule.
        rates: scope -> step size; that of new weights is that of `Tuning`.
    """
    inputs, truth = probes(data, n_probes, seed)
    images, labels = tests(data, n_tested)
    donors = [donor(data, name, inputs) for name in usable(data, members)]
    skills = [accuracy_of(one.graph, inputs, truth) for one in donors]
    zoo = zoo_of(donors, skills, min(64, n_probes))
    sides = Sides(least_donors=min(3, len(donors), n_blocks))
    found = layout(zoo, dissect(zoo, Limits(n_blocks, 0.8), seed=seed), Wish(sides=sides))
    pieces = found.chain(best_chains(found.problem, 1).choices[0].path)
    chain, tail = Assembler(donors).graph(pieces), donors[pieces[-1].donor]
    wanted = _features(tail.graph, inputs)
    numbers: dict[str, Any] = {
        "n_params": count(chain).params,
        "accuracy_tail": accuracy_of(tail.graph, images, labels),
        "accuracy_untrained": accuracy_of(chain, images, labels),
    }
    for n in steps:
        for towards, scope in WAYS:
            how = Tuning(scope, steps=n, batch=batch, rate=rates[scope], seed=seed)
            if towards == "features":
                tuned, _ = tune_chain(chain, inputs, how, wanted=wanted)
            else:
                tuned, _ = tune_chain(chain, inputs, how, labels=truth)
            numbers[f"accuracy_{towards}_{scope}_{n}_steps"] = accuracy_of(tuned, images, labels)
        fresh = Tuning(scope="full", steps=n, batch=batch, fresh=True, seed=seed)
        student, _ = tune_chain(chain, inputs, fresh, wanted=wanted)
        numbers[f"accuracy_student_{n}_steps"] = accuracy_of(student, images, labels)
        scratch, _ = tune_chain(chain, inputs, fresh, labels=truth)
        numbers[f"accuracy_scratch_{n}_steps"] = accuracy_of(scratch, images, labels)
        alike = Tuning("full", steps=n, batch=batch, rate=rates["full"], seed=seed)
        donor_too, _ = tune_chain(tail.graph, inputs, alike, labels=truth)
        numbers[f"accuracy_tail_labels_full_{n}_steps"] = accuracy_of(donor_too, images, labels)
    return numbers


def _features(graph: ModelGraph, inputs: Tensor) -> Tensor:
    """What a donor's classifier reads, shape (n, width)."""
    front = block(graph, end=features(graph).value)
    return torch.cat([torch.as_tensor(front(part)) for part in inputs.split(250)])
