"""A factory in a module, with weights in safetensors. Never a pickle."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sarto.errors import GraphError, RequestError, suggest
from sarto.graph import ModelGraph, capture
from sarto.pipeline.sources.calling import capture_called, check_names
from sarto.pipeline.sources.calls import called
from sarto.pipeline.sources.inputs import InputSpec
from sarto.pipeline.sources.source import Source
from sarto.types.sources import refuse_pickle

#: Types of weights that stand for the same numbers, more or less exactly.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_factory(
    spec: str,
    *,
    arguments: Mapping[str, Any],
    weights: Path | None,
    inputs: Sequence[InputSpec],
    guessed: bool = False,
) -> Source:
    """The model that `package.module:factory` makes, captured on examples of its inputs.

    Args:
        guessed: nobody said the inputs; a note says so, and an error how to say them.

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
    notes = (f"nothing says what {spec} reads: captured with --input {inputs[0]}",) if guessed else ()
    return Source(capture_module(model, inputs, guessed=guessed), f"{spec} with {said}", notes=notes)


def capture_module(model: nn.Module, inputs: Sequence[InputSpec], *, guessed: bool = False) -> ModelGraph:
    """The graph of a module on examples of its inputs, by place or (where they have names) by keyword.

    Args:
        guessed: nobody said the inputs, so that an error says how to.

    Raises:
        RequestError: `forward` has no input of that name.
        GraphError: the model can't be captured.
    """
    example = tuple(entry.example() for entry in inputs)
    try:
        if not any(entry.name for entry in inputs):
            return capture(model, example)
        check_names(model, inputs)
        return capture_called(model, [entry.name for entry in inputs], example)
    except GraphError as error:
        if not guessed:
            raise
        names = [name for name, entry in inspect.signature(model.forward).parameters.items()
                 if entry.default is entry.empty and entry.kind is entry.POSITIONAL_OR_KEYWORD]  # fmt: skip
        example_text = (
            " ".join(f"--input {name}=..." for name in names)
            if len(names) > 1
            else "--input 1,28,28 for images, --input int64:32 for token ids"
        )
        raise GraphError(
            f"{error.detail.rstrip('.')}. Nothing said what the model reads, so "
            f"{' and '.join(map(str, inputs))} was tried: if that is "
            f"wrong, say it with --input (without the batch), for instance {example_text}",
            where=error.where,
            problems=error.problems,
        ) from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a module's state from a safetensors file, strictly; batch counters may be missing.

    Raises:
        RequestError: names every tensor that is missing, left over, of another shape, or of a type whose numbers are
            not the model's.
    """
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"can't read weights {path}: {error}", where=str(path)) from None
    own = model.state_dict()
    if state and own and not set(state) & set(own):
        raise RequestError(
            f"weights {path.name} are those of another model: none of its {len(state)} tensors "
            f"({_few(state)}) is one of the model's {len(own)} ({_few(own)})",
            where=str(path),
        )
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
    problems += [
        f"{name}: holds {_plain(state[name].dtype)}, the model takes {_plain(own[name].dtype)}: "
        f"{_cure(own[name].dtype)}"
        for name in sorted(set(own) & set(state))
        if not _keeps_values(state[name].dtype, own[name].dtype)
    ]
    if problems:
        raise RequestError(f"weights {path.name} don't fit the model", problems=problems, where=str(path))
    model.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, strict=False)


def _keeps_values(found: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers of one type can be read as those of another: floats for floats, whole numbers for wider ones.

    Whole numbers for floats are codes that need a scale.
    """
    if found == wanted or (found in _FLOATS and wanted in _FLOATS):
        return True
    if found.is_floating_point or found.is_complex or wanted.is_floating_point or wanted.is_complex:
        return False
    return torch.bool not in (found, wanted) and torch.promote_types(found, wanted) == wanted


def _cure(wanted: torch.dtype) -> str:
    if wanted.is_floating_point:
        return (
            f"give the weights before they were quantised, or times their scale and saved as {_plain(wanted)}"
        )
    return f"save it as {_plain(wanted)}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def call_factory(spec: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that `package.module:factory(**arguments)` gives.

    Raises:
        RequestError: there is no such factory, it does not take the arguments, it fails, or it gives something else.
    """
    model = called(spec, arguments)
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        if isinstance(model, type) and issubclass(model, nn.Module):
            kind = f"class ({model.__name__}) in place of a model"
        raise RequestError(f"{spec} gives a {kind}, not an nn.Module")
    return model
