"""Plans for an order, from manifests alone: which fragments, how wide, packed under which head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sarto.engines.slicepack.paper import as_paper
from sarto.engines.slicepack.settings import ALTERNATIVES, LAM, PRUNED, WPOS
from sarto.types import (
    BlockNode,
    BranchNode,
    ClassOffer,
    HeadNode,
    Learnware,
    PaperSettings,
    Plan,
    PlanNode,
    RepairChanges,
    Requirement,
    SliceNode,
    SourceNode,
    TrunkCost,
    WidthCost,
    pack_cost,
)

EMPTY: Mapping[str, SliceNode] = MappingProxyType({})


@dataclass(frozen=True)
class _Way:
    """How the classes of one donor become fragments.

    Attributes:
        depth: place of the trunk that they share among those of the donor's width; None: they share nothing.
    """

    together: bool = False
    depth: int | None = None


def propose(
    requirement: Requirement, learnwares: Mapping[str, Learnware], samples: Mapping[str, str]
) -> list[Plan]:
    """Packs of fragments at every stocked size, largest first, each with its predicted cost.

    A fragment is a class of a donor. Where an order takes several classes of one donor, more kinds are proposed:
    fragments that share their front up to a few depths, and one fragment for all of them. Where all classes are one
    donor's, that fragment may also keep the donor's own classifier. Fragments that together
    outgrow their donor give way to the whole donor. Where other donors offer a class too, packs with the next best one
    in place of the best, and with both, follow: samples decide.

    The whole donors side by side are an ensemble, which is not proposed here. Where an order has classes that no donor
    knows, there is nothing to slice by: see `pruned`.

    Args:
        learnwares: manifests by id; donors without stocked widths are passed over.
        samples: learnware id -> digest of the samples that its slices are fitted on; donors without are passed over.
    """
    if requirement.new:
        return pruned(requirement, learnwares)
    objectives = _objectives(requirement)
    plans: dict[str, Plan] = {}
    usable = {id_: learnware for id_, learnware in learnwares.items() if learnware.widths and id_ in samples}
    for offers, told in offered(requirement, usable):
        used = {offer.learnware: learnwares[offer.learnware] for offer in offers}
        for objective in objectives:
            solved = {id_: _solved_for(donor, objective) for id_, donor in used.items()}
            for proposed in _proposed(requirement, offers, solved, samples):
                plan = _changed(proposed, requirement.request.repair)
                said = f"{plan.note}, widths for FLOPs" if objective == "flops" else plan.note
                plans.setdefault(plan.key(), plan.replace(note=said + told))
    return list(plans.values())


def pruned(requirement: Requirement, learnwares: Mapping[str, Learnware]) -> list[Plan]:
    """Donors pruned to every stocked size for classes that none of them knows, largest first, under a new head.

    Units are chosen and repaired on the order's samples, all classes alike. `PRUNED` donors that read them are pruned,
    each alone; where as many at most stand in one model, all of these to the same share too. Nothing is proposed by the
    paper's method, whose fragments are of classes that the donor knows.
    """
    digest = requirement.samples_digest
    if digest is None or requirement.request.method == "paper":
        return []
    ids = first_readers(requirement, learnwares)
    together = [requirement.donors] if 1 < len(requirement.donors) <= PRUNED else []
    plans: dict[str, Plan] = {}
    for objective in _objectives(requirement):
        for members in ([(id_,) for id_ in ids], together):
            for group in members:
                donors = [_solved_for(learnwares[id_], objective) for id_ in group]
                found = [
                    _pruned(requirement, donors, share, digest)
                    for share in common_shares(donors)
                    if share < 1.0
                ]
                for plan in found:
                    changed = _changed(plan, requirement.request.repair)
                    said = f"{plan.note}, widths for FLOPs" if objective == "flops" else plan.note
                    plans.setdefault(changed.key(), changed.replace(note=said))
    return list(plans.values())


def first_readers(requirement: Requirement, learnwares: Mapping[str, Learnware]) -> tuple[str, ...]:
    """Ids of the donors that are pruned for new classes: `PRUNED` of those that read, first those that must be used."""
    must, ids = set(requirement.request.donors.must), (*requirement.donors, *requirement.apart)
    return tuple(sorted(ids, key=lambda id_: not must & {id_, learnwares[id_].name})[:PRUNED])


def _pruned(requirement: Requirement, donors: Sequence[Learnware], share: float, samples: str) -> Plan:
    wanted, nodes, members = requirement.classes, dict[str, PlanNode](), list[str]()
    widths = [_width(donor, share) for donor in donors]
    for place, (donor, width) in enumerate(zip(donors, widths, strict=True)):
        nodes[f"donor_{place}"], below = SourceNode(of=donor.id), f"donor_{place}"
        if width.ratio < 1.0:
            nodes[f"slice_{place}"] = slice_node(width.keep, samples).replace(of=below)
            below = f"slice_{place}"
        members.append(f"features_{place}")
        nodes[members[-1]] = BlockNode(of=below)
    nodes["pack"] = BranchNode(of=tuple(members))
    nodes["head"] = HeadNode(of="pack", kind="ridge", classes=wanted, samples=samples)
    of = f"{donors[0].name} pruned" if len(donors) == 1 else "all donors side by side, each pruned"
    note = f"{of} to {share:.0%} of its extractor, new head"
    predicted = pack_cost(widths, len(wanted))
    return Plan(nodes=nodes, out="head", predicted=predicted, engine="slicepack", note=note)


def _objectives(requirement: Requirement) -> tuple[str, ...]:
    """What widths are solved for: milliseconds follow FLOPs more than parameters."""
    budget = requirement.request.budget
    quick = budget.flops is not None or budget.latency_ms is not None
    return ("params", "flops") if quick else ("params",)


def offered(
    requirement: Requirement, usable: Mapping[str, Learnware]
) -> list[tuple[tuple[ClassOffer, ...], str]]:
    """Who may provide the classes, and how the plan's note says so: the chosen ones first.

    Each class that another donor offers too gives one alternative with that donor in place (the first of the others),
    and there is one with both donors for all such classes. At most `ALTERNATIVES` classes are tried alone.
    """
    chosen = requirement.offers
    second: dict[str, ClassOffer] = {}
    for other in requirement.others:
        if other.learnware in usable:
            second.setdefault(other.cls, other)
    found = [(chosen, "")]
    for cls, other in list(second.items())[:ALTERNATIVES]:
        swapped = tuple(other if offer.cls == cls else offer for offer in chosen)
        found.append((swapped, f", {cls} of {usable[other.learnware].name}"))
    if second:
        both = tuple(each for offer in chosen for each in (offer, second.get(offer.cls)) if each is not None)
        found.append((both, f", {', '.join(second)} of two donors each"))
    return found


def _changed(plan: Plan, changes: RepairChanges) -> Plan:
    """The plan with what an order changes of the repair."""
    if changes == RepairChanges():
        return plan
    nodes = {
        name: node.replace(repair=changes.of(node.repair))
        if isinstance(node, SliceNode) and node.repair is not None
        else node
        for name, node in plan.nodes.items()
    }
    return plan.replace(nodes=nodes)


def _solved_for(donor: Learnware, objective: str) -> Learnware:
    """The donor with the widths that were solved for one objective, and itself whole."""
    return donor.replace(
        widths=tuple(width for width in donor.widths if width.objective == objective or width.ratio == 1.0)
    )


def _proposed(
    requirement: Requirement,
    offers: Sequence[ClassOffer],
    learnwares: Mapping[str, Learnware],
    samples: Mapping[str, str],
) -> list[Plan]:
    donors = [learnwares[offer.learnware] for offer in offers]
    if any(not donor.widths for donor in donors):
        return []
    shares = common_shares(donors)
    if requirement.request.method == "paper":
        settings = requirement.request.paper or PaperSettings()
        settings = settings.replace(seed=settings.seed or requirement.request.seed)
        packs = [
            (share, _pack(requirement, offers, learnwares, samples, _Way(), share))
            for share in shares
            if share < 1.0
        ]
        trained = [as_paper(pack, learnwares, share, settings) for share, pack in packs]
        return [plan for plan in trained if plan is not None]
    plans: dict[str, Plan] = {}
    for share in (share for share in shares if share < 1.0):
        ways = _ways(donors, share)
        # Another donor for a class is tried with the deepest front alone, or without one where nothing is shared.
        for way in ways if tuple(offers) == requirement.offers else ways[-2:][:1]:
            plan = _pack(requirement, offers, learnwares, samples, way, share)
            plans.setdefault(plan.key(), plan)
        if len({donor.id for donor in donors}) == 1:
            plan = _own_head(requirement, donors[0], samples[donors[0].id], share)
            plans.setdefault(plan.key(), plan)
    return list(plans.values())


def common_shares(donors: Sequence[Learnware]) -> list[float]:
    """Shares that every donor was sized at, largest first; one that nothing can be cut off goes whole with any."""
    known = [{width.ratio for width in donor.widths} for donor in donors]
    cut = [shares for shares in known if shares != {1.0}]
    return sorted(set.intersection(*(cut or known)), reverse=True)


def pack_plan(
    requirement: Requirement,
    fragments: Sequence[tuple[Learnware, tuple[str, ...], SliceNode | None]],
    *,
    trunks: Mapping[str, SliceNode] = EMPTY,
    note: str = "",
) -> Plan:
    """A plan that packs fragments under a head.

    Args:
        fragments: donor, classes, and how it is sliced (its `of` is filled in here); None takes the whole donor.
        trunks: learnware id -> the slice that all fragments of that donor are cut from (its `of` is filled in here).
    """
    nodes: dict[str, PlanNode] = {}
    members: list[str] = []
    fronts: dict[str, str] = {}
    for place, (donor, classes, cut) in enumerate(fragments):
        below = f"donor_{place}"
        if cut is not None and donor.id in fronts:
            below = fronts[donor.id]
        else:
            nodes[below] = SourceNode(of=donor.id)
        if cut is not None and donor.id in trunks and donor.id not in fronts:
            fronts[donor.id] = f"trunk_{place}"
            nodes[fronts[donor.id]] = trunks[donor.id].replace(of=below)
            below = fronts[donor.id]
        if cut is not None:
            nodes[f"slice_{place}"] = cut.replace(of=below, classes=classes)
            below = f"slice_{place}"
        members.append(f"features_{place}")
        nodes[members[-1]] = BlockNode(of=below)
    nodes["pack"] = BranchNode(of=tuple(members))
    wanted = tuple(offer.cls for offer in requirement.offers)
    nodes["head"] = HeadNode(of="pack", kind="ridge", classes=wanted, samples=requirement.samples_digest)
    return Plan(nodes=nodes, out="head", engine="slicepack", note=note)


def slice_node(
    keep: Mapping[str, int] | Mapping[str, float],
    samples: str,
    *,
    select: str = "css",
    repair: bool = True,
    seed: int = 0,
) -> SliceNode:
    """How a fragment is cut, with the method's settings."""
    return SliceNode.parse(
        {
            "of": "donor",
            "keep": dict(keep),
            "select": select,
            "repair": {"lam": LAM, "wpos": WPOS} if repair else None,
            "samples": samples,
            "seed": seed,
        }
    )


def _ways(donors: Sequence[Learnware], share: float) -> list[_Way]:
    """One fragment a class; and where a donor gives several classes: with its trunks, and as one fragment."""
    counts = Counter(donor.id for donor in donors)
    if max(counts.values()) == 1:
        return [_Way()]
    depths = max(len(_width(donor, share).trunks) for donor in donors if counts[donor.id] > 1)
    return [_Way(), *(_Way(depth=depth) for depth in range(depths)), _Way(together=True)]


def _pack(
    requirement: Requirement,
    offers: Sequence[ClassOffer],
    learnwares: Mapping[str, Learnware],
    samples: Mapping[str, str],
    way: _Way,
    share: float,
) -> Plan:
    by_donor: dict[str, list[str]] = {}
    for offer in offers:
        by_donor.setdefault(offer.learnware, []).append(offer.cls)
    cuts = {
        id_: _cut(learnwares[id_], classes, samples[id_], way, share) for id_, classes in by_donor.items()
    }
    fragments: dict[tuple[str, tuple[str, ...]], SliceNode | None] = {}
    for offer in offers:
        found = cuts[offer.learnware]
        classes = () if found.cut is None else tuple(found.classes) if way.together else (offer.cls,)
        fragments.setdefault((offer.learnware, classes), found.cut)
    widths = [cuts[id_].width for id_, _ in fragments]
    shared = [(found.front, len(found.classes)) for found in cuts.values() if found.front is not None]
    plan = pack_plan(
        requirement,
        [(learnwares[id_], classes, cut) for (id_, classes), cut in fragments.items()],
        trunks={id_: found.trunk for id_, found in cuts.items() if found.trunk is not None},
        note=_note(cuts, learnwares, way, share),
    )
    return plan.replace(predicted=pack_cost(widths, len(requirement.offers), shared))


def _own_head(requirement: Requirement, donor: Learnware, samples: str, share: float) -> Plan:
    """One donor, sliced for the wanted classes, with its own classifier: it has seen more than a few samples."""
    wanted = tuple(offer.cls for offer in requirement.offers)
    width = _width(donor, share)
    nodes: dict[str, PlanNode] = {
        "donor_0": SourceNode(of=donor.id),
        "slice_0": slice_node(width.keep, samples).replace(of="donor_0", classes=wanted),
        "head": HeadNode(of="slice_0", kind="restrict", classes=wanted),
    }
    note = f"{share:.0%} of the donor's extractor, its own classifier"
    predicted = pack_cost([width], len(wanted), bias=donor.own_bias)
    return Plan(nodes=nodes, out="head", predicted=predicted, engine="slicepack", note=note)


@dataclass(frozen=True)
class _Cut:
    """How one donor gives its classes.

    Attributes:
        width: size of each fragment.
        cut: of each fragment; None takes the whole donor, once.
        trunk: what the fragments are cut from; None where they share nothing.
        front: cost of the trunk.
    """

    classes: Sequence[str]
    width: WidthCost
    cut: SliceNode | None
    trunk: SliceNode | None = None
    front: TrunkCost | None = None


def _cut(donor: Learnware, classes: Sequence[str], samples: str, way: _Way, share: float) -> _Cut:
    width, whole = _width(donor, share), _width(donor, 1.0)
    times = 1 if way.together else len(classes)
    front = None
    if way.depth is not None and times > 1 and width.trunks:
        front = width.trunks[min(way.depth, len(width.trunks) - 1)]
    params = times * width.params - (times - 1) * (front.params if front is not None else 0)
    if params >= whole.params:
        # The cap rule: never larger than the donor itself.
        return _Cut(classes, whole, None)
    if front is None:
        return _Cut(classes, width, slice_node(width.keep, samples))
    shared = set(front.groups)
    trunk = slice_node({name: units for name, units in width.keep.items() if name in shared}, samples)
    rest = slice_node({name: units for name, units in width.keep.items() if name not in shared}, samples)
    return _Cut(classes, width, rest, trunk.replace(classes=tuple(classes)), front)


def _width(donor: Learnware, share: float) -> WidthCost:
    whole = next(width for width in donor.widths if width.ratio == 1.0)
    return next((width for width in donor.widths if width.ratio == share), whole)


def _note(cuts: Mapping[str, _Cut], learnwares: Mapping[str, Learnware], way: _Way, share: float) -> str:
    if all(found.cut is None for found in cuts.values()):
        # Nothing is left to slice: this is the baseline of the same name.
        alone = next(iter(cuts))
        return f"probe on {learnwares[alone].name}" if len(cuts) == 1 else "ensemble of the whole donors"
    note = f"{share:.0%} of each donor's extractor"
    if way.together:
        return f"{note}, classes of a donor together"
    if any(found.trunk is not None for found in cuts.values()):
        fronts = [len(f.front.groups) / len(f.width.keep) for f in cuts.values() if f.front is not None]
        return f"{note}, the front {max(fronts):.0%} shared by a donor's classes"
    return note
