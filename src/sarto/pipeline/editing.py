"""One class more or less in a packed model: its donors' fragments are cut for their new classes, all others stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sarto.engines.slicepack import slice_node
from sarto.errors import RequestError, StoreError, suggest
from sarto.market import Store
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.builder import ready
from sarto.pipeline.make import make
from sarto.pipeline.new_classes import some
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.packed import (
    ANEW,
    Cutting,
    Part,
    head_of,
    origin_of,
    read_parts,
    sorted_parts,
    write_plan,
)
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.slicing import resolve_keep
from sarto.pipeline.stock import width_cost
from sarto.types import (
    Budget,
    ClassOffer,
    Learnware,
    Plan,
    PlanNode,
    Request,
    Requirement,
    SliceNode,
    SourceNode,
    WidthCost,
)
from sarto.types.nodes import Kept


def edit(
    store: Store,
    artifact: Artifact,
    out: Path,
    *,
    add: str | None = None,
    remove: str | None = None,
    budget: Budget | None = None,
    samples: Path | None = None,
    heldout: Path | None = None,
    without_heldout: bool = False,
    compare: bool = True,
    progress: Progress = silent,
) -> Artifact:
    """A new model with one class more, or one less, at the same sizes; fragments of other donors are the artifact's.

    Donors of the class are cut as a new order of the same kind would cut them: a trunk, and a fragment of several
    classes, are cut for all classes that they are for now. Fragments that would outgrow their donor together give way
    to the whole donor. The head is solved anew. So adding a class that was removed gives the first model again, with
    its classes in that order, as long as the market offers it from the same donor.

    Args:
        add: "class" or "learnware:class"; becomes the last output.
        remove: a class of the model.
        budget: limits in place of those of the model's order; what it leaves open stays as it was.
        samples: of all classes, in place of those of the model's order.
        heldout: of all classes, in place of those of the model's order.
        without_heldout: True: held-out samples of the model's order are left out.
        compare: False: without donors, baselines and random units beside it, which take most of the time.

    Raises:
        RequestError: nothing or both asked for, an unknown class, one that is there already, the model is no pack, or
            nothing says how wide a fragment of a new donor is.
        StoreError: a class that stays comes from a learnware that is not in the market any more.
        InfeasibleError: the larger model breaks the order's budget.
    """
    if (add is None) == (remove is None):
        raise RequestError("one class is added or one is removed; give exactly one of the two")
    if heldout is not None and without_heldout:
        raise RequestError("held-out samples are given or left out; one of the two")
    _check_known(artifact.requirement)
    order = artifact.request
    if budget is not None:
        order = order.replace(budget=order.budget.replace(**budget.limits()))
    if samples is not None:
        order = order.replace(samples=str(samples))
    if heldout is not None or without_heldout:
        order = order.replace(heldout=None if heldout is None else str(heldout))
    task = list(order.task.classes)
    if remove is not None:
        place = _place(remove, task, artifact.classes)
        cls = artifact.classes[place]
        request = _with_classes(order, [*task[:place], *task[place + 1 :]])
        taken = _taken(artifact, store, leave=cls)
        before = artifact.requirement.offers if artifact.requirement is not None else ()
        plan = without_class(artifact.plan, check_order(request, store, taken), store, cls, before)
        return make(store, request, out, plan=plan, taken=taken, compare=compare, progress=progress)
    wanted = str(add)
    name = wanted.rpartition(":")[2]
    if name in artifact.classes:
        raise RequestError(f"the model tells {name!r} apart already ({', '.join(artifact.classes)})")
    request = _with_classes(order, [*task, wanted])
    taken = _taken(artifact, store)
    checked = check_order(request, store, taken)
    _check_known(checked.requirement)
    plan = with_class(artifact.plan, checked, store)
    return make(store, request, out, plan=plan, taken=taken, compare=compare, progress=progress)


def with_class(plan: Plan, order: Order, store: Store) -> Plan:
    """The plan of a pack with the last class of an order too, cut as the pack's other classes are.

    Args:
        store: with the donors' graphs, which say what widths cost that are no stocked ones.

    Raises:
        RequestError: the plan packs no fragments, or nothing says how wide one of a new donor is.
        StoreError: a donor is missing or damaged.
    """
    offer = order.requirement.offers[-1]
    head = head_of(plan)
    if head.kind == "restrict":
        return _restricted(plan, order, offer)
    pack = _Pack(plan, order, store, order.requirement.offers)
    parts = list(pack.parts)
    for donor in pack.givers(offer):
        mine = [part for part in parts if part.donor == donor]
        parts = [part for part in parts if part.donor != donor] + pack.given(donor, mine, offer.cls)
    return pack.plan_of(parts)


def without_class(plan: Plan, order: Order, store: Store, cls: str, before: Iterable[ClassOffer]) -> Plan:
    """The plan of a pack without one class, its donors cut for the classes that are left.

    Args:
        order: for the classes that are left.
        store: with the donors' graphs.
        before: who was chosen for the classes of the plan, where that is known.

    Raises:
        RequestError: the plan packs no fragments.
        StoreError: a donor is missing or damaged.
    """
    if head_of(plan).kind == "restrict":
        return _restricted(plan, order)
    pack = _Pack(plan, order, store, [*order.requirement.offers, *before])
    parts: list[Part] = []
    done: set[str] = set()
    for part in pack.parts:
        if part.donor in done:
            continue
        mine = [other for other in pack.parts if other.donor == part.donor]
        done.add(part.donor)
        parts += pack.left(part.donor, mine, cls) if any(cls in other.classes for other in mine) else mine
    if not parts:
        raise RequestError(f"all that the pack holds is of {cls!r}; make a new model instead")
    return pack.plan_of(parts)


class _Pack:
    """A pack that is edited: its parts now, and those of the pack that edits began from, which say how it is cut."""

    def __init__(self, plan: Plan, order: Order, store: Store, offers: Iterable[ClassOffer]) -> None:
        """
        Args:
            offers: who was chosen for each class of the plan.
        """
        self.plan, self.order, self.store = plan, order, store
        self.offered = {offer.cls: offer.learnware for offer in offers}
        self.parts = read_parts(plan, self.offered, order.learnwares)
        self.first = read_parts(origin_of(plan), self.offered, order.learnwares)
        self._sizes: dict[tuple[str, Cutting], WidthCost] = {}

    def plan_of(self, parts: Sequence[Part]) -> Plan:
        """The plan of these parts for the order's classes; slices that were fitted on its samples still are."""
        old = {head_of(self.plan).samples, head_of(origin_of(self.plan)).samples}
        digest = self.order.samples.digest
        fresh = [replace(part, cutting=_refitted(part.cutting, old, digest)) for part in parts]
        return write_plan(
            self.plan, sorted_parts(fresh, self.order.classes, self.offered), self.order.classes, digest
        )

    def givers(self, offer: ClassOffer) -> list[str]:
        """Ids of the donors that give a class: the chosen one, and another where the pack takes classes of two."""
        wanted = dict((cls, whose) for whose, cls in self.order.request.task.wanted)
        if wanted[offer.cls] is not None:
            return [offer.learnware]
        before = [part.donor for part in self.first if offer.cls in part.classes]
        if offer.learnware in before:
            return [offer.learnware, *(donor for donor in dict.fromkeys(before) if donor != offer.learnware)]
        others = [
            other.learnware
            for other in self.order.requirement.others
            if other.cls == offer.cls and other.learnware in self.order.donor_samples
        ]
        return [offer.learnware, *(others[:1] if self._of_two else [])]

    def given(self, donor: str, mine: Sequence[Part], cls: str) -> list[Part]:
        """The parts of a donor that gives one class more."""
        bare = [part for part in mine if not part.named]
        if bare:
            # It is cut for all classes alike, so for this one too.
            return [*mine[:-1], replace(mine[-1], classes=(*mine[-1].classes, cls))]
        cuttings = self._cuttings(donor) or _cuttings(mine)
        if len(cuttings) > 1 and all(part.cutting is not None for part in mine):
            cutting = self._cut_before(donor, cls) or (mine[-1].cutting if mine else cuttings[-1])
            return self._capped(donor, [*mine, Part(donor, (cls,), cutting)])
        known = [name for part in mine for name in part.classes]
        if len(cuttings) == 1:
            return self._cut(donor, [*known, cls], cuttings[0])
        # A donor that is there, uncut, gives this class too.
        return self._cut(donor, [*known, cls], None if mine else self._new(self.store.get(donor)))

    def left(self, donor: str, mine: Sequence[Part], cls: str) -> list[Part]:
        """The parts of a donor that gives one class less."""
        less = [
            replace(part, classes=tuple(known for known in part.classes if known != cls)) for part in mine
        ]
        less = [part for part in less if part.classes]
        cuttings = self._cuttings(donor) or _cuttings(mine)
        if not less or len(cuttings) != 1 or not all(part.named for part in mine):
            return less
        return self._cut(donor, [known for part in less for known in part.classes], cuttings[0])

    def _cuttings(self, donor: str) -> list[Cutting]:
        """The ways in which the pack that edits began from cuts a donor."""
        return _cuttings([part for part in self.first if part.donor == donor and part.named])

    def _cut_before(self, donor: str, cls: str) -> Cutting | None:
        return next(
            (part.cutting for part in self.first if part.donor == donor and cls in part.classes), None
        )

    def _cut(self, donor: str, classes: Sequence[str], cutting: Cutting | None) -> list[Part]:
        """A donor's parts for some classes, arranged as the pack arranges them, under the cap rule."""
        names = tuple(dict.fromkeys(classes))
        names = tuple(cls for cls in self.order.classes if cls in names)
        if cutting is None:
            return [Part(donor, names)]
        alone = cutting.alone
        first = [part for part in self.first if part.donor == donor and part.cutting is not None]
        joint = any(len(part.classes) > 1 for part in first) or (len(first) < 2 and self._together)
        if len(names) == 1 or joint:
            return [Part(donor, names, alone)]
        if cutting.trunk is None and len(first) < 2 and (depth := self._depth) is not None:
            fronts = self._size(donor, cutting).trunks
            if fronts:
                cutting = cutting.parted(fronts[min(depth, len(fronts) - 1)].groups)
        return self._capped(donor, [Part(donor, (cls,), cutting) for cls in names])

    def _capped(self, donor: str, parts: list[Part]) -> list[Part]:
        """The parts, or the whole donor where they cost no less together.

        Raises:
            RequestError: the pack is by the paper's method, which has one fragment a class.
        """
        learnware = self.store.get(donor)
        whole = next(width for width in learnware.widths if width.ratio == 1.0)
        params, seen = 0, set[SliceNode]()
        for part in parts:
            if part.cutting is None:
                continue
            size, trunk = self._size(donor, part.cutting), part.cutting.trunk
            shared = trunk is not None and trunk in seen
            params += size.params - (self._front(donor, part.cutting) if shared else 0)
            if trunk is not None:
                seen.add(trunk)
        if params < whole.params:
            return parts
        if head_of(self.plan).kind == "paper":
            raise RequestError(
                f"{len(parts)} fragments of {learnware.name} would have {params:,} parameters, its "
                f"whole extractor has {whole.params:,}; the paper's method has a fragment for each class: {ANEW}, with "
                "a smaller budget, or with --method closed_form"
            )
        return [Part(donor, tuple(cls for part in parts for cls in part.classes))]

    def _front(self, donor: str, cutting: Cutting) -> int:
        """Parameters of the trunk of a part; 0 where its depth is no usual one: the cap is kept all the more."""
        depth = self._depth_of(donor, cutting)
        return 0 if depth is None else self._size(donor, cutting).trunks[depth].params

    def _depth_of(self, donor: str, cutting: Cutting) -> int | None:
        if cutting.trunk is None:
            return None
        fronts = self._size(donor, cutting).trunks
        return next((i for i, f in enumerate(fronts) if set(f.groups) == set(cutting.trunk.keep)), None)

    @property
    def _depth(self) -> int | None:
        """Place of the pack's trunks among the fronts of their donors; None: it has none."""
        found = [(part.donor, part.cutting) for part in self.first if part.cutting and part.cutting.trunk]
        depths = [self._depth_of(donor, cutting) for donor, cutting in found]
        return max((depth for depth in depths if depth is not None), default=None)

    @property
    def _together(self) -> bool:
        """Whether the pack has one fragment for all classes of a donor."""
        return any(part.cutting and part.named and len(part.classes) > 1 for part in self.first)

    @property
    def _of_two(self) -> bool:
        """Whether the pack takes classes from two donors each."""
        givers: dict[str, set[str]] = {}
        for part in self.first:
            for cls in part.classes:
                givers.setdefault(cls, set()).add(part.donor)
        return any(len(found) > 1 for found in givers.values())

    def _size(self, donor: str, cutting: Cutting) -> WidthCost:
        """What a part costs: as stocked, or counted from shapes."""
        at = (donor, cutting)
        if at not in self._sizes:
            learnware = self.store.get(donor)
            keep = _keep(cutting)
            found = next((width for width in learnware.widths if dict(width.keep) == keep), None)
            self._sizes[at] = found or self._counted(learnware, cutting)
        return self._sizes[at]

    def _counted(self, donor: Learnware, cutting: Cutting) -> WidthCost:
        graph = ready(self.store.graph(donor.id).sketch(), donor.preprocessing)
        keep: dict[str, int] = {}
        for node in cutting.nodes:
            found = resolve_keep(graph, node)
            keep |= {name: kept if isinstance(kept, int) else len(kept) for name, kept in found.items()}
        # Any share below one: only what the widths cost is read.
        return width_cost(graph, 0.5, keep)

    def _new(self, donor: Learnware) -> Cutting | None:
        """How a donor is cut that the pack has nothing of: at the share of the others, by their method.

        Raises:
            RequestError: the pack's fragments have no share that is stocked, or the donor is not stocked at it.
        """
        cut = [(self.store.get(part.donor), part.cutting) for part in self.first if part.cutting is not None]
        if not cut or all(width.ratio == 1.0 for width in donor.widths):
            return None
        known = [_shares(of, cutting) for of, cutting in cut]
        common = [one for one in known[0] if all(one in others for others in known[1:])]
        if not common:
            names = ", ".join(dict.fromkeys(of.name for of, _ in cut))
            raise RequestError(
                f"nothing says how wide a fragment of {donor.name} is: the pack's fragments have widths of their own "
                f"({self.plan.note or 'a given plan'}), no stocked share; add a class of {names}, or {ANEW}"
            )
        width = next((width for width in donor.widths if (width.ratio, width.objective) in common), None)
        if width is None:
            ratio, objective = common[0]
            stocked = sorted({width.ratio for width in donor.widths if width.objective == objective})
            told = ", ".join(f"{share:.0%}" for share in stocked) or "no share"
            raise RequestError(
                f"the pack's fragments have {ratio:.0%} of the {objective} of their donors, and {donor.name} is "
                f"stocked at {told}: {ANEW}"
            )
        made = slice_node(width.keep, self.order.donor_samples[donor.id].digest)
        paper = next((cutting.cut.paper for _, cutting in cut if cutting.cut.paper is not None), None)
        if paper is not None:
            made = made.replace(select="energy", repair=None, paper=paper)
        elif made.repair is not None:
            made = made.replace(repair=self.order.request.repair.of(made.repair))
        return Cutting(made)


def _shares(donor: Learnware, cutting: Cutting) -> list[tuple[float, str]]:
    """Shares of a donor at which it is stocked with these widths, and of what they are shares."""
    keep = _keep(cutting)
    return [(width.ratio, width.objective) for width in donor.widths if dict(width.keep) == keep]


def _keep(cutting: Cutting) -> dict[str, Kept]:
    return {name: kept for node in cutting.nodes for name, kept in node.keep.items()}


def _cuttings(parts: Iterable[Part]) -> list[Cutting]:
    return list(dict.fromkeys(part.cutting for part in parts if part.cutting is not None))


def _refitted(cutting: Cutting | None, old: set[str | None], digest: str) -> Cutting | None:
    """The same cuts, fitted on these samples where they were fitted on old ones of the order's."""
    if cutting is None:
        return None
    cut, trunk = (
        node.replace(samples=digest) if node is not None and node.samples in old else node
        for node in (cutting.cut, cutting.trunk)
    )
    return cutting if cut is None else Cutting(cut, trunk)


def _restricted(plan: Plan, order: Order, added: ClassOffer | None = None) -> Plan:
    """A donor with its own classifier, for the classes of an order: its slices are for these."""
    head = head_of(plan)
    nodes: dict[str, PlanNode] = dict(plan.nodes)
    name = head.of
    while isinstance(below := nodes[name], SliceNode):
        if below.classes:
            nodes[name] = below.replace(classes=order.classes)
        name = below.of
    if not isinstance(below, SourceNode):
        raise RequestError(
            f"this model has the own outputs of a chain or a subnet, it packs no fragments: {ANEW}"
        )
    if added is not None and added.learnware != below.of:
        donor, other = (order.learnwares.get(id_) for id_ in (below.of, added.learnware))
        own = donor.name if donor is not None else "a donor that is not in the market"
        hint = ""
        if donor is not None and added.cls in donor.classes:
            hint = f" add it as {donor.name}:{added.cls}, or"
        raise RequestError(
            f"this model is a part of {own} with its own classifier, which has no output for the {added.cls} of "
            f"{other.name if other is not None else 'another'}:{hint} {ANEW}"
        )
    nodes[plan.out] = head.replace(classes=order.classes)
    return Plan(nodes=nodes, out=plan.out, engine=plan.engine, note=plan.note, edited_from=origin_of(plan))


def _check_known(requirement: Requirement | None) -> None:
    """Refuse classes that no stocked learnware knows: a pack gains and loses fragments, and these have none."""
    new = requirement.new if requirement is not None else ()
    if new:
        raise RequestError(
            f"no stocked model knows {some(new)}, so there is no fragment to add or to keep; order all classes anew "
            "with `sarto make`"
        )


def _taken(artifact: Artifact, store: Store, leave: str | None = None) -> dict[str, str]:
    """Class -> id of the learnware that gave it to a model, of all classes but one: what came to the market since then
    changes nothing in what stays."""
    requirement = artifact.requirement
    if requirement is None:
        return {}
    taken = {offer.cls: offer.learnware for offer in requirement.offers if offer.cls != leave}
    problems = []
    for cls, learnware in taken.items():
        try:
            store.get(learnware)
        except StoreError as error:
            problems.append(
                f"{cls!r} of the model comes from a learnware that is not in the market: {error.detail}"
            )
    if problems:
        raise StoreError("the classes that stay can't be kept", problems=problems, where=str(store.path))
    return taken


def _place(cls: str, task: list[str], classes: tuple[str, ...]) -> int:
    if cls in task:
        return task.index(cls)
    if cls not in classes:
        raise RequestError(f"the model does not know {cls!r}{suggest(cls, classes)}")
    return classes.index(cls)


def _with_classes(request: Request, classes: list[str]) -> Request:
    return request.replace(task=request.task.replace(classes=tuple(classes)))
