"""Which operators a `.pt2` file may name: those that the normal form takes, found by name and nothing else."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import torch

from sarto.graph.normal_form import READABLE

_TARGET = re.compile(r"torch\.ops\.aten\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)

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
    if f"aten.{name}.{variant}" not in READABLE and not (
        in_place and f"aten.{name[:-1]}.{variant}" in READABLE
    ):
        return None
    packet = getattr(torch.ops.aten, name, None)
    made = getattr(packet, variant, None) if packet is not None else None
    return made if isinstance(made, torch._ops.OpOverload) else None
