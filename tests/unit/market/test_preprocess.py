from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from sarto.errors import RequestError, ShapeError
from sarto.market import to_tensor
from sarto.types import Preprocessing


def asked(
    size: tuple[int, int] | None = (4, 6), channels: int = 3, resize: Literal["refuse", "bilinear"] = "refuse"
) -> Preprocessing:
    return Preprocessing(
        size=size, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels, resize=resize
    )


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(4, 6), None])
def test_pixels_become_fractions_and_are_not_normalised(size: tuple[int, int] | None) -> None:
    images = some(2, 4, 6, 3)
    found = to_tensor(images, asked(size))
    assert (found.dtype, found.shape, found.is_contiguous()) == (torch.float32, (2, 3, 4, 6), True)
    for n, y, x, c in np.ndindex(images.shape):
        assert found[n, c, y, x] == torch.tensor(float(images[n, y, x, c])) / 255


@pytest.mark.parametrize("dtype", ["f8", "f4", ">f4"])
def test_floats_in_range_are_taken_as_they_are(dtype: str) -> None:
    images = some(2, 4, 6, 3) / 255
    assert torch.equal(to_tensor(images.astype(dtype), asked()), to_tensor(images, asked()))
    assert torch.equal(to_tensor(images, asked()), torch.tensor(images).permute(0, 3, 1, 2).float())


def test_the_images_are_left_alone() -> None:
    images = np.ones((1, 4, 6, 3), np.float32)
    to_tensor(images, asked()).zero_()
    assert images.min() == 1


def test_resizing_keeps_a_flat_image_and_the_range() -> None:
    flat = np.full((1, 9, 5, 3), 100, np.uint8)
    assert torch.allclose(to_tensor(flat, asked(resize="bilinear")), torch.tensor(100 / 255), atol=1e-6)
    found = to_tensor(some(2, 50, 40, 3), asked(resize="bilinear"))
    assert found.shape == (2, 3, 4, 6)
    assert found.min() >= 0 and found.max() <= 1
    same = some(2, 4, 6, 3)
    assert torch.equal(to_tensor(same, asked(resize="bilinear")), to_tensor(same, asked()))


def test_halving_averages_what_it_covers() -> None:
    image = np.kron(some(1, 4, 6, 3)[0], np.ones((2, 2, 1), np.uint8))[None]
    whole = to_tensor(image, asked((4, 6), resize="bilinear"))
    assert abs(float(whole.mean()) - image.mean() / 255) < 0.02


def test_other_sizes_are_refused_with_the_way_out() -> None:
    with pytest.raises(ShapeError, match=r"images are 5x6 .*the model reads 4x6: .*resize='bilinear'"):
        to_tensor(some(1, 5, 6, 3), asked())


def test_other_channels_are_refused_with_the_way_out() -> None:
    with pytest.raises(ShapeError, match=r"1 channels, the model reads 3: .*numpy.repeat"):
        to_tensor(some(1, 4, 6, 1), asked())
    with pytest.raises(ShapeError, match=r"4 channels, the model reads 3: give 3 channels"):
        to_tensor(some(1, 4, 6, 4), asked())
    with pytest.raises(ShapeError, match=r"transpose\(0, 2, 3, 1\)"):
        to_tensor(some(1, 3, 4, 6), asked())
    with pytest.raises(ShapeError, match=r"\(n, height, width, channels\), got \(4, 6, 3\)"):
        to_tensor(some(4, 6, 3), asked())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.full((1, 4, 6, 3), np.nan), "72 values of images are NaN or infinite"),
        (np.full((1, 4, 6, 3), 200.0), "lie in .0, 1., found 200 to 200: divide by 255"),
        (np.full((1, 4, 6, 3), -0.1), "undo the normalisation"),
        (np.zeros((1, 4, 6, 3), np.int64), "must be uint8 .* got int64"),
        (np.zeros((1, 4, 6, 3), bool), "got bool"),
    ],
)
def test_other_values_are_refused(images: np.ndarray, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        to_tensor(images, asked())


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ShapeError) as refused:
        to_tensor(np.zeros((1, 5, 6, 1), np.int16), asked())
    assert len(refused.value.problems) == 3
