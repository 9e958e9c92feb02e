"""VGG-like networks: shapes, and the number of parameters by the closed formula."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sarto.zoo import vgg

SIDE = 32


def formula(n_classes: int, widths: tuple[int | str, ...]) -> int:
    """9 weights for each pair of channels, a scale and a shift for each channel, and the linear layer."""
    channels = [3, *(width for width in widths if isinstance(width, int))]
    convolutions = sum(9 * given * made + 2 * made for given, made in pairwise(channels))
    return convolutions + (channels[-1] + 1) * n_classes


@pytest.mark.parametrize("batch", [1, 3])
def test_gives_one_row_of_logits_per_image(batch: int) -> None:
    model = vgg(4, (6, "M", 5)).eval()
    assert model(torch.randn(batch, 3, SIDE, SIDE)).shape == (batch, 4)


@pytest.mark.parametrize("widths", [(6, "M", 5), (7,), (4, 8, "M", "M", 8)])
def test_parameters_follow_the_formula(widths: tuple[int | str, ...]) -> None:
    assert sum(p.numel() for p in vgg(4, widths).parameters()) == formula(4, widths)


def test_default_has_the_size_that_it_says() -> None:
    shipped = (48, 48, "M", 96, 96, "M", 160, 160, "M", 192, 192)
    count = sum(p.numel() for p in vgg(4).parameters())
    assert count == formula(4, shipped)
    assert count == pytest.approx(1.1e6, rel=0.05)


def test_each_pool_halves_the_side() -> None:
    features = vgg(2, (4, "M", 5, "M", 6)).eval().features
    assert features(torch.randn(1, 3, SIDE, SIDE)).shape == (1, 6, SIDE // 4, SIDE // 4)


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = vgg(3, (6, "M", 5)).double().eval()
    images = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone)


@pytest.mark.parametrize(
    ("n_classes", "widths", "words"),
    [
        (0, (4,), "n_classes is 0: give at least 1"),
        (2, (4, 0), r"widths holds \[0\]: give positive channel numbers, or 'M' for a max pool"),
        (2, (4, "A", 2.5), r"widths holds \['A', 2.5\]"),
        (2, ("M",), "widths holds no convolution"),
        (2, (), "widths holds no convolution"),
        (0, (-1, 4), r"n_classes is 0.*; widths holds \[-1\]"),
    ],
)
def test_refuses_what_it_cannot_build(n_classes: int, widths: tuple[int | str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vgg(n_classes, widths)
