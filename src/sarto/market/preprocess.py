"""From stored pixels to what a model reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sarto.errors import RequestError, ShapeError
from sarto.types import Preprocessing


def to_tensor(images: NDArray[Any], preprocessing: Preprocessing) -> Tensor:
    """Images as float32 in [0, 1], shape (n, channels, height, width), not normalised.

    Mean and std are left to the graph, whose first step they are.

    Args:
        images: shape (n, height, width, channels); uint8 in 0..255, or floats in [0, 1].
        preprocessing: the size and the number of channels that the model reads; `resize` says what happens to
            images of another size: "refuse", or "bilinear" (smoothed when it shrinks).

    Raises:
        ShapeError: another rank, another number of channels, or another size that may not be resized.
        RequestError: another dtype, or floats that are not in [0, 1].
    """
    shapes, values = _shape_problems(images, preprocessing), _value_problems(images)
    if shapes or values:
        refusal = ShapeError if shapes else RequestError
        raise refusal("preprocessing", problems=shapes + values)
    scale = 255 if images.dtype == np.uint8 else 1
    tensor = (
        torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), np.float32, order="C", copy=True)) / scale
    )
    if preprocessing.size is not None and tuple(tensor.shape[2:]) != tuple(preprocessing.size):
        resized = torch.nn.functional.interpolate(
            tensor, size=tuple(preprocessing.size), mode="bilinear", align_corners=False, antialias=True
        )
        tensor = resized.clamp(0, 1)
    return tensor


def _shape_problems(images: NDArray[Any], preprocessing: Preprocessing) -> list[str]:
    if images.ndim != 4:
        return [f"images must have shape (n, height, width, channels), got {tuple(images.shape)}"]
    problems = []
    height, width, channels = images.shape[1:]
    if channels != preprocessing.channels:
        cure = f"give {preprocessing.channels} channels"
        if channels == 1:
            cure = f"repeat the grey one, numpy.repeat(images, {preprocessing.channels}, axis=3)"
        elif height == preprocessing.channels:
            cure = "they come last, images.transpose(0, 2, 3, 1)"
        problems.append(f"images have {channels} channels, the model reads {preprocessing.channels}: {cure}")
    if preprocessing.size is not None and (height, width) != tuple(preprocessing.size):
        wanted = "x".join(map(str, preprocessing.size))
        if preprocessing.resize != "bilinear":
            problems.append(
                f"images are {height}x{width} (height x width), the model reads {wanted}: resize them, "
                "or allow it with preprocessing resize='bilinear'"
            )
        elif not height or not width:
            problems.append(
                f"images are {height}x{width} (height x width): there is nothing to resize to {wanted}"
            )
    return problems


def _value_problems(images: NDArray[Any]) -> list[str]:
    if images.dtype == np.uint8:
        return []
    if images.dtype.kind != "f":
        return [f"images must be uint8 (0..255) or floats in [0, 1], got {images.dtype}"]
    broken = int((~np.isfinite(images)).sum())
    if broken:
        return [f"{broken} values of images are NaN or infinite: remove or repair those images"]
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if low < 0 or high > 1:
        return [
            f"float images must lie in [0, 1], found {low:.4g} to {high:.4g}: "
            + (
                "divide by 255"
                if low >= 0 and high <= 255
                else "undo the normalisation; the model does it itself"
            )
        ]
    return []
