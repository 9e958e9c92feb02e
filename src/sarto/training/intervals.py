"""How sure a share of right answers is, and whether two heads can be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sarto.errors import RequestError, ShapeError


class Interval(NamedTuple):
    """Lower and upper end, both in 0..1."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Paired difference of two heads on the same samples.

    difference: accuracy of the first minus the second, classes equally.
    interval: bootstrap over samples within each class.
    p_better: share of the draws in which the first is better (half of the equal ones).
    mcnemar_p: two-sided mid-p on the samples where they differ.
    samples_needed: about how many samples would tell this difference from zero (80 % power, 5 % error); None
        when there is no difference to be told.
    """

    difference: float
    interval: tuple[float, float]
    p_better: float
    mcnemar_p: float
    samples_needed: int | None


def jeffreys(successes: float, n: int, *, level: float = 0.9) -> Interval:
    """Jeffreys interval of a share; `successes` may be fractional (a mean over repeats).

    The lower end is 0 without successes, the upper end 1 without failures.

    Raises:
        RequestError: n < 1, successes outside 0..n, or level outside (0, 1).

    Reference:
        Brown, Cai, DasGupta, "Interval estimation for a binomial proportion", Statistical Science 2001.
    """
    _check_count(successes, n, level)
    tail = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(stats.beta.ppf(tail, successes + 0.5, n - successes + 0.5))
    high = 1.0 if successes >= n else float(stats.beta.ppf(1 - tail, successes + 0.5, n - successes + 0.5))
    return Interval(low, high)


def wilson(successes: float, n: int, *, level: float = 0.9) -> Interval:
    """Wilson score interval of a share, for samples that no choice has seen. Errors as in `jeffreys`.

    Reference:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    _check_count(successes, n, level)
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - reach), min(1.0, centre + reach))


def compare(
    correct_a: Tensor,
    correct_b: Tensor,
    labels: Tensor,
    *,
    level: float = 0.9,
    draws: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Paired comparison of two heads from how often each sample was right.

    Args:
        correct_a: share right for each sample, 0..1, shape (n,); NaN where not counted, in both or none.
        correct_b: the same for the other head.
        labels: class of each sample, shape (n,).
        level: of the interval.
        draws: bootstrap draws.
        seed: of the draws.

    Raises:
        ShapeError: the three don't have one entry for each sample.
        RequestError: nothing was counted, the two were counted on different samples, or draws < 1.
    """
    a, b, classes = correct_a.to(torch.float64).numpy(), correct_b.to(torch.float64).numpy(), labels.numpy()
    if not a.shape == b.shape == classes.shape or a.ndim != 1:
        raise ShapeError(
            f"three vectors of one length were asked for, got {a.shape}, {b.shape} and {classes.shape}"
        )
    counted = ~np.isnan(a)
    if draws < 1 or not counted.any() or not np.array_equal(counted, ~np.isnan(b)):
        raise RequestError(
            f"a paired comparison needs the same counted samples on both sides and draws >= 1; got "
            f"{int(counted.sum())} and {int((~np.isnan(b)).sum())} samples, draws={draws}"
        )
    differences, classes = (a - b)[counted], classes[counted]
    generator = np.random.default_rng(seed)
    parts = [differences[classes == cls] for cls in np.unique(classes)]
    difference = float(np.mean([part.mean() for part in parts]))
    drawn = np.mean([generator.choice(part, (draws, part.size)).mean(1) for part in parts], axis=0)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Comparison(
        difference=difference,
        interval=(float(low), float(high)),
        p_better=float((drawn > 0).mean() + (drawn == 0).mean() / 2),
        mcnemar_p=mcnemar_mid_p(int((differences > 0).sum()), int((differences < 0).sum())),
        samples_needed=samples_to_tell(float(differences.std()), difference),
    )


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """Two-sided mid-p of McNemar's exact test, from the numbers of samples that only one side got right.

    Raises:
        RequestError: a negative count.

    Reference:
        Fagerland, Lydersen, Laake, "The McNemar test for binary matched-pairs data", BMC Medical Research
        Methodology 2013.
    """
    if only_first < 0 or only_second < 0:
        raise RequestError(f"counts must be >= 0, got {only_first} and {only_second}")
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    below, at = float(stats.binom.cdf(fewer, n, 0.5)), float(stats.binom.pmf(fewer, n, 0.5))
    return min(1.0, 2 * (below - at / 2))


def samples_to_tell(spread: float, difference: float) -> int | None:
    """Samples that would tell a paired difference from zero with 80 % power at 5 % error.

    7.85 spread^2 / difference^2, spread being the standard deviation of the paired differences; None when
    either is zero.
    """
    if spread <= 0 or abs(difference) < 1e-12:
        return None
    return math.ceil(7.85 * spread * spread / (difference * difference))


def _check_count(successes: float, n: int, level: float) -> None:
    if n < 1 or not 0 <= successes <= n * (1 + 1e-12):
        raise RequestError(f"successes in 0..n with n >= 1 were asked for, got {successes} of {n}")
    if not 0 < level < 1:
        raise RequestError(f"level must lie in (0, 1), got {level}")
