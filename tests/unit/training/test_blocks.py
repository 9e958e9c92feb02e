"""A pack from inner products: the same head as from scratch, whatever came and went."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.training import LAM_GRID, FittedHead, PackState, fit_head

WIDTHS = {"a": 4, "b": 7, "c": 3}


def samples(counts: tuple[int, ...], seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    features = {
        part: torch.randn(len(labels), width, generator=generator, dtype=torch.float64) * (1 + width)
        + 2 * torch.nn.functional.one_hot(labels % width, width)
        + width
        for part, width in WIDTHS.items()
    }
    return features, labels


def difference(one: FittedHead, two: FittedHead) -> float:
    """Largest difference of weights and biases, as a share of the largest weight."""
    weights = (one.head.weight - two.head.weight).abs().max() / one.head.weight.abs().max()
    biases = (one.head.bias - two.head.bias).abs().max() / one.head.bias.abs().max()
    return float(torch.maximum(weights, biases))


@pytest.mark.parametrize("counts", [(5, 5, 5), (2, 9, 4), (20, 20, 20), (1, 1)])
@pytest.mark.parametrize("lam", [0.3, LAM_GRID])
def test_the_head_is_that_of_ridge_regression(
    counts: tuple[int, ...], lam: float | tuple[float, ...]
) -> None:
    features, labels = samples(counts)
    classes = [str(place) for place in range(len(counts))]
    mine = PackState.of(features, labels, classes).head(lam=lam)
    want = fit_head(
        torch.cat(list(features.values()), 1),
        labels,
        len(counts),
        kind="ridge",
        lam=lam,
        blocks=tuple(WIDTHS.values()),
        classes=classes,
    )
    assert mine.loto.lam == want.loto.lam and mine.loto.accuracy == want.loto.accuracy
    assert difference(mine, want) < 1e-6, "heads are stored in single precision"
    assert mine.head.temperature == pytest.approx(want.head.temperature, rel=1e-6)
    assert mine.notes == want.notes


def exact(state: PackState) -> tuple[Tensor, ...]:
    return (state.labels, *state.features.values(), *state.grams.values())


@given(
    counts=st.lists(st.integers(1, 6), min_size=3, max_size=5),
    gone=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_a_pack_equals_the_pack_without_a_class_plus_that_class(
    counts: list[int], gone: int, seed: int
) -> None:
    features, labels = samples(tuple(counts), seed)
    classes = tuple("pqrst"[: len(counts)])
    gone %= len(counts)
    whole = PackState.of(features, labels, classes)
    mine = {part: found[labels == gone] for part, found in features.items()}
    grown = whole.without_class(classes[gone]).with_class(classes[gone], mine)
    # From scratch, with the classes in the order that they have now.
    order = torch.cat([torch.nonzero(labels == classes.index(cls)).flatten() for cls in grown.classes])
    places = torch.tensor([grown.classes.index(cls) for cls in classes])
    fresh = PackState.of(
        {part: found[order] for part, found in features.items()}, places[labels[order]], grown.classes
    )
    for one, two in zip(exact(grown), exact(fresh), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-10)
    assert difference(grown.head(lam=1.0), fresh.head(lam=1.0)) < 1e-6


@given(counts=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_a_pack_equals_the_pack_without_a_fragment_plus_that_fragment(counts: list[int], seed: int) -> None:
    features, labels = samples(tuple(counts), seed)
    classes = tuple("pqrst"[: len(counts)])
    whole = PackState.of(features, labels, classes)
    again = whole.without_part("c").with_part("c", features["c"])
    assert all(torch.equal(one, two) for one, two in zip(exact(again), exact(whole), strict=True))
    one, two = again.head(lam=1.0), whole.head(lam=1.0)
    assert torch.equal(one.head.weight, two.head.weight) and torch.equal(one.head.bias, two.head.bias)


def test_a_state_is_a_value() -> None:
    features, labels = samples((3, 3, 3))
    whole = PackState.of(features, labels, "xyz")
    before = [tensor.clone() for tensor in exact(whole)]
    whole.without_class("y").without_part("a").head(lam=1.0)
    assert all(torch.equal(one, two) for one, two in zip(before, exact(whole), strict=True))


def test_what_does_not_fit_is_refused() -> None:
    features, labels = samples((3, 3))
    state = PackState.of(features, labels, ["cat", "dog"])
    row = {part: found[:2] for part, found in features.items()}
    with pytest.raises(RequestError, match="tells 'cat' apart already; remove it first"):
        state.with_class("cat", row)
    with pytest.raises(RequestError, match="features under a, b, c were asked for, got a"):
        state.with_class("cow", {"a": row["a"]})
    with pytest.raises(RequestError, match="class 'cow' needs the same samples, at least one"):
        state.with_class("cow", {part: found[:0] for part, found in features.items()})
    with pytest.raises(RequestError, match="without 'cat' one class is left"):
        state.without_class("cat")
    with pytest.raises(RequestError, match=r"does not know .cta. .did you mean .cat."):
        state.without_class("cta")
    with pytest.raises(RequestError, match="has a fragment 'a' already"):
        state.with_part("a", features["a"])
    with pytest.raises(RequestError, match="no fragment 'd'"):
        state.without_part("d")
    with pytest.raises(RequestError, match="the only fragment"):
        state.without_part("a").without_part("b").without_part("c")
    with pytest.raises(ShapeError, match="one row a sample"):
        state.with_part("d", features["a"][:2])
    with pytest.raises(RequestError, match="no samples of dog"):
        PackState.of(features, torch.zeros_like(labels), ["cat", "dog"])
    with pytest.raises(RequestError, match="at least one fragment"):
        PackState.of({}, labels, ["cat", "dog"])
