"""Heads: against textbook solutions, at one sample a class, and with scaling folded in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import optimize

from sarto.errors import RequestError, SartoError, ShapeError
from sarto.training import Head, logistic, logistic_head, logistic_loto, nearest_mean_head, ridge_head
from sarto.training.logistic import principal_axes, solve_logistic
from sarto.training.scaling import balanced_weights, fit_scaling


def clouds(counts: tuple[int, ...], d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), cls) for cls, count in enumerate(counts)])
    centres = 2 * torch.randn(len(counts), d, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
    return centres[labels] + noise + 5, labels


def balanced(labels: torch.Tensor) -> torch.Tensor:
    counts = torch.bincount(labels).double()
    return len(labels) / (len(counts) * counts[labels])


@pytest.mark.parametrize("d", [4, 40])
@pytest.mark.parametrize("counts", [(6, 6, 6), (9, 3, 5)])
def test_ridge_head_is_at_the_minimum_of_its_objective(d: int, counts: tuple[int, ...]) -> None:
    x, y = clouds(counts, d)
    blocks = (1, d - 1)
    scaled = fit_scaling(x, blocks=blocks).apply(x)
    head = ridge_head(x, y, 3, lam=0.4, blocks=blocks)
    weights, targets = balanced(y), 2 * torch.nn.functional.one_hot(y, 3).double() - 1
    rows = torch.cat(
        [
            weights.sqrt().unsqueeze(1) * torch.cat([scaled, torch.ones(len(y), 1)], 1),
            (0.4 * d) ** 0.5 * torch.eye(d, d + 1, dtype=torch.float64),
        ]
    )
    goals = torch.cat([weights.sqrt().unsqueeze(1) * targets, torch.zeros(d, 3)])
    solution = torch.linalg.lstsq(rows, goals, driver="gelsd").solution
    expected = scaled @ solution[:d] + solution[d]
    torch.testing.assert_close(head.scores(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("counts", [(6, 6, 6), (9, 3, 5)])
@pytest.mark.parametrize("lam", [0.03, 0.3, 3.0])
def test_logistic_head_equals_a_general_optimiser(counts: tuple[int, ...], lam: float) -> None:
    x, y = clouds(counts, 5)
    scaled = fit_scaling(x).apply(x).numpy()
    weights, truth = balanced(y).numpy(), np.eye(3)[y.numpy()]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        matrix = flat.reshape(6, 3)
        scores = scaled @ matrix[:5] + matrix[5]
        top = scores.max(1, keepdims=True)
        logs = scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True))
        residual = weights[:, None] * (np.exp(logs) - truth)
        slope = np.vstack([scaled.T @ residual + lam * 5 * matrix[:5], residual.sum(0)])
        value = -(weights[:, None] * truth * logs).sum() + lam * 5 / 2 * (matrix[:5] ** 2).sum()
        return value, slope.ravel()

    best = optimize.minimize(
        loss, np.zeros(18), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}
    )
    expected = scaled @ best.x.reshape(6, 3)[:5] + best.x.reshape(6, 3)[5]
    found = logistic_head(x, y, 3, lam=lam).scores(x)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_side_by_side_problems_equal_single_ones_from_any_start() -> None:
    x, y = clouds((8, 8, 8), 12)
    coordinates, _ = principal_axes(x - x.mean(0))
    targets = torch.nn.functional.one_hot(y, 3).double()
    weights = torch.ones(4, 24, dtype=torch.float64)
    weights[1, :3] = 0
    weights[2, 10] = 5
    penalty = torch.tensor([1.0, 0.1, 10.0, 0.01], dtype=torch.float64)
    together = solve_logistic(coordinates, targets, weights, penalty, tolerance=1e-9)
    warm = solve_logistic(coordinates, targets, weights, penalty, start=together, tolerance=1e-9)
    assert bool(together.converged.all()) and warm.steps <= 2
    for problem in range(4):
        rows = slice(problem, problem + 1)
        alone = solve_logistic(coordinates, targets, weights[rows], penalty[rows], tolerance=1e-9)
        torch.testing.assert_close(alone.weight[0], together.weight[problem], rtol=1e-6, atol=1e-7)


def test_a_solver_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "_MAX_STEPS", 3)
    x, y = clouds((5, 5), 30)
    with pytest.raises(RequestError, match=r"did not converge in 3 steps: lam=1e-06 is too weak"):
        logistic_head(x, y, 2, lam=1e-6)
    with pytest.raises(
        SartoError, match=r"refits of the logistic head with lam=1e-06 did not converge in 3 steps"
    ):
        logistic_loto(x, y, 2, lam=1e-6)


def test_principal_axes_span_the_rows() -> None:
    x, _ = clouds((4, 4), 30)
    coordinates, axes = principal_axes(x)
    assert coordinates.shape == (8, 8)
    torch.testing.assert_close(coordinates @ axes.T, x)
    torch.testing.assert_close(axes.T @ axes, torch.eye(8, dtype=torch.float64))
    flat, _ = principal_axes(torch.zeros(3, 4, dtype=torch.float64))
    assert flat.shape == (3, 1)


def test_nearest_mean_head_picks_the_nearest_mean() -> None:
    x, y = clouds((5, 2, 4), 6)
    means = torch.stack([x[y == cls].mean(0) for cls in range(3)])
    head = nearest_mean_head(x, y, 3)
    fresh, _ = clouds((20, 20, 20), 6, seed=7)
    distances = torch.cdist(fresh, means).square()
    assert torch.equal(head.predict(fresh), distances.argmin(1))
    scores = head.scores(fresh)
    torch.testing.assert_close(scores - scores[:, :1], -(distances - distances[:, :1]) / 2)


@pytest.mark.parametrize("fit", [ridge_head, logistic_head])
def test_one_sample_a_class_is_enough(fit: Callable[..., Head]) -> None:
    x, y = clouds((1, 1, 1), 20)
    head = fit(x, y, 3)
    assert torch.equal(head.predict(x), y)


@pytest.mark.parametrize("fit", [ridge_head, logistic_head])
def test_one_class_gives_constant_scores(fit: Callable[..., Head]) -> None:
    x, y = clouds((4,), 6)
    head = fit(x, y, 1)
    assert head.weight.shape == (1, 6)
    torch.testing.assert_close(head.scores(x), head.bias.expand(4, 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("fit", [ridge_head, logistic_head])
def test_blocks_are_scaled_apart_and_features_on_request(fit: Callable[..., Head]) -> None:
    x, y = clouds((6, 6), 6)
    stretched = x.clone()
    stretched[:, :2] *= 1000
    one = fit(x, y, 2, blocks=(2, 4))
    two = fit(stretched, y, 2, blocks=(2, 4))
    torch.testing.assert_close(one.scores(x), two.scores(stretched), rtol=1e-6, atol=1e-7)
    factors = torch.tensor([1.0, 2, 30, 0.1, 5, 7])
    one = fit(x, y, 2, per_feature=True)
    two = fit(x * factors, y, 2, per_feature=True)
    torch.testing.assert_close(one.scores(x), two.scores(x * factors), rtol=1e-6, atol=1e-7)


def test_classes_count_equally_whatever_their_size() -> None:
    x, y = clouds((4, 4), 3)
    repeated = torch.cat([x, x[:4], x[:4]])
    labels = torch.cat([y, y[:4], y[:4]])
    scaling = fit_scaling(x)
    torch.testing.assert_close(
        balanced_weights(labels, 2)[labels == 0].sum(), balanced_weights(labels, 2)[labels == 1].sum()
    )
    # Same scaled features on both sides, so only the weights differ: 16 in sum instead of 8.
    small, large = scaling.apply(x), scaling.apply(repeated)
    one = solve_logistic(
        small,
        torch.eye(2, dtype=torch.float64)[y],
        2 * balanced_weights(y, 2)[None],
        torch.ones(1).double(),
        tolerance=1e-9,
    )
    two = solve_logistic(
        large,
        torch.eye(2, dtype=torch.float64)[labels],
        balanced_weights(labels, 2)[None],
        torch.ones(1).double(),
        tolerance=1e-9,
    )
    torch.testing.assert_close(one.weight, two.weight)


def test_float32_features_give_a_float32_head() -> None:
    x, y = clouds((5, 5), 4)
    head = logistic_head(x.float(), y, 2)
    assert head.weight.dtype == torch.float32
    torch.testing.assert_close(
        head.scores(x.float()).double(), logistic_head(x, y, 2).scores(x), rtol=1e-4, atol=1e-4
    )


def test_constant_features_get_no_weight() -> None:
    x, y = clouds((5, 5), 4)
    x[:, 2] = 1e6
    for head in (ridge_head(x, y, 2, per_feature=True), logistic_head(x, y, 2, blocks=(2, 1, 1))):
        assert float(head.weight[:, 2].abs().max()) < 1e-12


def test_temperature_changes_probabilities_only() -> None:
    x, y = clouds((5, 5, 5), 4)
    head = logistic_head(x, y, 3)
    cold = head.with_temperature(0.1)
    assert torch.equal(head.predict(x), cold.predict(x))
    assert float(cold.probabilities(x).max(1).values.mean()) > float(
        head.probabilities(x).max(1).values.mean()
    )
    torch.testing.assert_close(cold.probabilities(x), torch.softmax(10 * head.scores(x), 1))


def test_wrong_arguments_are_refused() -> None:
    x, y = clouds((3, 3), 4)
    with pytest.raises(RequestError, match=r"classes \[2\] have no samples"):
        ridge_head(x, y, 3)
    with pytest.raises(RequestError, match=r"labels must lie in 0..0, got \[1\]"):
        ridge_head(x, y, 1)
    with pytest.raises(RequestError, match="labels must be integers"):
        ridge_head(x, y.double(), 2)
    with pytest.raises(RequestError, match="n_classes must be at least 1"):
        ridge_head(x, y, 0)
    with pytest.raises(ShapeError, match="one label for each of the 6 samples"):
        ridge_head(x, y[:4], 2)
    with pytest.raises(ShapeError, match="flatten or pool them first"):
        ridge_head(x.reshape(6, 2, 2), y, 2)
    with pytest.raises(ShapeError, match="sum to the 4 features"):
        ridge_head(x, y, 2, blocks=(2, 3))
    with pytest.raises(RequestError, match="lam must be finite and > 0, got 0"):
        logistic_head(x, y, 2, lam=0)
    x[1, 1] = torch.nan
    with pytest.raises(RequestError, match=r"2 problems: .*no samples.*; 1 of 24 features are not finite"):
        logistic_head(x, y, 3)
    with pytest.raises(ShapeError, match=r"weight \(q, d\) and bias \(q,\)"):
        Head(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(RequestError, match="temperature must be finite and > 0"):
        Head(torch.ones(2, 3), torch.ones(2), 0.0)
