"""Packs as a list of parts: what each donor gives for which classes, read from a plan and written as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sarto.errors import RequestError
from sarto.types import BlockNode, BranchNode, HeadNode, Learnware, Plan, PlanNode, SliceNode, SourceNode

ANEW = "order all classes anew with `sarto make`"


@dataclass(frozen=True)
class Cutting:
    """How a part is cut out of its donor; which classes it is for is left open (`of` and `classes` say nothing).

    Attributes:
        cut: the last slice.
        trunk: the front that it is cut from and that others may share; None: there is none.
    """

    cut: SliceNode
    trunk: SliceNode | None = None

    @property
    def nodes(self) -> tuple[SliceNode, ...]:
        """The slices, front first."""
        return (self.cut,) if self.trunk is None else (self.trunk, self.cut)

    @property
    def alone(self) -> Cutting:
        """The same units in one slice, as one class alone has them; itself where two slices say more than one can."""
        if self.trunk is None or "*" in {*self.cut.keep, *self.trunk.keep}:
            return self
        if self.trunk.replace(keep=self.cut.keep) != self.cut:
            return self
        return Cutting(self.cut.replace(keep={**self.trunk.keep, **self.cut.keep}))

    def parted(self, front: Iterable[str]) -> Cutting:
        """The same units, those of some channel groups in a trunk."""
        keep, shared = self.cut.keep, set(front)
        return Cutting(
            self.cut.replace(keep={name: kept for name, kept in keep.items() if name not in shared}),
            self.cut.replace(keep={name: kept for name, kept in keep.items() if name in shared}),
        )


@dataclass(frozen=True)
class Part:
    """A member of a pack.

    Attributes:
        donor: id of the learnware.
        classes: that it is in the pack for.
        cutting: None: the whole extractor.
        named: whether its slices are for these classes; else they are for all alike.
    """

    donor: str
    classes: tuple[str, ...]
    cutting: Cutting | None = None
    named: bool = True


def head_of(plan: Plan) -> HeadNode:
    """The head on a plan.

    Raises:
        RequestError: it has none.
    """
    head = plan.nodes[plan.out]
    if not isinstance(head, HeadNode):
        raise RequestError(f"this model has no head; only packs gain and lose classes: {ANEW}")
    return head


def read_parts(
    plan: Plan, offered: Mapping[str, str], learnwares: Mapping[str, Learnware]
) -> tuple[Part, ...]:
    """The members of a pack, in order.

    Args:
        offered: class -> id of the learnware that was chosen for it; tells what whole donors are there for. Of other
            classes they are there for those that they know.
        learnwares: those of the market, by id.

    Raises:
        RequestError: a member is no extractor of one donor.
    """
    head = head_of(plan)
    below = plan.nodes[head.of]
    members = below.of if isinstance(below, BranchNode) else (head.of,)
    return tuple(_part(plan, member, head.classes, offered, learnwares) for member in members)


def write_plan(plan: Plan, parts: Sequence[Part], classes: tuple[str, ...], samples: str | None) -> Plan:
    """A plan of these parts under the head of another, which is fitted anew on samples of the classes.

    Parts stand in the order of their first classes; those of one donor with one trunk share it.
    """
    nodes: dict[str, PlanNode] = {}
    sources: dict[str, str] = {}
    fronts: dict[tuple[str, SliceNode], str] = {}
    members = []
    for place, part in enumerate(parts):
        below = sources.setdefault(part.donor, f"donor_{len(sources)}")
        nodes[below] = SourceNode(of=part.donor)
        cutting = part.cutting
        if cutting is not None and cutting.trunk is not None:
            at = (part.donor, cutting.trunk)
            shared = [p.classes for p in parts if p.cutting and p.named and (p.donor, p.cutting.trunk) == at]
            told = [cls for cls in classes if any(cls in found for found in shared)]
            front = fronts.setdefault(at, f"trunk_{len(fronts)}")
            nodes[front] = cutting.trunk.replace(of=below, classes=tuple(told))
            below = front
        if cutting is not None:
            cut = cutting.cut.replace(of=below, classes=part.classes if part.named else ())
            below = f"slice_{place}"
            nodes[below] = cut
        members.append(f"features_{place}")
        nodes[members[-1]] = BlockNode(of=below)
    nodes["pack"] = BranchNode(of=tuple(members))
    nodes["head"] = head_of(plan).replace(of="pack", classes=classes, samples=samples)
    return Plan(nodes=nodes, out="head", engine=plan.engine, note=plan.note, edited_from=origin_of(plan))


def origin_of(plan: Plan) -> Plan:
    """The plan that edits began from: the plan itself where there were none."""
    return plan.edited_from or plan


def sorted_parts(
    parts: Iterable[Part], classes: tuple[str, ...], offered: Mapping[str, str]
) -> tuple[Part, ...]:
    """Parts in the order of their first classes, the chosen donor of a class before others; classes in order too."""
    found = [replace(part, classes=tuple(cls for cls in classes if cls in part.classes)) for part in parts]

    def place(part: Part) -> tuple[int, bool]:
        first = part.classes[0] if part.classes else None
        at = len(classes) if first is None else classes.index(first)
        return at, first is not None and offered.get(first) != part.donor

    return tuple(sorted(found, key=place))


def _part(
    plan: Plan,
    member: str,
    classes: tuple[str, ...],
    offered: Mapping[str, str],
    learnwares: Mapping[str, Learnware],
) -> Part:
    block = plan.nodes[member]
    cuts: list[SliceNode] = []
    below = plan.nodes[block.of] if isinstance(block, BlockNode) else block
    while isinstance(below, SliceNode) and len(cuts) < 2:
        cuts.append(below)
        below = plan.nodes[below.of]
    if not isinstance(block, BlockNode) or not isinstance(below, SourceNode):
        raise RequestError(
            f"{member!r} is no extractor of one donor; only packs of fragments gain and lose classes: {ANEW}"
        )
    named = cuts[0].classes if cuts else ()
    cutting = Cutting(*(cut.replace(of="donor", classes=()) for cut in cuts)) if cuts else None
    if named:
        return Part(below.of, tuple(cls for cls in named if cls in classes), cutting)
    known = learnwares[below.of].classes if below.of in learnwares else ()
    chosen = tuple(cls for cls in classes if offered.get(cls, below.of if cls in known else "") == below.of)
    if not chosen:
        # Nobody's choice: it stands beside the chosen donors of what it knows.
        chosen = tuple(cls for cls in classes if cls in known)
    return Part(below.of, chosen, cutting, named=cutting is None)
