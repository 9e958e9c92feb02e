"""What plans will take on a profiled device, from the donors' graphs and the widths of a plan; nothing is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sarto.devices import processor
from sarto.devices.profiling import Estimate, Predictor, Terms, terms_of
from sarto.devices.profiling.conformal import interval
from sarto.devices.profiling.generic import places_of
from sarto.devices.profiling.heads import HeadRates
from sarto.devices.profiling.sizes import Floats
from sarto.devices.profiling.steps import is_off_step
from sarto.engines.slicepack.trunk import shared_nodes
from sarto.errors import RequestError, StoreError
from sarto.graph import ModelGraph, block, features, graph_hash
from sarto.graph.expressions import AxisExpr, kept_size
from sarto.market import Store
from sarto.pipeline.builder import ready
from sarto.pipeline.slicing import resolve_keep
from sarto.types import BlockNode, Cost, Device, HeadNode, Plan, SliceNode, SourceNode
from sarto.types.profile import BackboneModel, DeviceProfile, KindModel


@dataclass(frozen=True)
class Part:
    """A donor's extractor at some widths.

    Attributes:
        learnware: id of the donor.
        counts: units kept of each group; groups that are not named keep all.
        front: node of the plan that this part and others are cut from; None where it shares nothing.
        shared: groups that the front cuts.
    """

    learnware: str
    counts: Mapping[str, int]
    front: str | None = None
    shared: frozenset[str] = frozenset()


def profile_of(device: Device, store: Store) -> DeviceProfile | None:
    """The profile that a device names, from its file or from the market; None where it names none.

    Raises:
        RequestError: there is no such profile, it can't be read, or it is of another device; all that differs is named.
    """
    if device.profile is None:
        return None
    try:
        path = Path(device.profile)
        found = DeviceProfile.read(path) if path.is_file() else store.profiles.get(device.profile)
    except StoreError as error:
        raise RequestError(
            f"device.profile: {error}; it is no file either", where="device.profile"
        ) from error
    except RequestError as error:
        problems = [f"device.profile: {path.name}: {text}" for text in error.problems or (error.detail,)]
        raise RequestError(problems[0], problems=problems, where="device.profile") from error
    known = found.device
    problems = [
        f"device.profile: {device.profile!r} was measured with {name} {getattr(known, name)}, the order's device has "
        f"{getattr(device, name)}: order that device, or measure a profile of it"
        for name in ("runtime", "threads", "batch", "precision")
        if getattr(known, name) != getattr(device, name)
    ]
    if problems:
        raise RequestError(problems[0], problems=problems, where="device.profile")
    return found


def measured_elsewhere(profile: DeviceProfile | None, device: Device) -> list[str]:
    """That a profile was measured on another processor than the one on which the order is measured, in words."""
    known = profile.device.processor if profile is not None else None
    if known is None or device.agent is not None or known == processor():
        return []
    return [
        f"the profile {device.profile!r} was measured on {known!r}, here is {processor()!r}: its predictions are those "
        "of the other one, what is delivered was measured here. Measure a profile here, or name its agent"
    ]


@dataclass
class PlanPredictor:
    """Latency and memory of plans on one profiled device; a donor's graph is read once."""

    profile: DeviceProfile
    store: Store
    _donors: dict[str, _Donor] = field(default_factory=dict)

    def predicted(self, plan: Plan) -> Plan:
        """The plan with the intervals of its latency and memory; as it is where it has no predicted cost, or is made of
        what a profile does not know.

        Where a part keeps a count that the device is slow at (no multiple of its step), the bound is what all of it
        would take if all of it were as slow.

        Raises:
            StoreError: a donor is missing or damaged.
        """
        parts = self.parts(plan)
        if plan.predicted is None or not parts or plan.classes is None:
            return plan
        latency = self.latency(parts, len(plan.classes))
        if self.is_off_step(parts):
            latency = latency._replace(high=latency.high * self.profile.off_step_ratio)
        return plan.replace(predicted=self.cost(plan.predicted, latency))

    def is_off_step(self, parts: Sequence[Part]) -> bool:
        """Whether a part keeps a number of units that the device is slow at."""
        step = self.profile.unit_step
        return any(is_off_step(part.counts, self.sizes(part.learnware), step) for part in parts)

    def sizes(self, learnware: str) -> dict[str, int]:
        """Units of each group of a donor."""
        return {group.id: group.size for group in self.donor(learnware).whole.analysis.sliceable}

    def cost(self, counted: Cost, latency: Estimate) -> Cost:
        """A counted cost with a predicted latency, and the memory of a process."""
        found = counted.replace(
            latency_low_ms=latency.low, latency_ms=latency.middle, latency_high_ms=latency.high
        )
        return Predictor(self.profile).weighed(found)

    def parts(self, plan: Plan) -> tuple[Part, ...]:
        """The extractors that a plan runs side by side; none where it is made of something else."""
        ends = [node.of for node in plan.nodes.values() if isinstance(node, BlockNode)]
        head = plan.nodes[plan.out]
        if not ends and isinstance(head, HeadNode):
            ends = [head.of]
        elif not ends:
            ends = [plan.out]
        found = [self._part(plan, name) for name in ends]
        return tuple(part for part in found if part is not None) if None not in found else ()

    def latency(self, parts: Sequence[Part], n_classes: int) -> Estimate:
        """Milliseconds of extractors side by side under one linear head, their counts rounded up to the device's step.

        Parts of a backbone whose packs were measured take longer the more run side by side, and the bounds are those of
        packs. A front that several share runs once, beside the other fronts alone.
        Bounds of parts of different backbones are added, which is wider than they need to be. What a runtime takes for
        any model, some hundredths of a millisecond, is in the measured times of each backbone and not taken off.

        Raises:
            StoreError: a donor is missing or damaged.
        """
        sums: dict[str, Floats] = {}
        shared: dict[str, Floats] = {}
        models: dict[str, KindModel | BackboneModel] = {"": self.profile.kinds}
        fronts: set[str] = set()
        scales: set[str] = set()
        width = 0
        for part in parts:
            donor = self.donor(part.learnware)
            name = "" if donor.model is None else donor.model.backbone
            models[name] = donor.model or self.profile.kinds
            whole = donor.of_backbone(part.counts, frozenset())
            own = whole if part.front is None else donor.of_backbone(part.counts, donor.front(part))
            sums[name] = sums.get(name, 0.0) + own
            if part.front is not None and part.front not in fronts:
                shared[name] = shared.get(name, 0.0) + whole - own
                fronts.add(part.front)
            if donor.scale not in scales:
                # One normalisation is shared by all donors that read the same.
                sums[""] = sums.get("", 0.0) + donor.in_front(part.counts)
            scales.add(donor.scale)
            width += donor.width(part.counts)
        heads = HeadRates(self.profile.kinds, self.profile.device.batch)
        sums[""] = sums.get("", 0.0) + heads.head(width, n_classes, len(parts))
        if all(self.donor(part.learnware).model is None for part in parts):
            sums[""] = sums[""] + heads.fixed
        beside = len(fronts) + sum(part.front is None for part in parts)
        low = middle = high = 0.0
        for name, own in sums.items():
            one = _estimate(own, shared.get(name, np.zeros_like(own)), models[name], len(parts), beside)
            low, middle, high = low + one.low, middle + one.middle, high + one.high
        return Estimate(low, middle, high)

    def donor(self, id_: str) -> _Donor:
        """What is known of a donor, read once."""
        if id_ not in self._donors:
            raw = self.store.graph(id_).sketch()
            reads = self.store.get(id_).preprocessing
            self._donors[id_] = _Donor(raw, ready(raw, reads), reads.to_json(), self.profile)
        return self._donors[id_]

    def _part(self, plan: Plan, name: str) -> Part | None:
        node = plan.nodes[name]
        if isinstance(node, SourceNode):
            return Part(node.of, {})
        if isinstance(node, HeadNode):
            return self._part(plan, node.of)
        if not isinstance(node, SliceNode):
            return None
        below = self._part(plan, node.of)
        if below is None:
            return None
        kept = {
            group: amount if isinstance(amount, int) else len(amount)
            for group, amount in resolve_keep(self.donor(below.learnware).whole, node).items()
        }
        counts = {**below.counts, **kept}
        if isinstance(plan.nodes[node.of], SliceNode):
            return replace(below, counts=counts, front=node.of, shared=frozenset(below.counts))
        return replace(below, counts=counts)


def is_itself(model: BackboneModel, graph: ModelGraph) -> bool:
    """Whether a network is the one that was measured; of an older version's profile that is taken for granted."""
    return model.graph_hash in (None, graph_hash(graph, weights=False))


class _Donor:
    """A donor's terms, and what the profile knows of its backbone."""

    def __init__(self, raw: ModelGraph, whole: ModelGraph, scale: str, profile: DeviceProfile) -> None:
        """
        Args:
            raw: the donor as it was stocked, without weights.
            whole: behind its normalisation.
            scale: equal for donors of one normalisation.
        """
        self.whole, self.scale, self.profile = whole, scale, profile
        batch = profile.device.batch
        self.terms, measured = terms_of(whole, batch=batch), terms_of(raw, batch=batch)
        known = profile.backbone(measured.skeleton)
        self.model = known if known is not None and len(known.base_ms) == len(measured.terms) else None
        self.named = "" if self.model is None else self.model.backbone
        #: Whether the profile measured this very network, not one of the same operators in other sizes.
        self.itself = self.model is not None and is_itself(self.model, raw)
        end = features(whole).value
        self._end: AxisExpr = whole.analysis.value_axes[end][0][-1]
        own = {node.name for node in raw.nodes}
        kept = {node.name for node in block(whole, end=end).nodes}
        nodes = [term.node for term in self.terms.terms]
        self._before = np.array([name not in own for name in nodes])
        self._kept = np.array([name in kept for name in nodes])
        self._nodes = nodes
        kinds = np.array([profile.kinds.weights, *profile.kinds.residuals.folds], float)
        self._kinds = kinds[:, places_of(self.terms, profile.kinds.names)]
        self._backbone = self._kinds if self.model is None else _of_terms(self.model, measured, self.terms)
        self._fronts: dict[frozenset[str], frozenset[str]] = {}

    def of_backbone(self, counts: Mapping[str, int], without: frozenset[str]) -> Floats:
        """Milliseconds of the extractor, by the fit and without each part of the rows, shape (1 + parts,).

        Args:
            without: nodes that do not count.
        """
        here = self._kept & ~self._before & ~np.isin(self._nodes, list(without))
        width = (self.model or self.profile.kinds).vector_width
        return self._sum(self._backbone, counts, width, here)

    def in_front(self, counts: Mapping[str, int]) -> Floats:
        """Milliseconds of what stands before the stocked graph, shape (1 + parts of the kinds,)."""
        return self._sum(self._kinds, counts, self.profile.kinds.vector_width, self._before)

    def front(self, part: Part) -> frozenset[str]:
        """Nodes that parts with a front in common share."""
        if part.shared not in self._fronts:
            own = [group for group in part.counts if group not in part.shared]
            self._fronts[part.shared] = shared_nodes(self.whole, own)
        return self._fronts[part.shared]

    def width(self, counts: Mapping[str, int]) -> int:
        """Features of the extractor."""
        return kept_size(self._end, counts)

    def _sum(self, coefficients: Floats, counts: Mapping[str, int], width: int, here: np.ndarray) -> Floats:
        if not here.any():
            return np.zeros(len(coefficients))
        values = self.terms.at([counts], width=width, step=self.profile.unit_step)[0]
        return np.asarray(coefficients[:, here] @ values[here], float)


def _of_terms(model: BackboneModel, measured: Terms, terms: Terms) -> Floats:
    """Coefficients of a backbone for the terms of its graph behind a normalisation; zero for terms that it has not."""
    weights = np.array([model.weights, *model.residuals.folds], float)
    known = np.array(model.base_ms) * weights[:, np.array(model.column, np.int64)]
    places = {key: place for place, key in enumerate(_keys(measured))}
    found = np.zeros((len(weights), len(terms.terms)))
    for place, key in enumerate(_keys(terms)):
        if key in places:
            found[:, place] = known[:, places[key]]
    return found


def _keys(terms: Terms) -> Iterable[tuple[str, int]]:
    seen: dict[str, int] = {}
    for term in terms.terms:
        seen[term.node] = seen.get(term.node, -1) + 1
        yield term.node, seen[term.node]


def _estimate(
    own: Floats, shared: Floats, model: KindModel | BackboneModel, n_parts: int, n_fronts: int
) -> Estimate:
    """Of one part with the bounds of single models; of several with those of packs, where these were measured.

    Args:
        own: milliseconds of what each part has for itself, by the fit and without each part of the rows.
        shared: of the fronts that parts share.
        n_fronts: parts that run side by side in front.
    """
    packs = model.packs if isinstance(model, BackboneModel) and n_parts > 1 else None
    if packs is None:
        taken, known = own + shared, model.residuals
        middle = float(taken[0])
        low, high = interval(taken[None, 1:], np.array(known.part, np.int64), np.array(known.shares, float))
    else:
        slower = packs.share_per_part
        middle = float(own[0]) * (1 + slower * (n_parts - 1)) + float(shared[0]) * (
            1 + slower * (n_fronts - 1)
        )
        shares = np.array(packs.shares, float)
        low, high = interval(np.full((1, len(shares)), middle), np.arange(len(shares)), shares)
    return Estimate(min(float(low[0]), middle), middle, max(float(high[0]), middle))


__all__ = ["Part", "PlanPredictor", "measured_elsewhere", "profile_of"]
