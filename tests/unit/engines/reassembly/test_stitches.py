"""Stitches between all layouts: the graph does what the fit promises, and what was known is found again."""

from __future__ import annotations

import itertools

import pytest
import torch

from sarto.devices import count
from sarto.engines.reassembly.places import Place
from sarto.engines.reassembly.stitches import (
    Fit,
    Stitch,
    blank_stitch,
    fit_stitch,
    joinable,
    random_stitch,
    resample,
)
from sarto.errors import RequestError, ShapeError

PLACES = {
    "map": Place("a", "map", 5, (4, 4), dtype="float64"),
    "small map": Place("b", "map", 6, (2, 2), dtype="float64"),
    "odd map": Place("c", "map", 4, (3, 5), dtype="float64"),
    "last": Place("d", "map", 4, (4, 4), channels_last=True, dtype="float64"),
    "tokens": Place("e", "tokens", 6, (4, 4), dtype="float64"),
    "class token": Place("f", "tokens", 5, (4, 4), prefix=1, dtype="float64"),
    "registers": Place("g", "tokens", 3, (2, 2), prefix=3, dtype="float64"),
    "vector": Place("h", "vector", 7, (1, 1), dtype="float64"),
}


def _values(place: Place, n: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "vector": (n, place.channels),
        "tokens": (n, place.prefix + place.positions, place.channels),
        "map": (n, *place.grid, place.channels) if place.channels_last else (n, place.channels, *place.grid),
    }
    return torch.randn(shapes[place.layout], generator=generator, dtype=torch.float64)


PAIRS = [(a, b) for a, b in itertools.product(PLACES, PLACES) if joinable(PLACES[a], PLACES[b]) is None]


@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_graph_of_a_stitch_does_what_was_fitted(a: str, b: str, kernel: int) -> None:
    source, target = PLACES[a], PLACES[b]
    given, wanted = _values(source), _values(target, seed=1)
    stitch = fit_stitch(source, target, given, wanted, Fit(lam=1e-2, kernel=kernel))
    made = stitch.graph(given)
    assert isinstance(made, torch.Tensor) and made.shape == wanted.shape
    spread = resample(source.spread(given), target.grid)
    if stitch.kernel > 1:
        patches = torch.nn.functional.unfold(spread.permute(0, 3, 1, 2), 3, padding=1)
        spread = patches.reshape(12, -1, *target.grid).permute(0, 2, 3, 1)
    want = spread @ stitch.weight.T
    bias = stitch.bias if stitch.bias.ndim == 1 else stitch.bias.reshape(*target.grid, -1)
    assert torch.allclose(target.spread(made), want + bias, atol=1e-12)
    if target.prefix:
        assert stitch.prefix is not None
        pooled = given[:, : source.prefix].flatten(1) if source.prefix else source.pooled(given)
        told = (pooled @ stitch.prefix[0].T + stitch.prefix[1]).reshape(12, target.prefix, -1)
        assert torch.allclose(made[:, : target.prefix], told, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_a_blank_stitch_costs_what_the_fitted_one_does(a: str, b: str) -> None:
    source, target = PLACES[a], PLACES[b]
    for how in (Fit(lam=1e-2), Fit(lam=1e-2, rank=2)):
        fitted = fit_stitch(source, target, _values(source), _values(target, seed=1), how)
        assert count(blank_stitch(source, target, how).graph) == count(fitted.graph)


def test_a_known_affine_map_is_found_again() -> None:
    source, target = PLACES["map"], PLACES["small map"]
    given = _values(source, 20)
    weight, bias = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    wanted = (resample(source.spread(given), (2, 2)) @ weight.T + bias).permute(0, 3, 1, 2)
    stitch = fit_stitch(source, target, given, wanted, Fit(lam=0.0, kernel=1))
    assert torch.allclose(stitch.weight, weight, atol=1e-10)
    assert torch.allclose(stitch.bias, bias, atol=1e-10)
    assert stitch.r2 == pytest.approx(1.0, abs=1e-12)
    assert fit_stitch(source, target, given, wanted).r2 > 1 - 1e-9


def test_a_map_that_goes_to_tokens_and_back_is_the_same() -> None:
    source, tokens = PLACES["map"], Place("t", "tokens", 5, (4, 4), prefix=1, dtype="float64")
    given = _values(source)
    there = torch.cat([torch.ones(12, 1, 5, dtype=torch.float64), given.flatten(2).transpose(1, 2)], 1)
    first = fit_stitch(source, tokens, given, there, Fit(lam=0.0, kernel=1)).graph(given)
    back = fit_stitch(tokens, source, there, given, Fit(lam=0.0, kernel=1)).graph(first)
    assert isinstance(back, torch.Tensor)
    assert torch.allclose(back, given, atol=1e-9)


def test_without_bias_the_map_is_linear() -> None:
    source, target = PLACES["map"], PLACES["last"]
    stitch = fit_stitch(source, target, _values(source), _values(target, seed=1), Fit(lam=1e-3, bias=False))
    zero = stitch.graph(torch.zeros(2, 5, 4, 4, dtype=torch.float64))
    assert isinstance(zero, torch.Tensor) and float(zero.abs().max()) == 0.0


def test_a_low_rank_stitch_is_the_best_of_its_rank() -> None:
    source, target = PLACES["vector"], Place("y", "vector", 6, (1, 1), dtype="float64")
    given = _values(source, 60)
    wanted = given @ torch.randn(7, 6, dtype=torch.float64) + 0.1 * _values(target, 60, seed=3)
    full = fit_stitch(source, target, given, wanted, Fit(lam=1e-9, match=False))
    low = fit_stitch(source, target, given, wanted, Fit(lam=1e-9, rank=2, match=False))
    assert low.left is not None and low.left.shape == (6, 2)
    fitted = (given - given.mean(0)) @ full.weight.T
    values = torch.linalg.svdvals(fitted)
    error = ((given - given.mean(0)) @ (low.left @ low.weight).T - fitted).square().sum()
    assert float(error) == pytest.approx(float(values[2:].square().sum()), rel=1e-9)


def test_the_ridge_is_chosen_on_images_that_were_left_out() -> None:
    source, target = PLACES["vector"], Place("y", "vector", 3, (1, 1), dtype="float64")
    noise = fit_stitch(source, target, _values(source, 12), _values(target, 12, seed=9))
    assert noise.lam >= 0.1
    assert noise.r2 < 0.3


def test_a_known_convolution_is_found_again() -> None:
    source, target = PLACES["map"], Place("y", "map", 2, (4, 4), dtype="float64")
    given = _values(source, 40)
    kernel = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    wanted = torch.nn.functional.conv2d(given, kernel, torch.ones(2, dtype=torch.float64), padding=1)
    stitch = fit_stitch(source, target, given, wanted, Fit(lam=0.0))
    assert torch.allclose(stitch.weight, kernel.flatten(1), atol=1e-9)
    assert torch.allclose(stitch.bias, torch.ones(2, dtype=torch.float64), atol=1e-9)


def test_matched_channels_have_the_spread_that_the_receiver_is_used_to() -> None:
    source, target = PLACES["vector"], Place("y", "vector", 4, (1, 1), dtype="float64")
    given = _values(source, 80)
    wanted = given @ torch.randn(7, 4, dtype=torch.float64) + 1.5 * _values(target, 80, seed=3)
    plain, matched = (
        fit_stitch(source, target, given, wanted, Fit(lam=1e-3, match=m)).graph(given) for m in (False, True)
    )
    assert isinstance(plain, torch.Tensor) and isinstance(matched, torch.Tensor)
    assert bool((plain.std(0) < 0.99 * wanted.std(0)).all())
    assert torch.allclose(matched.std(0), wanted.std(0), rtol=1e-9)
    assert torch.allclose(matched.mean(0), wanted.mean(0), atol=1e-9)


def test_a_random_stitch_keeps_lengths_and_depends_on_its_seed() -> None:
    source, target = PLACES["map"], PLACES["class token"]
    one, two, three = (random_stitch(source, target, seed) for seed in (0, 0, 1))
    assert torch.equal(one.weight, two.weight) and not torch.equal(one.weight, three.weight)
    assert torch.allclose(one.weight.T @ one.weight, torch.eye(5, dtype=torch.float64), atol=1e-12)
    made = one.graph(_values(source))
    assert isinstance(made, torch.Tensor) and made.shape == (12, 17, 5)


def test_what_can_not_be_joined_is_told() -> None:
    with pytest.raises(ShapeError, match="no positions to give back"):
        fit_stitch(PLACES["vector"], PLACES["map"], _values(PLACES["vector"]), _values(PLACES["map"]))
    with pytest.raises(ShapeError, match="12 and 11 images"):
        fit_stitch(PLACES["map"], PLACES["map"], _values(PLACES["map"]), _values(PLACES["map"], 11))
    with pytest.raises(RequestError, match="at least 4 probe images, got 3"):
        fit_stitch(PLACES["map"], PLACES["map"], _values(PLACES["map"], 3), _values(PLACES["map"], 3))
    with pytest.raises(RequestError, match="odd number of positions, got 2"):
        Fit(kernel=2)
    broken = _values(PLACES["map"])
    broken[0, 0] = float("nan")
    with pytest.raises(RequestError, match="NaN or infinity"):
        fit_stitch(PLACES["map"], PLACES["map"], broken, broken)


def test_many_rows_are_thinned_without_leaving_positions_out() -> None:
    source, target = (
        Place("a", "map", 3, (32, 32), dtype="float64"),
        Place("b", "map", 2, (32, 32), dtype="float64"),
    )
    given = _values(source, 60)
    weight = torch.randn(2, 3, dtype=torch.float64)
    wanted = torch.einsum("nchw,dc->ndhw", given, weight)
    assert torch.allclose(
        fit_stitch(source, target, given, wanted, Fit(lam=0.0, kernel=1)).weight, weight, atol=1e-9
    )
    assert isinstance(fit_stitch(source, target, given, wanted), Stitch)
