"""Fits of latencies: known costs are found again, with stairs and noise, from few subnets."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from sarto.devices.profiling.design import POOL, design, random_counts
from sarto.devices.profiling.features import FEATURES, Terms, terms_of
from sarto.devices.profiling.fit import columns_of, cross_fit, fit_backbone, gathered, parts_of, solve
from sarto.devices.profiling.generic import FIXED, by_name, fit_kinds
from sarto.devices.profiling.sizes import Floats, SizeTable
from sarto.errors import RequestError
from sarto.graph import capture
from sarto.zoo import cifar_resnet, mobilenet_v2

#: Milliseconds for one of each feature, roughly as processors take them.
COST = dict(zip(FEATURES, (0.02, 0.05, 0.1, 0.3, 0.15, 0.004), strict=True))


@cache
def terms(name: str) -> Terms:
    model = cifar_resnet(10, 20, shortcut="pad") if name == "resnet" else mobilenet_v2(10)
    return terms_of(capture(model.eval(), torch.randn(2, 3, 32, 32), prove=False).sketch())


def truth(found: Terms, seed: int) -> Floats:
    """Milliseconds for one of each term: every layer has a speed of its own."""
    rng = np.random.default_rng(seed)
    return np.array([COST[term.feature] * np.exp(0.5 * rng.standard_normal()) for term in found.terms])


def guess(found: Terms) -> Floats:
    """What is believed before anything is measured: off by up to a factor of two, and the same for all layers."""
    wrong = dict(zip(FEATURES, (0.7, 2.0, 1.0, 0.5, 0.6, 1.5), strict=True))
    return np.array([COST[term.feature] * wrong[term.feature] for term in found.terms])


def noisy(times: Floats, share: float, seed: int) -> Floats:
    return times * (1 + share * np.random.default_rng(seed).standard_normal(len(times)))


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
@pytest.mark.parametrize("width", [1, 8, 16])
def test_64_subnets_give_an_error_near_the_noise(name: str, width: int) -> None:
    found, share = terms(name), 0.01
    cost = truth(found, width)
    rows = design(found, 64, base=guess(found)).astype(float)
    fit = fit_backbone(found, rows, noisy(found.at(rows, width=width) @ cost + 0.05, share, 1), guess(found))
    held = random_counts(found.groups, 200, np.random.default_rng(9)).astype(float)
    times = found.at(held, width=width) @ cost + 0.05
    middle = gathered(found.at(held, width=fit.width) * fit.base, fit.column) @ fit.fitted.weights
    assert np.mean(np.abs(middle / times - 1)) < share
    # A line through the counts, with as many subnets, is several times worse.
    line = np.linalg.lstsq(np.c_[np.ones(64), rows], found.at(rows, width=width) @ cost, rcond=None)[0]
    assert np.mean(np.abs(np.c_[np.ones(200), held] @ line / times - 1)) > 2 * share
    if width > 1:
        assert fit.width == width


def test_solve_is_the_least_squares_solution_that_is_never_negative() -> None:
    rng = np.random.default_rng(0)
    values, pull = rng.random((30, 6)) * [1, 1, 1, 1, 1, 0.1], 1e-3
    times = values @ np.array([1.0, 2.0, 0.0, 0.5, 0.0, 1.0]) * (1 + 0.05 * rng.standard_normal(30))
    family = np.array([0, 0, 0, 1, 1, -1])
    rows = np.zeros((36, 8))
    rows[:30, :6] = values / times[:, None]
    for column in range(5):
        rows[30 + column, column], rows[30 + column, 6 + family[column]] = np.sqrt(pull), -np.sqrt(pull)
    target = np.r_[np.ones(30), np.zeros(6)]
    other = lsq_linear(rows, target, bounds=(0, np.inf), tol=1e-14).x[:6]
    np.testing.assert_allclose(solve(values, times, pull=pull, family=family), other, atol=1e-5)


def test_a_strong_pull_gives_all_columns_of_a_family_one_weight() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((20, 5))
    times = values @ np.array([1.0, 3.0, 2.0, 7.0, 5.0])
    weights = solve(values, times, pull=1e6, family=np.array([0, 0, 0, 1, 1]))
    assert np.ptp(weights[:3]) < 1e-4 and np.ptp(weights[3:]) < 1e-4


def test_cross_fits_leave_their_part_out() -> None:
    rng = np.random.default_rng(2)
    values, part = rng.random((12, 3)), parts_of([*range(8), *range(4)], 4)
    times = values.sum(axis=1)
    times[part == 2] *= 3
    found = cross_fit(values, times, part, pull=1e-9, family=np.zeros(3, np.int64))
    assert list(part[:4]) == list(part[8:12])
    np.testing.assert_allclose(found.folds[2], 1, atol=1e-3)
    np.testing.assert_allclose(found.residuals[part == 2], 2, atol=1e-2)


def test_a_fit_needs_subnets_and_times() -> None:
    found = terms("mobilenet")
    rows = random_counts(found.groups, 5, np.random.default_rng(0)).astype(float)
    with pytest.raises(
        RequestError, match="at least 4 subnets, each with a time above 0 ms; got 3, 3 of them"
    ):
        fit_backbone(found, rows[:3], np.ones(3), guess(found))
    with pytest.raises(RequestError, match="got 5, 4 of them above 0 ms"):
        fit_backbone(found, rows, np.array([1.0, 1, 1, 0, 1]), guess(found))


def test_kinds_are_found_again_and_unknown_ones_take_what_all_take() -> None:
    blocks = [terms("resnet"), terms("mobilenet")]
    times, names = [], []
    for place, block in enumerate(blocks):
        cost = np.array([COST[term.feature] for term in block.terms])
        names.append(str(place))
        times.append(float(block.at([{}])[0] @ cost) + 0.05)
    fit = fit_kinds(blocks * 6, noisy(np.array(times * 6), 0.005, 3), names * 6, widths=(1,))
    have = np.array([by_name(block, fit.names, fit.width)[0] @ fit.fitted.weights for block in blocks])
    assert have == pytest.approx(times, rel=0.02)
    assert fit.names[-1] == FIXED and {f"*.{feature}" for feature in FEATURES} <= set(fit.names)
    assert (fit.fitted.weights >= 0).all()
    with pytest.raises(RequestError, match="at least two families"):
        fit_kinds(blocks, np.array(times), ["one", "one"])


def test_the_design_tells_more_than_random_subnets_and_has_the_corners() -> None:
    found = terms("mobilenet")
    rows = design(found, 40, seed=1)
    sizes = np.array(list(found.groups.values()))
    assert rows.shape == (40, len(sizes)) and (rows >= 1).all() and (rows <= sizes).all()
    assert (rows[0] == sizes).all() and (rows[1] == np.maximum(1, np.round(0.05 * sizes))).all()
    column, _ = columns_of(found)

    def information(counts: Floats) -> float:
        values = gathered(found.at(counts, width=8) / found.at([{}], width=8)[0], column)
        values = values / values.sum(axis=1, keepdims=True)
        return float(np.linalg.slogdet(1e-4 * np.eye(values.shape[1]) + values.T @ values)[1])

    rng = np.random.default_rng(5)
    random = [information(random_counts(found.groups, 40, rng).astype(float)) for _ in range(5)]
    assert information(rows.astype(float)) > max(random)


def test_random_subnets_are_small_and_large_and_layers_differ() -> None:
    rows = random_counts({f"g{place}": 64 for place in range(30)}, POOL, np.random.default_rng(0)) / 64
    level = rows.mean(axis=1)
    assert level.min() < 0.1 and level.max() > 0.9
    # Each layer's ratio is close to uniform.
    for share in (0.1, 0.5, 0.9):
        assert np.mean(rows <= share) == pytest.approx(share, abs=0.06)
    with pytest.raises(RequestError, match="no sliceable group"):
        design(Terms(SizeTable({}), (), ""), 3)
