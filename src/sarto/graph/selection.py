"""A selection: for each channel group the units that are kept. A value, not an action."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sarto.errors import GraphError
from sarto.graph.analysis import INSIDE_HEADS, Analysis, ChannelGroup, analyse
from sarto.graph.model import ModelGraph


@dataclass(frozen=True)
class Selection:
    """Group -> sorted indices of the units kept (none: the group goes). Groups that are not named keep all units.

    A group is named by its id (`conv1.weight:0`), or by a layer as `Analysis.group` takes it (`conv1`). Selections are
    values: equal ones have one hash, so they may be keys.
    """

    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tidy = {
            group: tuple(sorted({int(unit) for unit in units})) for group, units in sorted(self.kept.items())
        }
        object.__setattr__(self, "kept", tidy)

    def __hash__(self) -> int:
        return hash(tuple(self.kept.items()))

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


def settled(graph: ModelGraph, selection: Selection, analysis: Analysis | None = None) -> Selection:
    """The selection with every group by its id, after it was found that the graph can keep it.

    Args:
        analysis: another reading of the graph than its own.

    Raises:
        GraphError: it is no `Selection`, or names an unknown or pinned group, one group twice, or an index out of
            range; all problems at once.
    """
    if not isinstance(selection, Selection):
        raise GraphError(
            f"what is kept must be a sarto.graph.Selection, found {type(selection).__name__}: give "
            "Selection({group: units kept, ...})"
        )
    analysis = analysis or graph.analysis
    problems: list[str] = []
    kept: dict[str, tuple[int, ...]] = {}
    for name, units in selection.kept.items():
        try:
            group = analysis.group(name)
        except GraphError as error:
            problems.append(error.detail)
            continue
        if group.id in kept:
            problems.append(f"group {group.id!r} is named twice, once as {name!r}")
        elif units and (units[0] < 0 or units[-1] >= group.size):
            problems.append(
                f"group {name!r} has units 0..{group.size - 1}, asked for {_outside(units, group.size)}"
            )
        elif group.pinned and len(units) < group.size:
            problems.append(f"group {name!r} can't be sliced: {_because(graph, group, analysis)}")
        kept[group.id] = units
    if problems:
        raise GraphError(problems[0], problems=problems)
    return Selection(kept)


def _because(graph: ModelGraph, group: ChannelGroup, analysis: Analysis) -> str:
    """Why a group is pinned, reasons of one operator together; and that `trim` slices it, where it does."""
    table: dict[str, list[str]] = {}
    for reason in group.pinned:
        op, at, node = reason.rpartition(" at ")
        table.setdefault(op if at else reason, []).append(node if at else "")
    said = []
    for what, nodes in table.items():
        if len(nodes) > 1:
            said.append(f"{what} at {len(nodes)} nodes ({', '.join(nodes[:3])}{', ...' * (len(nodes) > 3)})")
        else:
            said.append(f"{what} at {nodes[0]}" if nodes[0] else what)
    text = "; ".join(said)
    if analysis is graph.analysis:
        wider = analyse(graph, follow_statistics=True).groups.get(group.id)
        if wider is not None and not wider.pinned:
            text += "; `trim` slices it approximately, and fits these norms again on samples"
    return text


def _outside(units: Iterable[int], size: int) -> list[int]:
    return [unit for unit in units if not 0 <= unit < size][:5]
