"""What a model is captured with: its inputs in words, and tensors that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.errors import RequestError, suggest

BATCH = 2
_DTYPES = ("float32", "float64", "int64", "int32", "bool")
_HOW = "write a shape without the batch (3,32,32), a dtype before it (int64:32), a name before that (ids=int64:32)"


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
    name, named, rest = text.rpartition("=")
    dtype, typed, sizes = rest.rpartition(":")
    name, dtype = name.strip(), dtype.strip() or "float32"
    if named and not name.isidentifier():
        raise RequestError(f"input {text!r}: {name!r} can't be the name of an argument; {_HOW}")
    if dtype not in _DTYPES or (typed and not rest.partition(":")[0].strip()):
        raise RequestError(f"input {text!r}: no dtype {dtype!r}{suggest(dtype, _DTYPES)}; {_HOW}")
    parts = [part.strip() for part in sizes.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise RequestError(f"input {text!r}: {sizes!r} is no list of sizes above 0; {_HOW}")
    return InputSpec(tuple(int(part) for part in parts), dtype, name)


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
            f"inputs {', '.join(map(str, inputs))}: name all of them, or none (then they go by their place)"
        )
    return tuple(inputs)
