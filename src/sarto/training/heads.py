"""Linear classifiers on features from few samples, fitted in closed form or to convergence."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.training._inputs import check_positive, check_samples
from sarto.training.kernel import solve_dual_ridge
from sarto.training.logistic import principal_axes, solve_logistic
from sarto.training.scaling import balanced_weights, fit_scaling

RIDGE_LAM = 1.0
"""Default strength of the ridge head: best or next to best on average from 5 to 20 samples a class."""
LOGISTIC_LAM = 0.3
"""Default strength of the logistic head; a fixed one did better than choosing it on so few samples."""


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier on raw features: scores = x weight^T + bias.

    weight: (q, d); bias: (q,); temperature > 0: probabilities = softmax(scores / temperature).
    """

    weight: Tensor
    bias: Tensor
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise ShapeError(
                f"a head needs weight (q, d) and bias (q,); "
                f"got {tuple(self.weight.shape)} and {tuple(self.bias.shape)}"
            )
        check_positive("temperature", self.temperature)

    def scores(self, features: Tensor) -> Tensor:
        """Scores (n, q) of features (n, d)."""
        return features.to(self.weight.dtype) @ self.weight.T + self.bias

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities (n, q) of features (n, d)."""
        return torch.softmax(self.scores(features) / self.temperature, dim=1)

    def predict(self, features: Tensor) -> Tensor:
        """Predicted class (n,) of features (n, d)."""
        return self.scores(features).argmax(1)

    def with_temperature(self, temperature: float) -> Head:
        """The same classifier with other probabilities."""
        return replace(self, temperature=temperature)


def ridge_head(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    lam: float = RIDGE_LAM,
    blocks: tuple[int, ...] | None = None,
    per_feature: bool = False,
) -> Head:
    """Ridge regression onto +1 (own class) and -1 (others), every class with the same total weight.

    Features are centred and scaled (`fit_scaling`), the intercept is free. Solved over samples when they are
    fewer than features. One sample a class is enough.

    Args:
        features: raw features, shape (n, d).
        labels: 0..n_classes-1, shape (n,), each class at least once.
        n_classes: q.
        lam: strength in units of the mean squared norm of a scaled sample (d), so it means the same at any d.
        blocks: widths of the fragments side by side; each gets one scale.
        per_feature: one scale for every feature instead.

    Raises:
        ShapeError: features, labels or blocks don't fit together.
        RequestError: labels out of range, a class without samples, non-finite features, or lam <= 0.
    """
    labels = check_samples(features, labels, n_classes)
    check_positive("lam", lam)
    scaling = fit_scaling(features, blocks=blocks, per_feature=per_feature)
    x = scaling.apply(features)
    n, d = x.shape
    targets = sign_targets(labels, n_classes)
    sample_weights = balanced_weights(labels, n_classes)
    if n < d:
        dual = solve_dual_ridge(
            x @ x.T / d, targets, sample_weights, torch.tensor([lam], dtype=torch.float64)
        )
        weight, bias = dual.alpha[0].T @ x / d, dual.bias[0]
    else:
        total = sample_weights.sum()
        x_mean, y_mean = sample_weights @ x / total, sample_weights @ targets / total
        centred = x - x_mean
        weighted = centred * sample_weights.unsqueeze(1)
        gram = centred.T @ weighted + lam * d * torch.eye(d, dtype=torch.float64)
        weight = torch.linalg.solve(gram, weighted.T @ (targets - y_mean)).T
        bias = y_mean - weight @ x_mean
    return _head(*scaling.fold(weight, bias), features)


def logistic_head(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    *,
    lam: float = LOGISTIC_LAM,
    blocks: tuple[int, ...] | None = None,
    per_feature: bool = False,
) -> Head:
    """Multinomial logistic regression with an L2 penalty, every class with the same total weight.

    Minimises sum_i w_i CE_i + lam d / 2 ||W||^2 on scaled features: the usual C on features of unit variance
    is 1 / (lam d). Deterministic, solved to convergence. Arguments and errors as in `ridge_head`.
    """
    labels = check_samples(features, labels, n_classes)
    check_positive("lam", lam)
    scaling = fit_scaling(features, blocks=blocks, per_feature=per_feature)
    x = scaling.apply(features)
    coordinates, axes = principal_axes(x)
    targets = torch.nn.functional.one_hot(labels, n_classes).to(torch.float64)
    penalty = torch.tensor([lam * x.shape[1]], dtype=torch.float64)
    fits = solve_logistic(
        coordinates, targets, balanced_weights(labels, n_classes).unsqueeze(0), penalty, tolerance=1e-9
    )
    if not bool(fits.converged.all()):
        raise RequestError(
            f"the logistic head did not converge in {fits.steps} steps: lam={lam} is too weak for these "
            f"samples; choose a larger one, for instance {LOGISTIC_LAM}"
        )
    return _head(*scaling.fold((axes @ fits.weight[0]).T, fits.bias[0]), features)


def nearest_mean_head(features: Tensor, labels: Tensor, n_classes: int) -> Head:
    """Classifier by the nearest class mean (Euclidean) as a linear head. Errors as in `ridge_head`."""
    labels = check_samples(features, labels, n_classes)
    values = features.detach().to(torch.float64)
    centre = values.mean(0)
    member = torch.nn.functional.one_hot(labels, n_classes).to(torch.float64)
    means = (member / member.sum(0)).T @ (values - centre)
    # Means relative to the common centre lose no digits when features lie far from zero.
    bias = -means.square().sum(1) / 2 - means @ centre
    return _head(means, bias, features)


def sign_targets(labels: Tensor, n_classes: int) -> Tensor:
    """Targets (n, q), float64: +1 for the own class, -1 for the others."""
    return 2.0 * torch.nn.functional.one_hot(labels, n_classes).to(torch.float64) - 1.0


def _head(weight: Tensor, bias: Tensor, features: Tensor) -> Head:
    dtype = features.dtype if features.is_floating_point() else torch.float32
    return Head(weight.to(dtype), bias.to(dtype))
