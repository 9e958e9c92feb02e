"""What a `transformers` folder says about its images, as `Preprocessing`; what that can't express is said in notes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarto.errors import RequestError
from sarto.types import Preprocessing

_BILINEAR = 2
#: Settings that change pixels in a way that (x - mean) / std can't.
_BEYOND = {
    "do_flip_channel_order": "swaps red and blue",
    "do_color_quantize": "quantises colours",
    "do_grayscale": "makes images grey",
    "do_convert_grayscale": "makes images grey",
}


@dataclass(frozen=True)
class ImageReading:
    """What a folder's image processor does.

    Attributes:
        size: (height, width) that the model gets; None where the folder does not say.
        preprocessing: the same in our words; None where they can't say it.
        notes: what differs, for the user.
    """

    size: tuple[int, int] | None
    preprocessing: Preprocessing | None
    notes: tuple[str, ...] = ()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RequestError: the file can't be read or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"can't read {path.name}: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise RequestError(f"{path.name} is no JSON object", where=str(path))
    return found


def read_image_processor(folder: Path, *, channels: int) -> ImageReading | None:
    """What `preprocessor_config.json` (or the image part of `processor_config.json`) says; None where neither is.

    Raises:
        RequestError: the file is damaged.
    """
    settings: Any = None
    if (folder / "preprocessor_config.json").is_file():
        settings = read_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        settings = read_json(folder / "processor_config.json").get("image_processor")
    if not isinstance(settings, dict):
        return None
    size = _read_size(settings)
    beyond = [why for key, why in _BEYOND.items() if settings.get(key)]
    if beyond:
        return ImageReading(size, None, (f"the folder's preprocessing {', '.join(beyond)}; sarto's can't",))
    colours = _colours(settings, channels)
    if colours is None:
        note = "the folder does not say the mean and std of its images in a form that sarto reads"
        return ImageReading(size, None, (note,))
    plain = _squashes(settings)
    notes = []
    if not plain and settings.get("do_resize", True):
        notes.append(
            "the folder resizes images in its own way (crop or another filter); sarto does not imitate it, so give "
            "images of the model's size, or allow bilinear resizing"
        )
    mean, std = colours
    preprocessing = Preprocessing(
        size=size, channels=channels, mean=mean, std=std, resize="bilinear" if plain else "refuse"
    )
    return ImageReading(size, preprocessing, tuple(notes))


def _read_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    named = settings.get("crop_size") if settings.get("do_center_crop") else None
    return _pair(named) or _pair(settings.get("size"))


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, dict):
        edge = value.get("shortest_edge")
        value = (value.get("height", edge), value.get("width", edge))
    if isinstance(value, int):
        value = (value, value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(_is_size(part) for part in value):
        return (value[0], value[1])
    return None


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _squashes(settings: Mapping[str, Any]) -> bool:
    """Whether images of any size are resized to the model's by a bilinear filter, and nothing else."""
    size = settings.get("size")
    return (
        bool(settings.get("do_resize", True))
        and isinstance(size, dict)
        and set(size) == {"height", "width"}
        and settings.get("resample") == _BILINEAR
        and not settings.get("do_center_crop")
        and not settings.get("do_pad")
    )


def _colours(
    settings: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std, on the scale 0..1, of what the processor computes: ((255 f x - offset) - mean) / std."""
    ones = (1.0,) * channels
    mean, std = _numbers(settings.get("image_mean"), channels), _numbers(settings.get("image_std"), channels)
    # EfficientNet's processor divides by std once more for models with their classifier.
    again = std if settings.get("include_top") else ones
    if not settings.get("do_normalize", True):
        mean, std = (0.0,) * channels, ones
    if mean is None or std is None or again is None:
        return None
    scale, offset = 255.0, 0.0
    if settings.get("do_rescale", True):
        factor = settings.get("rescale_factor", 1 / 255)
        if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor > 0:
            return None
        scale = 255.0 * factor
        offset = 1.0 if settings.get("rescale_offset") else 0.0
    shifted = tuple((value + offset) / scale for value in mean)
    return shifted, tuple(value * more / scale for value, more in zip(std, again, strict=True))


def _numbers(value: Any, channels: int) -> tuple[float, ...] | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value] * channels
    if not isinstance(value, list) or len(value) != channels:
        return None
    if not all(isinstance(part, int | float) and not isinstance(part, bool) for part in value):
        return None
    return tuple(float(part) for part in value)
