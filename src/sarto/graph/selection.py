"""A selection: for each channel group the units that are kept. A value, not an action."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sarto.errors import GraphError, suggest
from sarto.graph.analysis import INSIDE_HEADS, Analysis
from sarto.graph.model import ModelGraph


@dataclass(frozen=True)
class Selection:
    """Group id -> sorted indices of the units kept (none: the group goes). Groups that are not named keep all units."""

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tidy = {
            group: tuple(sorted({int(unit) for unit in units})) for group, units in sorted(self.kept.items())
        }
        object.__setattr__(self, "kept", tidy)

    @property
    def counts(self) -> dict[str, int]:
        """Number of units kept in each named group."""
        return {group: len(units) for group, units in self.kept.items()}

    def then(self, inner: Selection) -> Selection:
        """The one selection that equals this one followed by `inner` (whose indices count the kept units)."""
        merged = dict(self.kept)
        for group, units in inner.kept.items():
            outer = self.kept.get(group)
            merged[group] = units if outer is None else tuple(outer[unit] for unit in units)
        return Selection(merged)


def uniform_counts(graph: ModelGraph, ratio: float, *, inside_heads: bool = False) -> dict[str, int]:
    """Units kept per sliceable group at one ratio: max(1, round(ratio x size)).

    Args:
        inside_heads: also the positions inside attention heads; by default heads are kept or dropped whole.

    Raises:
        GraphError: the ratio is not in (0, 1].
    """
    if not 0 < ratio <= 1:
        raise GraphError(f"a ratio of kept units must lie in (0, 1], got {ratio}")
    return {
        group.id: max(1, round(ratio * group.size))
        for group in graph.analysis.sliceable
        if inside_heads or group.kind not in INSIDE_HEADS
    }


def leading(counts: Mapping[str, int]) -> Selection:
    """The selection that keeps the first units of each group: for costs, where only numbers matter."""
    return Selection({group: tuple(range(count)) for group, count in counts.items()})


def check_selection(analysis: Analysis, selection: Selection) -> None:
    """Refuse a selection that this graph can't keep; all problems at once.

    Raises:
        GraphError: unknown or pinned group, or index out of range.
    """
    problems: list[str] = []
    groups = analysis.groups
    for name, units in selection.kept.items():
        group = groups.get(name)
        if group is None:
            problems.append(f"no channel group {name!r}{suggest(name, list(groups))}")
        elif units and (units[0] < 0 or units[-1] >= group.size):
            problems.append(
                f"group {name!r} has units 0..{group.size - 1}, asked for {_outside(units, group.size)}"
            )
        elif group.pinned and len(units) < group.size:
            problems.append(f"group {name!r} can't be sliced: {'; '.join(group.pinned)}")
    if problems:
        raise GraphError(problems[0], problems=problems)


def _outside(units: Iterable[int], size: int) -> list[int]:
    return [unit for unit in units if not 0 <= unit < size][:5]
