"""From an `nn.Module` to a `ModelGraph`, by `torch.export` and one normalisation."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sarto.errors import GraphError, ShapeError
from sarto.graph.model import ModelGraph
from sarto.graph.normal_form import from_program
from sarto.graph.training_mode import with_training_values


def capture(model: nn.Module, example: Tensor | tuple[Tensor, ...], *, prove: bool = True) -> ModelGraph:
    """The graph of a model in evaluation mode, with a dynamic batch axis.

    In-place operators become functional, views become reshapes, splits become slices, shapes become constants or
    multiples of the batch: what surgery sees is always the same small language. The module is left as it was.

    Args:
        model: any module that `torch.export` can capture.
        example: its input (or inputs), axis 0 the batch; a batch of one is doubled, since export would fix it to one.
        prove: check that the graph computes what the module computes (and, on a random twin of it, that slicing
            each group equals zeroing what its readers read); what fails is refused.

    Raises:
        GraphError: export failed, an operator is not allowed, a size depends on more than the batch, weights hold
            NaN or infinity, or the proof failed.
        ShapeError: the example has no batch axis.
    """
    inputs = tuple(_widen(tensor) for tensor in (example if isinstance(example, tuple) else (example,)))
    _refuse_bad_numbers(model)
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(), _quiet_export():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                model,
                inputs,
                dynamic_shapes=_dynamic_shapes(model, inputs),
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise GraphError(
            f"torch.export could not capture {type(model).__name__} with inputs of shape "
            f"{[list(t.shape) for t in inputs]}: {reason}"
        ) from error
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
    graph = with_training_values(from_program(program), model, inputs)
    if prove:
        from sarto.graph.proof import prove_capture

        graph = prove_capture(graph, model, inputs)
    return graph


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Keep torch from logging a failure that is raised, and said, anyway."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _dynamic_shapes(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """A dynamic first axis for every input, in the form that a `forward(a, b, *rest)` asks for."""
    each = [{0: torch.export.Dim.DYNAMIC} for _ in inputs]
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(each)
    named = min(kinds.index(inspect.Parameter.VAR_POSITIONAL), len(each))
    return (*each[:named], tuple(each[named:]))


def _widen(tensor: Tensor) -> Tensor:
    if tensor.ndim == 0:
        raise ShapeError("the example input has no batch axis; give a tensor whose first axis is the batch")
    return tensor if tensor.shape[0] > 1 else tensor.repeat_interleave(2, dim=0)


def _refuse_bad_numbers(model: nn.Module) -> None:
    """Parameters must be finite; buffers may hold infinity, as masks do, but no NaN."""
    bad = [name for name, tensor in model.named_parameters() if not bool(torch.isfinite(tensor).all())]
    bad += [
        name
        for name, tensor in model.named_buffers()
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any())
    ]
    if bad:
        raise GraphError(
            f"{len(bad)} tensors of {type(model).__name__} hold NaN or infinity: {', '.join(bad[:5])}. "
            "Retrain or repair the weights before they enter a market.",
            where=bad[0],
        )


__all__ = ["capture", "from_program"]
