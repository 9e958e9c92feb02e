"""Counts that a runtime is slow at: found from measured blocks, avoided by the design, rounded up in predictions."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from sarto.devices import turns
from sarto.devices.profiling.design import design, random_counts
from sarto.devices.profiling.features import Terms, terms_of
from sarto.devices.profiling.fit import fit_backbone, gathered
from sarto.devices.profiling.sizes import Floats
from sarto.devices.profiling.steps import (
    WIDTHS,
    is_off_step,
    off_step_ratio,
    step_blocks,
    step_counts,
    step_of,
)
from sarto.errors import RequestError
from sarto.graph import capture
from sarto.zoo import cifar_resnet


@cache
def terms() -> Terms:
    model = cifar_resnet(10, 20, shortcut="pad").eval()
    return terms_of(capture(model, torch.randn(2, 3, 32, 32), prove=False).sketch())


def slow_between(rows: Floats, step: int, cost: Floats) -> Floats:
    """Layers in vectors of 16 that take twice as long where a count is no multiple of the step."""
    penalty = 1 + (rows % step != 0).mean(axis=1)
    return (terms().at(rows, width=16) @ cost + 0.05) * penalty


@pytest.mark.parametrize("step", [1, 2, 4, 8, 16])
def test_the_step_is_found_from_blocks(step: int) -> None:
    times = {width: 0.1 * (np.ceil(width / 16) + (width % step > 0)) for width in WIDTHS}
    assert step_of(times) == step
    noisy = {width: ms * (1.02 if width % 4 else 0.98) for width, ms in times.items()}
    assert step_of(noisy) == step


def test_counts_off_the_step_take_at_most_so_many_times_as_long() -> None:
    times = {width: 0.2 if width % 4 else 0.1 * (1.5 if width > 24 else 1.0) for width in WIDTHS}
    assert off_step_ratio(times, 4) == pytest.approx(0.2 / 0.15)
    assert off_step_ratio(times, 1) == 1.0, "every count is at the step"
    assert off_step_ratio(dict.fromkeys(WIDTHS, 0.1), 4) == 1.0
    sizes = {"a": 16, "b": 10}
    assert not is_off_step({"a": 8, "b": 10}, sizes, 4) and is_off_step({"a": 8, "b": 9}, sizes, 4)
    assert not is_off_step({"a": 7}, sizes, 1)


def test_a_block_that_was_not_measured_is_named() -> None:
    with pytest.raises(RequestError, match="blocks of 31, 24 channels have no time"):
        step_of({width: 0.0 if width in (31, 24) else 1.0 for width in WIDTHS})


def test_blocks_differ_in_their_channels_alone() -> None:
    graphs = [block.graph() for block in step_blocks()]
    assert [graph.inputs[0].shape[1] for graph in graphs] == list(WIDTHS)
    assert len({tuple(node.op for node in graph.nodes) for graph in graphs}) == 1


def test_designs_and_counts_keep_to_the_step() -> None:
    sizes = np.array(list(terms().groups.values()))
    for rows in (
        design(terms(), 24, step=4, pool=60),
        random_counts(terms().groups, 50, np.random.default_rng(0), step=4),
    ):
        assert ((rows % 4 == 0) | (rows == sizes)).all() and (rows >= 1).all() and (rows <= sizes).all()
    assert step_counts({"a": 5, "b": 8, "c": 9}, {"a": 16, "b": 8, "c": 10}, 4) == {"a": 8, "b": 8, "c": 10}


def test_64_subnets_at_steps_predict_where_any_counts_do_not() -> None:
    cost = np.random.default_rng(3).uniform(0.01, 0.05, len(terms().terms))
    base = np.full(len(cost), 0.02)
    errors = []
    for step in (4, 1):
        rows = design(terms(), 64, base=base, step=step).astype(float)
        noise = 1 + 0.01 * np.random.default_rng(1).standard_normal(64)
        fit = fit_backbone(terms(), rows, slow_between(rows, 4, cost) * noise, base, step=step, widths=(16,))
        held = random_counts(terms().groups, 100, np.random.default_rng(9), step=step).astype(float)
        values = terms().at(held, width=fit.width, step=step) * fit.base
        middle = gathered(values, fit.column) @ fit.fitted.weights
        errors.append(float(np.mean(np.abs(middle / slow_between(held, 4, cost) - 1))))
    assert errors[0] < 0.01 < 0.03 < errors[1]


def test_counts_between_steps_take_what_the_next_step_takes() -> None:
    groups = terms().groups
    name = next(group for group, size in groups.items() if size >= 16)
    found = [terms().at([{name: count}], width=1, step=4)[0].sum() for count in (5, 6, 8, 9, 12)]
    assert found[0] == found[1] == found[2] < found[3] == found[4]


def test_waits_for_a_processor_do_not_count_for_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that works for 2 ms and waits for 3."""
    clocks = {"wall": 0.0, "busy": 0.0}
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clocks["wall"])
    monkeypatch.setattr(turns.time, "process_time", lambda: clocks["busy"])

    def call() -> None:
        clocks["wall"] += 0.005
        clocks["busy"] += 0.002

    assert turns.taken_ms(call, 1) == pytest.approx(2.0)
    assert [turns.taken_ms(call, 2), turns.taken_ms(call)] == pytest.approx([5.0, 5.0])
