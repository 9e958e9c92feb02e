"""Which operators a `.pt2` file may name: those that the normal form takes, found by name and nothing else."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import torch

from sarto.graph.operators import ALLOWED, FOLDABLE

_TARGET = re.compile(r"torch\.ops\.aten\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)

#: Spellings that the normal form does away with, besides in-place forms of allowed operators.
_SPELLINGS: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("_assert_tensor_metadata.default", "detach_.default", "concat.default", "swapaxes.default"),
        *("arctan.default", "special_expit.default", "glu.default", "var.dim", "std.dim", "to.device"),
        *("to.other", "to.dtype_layout", "type_as.default", "numpy_T.default", "mT.default"),
        *("expand_as.default", "unbind.int", "split.sizes"),
    )
)
_KNOWN: Final = ALLOWED | FOLDABLE | _SPELLINGS
#: Operators that check symbols while the program runs; a graph's sizes are checked when it is read.
SYMBOL_CHECKS: Final = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "_assert_scalar.default",
        "sym_constrain_range.default",
        "sym_constrain_range_for_size.default",
    )
)


@cache
def readable(target: str) -> torch._ops.OpOverload | None:
    """The operator that a target of the file names; None where it is not one that a program may hold.

    Whether the normal form really takes it is decided there; what is not on these lists is never even looked up.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        return None
    name, variant = found.groups()
    in_place = name.endswith("_") and not name.endswith("__")
    if f"aten.{name}.{variant}" not in _KNOWN and not (in_place and f"aten.{name[:-1]}.{variant}" in _KNOWN):
        return None
    packet = getattr(torch.ops.aten, name, None)
    made = getattr(packet, variant, None) if packet is not None else None
    return made if isinstance(made, torch._ops.OpOverload) else None
