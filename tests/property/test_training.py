"""What must not change a fit: the order of samples, the order of units, scale and place of features."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from sarto.training import (
    class_grams,
    column_subset,
    h_score,
    logistic_head,
    nearest_mean_head,
    reconstruction_map,
    ridge_head,
    ridge_loto,
    second_moment,
    selection_matrix,
)

seeds = st.integers(0, 2**31 - 1)


def clouds(seed: int, counts: list[int], d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), cls) for cls, count in enumerate(counts)])
    centres = 2 * torch.randn(len(counts), d, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(len(labels), d, generator=generator, dtype=torch.float64), labels


def gram_of(seed: int, units: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(40, rank, generator=generator, dtype=torch.float64)
    x = left @ torch.randn(rank, units, generator=generator, dtype=torch.float64)
    return x.T @ x / 40


@given(seed=seeds, counts=st.lists(st.integers(1, 6), min_size=1, max_size=4), d=st.integers(1, 12))
def test_heads_do_not_depend_on_the_order_of_samples(seed: int, counts: list[int], d: int) -> None:
    x, labels = clouds(seed, counts, d)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for fit in (ridge_head, logistic_head, nearest_mean_head):
        one = fit(x, labels, len(counts))
        two = fit(x[order], labels[order], len(counts))
        torch.testing.assert_close(one.scores(x), two.scores(x), rtol=1e-5, atol=1e-6)


@given(
    seed=seeds,
    counts=st.lists(st.integers(2, 5), min_size=2, max_size=3),
    d=st.integers(1, 10),
    scale=st.floats(1e-4, 1e4),
    place=st.floats(-100, 100),
)
def test_heads_and_scores_do_not_depend_on_scale_and_place(
    seed: int, counts: list[int], d: int, scale: float, place: float
) -> None:
    x, labels = clouds(seed, counts, d)
    moved = scale * (x + place)
    for fit in (ridge_head, logistic_head):
        one, two = fit(x, labels, len(counts)), fit(moved, labels, len(counts))
        torch.testing.assert_close(one.scores(x), two.scores(moved), rtol=1e-5, atol=1e-6)
    first, second = ridge_loto(x, labels, len(counts)), ridge_loto(moved, labels, len(counts))
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-6, atol=1e-7)


@given(seed=seeds, counts=st.lists(st.integers(1, 5), min_size=2, max_size=4), d=st.integers(2, 10))
def test_heads_turn_with_the_features(seed: int, counts: list[int], d: int) -> None:
    x, labels = clouds(seed, counts, d)
    turn, _ = torch.linalg.qr(
        torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    for fit in (ridge_head, logistic_head, nearest_mean_head):
        one, two = fit(x, labels, len(counts)), fit(x @ turn, labels, len(counts))
        torch.testing.assert_close(one.scores(x), two.scores(x @ turn), rtol=1e-5, atol=1e-6)
    one_score, two_score = h_score(x, labels, len(counts)), h_score(x @ turn, labels, len(counts))
    torch.testing.assert_close(one_score, two_score, rtol=1e-8, atol=1e-10)


@given(seed=seeds, counts=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_renaming_classes_renames_scores(seed: int, counts: list[int]) -> None:
    x, labels = clouds(seed, counts, 5)
    names = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    for fit in (ridge_head, logistic_head):
        one, two = fit(x, labels, len(counts)), fit(x, names[labels], len(counts))
        torch.testing.assert_close(one.scores(x), two.scores(x)[:, names], rtol=1e-5, atol=1e-6)


@given(seed=seeds, units=st.integers(1, 40), rank=st.integers(1, 40), data=st.data())
def test_subset_turns_with_the_units_and_grows_by_prefixes(
    seed: int, units: int, rank: int, data: st.DataObject
) -> None:
    gram = gram_of(seed, units, rank)
    weights = torch.rand(units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    count = data.draw(st.integers(1, units))
    result = column_subset(gram, weights, count)
    assert sorted(set(result.order.tolist())) == result.kept.tolist() and len(result.kept) == count
    left = result.left.tolist()
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(left))
    if count >= rank:
        assert left[-1] < 1e-7
    smaller = data.draw(st.integers(1, count))
    assert column_subset(gram, weights, smaller).order.tolist() == result.order[:smaller].tolist()
    scaled = column_subset(7.5 * gram, 0.2 * weights, count)
    sure = min(count, rank - 1, units - 1)  # from there on all units left are equally good
    assert scaled.order[:sure].tolist() == result.order[:sure].tolist()
    turn = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
    turned = column_subset(gram[turn][:, turn], weights[turn], count)
    assert turn[turned.order[:sure]].tolist() == result.order[:sure].tolist()


@given(seed=seeds, units=st.integers(2, 12), lam=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]), data=st.data())
def test_maps_turn_with_the_units_and_do_not_depend_on_scale(
    seed: int, units: int, lam: float, data: st.DataObject
) -> None:
    gram = gram_of(seed, units, units)
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1))))
    towards = selection_matrix(kept, units)
    found = reconstruction_map(gram[kept][:, kept], gram[:, kept], lam=lam, towards=towards)
    scaled = reconstruction_map(100 * gram[kept][:, kept], 100 * gram[:, kept], lam=lam, towards=towards)
    torch.testing.assert_close(found, scaled, rtol=1e-5, atol=1e-6)
    turn = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
    turned = reconstruction_map(
        gram[kept[turn]][:, kept[turn]],
        gram[:, kept[turn]],
        lam=lam,
        towards=selection_matrix(kept[turn], units),
    )
    torch.testing.assert_close(found[:, turn], turned, rtol=1e-5, atol=1e-6)

    def error(matrix: torch.Tensor) -> float:
        """Expected squared error of z ~ R f under the second moment."""
        step = -matrix @ torch.eye(units, dtype=torch.float64)[kept]
        step += torch.eye(units, dtype=torch.float64)
        return float((step @ gram @ step.T).trace())

    assert error(found) <= error(towards) * (1 + 1e-9) + 1e-9


@given(seed=seeds, counts=st.lists(st.integers(1, 4), min_size=1, max_size=4), stride=st.integers(1, 5))
def test_moments_do_not_depend_on_the_order_of_samples(seed: int, counts: list[int], stride: int) -> None:
    labels = torch.cat([torch.full((count,), cls) for cls, count in enumerate(counts)])
    x = torch.randn(len(labels), 3, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    grams = class_grams(x, labels, len(counts), stride=stride)
    torch.testing.assert_close(grams, class_grams(x[order], labels[order], len(counts), stride=stride))
    share = torch.tensor(counts, dtype=torch.float64) / len(labels)
    torch.testing.assert_close(torch.tensordot(share, grams, 1), second_moment(x, stride=stride))
