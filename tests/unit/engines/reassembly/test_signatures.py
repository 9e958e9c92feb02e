"""Signatures against the estimators that they stand for, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sarto.engines.reassembly.signatures import (
    Sketcher,
    cka,
    cka_errors,
    loo_r2,
    loo_source,
    loo_target,
    signature,
    signature_length,
    similarity,
    u_centred,
)
from sarto.errors import RequestError, ShapeError


def _hsic_1(k: torch.Tensor, m: torch.Tensor) -> float:
    """HSIC_1 of two Gram matrices as the paper writes it."""
    n = k.shape[0]
    k, m = k.clone(), m.clone()
    k.fill_diagonal_(0)
    m.fill_diagonal_(0)
    one = torch.ones(n, dtype=k.dtype)
    trace = (k @ m).trace()
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (one @ k @ m @ one)
    return float((trace + middle - last) / (n * (n - 3)))


def _pair(n: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 7, generator=generator, dtype=torch.float64)
    return x, x @ torch.randn(7, 5, generator=generator, dtype=torch.float64) + torch.randn(
        n, 5, generator=generator, dtype=torch.float64
    )


@pytest.mark.parametrize("batch", [8, 16])
def test_the_dot_product_of_signatures_is_the_minibatch_unbiased_cka(batch: int) -> None:
    x, y = _pair()
    sums = np.zeros(3)
    for start in range(0, 48, batch):
        a, b = (part[start : start + batch] for part in (x, y))
        k, m = a @ a.T, b @ b.T
        sums += [_hsic_1(k, m), _hsic_1(k, k), _hsic_1(m, m)]
    want = sums[0] / np.sqrt(sums[1] * sums[2])
    found = float(signature(x, batch=batch) @ signature(y, batch=batch))
    assert found == pytest.approx(want, abs=1e-12)


def test_a_signature_has_length_one_and_the_promised_number_of_entries() -> None:
    x, _ = _pair(50)
    found = signature(x, batch=16)
    assert found.shape == (signature_length(50, 16),) == (3 * 120,)
    assert float(found.norm()) == pytest.approx(1.0, abs=1e-12)


def test_signatures_know_no_shift_scale_or_rotation() -> None:
    x, _ = _pair()
    q, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    assert torch.allclose(signature(x, batch=16), signature(3.0 * x @ q + 5.0, batch=16), atol=1e-12)


def test_independent_wide_features_are_not_alike_where_biased_cka_says_half() -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(256, 256, generator=generator) for _ in range(2))
    a, b = x - x.mean(0), y - y.mean(0)
    biased = float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))
    assert biased > 0.4
    assert abs(float(signature(x) @ signature(y))) < 0.02


def test_u_centred_matrices_have_rows_that_sum_to_zero() -> None:
    x, _ = _pair(9)
    centred = u_centred(x @ x.T)
    assert float(centred.sum(1).abs().max()) < 1e-12
    assert float(centred.diagonal().abs().max()) == 0.0
    with pytest.raises(ShapeError, match="at least 4 rows"):
        u_centred(torch.ones(3, 3))


def test_the_jack_knife_is_what_leaving_each_batch_out_gives() -> None:
    x, y = _pair(64)
    found = similarity(signature(x, batch=16).numpy(), signature(y, batch=16).numpy(), batch=16)
    left = []
    for out in range(4):
        kept = torch.tensor([i for i in range(64) if i // 16 != out])
        left.append(float(signature(x[kept], batch=16) @ signature(y[kept], batch=16)))
    want = np.sqrt(3 / 4 * np.square(np.array(left) - np.mean(left)).sum())
    assert found.error == pytest.approx(want, abs=1e-12)
    assert (
        similarity(signature(x[:16], batch=16).numpy(), signature(y[:16], batch=16).numpy(), batch=16).error
        is None
    )


def test_the_errors_of_all_pairs_are_those_of_each_pair() -> None:
    parts = [signature(x, batch=16).numpy() for seed in range(3) for x in _pair(64, seed)]
    rows = np.stack(parts).astype(np.float32)
    found = cka_errors(rows, batch=16)
    assert found is not None and found.shape == (6, 6)
    wanted = [[similarity(one, two, batch=16).error for two in rows] for one in rows]
    assert np.allclose(found, np.array(wanted, dtype=float), atol=1e-7)
    assert found[0, 1] > 1e-3
    assert cka_errors(rows[:, : rows.shape[1] // 4], batch=16) is None


def test_sketches_keep_cosines_within_their_size() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(128, 20, generator=generator)
    features = [base[:, : 4 + i] + 0.5 * torch.randn(128, 4 + i, generator=generator) for i in range(12)]
    full = torch.stack([signature(f) for f in features]).float().numpy()
    short = Sketcher(full.shape[1], 1024)(full)
    assert short.shape == (12, 1024)
    assert float(np.abs(cka(full, full) - cka(short, short)).max()) < 4 / np.sqrt(1024)
    assert np.array_equal(short, Sketcher(full.shape[1], 1024)(full))


@pytest.mark.parametrize("lam", [1e-3, 1e-1])
def test_the_leave_one_out_stitch_error_equals_refitting_without_each_image(lam: float) -> None:
    x, y = _pair(30)
    n = len(x)
    centred = x - x.mean(0)
    mu = lam * float((centred @ centred.T).trace()) / min(n - 1, x.shape[1])
    error = 0.0
    for i in range(n):
        kept = torch.tensor([j for j in range(n) if j != i])
        # Ridge with a free intercept and the same penalty, refitted without image i.
        a = torch.cat([x[kept], torch.ones(n - 1, 1, dtype=x.dtype)], 1)
        b = a - 0.0
        offset = torch.cat([x.mean(0), torch.zeros(1, dtype=x.dtype)])
        a = b - offset
        penalty = torch.diag(torch.tensor([mu] * x.shape[1] + [0.0], dtype=x.dtype))
        weights = torch.linalg.solve(a.T @ a + penalty, a.T @ y[kept])
        row = torch.cat([x[i], torch.ones(1, dtype=x.dtype)]) - offset
        error += float((y[i] - row @ weights).square().sum())
    want = 1 - error / float((y - y.mean(0)).square().sum())
    assert loo_r2(loo_source(x, lam), loo_target(y)) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.randn(30, 4), "at least 64 probe images, got 30"),
        (torch.full((64, 4), float("nan")), "NaN or infinity"),
        (torch.ones(64, 4), "the same for every probe image"),
    ],
)
def test_features_that_say_nothing_are_refused(features: torch.Tensor, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        signature(features)
