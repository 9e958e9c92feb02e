"""The inputs of a `transformers` model, read from its config: images, token ids with their mask, or sound."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from sarto.errors import RequestError
from sarto.pipeline.sources.inputs import InputSpec

LENGTH = 32
#: Side of an image where neither the folder nor the user says one.
SIDE = 224
_SECOND_OF_SOUND = 16_000
_FAMILIES = ("vision_config", "text_config", "audio_config", "backbone_config")


def inputs_of(
    model: Any, *, shape: Sequence[int] | None = None, size: tuple[int, int] | None = None
) -> tuple[InputSpec, ...]:
    """What a model reads, by the names of its `forward`.

    Args:
        shape: of the main input of one sample, in place of what the config says.
        size: (height, width) of images that the folder prepares.

    Raises:
        RequestError: the main input is of a kind that has no example here; the user gives one.
    """
    known = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))
    own = None if shape is None else tuple(shape)
    if main == "pixel_values":
        return (InputSpec(own or _images(model, size), name=main),)
    if main == "input_features" or (main == "input_values" and _setting(model, "num_mel_bins")):
        found = [InputSpec(own or _sound_features(model), name=main)]
    elif main == "input_values":
        found = [InputSpec(own or (_SECOND_OF_SOUND,), name=main)]
    elif main in ("input_ids", "inputs_embeds"):
        found = _tokens(model, "input_ids", own or (_length(model),))
        if "attention_mask" in known:
            found.append(InputSpec(found[0].shape, "int64", "attention_mask"))
        if "pixel_values" in known and _setting(model, "image_size"):
            found.append(InputSpec(_images(model, size), name="pixel_values"))
    else:
        raise RequestError(
            f"{type(model).__name__} reads {main!r}, for which sarto makes no example: give its inputs by name, for "
            f"instance --input {main}=3,224,224"
        )
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in known:
        found += _tokens(model, "decoder_input_ids", (_length(model),))
    return tuple(found)


def _tokens(model: Any, name: str, shape: tuple[int, ...]) -> list[InputSpec]:
    vocabulary = _setting(model, "vocab_size")
    return [InputSpec(shape, "int64", name, below=vocabulary if isinstance(vocabulary, int) else 2)]


def _length(model: Any) -> int:
    # Models of the RoBERTa kind count positions from behind the padding token, hence the two less.
    places = [
        _setting(model, name) for name in ("max_position_embeddings", "max_target_positions", "n_positions")
    ]
    limits = [place - 2 for place in places if isinstance(place, int) and place > 2]
    return min([LENGTH, *limits])


def _images(model: Any, size: tuple[int, int] | None) -> tuple[int, ...]:
    channels = _setting(model, "num_channels")
    side = size or _setting(model, "image_size") or SIDE
    height, width = (side, side) if isinstance(side, int) else tuple(side)[-2:]
    frames = _setting(model, "num_frames")
    image = (channels if isinstance(channels, int) else 3, int(height), int(width))
    return (frames, *image) if isinstance(frames, int) else image


def _sound_features(model: Any) -> tuple[int, ...]:
    bands, frames = _setting(model, "num_mel_bins"), _setting(model, "max_source_positions")
    if isinstance(bands, int) and isinstance(frames, int):
        # Whisper halves the frames with its second convolution.
        return (bands, 2 * frames) if hasattr(model.config, "decoder_layers") else (frames, bands)
    longest = _setting(model, "max_length")
    if isinstance(bands, int) and isinstance(longest, int):
        return (longest, bands)
    width = _setting(model, "feature_projection_input_dim")
    if isinstance(width, int):
        return (64, width)
    raise RequestError(
        f"{type(model).__name__} reads sound features whose shape the config does not say: give them by name, for "
        f"instance --input {model.main_input_name}=80,100"
    )


def _setting(model: Any, name: str) -> Any:
    """A setting of the config, or of the first config inside it that has it."""
    for part in (model.config, *(getattr(model.config, family, None) for family in _FAMILIES)):
        value = getattr(part, name, None)
        if value is not None:
            return value
    return None
