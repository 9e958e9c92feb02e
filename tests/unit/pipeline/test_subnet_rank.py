"""Which of a task's subnets goes first: by chance never a smaller one than fits."""

from __future__ import annotations

import pytest

from sarto.pipeline.tasks import beside_larger


def test_a_smaller_subnet_is_better_only_beyond_the_error_of_what_was_judged() -> None:
    # 0.95 of 200 samples has a standard error of 1.5 points.
    assert beside_larger(0.96, 0.95, 200) == 0.95
    assert beside_larger(0.97, 0.95, 200) == 0.97
    assert beside_larger(0.96, 0.95, 20_000) == 0.96
    assert beside_larger(0.90, 0.95, 200) == 0.90


@pytest.mark.parametrize(("quality", "larger"), [(None, 0.9), (0.9, None), (None, None)])
def test_what_is_not_known_stays_so(quality: float | None, larger: float | None) -> None:
    assert beside_larger(quality, larger, 200) == quality
