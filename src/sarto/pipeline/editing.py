"""One class more or less in a packed model: the plan gets or loses that class's fragment, all others stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sarto.engines.slicepack import slice_node
from sarto.errors import RequestError, StoreError, suggest
from sarto.market import Store
from sarto.pipeline.artifact import Artifact
from sarto.pipeline.intakes import sources
from sarto.pipeline.make import make
from sarto.pipeline.new_classes import some
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.progress import Progress, silent
from sarto.types import (
    BlockNode,
    BranchNode,
    Budget,
    HeadNode,
    Learnware,
    Plan,
    PlanNode,
    Request,
    Requirement,
    SliceNode,
    SourceNode,
    reads,
)


def edit(
    store: Store,
    artifact: Artifact,
    out: Path,
    *,
    add: str | None = None,
    remove: str | None = None,
    budget: Budget | None = None,
    compare: bool = True,
    progress: Progress = silent,
) -> Artifact:
    """A new model with one class more, or one less, at the same sizes; the other fragments are those of the artifact.

    The head is solved anew in closed form, so adding a class that was removed gives the first model again.

    Args:
        add: "class" or "learnware:class"; becomes the last output.
        remove: a class of the model.
        budget: limits in place of those of the model's order; what it leaves open stays as it was.
        compare: False: without donors, baselines and random units beside it, which take most of the time.

    Raises:
        RequestError: nothing or both asked for, an unknown class, one that is there already, or the model is no pack.
        StoreError: a class that stays comes from a learnware that is not in the market any more.
        InfeasibleError: the larger model breaks the order's budget.
    """
    if (add is None) == (remove is None):
        raise RequestError("one class is added or one is removed; give exactly one of the two")
    _check_known(artifact.requirement)
    order = artifact.request
    if budget is not None:
        order = order.replace(budget=order.budget.replace(**budget.limits()))
    task = list(order.task.classes)
    if remove is not None:
        place = _place(remove, task, artifact.classes)
        request = _with_classes(order, [*task[:place], *task[place + 1 :]])
        taken = _taken(artifact, store, leave=artifact.classes[place])
        plan = without_class(artifact.plan, check_order(request, store, taken), artifact.classes[place])
        return make(store, request, out, plan=plan, taken=taken, compare=compare, progress=progress)
    wanted = str(add)
    name = wanted.rpartition(":")[2]
    if name in artifact.classes:
        raise RequestError(f"the model tells {name!r} apart already ({', '.join(artifact.classes)})")
    request = _with_classes(order, [*task, wanted])
    taken = _taken(artifact, store)
    checked = check_order(request, store, taken)
    _check_known(checked.requirement)
    plan = with_class(artifact.plan, checked)
    return make(store, request, out, plan=plan, taken=taken, compare=compare, progress=progress)


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


def with_class(plan: Plan, order: Order) -> Plan:
    """The plan of a pack with a fragment for the last class of an order, of the size that the pack's fragments have.

    Raises:
        RequestError: the plan packs no fragments.
    """
    head, members = _pack_of(plan)
    offer = order.requirement.offers[-1]
    donor = order.learnwares[offer.learnware]
    nodes = dict(plan.nodes)
    beside = _fragment_of(plan, donor.id)
    source = next(
        (n for n, node in nodes.items() if isinstance(node, SourceNode) and node.of == donor.id), None
    )
    if source is None:
        source = _free(nodes, "donor")
        nodes[source] = SourceNode(of=donor.id)
    if beside is not None:
        cut: SliceNode | None = beside.replace(classes=(offer.cls,))
    elif any(_read(nodes, member) == source for member in members):
        # The whole donor is packed already: it gives this class too.
        return _headed(plan, nodes, head, members, order)
    else:
        ratio = _ratio(plan, order)
        keep = next((width.keep for width in donor.widths if width.ratio == ratio), None)
        cut = None
        if keep is not None and ratio < 1.0:
            samples = order.donor_samples[donor.id].digest
            cut = slice_node(keep, samples).replace(of=source, classes=(offer.cls,))
    below = source
    if cut is not None:
        below = _free(nodes, "slice")
        nodes[below] = cut
    member = _free(nodes, "features")
    nodes[member] = BlockNode(of=below)
    return _headed(plan, nodes, head, [*members, member], order)


def without_class(plan: Plan, order: Order, cls: str) -> Plan:
    """The plan of a pack without the fragments that are of one class alone; those of several classes stay.

    Args:
        order: for the classes that are left.

    Raises:
        RequestError: the plan packs no fragments.
    """
    head, members = _pack_of(plan)
    needed = {offer.learnware for offer in order.requirement.offers}
    left = []
    for member in members:
        below = plan.nodes[_read(plan.nodes, member)]
        alone = isinstance(below, SliceNode) and below.classes == (cls,)
        idle = isinstance(below, SourceNode) and below.of not in needed
        if not alone and not idle:
            left.append(member)
    if not left:
        raise RequestError(f"all that the pack holds is of {cls!r}; make a new model instead")
    return _headed(plan, dict(plan.nodes), head, left, order)


def _headed(plan: Plan, nodes: dict[str, PlanNode], head: HeadNode, members: list[str], order: Order) -> Plan:
    """The plan with these members under the head, for the classes of an order; what nothing reads is left out."""
    pack = head.of if isinstance(plan.nodes[head.of], BranchNode) else _free(nodes, "pack")
    nodes[pack] = BranchNode(of=tuple(members))
    nodes[plan.out] = head.replace(of=pack, classes=order.classes, samples=order.samples.digest)
    read, stack = {plan.out}, [plan.out]
    while stack:
        node = nodes[stack.pop()]
        stack.extend(name for name in reads(node) if name not in read)
        read.update(reads(node))
    kept = {name: node for name, node in nodes.items() if name in read}
    return Plan(nodes=kept, out=plan.out, engine=plan.engine, note=plan.note)


def _pack_of(plan: Plan) -> tuple[HeadNode, list[str]]:
    head = plan.nodes[plan.out]
    if not isinstance(head, HeadNode) or head.kind == "restrict":
        raise RequestError(
            "this model is a donor with some of its own outputs, not a pack; order the new classes with `sarto make`"
        )
    below = plan.nodes[head.of]
    return head, list(below.of) if isinstance(below, BranchNode) else [head.of]


def _read(nodes: Mapping[str, PlanNode], member: str) -> str:
    """What a member of a pack is the extractor of: a donor or a slice."""
    node = nodes[member]
    if not isinstance(node, BlockNode):
        raise RequestError(
            f"{member!r} is no extractor of one donor; only packs of fragments gain and lose classes"
        )
    return node.of


def _fragment_of(plan: Plan, learnware: str) -> SliceNode | None:
    """A fragment of a donor that is a part of the pack, not a front that others are cut from."""
    inner = {node.of for node in plan.nodes.values() if isinstance(node, SliceNode)}
    for name, node in plan.nodes.items():
        if isinstance(node, SliceNode) and name not in inner and next(sources(plan, name)) == learnware:
            return node
    return None


def _ratio(plan: Plan, order: Order) -> float:
    """The share of a donor's extractor that the plan's fragments have; 1 where they are whole donors."""
    for name, node in plan.nodes.items():
        if not isinstance(node, SliceNode):
            continue
        keep = dict(node.keep)
        below = plan.nodes[node.of]
        if isinstance(below, SliceNode):
            keep |= dict(below.keep)
        for width in _donor(plan, name, order).widths:
            if dict(width.keep) == keep:
                return width.ratio
    return 1.0


def _donor(plan: Plan, name: str, order: Order) -> Learnware:
    return order.learnwares[next(sources(plan, name))]


def _free(nodes: dict[str, PlanNode], stem: str) -> str:
    return next(name for place in range(len(nodes) + 1) if (name := f"{stem}_{place}") not in nodes)


def _place(cls: str, task: list[str], classes: tuple[str, ...]) -> int:
    if cls in task:
        return task.index(cls)
    if cls not in classes:
        raise RequestError(f"the model does not know {cls!r}{suggest(cls, classes)}")
    return classes.index(cls)


def _with_classes(request: Request, classes: list[str]) -> Request:
    return request.replace(task=request.task.replace(classes=tuple(classes)))
