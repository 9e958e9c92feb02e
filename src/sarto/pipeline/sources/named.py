"""Models by their name in timm or torchvision, where those are installed. Weights are never fetched."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sarto.errors import RequestError, suggest
from sarto.pipeline.sources.factory import capture_module, load_weights
from sarto.pipeline.sources.inputs import InputSpec, given_inputs
from sarto.pipeline.sources.source import Source
from sarto.types import Preprocessing
from sarto.types.sources import refuse_pickle

_PICTURE = (3, 224, 224)
_CROPS = (
    "the library resizes and crops images in its own way; sarto does not imitate it, so give images of the model's "
    "size, or allow bilinear resizing"
)


def load_named(
    library: str,
    name: str,
    *,
    arguments: Mapping[str, Any],
    weights: Path | None = None,
    shape: Sequence[int] | None = None,
    inputs: Sequence[InputSpec] = (),
) -> Source:
    """The model of that name in timm or torchvision, with weights from a safetensors file.

    A name may carry the name of weights behind a dot, as timm writes it (`resnet18.a1_in1k`; for torchvision
    `resnet18.IMAGENET1K_V1`): then preprocessing and classes are those of these weights. The weights themselves come
    from `weights`; without a file they are random, which is enough to inspect a model.

    Raises:
        RequestError: the library is not installed or has no such model, or the weights don't fit.
        GraphError: the model can't be captured.
    """
    if weights is not None:
        refuse_pickle(weights)
    found = _timm(name, arguments) if library == "timm" else _torchvision(name, arguments)
    model, side, preprocessing, classes = found
    if weights is not None:
        load_weights(model, weights)
    notes = [] if weights else [f"no weights were given: those of {library}:{name} are random"]
    if preprocessing is not None:
        notes.append(_CROPS)
    said_input = shape is not None or bool(inputs)
    graph = capture_module(model, given_inputs(shape, inputs, side), guessed=not said_input)
    said = weights.name if weights else "random weights"
    return Source(graph, f"{library}:{name} with {said}", preprocessing, classes, tuple(notes))


_Found = tuple[nn.Module, tuple[int, ...], Preprocessing | None, tuple[str, ...]]


def _timm(name: str, arguments: Mapping[str, Any]) -> _Found:
    timm = _import("timm")
    try:
        model = timm.create_model(name, **{**arguments, "pretrained": False})
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise _failed(timm, "timm", name, arguments, error) from None
    settings = timm.data.resolve_model_data_config(model)
    side = tuple(settings["input_size"])
    tagged = "." in name
    preprocessing = _described(side, settings["mean"], settings["std"]) if tagged else None
    return model, side, preprocessing, ()


def _torchvision(name: str, arguments: Mapping[str, Any]) -> _Found:
    models = _import("torchvision.models")
    plain, _, tag = name.partition(".")
    try:
        known = models.get_model_weights(plain) if tag else None
        builder = models.get_model_builder(plain)
        unfetched = {
            key: None
            for key in ("weights", "weights_backbone")
            if key in inspect.signature(builder).parameters
        }
        model = builder(**{**arguments, **unfetched})
    except (TypeError, ValueError, KeyError) as error:
        raise _failed(models, "torchvision", plain, arguments, error) from None
    if known is None:
        return model, _PICTURE, None, ()
    if tag not in known.__members__:
        raise RequestError(f"torchvision's {plain} has no weights {tag!r}{suggest(tag, known.__members__)}")
    entry = known[tag]
    transforms = entry.transforms()
    side = (3, *(list(transforms.crop_size) * 2)[:2])
    categories = tuple(map(str, entry.meta.get("categories", ())))
    return model, side, _described(side, transforms.mean, transforms.std), categories


def _described(side: tuple[int, ...], mean: Sequence[float], std: Sequence[float]) -> Preprocessing:
    return Preprocessing(
        size=(side[1], side[2]), channels=side[0], mean=tuple(mean), std=tuple(std), resize="refuse"
    )


def _import(module: str) -> Any:
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        # torchvision fails with a RuntimeError where it was built for another torch.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(
            f"models by name from {library} need {library}, which can't be imported ({reason}): pip install "
            f"'sarto[{library}]', built for the torch that is installed"
        ) from None


def _failed(
    library: Any, label: str, name: str, arguments: Mapping[str, Any], error: Exception
) -> RequestError:
    listed = [str(entry) for entry in library.list_models()]
    plain = name.partition(".")[0]
    if plain not in listed:
        return RequestError(f"{label} has no model {plain!r}{suggest(plain, listed)}")
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return RequestError(f"{label}:{name}({given}) failed: {error}")
