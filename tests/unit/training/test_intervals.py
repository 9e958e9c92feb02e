"""Intervals and paired tests: against enumeration and known values."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from sarto.errors import RequestError, ShapeError
from sarto.training import compare, jeffreys, mcnemar_mid_p, samples_to_tell, wilson


@pytest.mark.parametrize(("successes", "n"), [(3, 10), (17, 50), (12.4, 30)])
def test_jeffreys_holds_its_share_of_the_posterior(successes: float, n: int) -> None:
    low, high = jeffreys(successes, n, level=0.9)
    a, b = successes - 0.5, n - successes - 0.5
    scale = math.gamma(n + 1) / (math.gamma(a + 1) * math.gamma(b + 1))
    mass, _ = integrate.quad(lambda p: scale * p**a * (1 - p) ** b, low, high)
    assert mass == pytest.approx(0.9, abs=1e-7)


def test_ends_are_closed_without_failures_or_successes() -> None:
    assert jeffreys(0, 20).low == 0 and jeffreys(20, 20).high == 1
    assert jeffreys(0, 20).high == pytest.approx(1 - jeffreys(20, 20).low)
    assert wilson(0, 20).low == 0 and wilson(20, 20).high == pytest.approx(1)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 10), (45, 60), (60, 60)])
def test_wilson_ends_are_where_the_score_test_is_on_the_edge(successes: int, n: int) -> None:
    z = stats.norm.ppf(0.95)
    for end in wilson(successes, n, level=0.9):
        if 0 < end < 1:
            assert abs(successes / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(z)


def test_mcnemar_equals_enumeration() -> None:
    def by_hand(b: int, c: int) -> float:
        n, fewer = b + c, min(b, c)
        chances = [math.comb(n, i) / 2**n for i in range(n + 1)]
        return 2 * (sum(chances[:fewer]) + chances[fewer] / 2)

    for pair in [(1, 9), (4, 4), (0, 6), (12, 5)]:
        assert mcnemar_mid_p(*pair) == pytest.approx(by_hand(*pair))
        assert mcnemar_mid_p(*pair) == pytest.approx(mcnemar_mid_p(*reversed(pair)))
    assert mcnemar_mid_p(0, 0) == 1
    assert mcnemar_mid_p(4, 4) == pytest.approx(1)


def test_comparison_of_clear_and_equal_heads() -> None:
    labels = torch.arange(60) % 3
    good, bad = torch.ones(60), (torch.arange(60) % 5 > 0).float()
    clear = compare(good, bad, labels)
    assert clear.difference == pytest.approx(0.2, abs=0.01)
    assert clear.interval[0] > 0 and clear.p_better == 1 and clear.mcnemar_p < 0.001
    same = compare(bad, bad, labels)
    assert (
        same.difference == 0 and same.p_better == 0.5 and same.mcnemar_p == 1 and same.samples_needed is None
    )
    back = compare(bad, good, labels)
    assert back.difference == -clear.difference and back.samples_needed == clear.samples_needed


def test_comparison_counts_classes_equally_and_skips_what_was_not_counted() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    a = torch.tensor([1.0, 1, 1, 1, 0, torch.nan])
    b = torch.tensor([0.0, 0, 0, 0, 1, torch.nan])
    assert compare(a, b, labels).difference == pytest.approx(0)


def test_bootstrap_spread_is_that_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    a = (torch.rand(200, generator=generator) < 0.8).double()
    b = (torch.rand(200, generator=generator) < 0.6).double()
    found = compare(a, b, labels, level=0.9, draws=4000)
    within = sum((a - b)[labels == cls].var(correction=0) / 100 / 4 for cls in (0, 1))
    width = 2 * stats.norm.ppf(0.95) * math.sqrt(float(within))
    assert found.interval[1] - found.interval[0] == pytest.approx(width, rel=0.08)


def test_samples_to_tell_has_the_promised_power() -> None:
    n = samples_to_tell(0.37, 0.025)
    assert n is not None
    power = stats.norm.cdf(0.025 * math.sqrt(n) / 0.37 - stats.norm.ppf(0.975))
    assert power == pytest.approx(0.8, abs=0.002)
    assert samples_to_tell(0.0, 0.1) is None and samples_to_tell(0.3, 0.0) is None


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(RequestError, match="got 6 of 5"):
        jeffreys(6, 5)
    with pytest.raises(RequestError, match="n >= 1"):
        wilson(0, 0)
    with pytest.raises(RequestError, match="level must lie"):
        jeffreys(1, 2, level=1.0)
    with pytest.raises(RequestError, match="counts must be >= 0"):
        mcnemar_mid_p(-1, 2)
    with pytest.raises(ShapeError, match="three vectors of one length"):
        compare(torch.ones(3), torch.ones(3), torch.zeros(4))
    with pytest.raises(RequestError, match="same counted samples"):
        compare(torch.tensor([1.0, torch.nan]), torch.ones(2), torch.zeros(2))
