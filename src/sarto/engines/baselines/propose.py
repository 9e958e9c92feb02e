"""The alternatives that are plan expressions themselves: donor as it is, linear probe, ensemble."""

from __future__ import annotations

from collections.abc import Mapping

from sarto.types import (
    BlockNode,
    BranchNode,
    HeadNode,
    Learnware,
    Plan,
    PlanNode,
    Requirement,
    SourceNode,
    WidthCost,
    pack_cost,
)


def propose(requirement: Requirement, learnwares: Mapping[str, Learnware]) -> list[Plan]:
    """Donors that know all the classes, as they are; a linear probe on each donor; the ensemble of the donors.

    Where nobody knows a class, the donors are all learnwares that read the order's samples.
    """
    wanted = requirement.classes
    ids = requirement.donors or dict.fromkeys(offer.learnware for offer in requirement.offers)
    donors = [learnwares[id_] for id_ in ids]
    plans = [_as_is(donor, wanted) for donor in learnwares.values() if set(wanted) <= set(donor.classes)]
    plans += [
        _probe([donor], wanted, requirement.samples_digest, f"probe on {donor.name}")
        for donor in (*donors, *(learnwares[id_] for id_ in requirement.apart))
    ]
    if len(donors) > 1:
        plans.append(_probe(donors, wanted, requirement.samples_digest, "ensemble of the whole donors"))
    return plans


def _as_is(donor: Learnware, wanted: tuple[str, ...]) -> Plan:
    nodes: dict[str, PlanNode] = {
        "donor": SourceNode(of=donor.id),
        "head": HeadNode(of="donor", kind="restrict", classes=wanted),
    }
    whole = _whole(donor)
    predicted = None
    if whole is not None:
        predicted = pack_cost([whole], len(wanted), bias=donor.own_bias)
    return Plan(
        nodes=nodes, out="head", predicted=predicted, engine="baselines", note=f"{donor.name} as it is"
    )


def _probe(donors: list[Learnware], wanted: tuple[str, ...], samples: str | None, note: str) -> Plan:
    nodes: dict[str, PlanNode] = {}
    members = []
    for place, donor in enumerate(donors):
        nodes[f"donor_{place}"] = SourceNode(of=donor.id)
        nodes[f"features_{place}"] = BlockNode(of=f"donor_{place}")
        members.append(f"features_{place}")
    nodes["pack"] = BranchNode(of=tuple(members))
    nodes["head"] = HeadNode(of="pack", kind="ridge", classes=wanted, samples=samples)
    widths = [_whole(donor) for donor in donors]
    known = [width for width in widths if width is not None]
    predicted = pack_cost(known, len(wanted)) if len(known) == len(donors) else None
    return Plan(nodes=nodes, out="head", predicted=predicted, engine="baselines", note=note)


def _whole(donor: Learnware) -> WidthCost | None:
    return next((width for width in donor.widths if width.ratio == 1.0), None)
