"""Plans for an order, from manifests alone: which fragments, how wide, packed under which head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sarto.engines.slicepack.settings import LAM, WPOS
from sarto.types import (
    BlockNode,
    BranchNode,
    ClassOffer,
    HeadNode,
    Learnware,
    Plan,
    PlanNode,
    Requirement,
    SliceNode,
    SourceNode,
    WidthCost,
    pack_cost,
)


def propose(
    requirement: Requirement, learnwares: Mapping[str, Learnware], samples: Mapping[str, str]
) -> list[Plan]:
    """Packs of fragments at every stocked size, largest first, each with its predicted cost.

    A fragment is a class of a donor. Where an order takes several classes of one donor, the pack with one fragment
    for all of them is proposed too, and fragments that together outgrow their donor give way to the whole donor.

    The whole donors side by side are an ensemble, which is not proposed here.

    Args:
        learnwares: manifests by id; donors without stocked widths are passed over.
        samples: learnware id -> digest of the samples that its slices are fitted on.
    """
    donors = [learnwares[offer.learnware] for offer in requirement.offers]
    if any(not donor.widths for donor in donors):
        return []
    shares = sorted(set.intersection(*({w.ratio for w in donor.widths} for donor in donors)), reverse=True)
    plans: list[Plan] = []
    seen: set[str] = set()
    for share in (share for share in shares if share < 1.0):
        for parts in _partitions(requirement.offers):
            plan = _pack(requirement, learnwares, samples, parts, share)
            if plan.key() not in seen:
                seen.add(plan.key())
                plans.append(plan)
    return plans


def pack_plan(
    requirement: Requirement,
    fragments: Sequence[tuple[Learnware, tuple[str, ...], SliceNode | None]],
    *,
    note: str = "",
) -> Plan:
    """A plan that packs fragments under a logistic head.

    Args:
        fragments: donor, classes, and how it is sliced (its `of` is filled in here); None takes the whole donor.
    """
    nodes: dict[str, PlanNode] = {}
    members: list[str] = []
    for place, (donor, classes, cut) in enumerate(fragments):
        source = f"donor_{place}"
        nodes[source] = SourceNode(of=donor.id)
        below = source
        if cut is not None:
            below = f"slice_{place}"
            nodes[below] = cut.replace(of=source, classes=classes)
        members.append(f"features_{place}")
        nodes[members[-1]] = BlockNode(of=below)
    nodes["pack"] = BranchNode(of=tuple(members))
    wanted = tuple(offer.cls for offer in requirement.offers)
    nodes["head"] = HeadNode(of="pack", kind="logistic", classes=wanted, samples=requirement.samples_digest)
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


def _pack(
    requirement: Requirement,
    learnwares: Mapping[str, Learnware],
    samples: Mapping[str, str],
    parts: Sequence[tuple[str, tuple[str, ...]]],
    share: float,
) -> Plan:
    fragments: list[tuple[Learnware, tuple[str, ...], SliceNode | None]] = []
    widths: list[WidthCost] = []
    for learnware, classes in _capped(parts, learnwares, share):
        donor = learnwares[learnware]
        whole = len(classes) == 0 or share == 1.0
        found = next(w for w in donor.widths if w.ratio == (1.0 if whole else share))
        cut = None if whole else slice_node(found.keep, samples[learnware])
        fragments.append((donor, classes, cut))
        widths.append(found)
    note = f"{share:.0%} of each donor's extractor"
    if all(cut is None for _, _, cut in fragments):
        # Nothing is left to slice: this is the baseline of the same name.
        alone = len(fragments) == 1
        note = f"probe on {fragments[0][0].name}" if alone else "ensemble of the whole donors"
    plan = pack_plan(requirement, fragments, note=note)
    return plan.replace(predicted=pack_cost(widths, len(requirement.offers)))


def _capped(
    parts: Sequence[tuple[str, tuple[str, ...]]], learnwares: Mapping[str, Learnware], share: float
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The parts, with the whole donor (once, without classes) where its fragments would cost as much as it does."""
    done: set[str] = set()
    for learnware, classes in parts:
        many = sum(other == learnware for other, _ in parts)
        widths = {w.ratio: w for w in learnwares[learnware].widths}
        if share == 1.0 or many * widths[share].params >= widths[1.0].params:
            if learnware not in done:
                yield learnware, ()
            done.add(learnware)
        else:
            yield learnware, classes


def _partitions(offers: Sequence[ClassOffer]) -> list[list[tuple[str, tuple[str, ...]]]]:
    """One fragment a class; and one fragment a donor, where that differs."""
    single: list[tuple[str, tuple[str, ...]]] = [(offer.learnware, (offer.cls,)) for offer in offers]
    merged: list[tuple[str, tuple[str, ...]]] = [
        (learnware, tuple(offer.cls for offer in offers if offer.learnware == learnware))
        for learnware in dict.fromkeys(offer.learnware for offer in offers)
    ]
    return [single] if len(merged) == len(single) else [single, merged]
