"""How wide each layer of a donor should be: by one rate, at a given size, or within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sarto.engines.slicepack.importance import importance
from sarto.engines.slicepack.readings import Readings
from sarto.engines.slicepack.settings import LEAST, STEP
from sarto.engines.slicepack.units import group_moment
from sarto.engines.slicepack.work import Work, flops_work, latency_work, params_work
from sarto.errors import InfeasibleError, RequestError, suggest
from sarto.graph import INSIDE_HEADS, ChannelGroup, ModelGraph
from sarto.training import column_subset

#: Objective -> the work that a step is priced by.
OBJECTIVES: Mapping[str, Callable[[Readings], Work]] = {
    "params": lambda readings: params_work(readings.graph),
    "flops": lambda readings: flops_work(readings.graph),
    "latency_ms": lambda readings: latency_work(readings.graph, readings.inputs[:1]),
}


def allocate(
    readings: Readings,
    shares: Sequence[float],
    *,
    objective: str = "params",
    streams: bool = True,
    alike: bool = False,
    work: Work | None = None,
) -> dict[float, dict[str, int]]:
    """Units kept per channel group for each share of the extractor's cost.

    Greedy from the whole donor down: the next units to go are those whose group's unexplained energy (of the column
    subset over all classes), as much as it counts (`importance`), grows least per cost saved. Smaller sizes are
    therefore nested in larger ones.

    Args:
        shares: of the feature extractor's cost, each in (0, 1].
        objective: what is saved: `params` (bytes follow them), `flops`, or `latency_ms` (measured now, node by node).
        streams: also the channels of residual streams, one selection a stage; else only inner channels.
        alike: every group counts alike, whatever it moves; for ablations.
        work: a cost of one's own (of another device, say) instead of the objective's.

    Returns:
        share -> channel group -> units; a share below one unit of each group gives the smallest there is.

    Raises:
        RequestError: an unknown objective.
    """
    search = _Search(readings, {objective: work or work_of(readings, objective)}, streams, alike)
    found = {}
    for share in sorted(shares, reverse=True):
        search.down_to({objective: share * search.full[objective]})
        found[share] = dict(search.counts)
    return found


def allocate_within(
    readings: Readings, limits: Mapping[str, float], *, streams: bool = True
) -> dict[str, int]:
    """Units kept per channel group so that the extractor stays within several limits at once.

    As `allocate`; a step is priced by what it saves of the limits that are still exceeded, each as a share of the
    whole donor's cost.

    Args:
        limits: objective -> most that the extractor may cost.

    Raises:
        RequestError: an unknown objective.
        InfeasibleError: the smallest widths are over a limit.
    """
    search = _Search(readings, {name: work_of(readings, name) for name in limits}, streams)
    search.down_to(limits)
    over = {name: search.now[name] for name in limits if search.now[name] > limits[name]}
    if over:
        said = "; ".join(
            f"{name} <= {limits[name]:g}, the smallest is {cost:g}" for name, cost in over.items()
        )
        raise InfeasibleError(
            f"no widths fit: {said}. Each channel group keeps at least one unit; allow more, or take another donor",
            floor=over,
        )
    return dict(search.counts)


def rate_widths(graph: ModelGraph, rate: float, *, streams: bool = False) -> dict[str, int]:
    """The same share of every group: max(1, round(rate x size)).

    Args:
        streams: also the channels of residual streams; the paper slices inner channels only.

    Raises:
        RequestError: the rate is not in (0, 1].

    Reference:
        Slice-and-Pack, equation (5), and our reading of its ResNet counts.
    """
    if not 0 < rate <= 1:
        raise RequestError(f"a rate of kept units must lie in (0, 1], got {rate}")
    return {name: max(1, round(rate * group.size)) for name, group in groups_of(graph, streams).items()}


def groups_of(graph: ModelGraph, streams: bool) -> dict[str, ChannelGroup]:
    """The channel groups that get a width; heads go whole."""
    return {
        group.id: group
        for group in graph.analysis.sliceable
        if group.kind not in INSIDE_HEADS and (streams or group.kind != "stream")
    }


def work_of(readings: Readings, objective: str) -> Work:
    """The cost of a donor's extractor that an objective names.

    Raises:
        RequestError: an unknown objective.
    """
    make = OBJECTIVES.get(objective)
    if make is None:
        raise RequestError(f"{objective!r} is no objective of widths{suggest(objective, OBJECTIVES)}")
    return make(readings)


@dataclass
class _Step:
    price: float
    fewer: int
    saved: Mapping[str, float]


@dataclass
class _Search:
    """Widths on their way down."""

    readings: Readings
    works: Mapping[str, Work]
    streams: bool
    alike: bool = False
    floor: float = LEAST
    counts: dict[str, int] = field(init=False)
    full: dict[str, float] = field(init=False)
    now: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        read = {group for _, _, group in self.readings.grams}
        self.groups = {
            name: g for name, g in groups_of(self.readings.graph, self.streams).items() if name in read
        }
        counts = {} if self.alike else importance(self.readings)
        self.curves = {
            name: [counts.get(name, 1.0) * left for left in left_unexplained(self.readings, name)]
            for name in self.groups
        }
        self.touched = {
            name: {objective: work.touched(name) for objective, work in self.works.items()}
            for name in self.groups
        }
        self.beside = {
            name: {
                other
                for other in self.groups
                if any(
                    set(self.touched[name][objective]) & set(self.touched[other][objective])
                    for objective in self.works
                )
            }
            for name in self.groups
        }
        self.counts = {name: group.size for name, group in self.groups.items()}
        self.full = {objective: work.cost(self.counts) for objective, work in self.works.items()}
        self.now = dict(self.full)

    def down_to(self, limits: Mapping[str, float]) -> None:
        """Take units away until every cost is at most its limit, or one unit is left of each group.

        No group falls below `LEAST` of its units while the limits can be kept otherwise; then the floor is halved.
        """
        while self._exceeded(limits):
            self._down_to(limits)
            if all(count <= 1 for count in self.counts.values()):
                return
            if self._exceeded(limits):
                self.floor /= 2

    def _down_to(self, limits: Mapping[str, float]) -> None:
        steps: dict[str, _Step | None] = {}
        exceeded = self._exceeded(limits)
        while exceeded:
            for name in self.groups:
                if name not in steps:
                    steps[name] = self._step(name, exceeded)
            best = min(((step.price, name) for name, step in steps.items() if step is not None), default=None)
            if best is None:
                return
            step = steps[best[1]]
            if step is None:
                return
            self.counts[best[1]] = step.fewer
            for objective, saved in step.saved.items():
                self.now[objective] -= saved
            for name in self.beside[best[1]]:
                steps.pop(name, None)
            steps.pop(best[1], None)
            left = self._exceeded(limits)
            if left != exceeded:
                steps, exceeded = {}, left

    def _exceeded(self, limits: Mapping[str, float]) -> tuple[str, ...]:
        # Sums of milliseconds are rounded: a limit that is the whole cost is not exceeded.
        return tuple(name for name in self.works if self.now[name] > limits[name] + 1e-9 * self.full[name])

    def _step(self, name: str, exceeded: tuple[str, ...]) -> _Step | None:
        group = self.groups[name]
        fewer = max(1, self.counts[name] - max(1, round(STEP * group.size)))
        if fewer == self.counts[name] or fewer < self.floor * group.size:
            return None
        after = {**self.counts, name: fewer}
        saved = {
            objective: sum(term.cost(self.counts) - term.cost(after) for term in terms)
            for objective, terms in self.touched[name].items()
        }
        worth = sum(saved[objective] / self.full[objective] for objective in exceeded)
        lost = self.curves[name][fewer] - self.curves[name][self.counts[name]]
        return _Step(lost / max(worth, 1e-12), fewer, saved)


def left_unexplained(readings: Readings, group: str) -> list[float]:
    """Share of the weighted energy left unexplained by the best k units of a group, for k = 0 .. size."""
    gram, weights = group_moment(readings, group, range(readings.n_classes), 1.0)
    curve = column_subset(gram, weights, gram.shape[0]).left
    return [1.0, *torch.cummin(curve, 0).values.clamp_min(0).tolist()]
