"""Where models come from: a factory in a module with weights in safetensors, or a graph folder. Never a pickle."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sarto.errors import RequestError, suggest
from sarto.graph import ModelGraph, capture
from sarto.graph.file import read_graph

_PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib")
_SAFE_WAY = (
    "it may hold code that runs when it is read. Where you trust it, convert it once: "
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('{path}', weights_only=True), 'weights.safetensors')\""
)


@dataclass(frozen=True, eq=False)
class Source:
    """A captured model and where it came from, in words."""

    graph: ModelGraph
    origin: str


def load_source(
    spec: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    input_shape: Sequence[int] = (3, 32, 32),
) -> Source:
    """A model from `package.module:factory` (called with `arguments`), or from a folder with a graph file.

    Args:
        weights: a safetensors file with the names of the module's state; half precision is widened to single.
        input_shape: of one sample, without the batch axis; needed for a factory.

    Raises:
        RequestError: the factory or its weights can't be found or don't fit, or the file is a pickle.
        GraphError: the model can't be captured.
    """
    path = Path(spec)
    if ":" not in spec or path.exists():
        refuse_pickle(path)
        if (path / "graph.json").is_file():
            return Source(read_graph(path), f"graph folder {path.name}")
        raise RequestError(
            f"{spec!r} is no model: give package.module:factory, or a folder with graph.json and weights.safetensors"
        )
    if weights is not None:
        refuse_pickle(Path(weights))
    model = _call(spec, arguments or {})
    if weights is not None:
        load_weights(model, Path(weights))
    example = torch.zeros(2, *input_shape)
    return Source(
        capture(model, example), f"{spec} with {Path(weights).name if weights else 'its own weights'}"
    )


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


def _call(spec: str, arguments: Mapping[str, Any]) -> nn.Module:
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
