"""Which unit counts run quickly: some runtimes leave their fast code where channels are no multiple of a few."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from sarto.devices.profiling.blocks import Block
from sarto.errors import RequestError

#: Channels of the compared blocks: 32, and 1, 2, 4, 8 and 16 fewer.
WIDTHS = (32, 31, 30, 28, 24, 16)
#: A block of fewer channels that takes longer than this times the widest says that its count is a slow one.
SLOWER = 1.08
_FAMILY = "step"


def step_blocks() -> tuple[Block, ...]:
    """Models that differ in their number of channels alone: full, pointwise and depthwise convolutions in turn."""
    return tuple(Block(_FAMILY, f"{_FAMILY}-{width}", (width, 16, 16), _maker(width)) for width in WIDTHS)


def step_of(times: Mapping[int, float]) -> int:
    """The smallest step such that counts at multiples of it take no longer than the next power of two above them.

    Args:
        times: channels of the blocks -> milliseconds.

    Raises:
        RequestError: a block was not measured, or its time is not positive.
    """
    missing = [width for width in WIDTHS if not times.get(width, 0.0) > 0]
    if missing:
        raise RequestError(
            f"blocks of {', '.join(map(str, missing))} channels have no time; measure them too"
        )
    step = 1
    for width in WIDTHS[1:]:
        if times[width] > SLOWER * times[WIDTHS[0]]:
            step = 2 * (WIDTHS[0] - width)
    return step


def off_step_ratio(times: Mapping[int, float], step: int) -> float:
    """How many times as long a layer takes at most whose channels are no multiple of the step; 1 where there is none.

    Args:
        times: channels of the blocks -> milliseconds.
    """
    off = [times[width] / times[WIDTHS[0]] for width in WIDTHS if width % step]
    return max([1.0, *off])


def is_off_step(counts: Mapping[str, int], sizes: Mapping[str, int], step: int) -> bool:
    """Whether a group keeps a number of units that is neither a multiple of the step nor the whole group."""
    return any(count % step and count != sizes[group] for group, count in counts.items())


def step_counts(counts: Mapping[str, int], sizes: Mapping[str, int], step: int) -> dict[str, int]:
    """Unit counts rounded up to multiples of a step, or to the whole group."""
    return {group: min(-(-count // step) * step, sizes[group]) for group, count in counts.items()}


def _maker(width: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for kernel, groups in ((3, 1), (1, 1), (3, width)) * 2:
            conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers)

    return make
