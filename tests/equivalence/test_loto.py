"""Leave one of each class out: the closed form against explicit refits, and its freedom from bias."""

from __future__ import annotations

import math

import pytest
import torch

from sarto.errors import RequestError
from sarto.training import LAM_GRID, LotoScore, choose_lam, logistic_loto, one_of_each, ridge_loto
from sarto.training.logistic import solve_logistic
from sarto.training.scaling import fit_scaling

Samples = tuple[torch.Tensor, torch.Tensor]


def clouds(counts: tuple[int, ...], d: int, *, seed: int = 0, shift: float = 1.0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), cls) for cls, count in enumerate(counts)])
    centres = shift * torch.randn(len(counts), d, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(len(labels), d, generator=generator, dtype=torch.float64), labels


def balanced(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    counts = torch.bincount(labels, minlength=n_classes).double()
    return len(labels) / (n_classes * counts[labels])


def ridge_by_hand(
    x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, lam: float, new: torch.Tensor
) -> torch.Tensor:
    """Predictions of a weighted ridge regression with a free intercept, from its stacked rows."""
    d, q = x.shape[1], y.shape[1]
    root = weights.sqrt().unsqueeze(1)
    rows = torch.cat(
        [
            root * torch.cat([x, torch.ones(len(x), 1)], 1),
            math.sqrt(lam * d) * torch.eye(d, d + 1, dtype=x.dtype),
        ]
    )
    solution = torch.linalg.lstsq(rows, torch.cat([root * y, torch.zeros(d, q)]), driver="gelsd").solution
    return new @ solution[:d] + solution[d]


def explicit_ridge(x: torch.Tensor, labels: torch.Tensor, q: int, lam: float, **folding: int) -> torch.Tensor:
    """Mean LOTO scores (n, q), every fold refitted."""
    scaled, targets = fit_scaling(x).apply(x), 2 * torch.nn.functional.one_hot(labels, q).double() - 1
    weights = balanced(labels, q)
    total, times = torch.zeros(len(x), q, dtype=torch.float64), torch.zeros(len(x), 1)
    folds = one_of_each(labels, q, **folding)
    for row, kept in zip(folds.left_out, folds.training_mask(len(x)), strict=True):
        out = row[row >= 0]
        total[out] += ridge_by_hand(scaled[kept], targets[kept], weights[kept], lam, scaled[out])
        times[out] += 1
    return total / times


@pytest.mark.parametrize("counts", [(5, 5, 5), (7, 3, 4), (6, 2), (3, 3, 3, 3, 3)])
@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("lam", [0.01, 1.0])
def test_closed_form_equals_a_refit_of_every_fold(counts: tuple[int, ...], d: int, lam: float) -> None:
    x, labels = clouds(counts, d)
    q = len(counts)
    found = ridge_loto(x, labels, q, lam=lam, pairings=2, seed=3)
    expected = explicit_ridge(x, labels, q, lam, pairings=2, seed=3)
    torch.testing.assert_close(found.scores, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(found.predictions, expected.argmax(1))


def test_groups_and_several_at_a_time_are_exact_too() -> None:
    x, labels = clouds((6, 6), 5)
    groups = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 6, 7])
    found = ridge_loto(x, labels, 2, groups=groups, pairings=2)
    expected = explicit_ridge(x, labels, 2, 1.0, groups=groups, pairings=2)
    torch.testing.assert_close(found.scores, expected, rtol=1e-10, atol=1e-10)
    many, truth = clouds((90, 60), 4)
    torch.testing.assert_close(
        ridge_loto(many, truth, 2, pairings=1).scores,
        explicit_ridge(many, truth, 2, 1.0, pairings=1),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("counts", [(5, 5, 5), (6, 3, 4)])
def test_logistic_folds_equal_cold_refits(counts: tuple[int, ...]) -> None:
    x, labels = clouds(counts, 8)
    found = logistic_loto(x, labels, 3, lam=0.3, pairings=1, seed=1)
    scaled, targets = fit_scaling(x).apply(x), torch.nn.functional.one_hot(labels, 3).double()
    total, times = torch.zeros_like(found.scores), torch.zeros(len(x), 1)
    folds = one_of_each(labels, 3, pairings=1, seed=1)
    for row, kept in zip(folds.left_out, folds.training_mask(len(x)), strict=True):
        weights = balanced(labels[kept], 3).unsqueeze(0)
        penalty = torch.tensor([0.3 * 8], dtype=torch.float64)
        fit = solve_logistic(scaled[kept], targets[kept], weights, penalty, tolerance=1e-10)
        total[row] += scaled[row] @ fit.weight[0] + fit.bias[0]
        times[row] += 1
    torch.testing.assert_close(found.scores, total / times, rtol=0, atol=1e-6)


@pytest.mark.parametrize("counts", [(5, 5, 5), (6, 4), (7, 3), (4, 3)])
def test_lam_is_chosen_without_the_fold_that_it_is_scored_on(counts: tuple[int, ...]) -> None:
    """Nested choice by explicit refits: for each fold, inner folds of its pairing with both left out."""
    x, labels = clouds(counts, 6, seed=4, shift=0.7)
    q, grid = len(counts), (0.03, 0.3, 3.0)
    found = ridge_loto(x, labels, q, lam=grid, pairings=1)
    scaled, targets = fit_scaling(x).apply(x), 2 * torch.nn.functional.one_hot(labels, q).double() - 1
    weights, folds = balanced(labels, q), one_of_each(labels, q, pairings=1)
    times = torch.bincount(folds.left_out.flatten(), minlength=len(x)).double()
    share = 1 / (times * torch.bincount(labels)[labels])
    scores = torch.zeros(len(x), q, dtype=torch.float64)
    for outer in range(folds.count):
        losses = []
        for lam in grid:
            loss = 0.0
            for inner in range(folds.count):
                if inner == outer:
                    continue
                kept = folds.training_mask(len(x))[outer] & folds.training_mask(len(x))[inner]
                fresh = torch.tensor(
                    [s for s in folds.left_out[inner].tolist() if s not in folds.left_out[outer].tolist()]
                )
                prediction = ridge_by_hand(scaled[kept], targets[kept], weights[kept], lam, scaled[fresh])
                loss += float(((prediction - targets[fresh]).square().mean(1) * share[fresh]).sum())
            losses.append(loss)
        lam = grid[losses.index(min(losses))]
        kept, out = folds.training_mask(len(x))[outer], folds.left_out[outer]
        scores[out] += ridge_by_hand(scaled[kept], targets[kept], weights[kept], lam, scaled[out])
    torch.testing.assert_close(found.scores, scores / times.unsqueeze(1), rtol=1e-9, atol=1e-9)
    assert "chosen anew in each fold" in found.basis


def test_choice_of_lam_is_the_smallest_loss() -> None:
    x, labels = clouds((8, 8, 8), 20, shift=0.5)
    for kind, score in (("ridge", ridge_loto), ("logistic", logistic_loto)):
        choice = choose_lam(x, labels, 3, kind=kind, pairings=2)
        losses = dict(choice.losses)
        assert tuple(losses) == LAM_GRID
        assert choice.lam == min(losses, key=losses.__getitem__)
        for lam in (0.1, 3.0):
            assert score(x, labels, 3, lam=lam, pairings=2).soft == pytest.approx(-losses[lam], rel=1e-6)
        assert score(x, labels, 3, lam=LAM_GRID, pairings=2).lam == choice.lam
    assert choose_lam(x[::8], labels[::8], 3, kind="ridge").lam is None
    with pytest.raises(RequestError, match="must be 'ridge' or 'logistic', got 'lda'"):
        choose_lam(x, labels, 3, kind="lda")


def leave_one_out(x: torch.Tensor, labels: torch.Tensor, q: int) -> float:
    """Plain leave-one-out accuracy of the unweighted ridge head, by refits."""
    scaled, targets = fit_scaling(x).apply(x), 2 * torch.nn.functional.one_hot(labels, q).double() - 1
    right = 0
    for sample in range(len(x)):
        kept = torch.arange(len(x)) != sample
        weights = torch.ones(len(x) - 1, dtype=torch.float64)
        scores = ridge_by_hand(scaled[kept], targets[kept], weights, 1.0, scaled[[sample]])
        right += int(scores.argmax() == labels[sample])
    return right / len(x)


def test_shuffled_labels_score_chance_where_plain_leave_one_out_is_far_below() -> None:
    x, labels = clouds((5, 5, 5), 20, shift=2.0)
    ridge, logistic, nested, plain = [], [], [], []
    for seed in range(60):
        shuffled = labels[torch.randperm(15, generator=torch.Generator().manual_seed(seed))]
        ridge.append(accuracy_of(ridge_loto(x, shuffled, 3)))
        nested.append(accuracy_of(ridge_loto(x, shuffled, 3, lam=(0.1, 1.0, 10.0))))
        if seed < 30:
            logistic.append(accuracy_of(logistic_loto(x, shuffled, 3, pairings=2)))
        if seed < 12:
            plain.append(leave_one_out(x, shuffled, 3))
    for found in (ridge, logistic, nested):
        values = torch.tensor(found)
        assert abs(float(values.mean()) - 1 / 3) < 3.5 * float(values.std()) / math.sqrt(len(found))
    assert sum(plain) / len(plain) < 0.2


def accuracy_of(score: LotoScore) -> float:
    assert score.accuracy is not None
    return score.accuracy


def test_single_samples_are_trained_on_but_not_counted() -> None:
    x, labels = clouds((6, 6, 1), 5)
    for score in (ridge_loto(x, labels, 3), logistic_loto(x, labels, 3)):
        assert score.skipped_classes == (2,) and score.n_counted == 12
        assert int(score.predictions[12]) == -1 and bool(score.scores[12].isnan().all())
        assert "classes [2] have one sample each and are not counted" in score.basis
        counted = score.correct[:12]
        assert score.accuracy == pytest.approx(
            float((counted[labels[:12] == 0].mean() + counted[labels[:12] == 1].mean()) / 2)
        )


def test_one_sample_a_class_gives_no_accuracy() -> None:
    x, labels = clouds((1, 1, 1), 5)
    for score in (
        ridge_loto(x, labels, 3),
        logistic_loto(x, labels, 3),
        ridge_loto(x, labels, 3, lam=LAM_GRID),
    ):
        assert score.accuracy is None and score.soft is None and score.n_counted == 0
        assert score.skipped_classes == (0, 1, 2) and score.interval() is None


def test_two_samples_a_class_take_the_usual_lam() -> None:
    x, labels = clouds((2, 2), 5)
    score = ridge_loto(x, labels, 2, lam=LAM_GRID)
    assert score.lam == 1.0 and "too few samples to choose lam: 1 taken" in score.basis
    assert logistic_loto(x, labels, 2, lam=LAM_GRID).lam in LAM_GRID


def test_interval_belongs_to_the_accuracy() -> None:
    x, labels = clouds((10, 10), 5, shift=1.5)
    score = ridge_loto(x, labels, 2)
    interval = score.interval()
    assert interval is not None and interval.low <= accuracy_of(score) <= interval.high
    assert 0 <= interval.low < interval.high <= 1


def test_wrong_arguments_are_refused() -> None:
    x, labels = clouds((3, 3), 4)
    with pytest.raises(RequestError, match="at least one lam"):
        ridge_loto(x, labels, 2, lam=())
    with pytest.raises(RequestError, match="lam must be finite and > 0, got -1"):
        logistic_loto(x, labels, 2, lam=(1.0, -1.0))
    with pytest.raises(RequestError, match="no samples"):
        ridge_loto(x, labels, 3)
