"""From an `nn.Module` to a `ModelGraph`, by `torch.export` and one normalisation."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sarto.errors import GraphError, ShapeError
from sarto.graph.export_words import quiet_export, reason_of
from sarto.graph.model import ModelGraph
from sarto.graph.normal_form import from_program
from sarto.graph.training_mode import with_training_values

#: A bound on the batch that is no choice of the model: kernels count elements in 32 bits.
_MOST_SAMPLES = 2**16


def capture(model: nn.Module, example: Tensor | tuple[Tensor, ...], *, prove: bool = True) -> ModelGraph:
    """The graph of a model in evaluation mode, with a dynamic batch axis.

    In-place operators become functional, views become reshapes, splits become slices, shapes become constants or
    multiples of the batch: what surgery sees is always the same small language. The module is left as it was.

    Args:
        model: any module that `torch.export` can capture, called with tensors by place. For one that is called by
            keyword there is `sarto.pipeline.sources.calling.capture_called`; or wrap it in a module that passes them.
        example: its input (or a tuple of inputs), axis 0 the batch; a batch of one is doubled, since export would fix
            it to one.
        prove: check that the graph computes what the module computes (and, on a random twin of it, that slicing
            each group equals zeroing what its readers read); what fails is refused.

    Raises:
        GraphError: export failed, an operator is not allowed, a size depends on more than the batch, the model
            computes something else for other batch sizes or other data, weights hold NaN or infinity, or the proof
            failed.
        ShapeError: the example is no tensor or tuple of tensors, or has no batch axis.
    """
    inputs = tuple(_widen(tensor) for tensor in _tensors(example))
    _refuse_bad_numbers(model)
    _refuse_other_call(model, inputs)
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(), quiet_export():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                model,
                inputs,
                dynamic_shapes=_dynamic_shapes(model, inputs),
            )
    except Exception as error:
        raise GraphError(
            f"torch.export could not capture {type(model).__name__} with inputs of shape {_shapes(inputs)}: "
            f"{reason_of(error)}"
        ) from error
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
    _refuse_batch_limits(model, program)
    graph = with_training_values(from_program(program), model, inputs)
    if prove:
        from sarto.graph.proof import prove_capture

        graph = prove_capture(graph, model, inputs)
    return graph


def _tensors(example: object) -> tuple[Tensor, ...]:
    """The example as a tuple of tensors.

    Raises:
        ShapeError: it is something else.
    """
    given = example if isinstance(example, tuple) else (example,)
    strange = [entry for entry in given if not isinstance(entry, Tensor)]
    if not given or strange:
        kind = type(strange[0]) if strange else tuple
        found = (
            f"{kind.__module__}.{kind.__name__}".removeprefix("builtins.") if strange else "an empty tuple"
        )
        cure = {
            "list": "tuple(list) if it holds one tensor per input, torch.stack(list) if it holds samples",
            "ndarray": "torch.from_numpy(array)",
            "dict": "the tensors to sarto.pipeline.sources.calling.capture_called, which calls a model by keyword",
        }.get(kind.__name__, "model.forward's tensors by place")
        raise ShapeError(
            f"an example must be a tensor, or a tuple with one tensor per input; found {found}. Give {cure}."
        )
    return given


def _refuse_other_call(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse an example that the model's `forward` can't be called with.

    Raises:
        GraphError: says what forward takes, and how to capture a model that is called by keyword.
    """
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*inputs)
    except TypeError as error:
        many = f"{len(inputs)} tensor{'' if len(inputs) == 1 else 's'} by place"
        raise GraphError(
            f"{type(model).__name__}.forward{_named(signature)} can't be called with {many}: {error}. Give a tuple "
            "with one tensor per input. For inputs by keyword there is sarto.pipeline.sources.calling.capture_called("
            "model, names, examples); or wrap the model in a module whose forward passes them."
        ) from error


def _named(signature: inspect.Signature) -> str:
    """A signature without its types."""
    plain = [entry.replace(annotation=inspect.Parameter.empty) for entry in signature.parameters.values()]
    return str(inspect.Signature(plain))


def _refuse_batch_limits(model: nn.Module, program: torch.export.ExportedProgram) -> None:
    """Refuse a program that only holds for some batch sizes (export takes all from 2 on, unless the model asks).

    Raises:
        GraphError: the model compares the size of its batch with a number.
    """
    for symbol, found in program.range_constraints.items():
        if not str(symbol).startswith("s"):
            continue
        least, most = int(found.lower), found.upper
        bounded = bool(most.is_Integer) and int(most) < _MOST_SAMPLES
        if least > 2 or bounded:
            sizes = f"of {least} to {most}" if bounded else f"from {least} on"
            raise GraphError(
                f"{type(model).__name__} branches on the size of its batch: what was captured holds for batches "
                f"{sizes} only. Take the comparison with the batch size out of forward."
            )


def _shapes(inputs: tuple[Tensor, ...]) -> str:
    """Shapes as they are given for one sample: `(batch, 3, 32, 32)`."""
    return ", ".join("(" + ", ".join(["batch", *map(str, t.shape[1:])]) + ")" for t in inputs)


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
