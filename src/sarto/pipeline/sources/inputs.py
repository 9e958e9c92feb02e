"""What a model is captured with: its inputs in words, and tensors that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.errors import RequestError
from sarto.graph import Input, ModelGraph
from sarto.graph.model import size_at
from sarto.types.inputs import input_parts

BATCH = 2


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        shape: of one sample, without the batch axis.
        dtype: of its tensor.
        name: of the argument of `forward`; empty: by its place.
        below: whole numbers of an example lie under it.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str = ""
    below: int = 2

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.shape))
        text = sizes if self.dtype == "float32" and not self.name else f"{self.dtype}:{sizes}"
        return f"{self.name}={text}" if self.name else text

    def example(self, batch: int = BATCH) -> Tensor:
        """A tensor of shape (batch, *shape): standard normal, or whole numbers under `below`; always the same."""
        generator = torch.Generator().manual_seed(0)
        size = (batch, *self.shape)
        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            return torch.randn(size, generator=generator, dtype=dtype)
        return torch.randint(0, self.below, size, generator=generator).to(dtype)


def read_input(text: str) -> InputSpec:
    """An input from `[name=][dtype:]sizes`: '3,32,32', 'int64:32', 'input_ids=int64:32'.

    Raises:
        RequestError: the text is something else.
    """
    return InputSpec(*input_parts(text))


def check_captured(graph: ModelGraph, inputs: Sequence[InputSpec], what: str) -> None:
    """Refuse inputs that are not those which a graph was captured with: it can't be changed any more.

    Args:
        what: the graph in words, for the message.

    Raises:
        RequestError: says what the graph reads.
    """
    own = tuple(InputSpec(sample_shape(entry), entry.dtype, entry.name) for entry in graph.inputs)
    if len(inputs) == len(own):
        by_name = {entry.name: entry for entry in own}
        pairs = [
            (entry, by_name.get(entry.name) if entry.name else mine)
            for entry, mine in zip(inputs, own, strict=True)
        ]
        if all(mine and (entry.shape, entry.dtype) == (mine.shape, mine.dtype) for entry, mine in pairs):
            return
    if inputs:
        raise RequestError(
            f"{what} was captured with {' and '.join(map(str, own))} and can't be given "
            f"{' and '.join(map(str, inputs))}: leave out --input, or capture the model itself again"
        )


def sample_shape(entry: Input) -> tuple[int, ...]:
    """Shape of an input without its batch."""
    return size_at(entry.shape, 1)[1:]


def given_inputs(
    shape: Sequence[int] | None, inputs: Sequence[InputSpec], default: Sequence[int]
) -> tuple[InputSpec, ...]:
    """The inputs that were asked for: the full ones, else one of a shape, else the default.

    Raises:
        RequestError: some have a name and others don't.
    """
    if not inputs:
        return (InputSpec(tuple(default if shape is None else shape)),)
    if any(entry.name for entry in inputs) and not all(entry.name for entry in inputs):
        raise RequestError(
            f"--input {' --input '.join(map(str, inputs))}: name all of them, or none (then they go by their place)"
        )
    return tuple(inputs)
