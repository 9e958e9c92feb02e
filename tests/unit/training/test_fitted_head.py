"""The one call: head, score, temperature and notes belong together."""

from __future__ import annotations

import pytest
import torch

from sarto.errors import RequestError
from sarto.training import (
    LOGISTIC_LAM,
    fit_head,
    fit_temperature,
    logistic_head,
    logistic_loto,
    ridge_head,
    ridge_loto,
)


def clouds(counts: tuple[int, ...], d: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.cat([torch.full((count,), cls) for cls, count in enumerate(counts)])
    noise = torch.randn(len(labels), d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise + 2 * torch.eye(len(counts), d)[labels], labels


def test_parts_are_those_of_the_single_functions() -> None:
    x, y = clouds((12, 12, 12))
    fitted = fit_head(x, y, 3, blocks=(4, 6))
    loto = logistic_loto(x, y, 3, blocks=(4, 6))
    head = logistic_head(x, y, 3, lam=LOGISTIC_LAM, blocks=(4, 6))
    assert fitted.loto.accuracy == loto.accuracy
    assert torch.equal(fitted.head.weight, head.weight)
    assert fitted.head.temperature == fit_temperature(loto.scores, y)
    assert fitted.calibration_error is not None and fitted.notes == ()


def test_chosen_lam_is_used_for_the_head() -> None:
    x, y = clouds((8, 8))
    fitted = fit_head(x, y, 2, kind="ridge", lam=(0.1, 1.0, 10.0))
    assert fitted.loto.lam in (0.1, 1.0, 10.0)
    assert torch.equal(fitted.head.weight, ridge_head(x, y, 2, lam=fitted.loto.lam).weight)
    assert fitted.loto.accuracy == ridge_loto(x, y, 2, lam=(0.1, 1.0, 10.0)).accuracy


def test_one_sample_a_class_gives_a_head_without_accuracy() -> None:
    x, y = clouds((1, 1, 1))
    fitted = fit_head(x, y, 3)
    assert torch.equal(fitted.head.predict(x), y)
    assert fitted.loto.accuracy is None and fitted.loto.interval() is None and fitted.head.temperature == 1
    assert fitted.notes[0].startswith("class 0, class 1 and class 2 have one sample each and are not counted")
    assert "too few samples to calibrate" in fitted.notes[1]


def test_a_class_that_is_not_counted_is_named() -> None:
    x, y = clouds((4, 1, 4))
    told = "'dog' has one sample and is not counted in the accuracy"
    assert fit_head(x, y, 3, classes=("cat", "dog", "cow")).notes[0] == told
    x, y = clouds((2, *[1] * 12))
    note = fit_head(x, y, 13, classes=[f"c{i}" for i in range(13)]).notes[0]
    assert note.startswith("'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7' and 5 more have one sample each")


def test_unknown_kinds_are_refused() -> None:
    x, y = clouds((2, 2))
    with pytest.raises(RequestError, match="no kind of head 'ridg'"):
        fit_head(x, y, 2, kind="ridg")
