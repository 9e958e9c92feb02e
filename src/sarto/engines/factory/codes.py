"""What the assembler reads: a task as bits, a limit as waves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sarto.errors import RequestError

#: Limits are counted in percent, so that neighbouring ones have different codes.
POSITIONS = 100.0
#: Longest wave, in positions, as a multiple of 2 pi.
LONGEST = 10_000.0


def limit_code(limits: Tensor, dims: int) -> Tensor:
    """Sinusoidal code (n, dims) of limits (n,): sines, then cosines, of geometrically longer waves.

    Raises:
        RequestError: `dims` is odd.

    Reference:
        Vaswani et al., Attention Is All You Need, section 3.5; NN-Factory, arXiv 2308.15003, section 3.2.
        Differs: sines and cosines stand in two halves, not in turns; a linear layer reads them.
    """
    if dims % 2:
        raise RequestError(
            f"a limit's code has sines and as many cosines: an even size was expected, got {dims}"
        )
    place = torch.arange(dims // 2, dtype=limits.dtype, device=limits.device)
    rates = torch.exp(-math.log(LONGEST) * 2 * place / dims)
    angles = POSITIONS * limits[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def check_limits(limits: Tensor) -> None:
    """Refuse limits outside (0, 1].

    Raises:
        RequestError: names the first one.
    """
    bad = limits[~((limits > 0) & (limits <= 1))]
    if len(bad):
        raise RequestError(f"a limit is a share of units in (0, 1], got {float(bad[0]):g}")
