"""A factory in a module, with weights in safetensors. Never a pickle."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sarto.errors import RequestError, suggest
from sarto.graph import ModelGraph, capture
from sarto.pipeline.sources.calling import capture_called, check_names
from sarto.pipeline.sources.inputs import InputSpec
from sarto.pipeline.sources.source import Source

_PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_SAFE_WAY = (
    "it may hold code that runs when it is read. Where you trust it, convert it once: "
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('{path}', weights_only=True), 'weights.safetensors')\""
)


def load_factory(
    spec: str,
    *,
    arguments: Mapping[str, Any],
    weights: Path | None,
    inputs: Sequence[InputSpec],
) -> Source:
    """The model that `package.module:factory` makes, captured on examples of its inputs.

    Raises:
        RequestError: the factory or its weights can't be found or don't fit, or the weights are a pickle.
        GraphError: the model can't be captured.
    """
    if weights is not None:
        refuse_pickle(weights)
    model = call_factory(spec, arguments)
    if weights is not None:
        load_weights(model, weights)
    said = weights.name if weights else "its own weights"
    return Source(capture_module(model, inputs), f"{spec} with {said}")


def capture_module(model: nn.Module, inputs: Sequence[InputSpec]) -> ModelGraph:
    """The graph of a module on examples of its inputs, by place or (where they have names) by keyword.

    Raises:
        RequestError: `forward` has no input of that name.
        GraphError: the model can't be captured.
    """
    example = tuple(entry.example() for entry in inputs)
    if not any(entry.name for entry in inputs):
        return capture(model, example)
    check_names(model, inputs)
    return capture_called(model, [entry.name for entry in inputs], example)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a module's state from a safetensors file, strictly; batch counters may be missing.

    Raises:
        RequestError: names every tensor that is missing, left over or of another shape.
    """
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"can't read weights {path}: {error}", where=str(path)) from None
    own = model.state_dict()
    problems = [
        f"{name}: the model has no such tensor{suggest(name, own)}" for name in sorted(set(state) - set(own))
    ]
    problems += [
        f"{name}: is missing in {path.name}"
        for name in sorted(set(own) - set(state))
        if not name.endswith("num_batches_tracked")
    ]
    problems += [
        f"{name}: has shape {list(state[name].shape)}, the model takes {list(own[name].shape)}"
        for name in sorted(set(own) & set(state))
        if state[name].shape != own[name].shape
    ]
    if problems:
        raise RequestError(f"weights {path.name} don't fit the model", problems=problems, where=str(path))
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, strict=False)


def refuse_pickle(path: Path) -> None:
    """Refuse files that run code when they are read, by their name or by their first bytes.

    Raises:
        RequestError: says how to convert the file safely.
    """
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
    zipped = head[:2] == b"PK" and path.suffix not in (".npz", ".whl")
    if path.suffix.lower() in _PICKLES or zipped or head[:1] == b"\x80":
        raise RequestError(f"{path.name} is not read: {_SAFE_WAY.format(path=path.name)}", where=str(path))


def call_factory(spec: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that `package.module:factory(**arguments)` gives.

    Raises:
        RequestError: there is no such factory, it fails, or it gives something else.
    """
    module_name, _, factory_name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RequestError(
            f"can't import {module_name!r}: {error}; install it, or run where Python finds it (PYTHONPATH)"
        ) from None
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        known = [
            name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))
        ]
        raise RequestError(f"{module_name!r} has no factory {factory_name!r}{suggest(factory_name, known)}")
    try:
        model = factory(**arguments)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"{spec}({', '.join(f'{k}={v!r}' for k, v in arguments.items())}) failed: {error}"
        ) from None
    if not isinstance(model, nn.Module):
        raise RequestError(f"{spec} gives a {type(model).__name__}, not an nn.Module")
    return model
