"""MobileNetV2: shapes, parameters by the closed formula, where the shortcuts are."""

from __future__ import annotations

import pytest
import torch

from sarto.zoo import mobilenet_v2

SIDE = 32
PICO = ((2, 4, 2, 2), (3, 6, 1, 1))
Stages = tuple[tuple[int, int, int, int], ...]


def formula(n_classes: int, stem: int, stages: Stages, last: int) -> int:
    """Three convolutions a block, each with batch norm; stem, last convolution, linear layer."""
    total, given = 27 * stem + 2 * stem, stem
    for expansion, made, count, _ in stages:
        for _ in range(count):
            hidden = given * expansion
            total += (given * hidden + 2 * hidden) + (9 * hidden + 2 * hidden) + (hidden * made + 2 * made)
            given = made
    return total + given * last + 2 * last + (last + 1) * n_classes


@pytest.mark.parametrize("batch", [1, 3])
def test_gives_one_row_of_logits_per_image(batch: int) -> None:
    model = mobilenet_v2(3, 4, PICO, 8).eval()
    assert model(torch.randn(batch, 3, SIDE, SIDE)).shape == (batch, 3)


@pytest.mark.parametrize("stages", [PICO, ((1, 5, 3, 1),), ((4, 4, 1, 2), (4, 4, 1, 2), (6, 8, 2, 1))])
def test_parameters_follow_the_formula(stages: Stages) -> None:
    assert sum(p.numel() for p in mobilenet_v2(3, 4, stages, 8).parameters()) == formula(3, 4, stages, 8)


def test_default_has_the_size_that_it_says() -> None:
    count = sum(p.numel() for p in mobilenet_v2(3).parameters())
    assert count == formula(3, 32, ((4, 32, 2, 2), (4, 64, 3, 2), (4, 128, 2, 1)), 512)
    assert count == pytest.approx(0.37e6, rel=0.05)


def test_strides_shrink_the_image_and_the_stem_does_not() -> None:
    model = mobilenet_v2(3, 4, PICO, 8).eval()
    stem = model.stem(torch.randn(1, 3, SIDE, SIDE))
    assert stem.shape == (1, 4, SIDE, SIDE)
    assert model.blocks(stem).shape == (1, 6, SIDE // 2, SIDE // 2)


def test_a_block_adds_its_input_where_shapes_allow_it() -> None:
    first, second, third = mobilenet_v2(3, 4, PICO, 8).double().eval().blocks
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(second(x) - second.body(x), x)
    torch.testing.assert_close(first(x), first.body(x))
    torch.testing.assert_close(third(x), third.body(x))


def test_stages_may_be_lists_as_in_a_json_file() -> None:
    assert sum(p.numel() for p in mobilenet_v2(3, 4, [[2, 4, 1, 1]], 8).parameters()) == formula(
        3, 4, ((2, 4, 1, 1),), 8
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_classes": 0}, "n_classes is 0: give at least 1"),
        ({"n_classes": 2, "stem": 0}, "stem is 0: give at least 1"),
        ({"n_classes": 2, "last": -3}, "last is -3: give at least 1"),
        ({"n_classes": 2, "stages": []}, r"stages is empty: give \(expansion, channels, blocks, stride\)"),
        ({"n_classes": 2, "stages": [(4, 8, 1)]}, r"stages holds \[\(4, 8, 1\)\].*four positive numbers"),
        ({"n_classes": 2, "stages": [(4, 8, 1, 1), (4, 0, 1, 1)]}, r"stages holds \[\(4, 0, 1, 1\)\]"),
        ({"n_classes": 0, "stem": 0, "stages": [()]}, "n_classes.*; stem.*; stages"),
    ],
)
def test_refuses_what_it_cannot_build(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mobilenet_v2(**arguments)  # type: ignore[arg-type]
