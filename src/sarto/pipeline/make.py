"""From an order to an artifact: check, propose, build and score, choose and verify, compare, report."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sarto.devices.measuring import check_agent
from sarto.engines import slicepack
from sarto.errors import GraphError, RequestError, VerifyError
from sarto.graph.file import write_graph
from sarto.market import Labelled, Store
from sarto.pipeline.agreeing import Chosen, choose_chains
from sarto.pipeline.alternatives import score_alternatives
from sarto.pipeline.artifact import GRAPH, REQUIREMENT, VOCABULARY, Artifact, write_manifest, write_text
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import Plans, infeasible, noted, propose, ranked, titled, to_build
from sarto.pipeline.contest import Role, Score, read_heldout, score_plan, score_trivial
from sarto.pipeline.delivered import Delivered
from sarto.pipeline.donor_rules import broken_rules, check_donors
from sarto.pipeline.job import Job
from sarto.pipeline.locking import LOCK, lock_of
from sarto.pipeline.on_device import leave_files
from sarto.pipeline.order import Order, check_order
from sarto.pipeline.page import render_card, render_page
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.rejection import fit_rejection, write_novelty
from sarto.pipeline.reporting import make_report
from sarto.pipeline.schooling import score_student, score_tuned, train_best, training_of
from sarto.pipeline.verify import ON_DEVICE, Verified, verify
from sarto.types import BlockNode, ChainNode, Plan, Repair, Request, SliceNode

#: Name of the row of a donor that is cut and stitched to itself.
SELF_STITCHED = "last donor of the first chain, cut and stitched to itself"
#: Name of the row of a chain that nobody chose.
DRAWN_AT_RANDOM = "chain of blocks drawn at random, fitted stitches"
#: Folder of checkpoints in the folder of a job.
CHECKPOINTS = "training"


def make(
    store: Store,
    request: Request,
    out: Path,
    *,
    plan: Plan | None = None,
    taken: Mapping[str, str | None] | None = None,
    compare: bool = True,
    progress: Progress = silent,
) -> Artifact:
    """Build the model of an order into a folder; an interrupted order goes on after its last finished hop.

    Args:
        plan: build this plan instead of choosing one.
        taken: class -> id of the learnware that it is taken from, whoever else knows it; None: from nobody.
        compare: False: of a given plan, without donors, baselines and random units beside it; the report says so.

    Raises:
        RequestError: the order is malformed, the folder holds something else, or the device's agent does not answer.
        InfeasibleError: no plan keeps the budget; names the floor and the nearest budget.
        StoreError: a learnware or a sample file is missing or damaged.
        VerifyError: the built model does not do what it must.
    """
    if plan is not None:
        check_donors(plan, store)
    order = check_order(request, store, taken)
    if plan is not None and plan.classes != order.classes:
        told = ", ".join(plan.classes) if plan.classes is not None else "no classes of its own"
        raise RequestError(
            f"the given plan tells apart {told}; the order is for {', '.join(order.classes)}, in that order: plan "
            "anew, or order the plan's classes"
        )
    broken = broken_rules(plan, request.donors, order.sources) if plan is not None else ()
    if broken:
        raise RequestError(
            f"the given plan breaks what the order asks of donors: {', '.join(broken)}; plan anew"
        )
    heldout = order.heldout
    plans = propose(order) if compare or plan is None else Plans(order, (), ())
    order, chosen = plans.order, Chosen()
    if plan is None and not plans.feasible:
        raise infeasible(plans)
    job = Job(out, request, extra=f"{plan.key()}{'' if compare else ', alone'}" if plan is not None else "")
    if job.finished is not None:
        return job.finished
    if not job.done("verified"):
        check_agent(request.device)
    order.requirement.write(job.folder / REQUIREMENT)
    write_text(job.folder / "plans.json", json.dumps(plans.to_plain()))
    samples = {order.samples.digest: order.samples, **{s.digest: s for s in order.donor_samples.values()}}
    builder = Builder(store, samples, progress, job.folder / CHECKPOINTS)

    if plan is None and plans.chains:
        chosen = job.hop(
            "chains", lambda: choose_chains(builder, plans, progress), Chosen.to_plain, Chosen.from_plain
        )
        order = noted(order, chosen.left_out)
    scores = job.hop("scores", lambda: score_all(builder, plans, plan, chosen, progress), _plain, _scores)
    if request.train is not None and plan is None:
        untrained = scores
        scores = job.hop("trained", lambda: train_best(builder, order, untrained), _plain, _scores)
    verified = job.hop(
        "verified",
        lambda: verify(builder, plans, scores, plan, job.folder, progress),
        Verified.to_plain,
        Verified.from_plain,
    )
    rows = [verified.score.as_pick(verified.cost), *(s for s in scores if not _same(s, verified.score))]
    picked = verified.score.plan
    if compare:
        rows += job.hop(
            "controls", lambda: score_controls(builder, order, scores, picked, progress), _plain, _scores
        )
        rows += job.hop("baselines", lambda: _alternatives(builder, order, rows, heldout), _plain, _scores)
    if plan is None:
        beside = rows
        rows += job.hop(
            "student",
            lambda: score_student(builder, order, beside, heldout=heldout is not None),
            _plain,
            _scores,
        )
    if heldout is not None:
        progress(f"reading held-out {heldout.noun}s", 0, 1)
        whole = whole_donors(order)
        rows = job.hop(
            "heldout", lambda: read_heldout(builder, rows, order.samples, heldout, whole), _plain, _scores
        )
    return _deliver(job, builder, order, rows, verified, heldout, given=plan is not None, compared=compare)


def score_all(
    builder: Builder, plans: Plans, given: Plan | None, chosen: Chosen, progress: Progress = silent
) -> list[Score]:
    """Scores of the packs, the chosen chains, the baselines and the trivial classifiers, on the order's samples.

    Raises:
        GraphError: there is nothing to score, because no chain can be built.
    """
    order = plans.order
    todo: list[tuple[Plan, Role, str]] = []
    if given is not None:
        todo.append((given, "plan", given.note or f"given plan {given.key()[7:15]}"))
    for plan in to_build(plans) if given is None else ():
        if plan.supernets:
            todo.append((plan, "plan", plan.note))
        elif _sliced(plan):
            todo.append((plan, "plan", titled(order, plan)))
    taken = {plan.key() for plan, _, _ in todo}
    for plan, _ in chosen.plans:
        todo.append((plan, "plan", plan.note))
        if not any(name == SELF_STITCHED for _, _, name in todo):
            todo.append((_stitched_to_itself(plan), "baseline", SELF_STITCHED))
        if chosen.drawn is not None and not any(name == DRAWN_AT_RANDOM for _, _, name in todo):
            todo.append((chosen.drawn, "control", DRAWN_AT_RANDOM))
    for plan in plans.all:
        if _role(plan) != "plan" and plan.key() not in taken:
            todo.append((plan, _role(plan), plan.note))
    if not todo:
        raise GraphError("no plan can be built", problems=chosen.left_out)
    todo = _told_apart(todo)
    scores = []
    for place, (plan, role, name) in enumerate(todo):
        progress("building and scoring", place, len(todo))
        score = score_plan if training_of(plan) is None else score_tuned
        scored, told = score(builder, plan, order.samples, role, name), chosen.told.get(plan.key())
        if told and role == "plan":
            scored = replace(scored, row=scored.row.replace(note=f"{scored.row.note}; {told}"))
        scores.append(scored)
    progress("building and scoring", len(todo), len(todo))
    whole = whole_donors(order)
    return scores + score_trivial(order.samples, builder.features(whole, whole.out, order.samples))


def score_controls(
    builder: Builder, order: Order, scores: Sequence[Score], picked: Plan | None, progress: Progress = silent
) -> list[Score]:
    """What chance makes of the delivered plan: random units in its slices, random stitches in its chain.

    Where it has no slices, or no chain, those of the best plan that has stand in for it, and the name says so.
    """
    rows = [(s.row, s.plan) for s in scores if s.row.role == "plan" and s.plan is not None]
    costs = [
        (row.accuracy_loto, row.cost, place) for place, (row, _) in enumerate(rows) if row.cost is not None
    ]
    plans = [picked, *(rows[costs[place][2]][1] for place in ranked(costs))]
    names = {plan.key(): row.name for row, plan in rows}
    todo = []
    for name, has, drawn in (
        ("random units, same widths, with repair", _sliced, _randomised),
        ("random stitches, same blocks", _chained, _stitched_at_random),
    ):
        plan = next((plan for plan in plans if plan is not None and has(plan)), None)
        if plan is not None:
            said = name if plan is picked else f"{name}, of {names.get(plan.key(), plan.note)}"
            todo.append((drawn(plan), said))
    found = []
    for place, (plan, name) in enumerate(todo):
        progress("building controls", place, len(todo))
        found.append(score_plan(builder, plan, order.samples, "control", name))
    return found


def _told_apart(todo: list[tuple[Plan, Role, str]]) -> list[tuple[Plan, Role, str]]:
    """The same with names that differ: later ones of equal names are numbered."""
    seen: Counter[str] = Counter()
    named = []
    for plan, role, name in todo:
        seen[name] += 1
        named.append((plan, role, name if seen[name] == 1 else f"{name} ({seen[name]})"))
    return named


def whole_donors(order: Order) -> Plan:
    """The plan of the features of all donors of an order, side by side."""
    places = range(len(order.donors))
    nodes = {
        **{f"donor_{i}": {"op": "source", "of": donor.id} for i, donor in enumerate(order.donors)},
        **{f"features_{i}": {"op": "block", "of": f"donor_{i}"} for i in places},
        "all": {"op": "branch", "of": [f"features_{i}" for i in places]},
    }
    return Plan.parse({"nodes": nodes, "out": "all"})


def _alternatives(
    builder: Builder, order: Order, rows: Sequence[Score], heldout: Labelled | None
) -> list[Score]:
    if "baselines" not in order.request.engines:
        return []
    probes = [score for score in rows if score.plan is not None and _role(score.plan) == "probe"]
    return score_alternatives(builder, order, probes, heldout)


def _deliver(
    job: Job,
    builder: Builder,
    order: Order,
    rows: Sequence[Score],
    verified: Verified,
    heldout: Labelled | None,
    *,
    given: bool,
    compared: bool,
) -> Artifact:
    plan = verified.score.plan
    if plan is None:
        raise RequestError("only a built plan can be delivered")
    assembly = builder.build(plan)
    write_graph(assembly.graph, job.out / GRAPH)
    write_bytes = (job.folder / "model.onnx").read_bytes()
    (job.out / "model.onnx").write_bytes(write_bytes)
    leave_files(job.folder / ON_DEVICE, job.out)
    rejection = fit_rejection(builder, order, plan)
    if rejection is not None:
        write_novelty(rejection[0], job.out)
    told = rejection[1] if rejection is not None else None
    delivered = Delivered(assembly, verified, tuple(rows), heldout, told, compared)
    report = make_report(builder, order, delivered, job.out, job.seconds)
    failed = [f"{check.name}: {check.detail}" for check in report.checks if not check.ok]
    if failed:
        report.write(job.folder / "report.json")
        raise VerifyError(f"{job.out} is not delivered", problems=failed, where=str(job.out))
    if assembly.intake.vocabulary is not None:
        write_text(job.out / VOCABULARY, assembly.intake.vocabulary.encoded().decode())
    order.request.write(job.out / "request.json")
    order.requirement.write(job.out / REQUIREMENT)
    plan.write(job.out / "plan.json")
    report.write(job.out / "report.json")
    lock = lock_of(builder.store, report, given=given)
    if lock is not None:
        lock.write(job.out / LOCK)
    write_text(job.out / "report.html", render_page(report))
    write_text(job.out / "README.md", render_card(report))
    shutil.rmtree(job.folder / CHECKPOINTS, ignore_errors=True)
    return write_manifest(
        job.out,
        classes=assembly.classes,
        preprocessing=assembly.intake.preprocessing,
        plan_key=plan.key(),
        lineage=report.lineage,
    )


def _plain(scores: Iterable[Score]) -> list[object]:
    return [score.to_plain() for score in scores]


def _scores(data: Sequence[dict[str, object]]) -> list[Score]:
    return [Score.from_plain(item) for item in data]


def _same(one: Score, two: Score) -> bool:
    return one.plan is not None and two.plan is not None and one.plan.key() == two.plan.key()


def _role(plan: Plan) -> Role:
    blocks = sum(isinstance(node, BlockNode) for node in plan.nodes.values())
    if _sliced(plan) or _chained(plan) or plan.supernets:
        return "plan"
    return "donor" if blocks == 0 else "probe" if blocks == 1 else "ensemble"


def _sliced(plan: Plan) -> bool:
    return any(isinstance(node, SliceNode) for node in plan.nodes.values())


def _chained(plan: Plan) -> bool:
    return any(isinstance(node, ChainNode) for node in plan.nodes.values())


def _stitched_to_itself(plan: Plan) -> Plan:
    """The last donor, cut where it is entered and joined to itself: what cutting and stitching cost alone."""
    nodes = dict(plan.nodes)
    for name, node in plan.nodes.items():
        if isinstance(node, ChainNode):
            tail, start = node.of[-1], node.joints[-1][1]
            stitch = node.stitch.replace(keep_cuts=True)
            nodes[name] = node.replace(of=(tail, tail), joints=((start, start),), stitch=stitch)
            nodes = {key: kept for key, kept in nodes.items() if key not in node.of or key == tail}
    return plan.replace(nodes=nodes, predicted=None, note=SELF_STITCHED)


def _stitched_at_random(plan: Plan) -> Plan:
    nodes = {
        name: node.replace(stitch=node.stitch.replace(random=1)) if isinstance(node, ChainNode) else node
        for name, node in plan.nodes.items()
    }
    return plan.replace(nodes=nodes, note=f"{plan.note}, random stitches")


def _randomised(plan: Plan) -> Plan:
    nodes = {name: _drawn(node) if isinstance(node, SliceNode) else node for name, node in plan.nodes.items()}
    return plan.replace(nodes=nodes, note="units drawn at random")


def _drawn(node: SliceNode) -> SliceNode:
    # What is trained is not drawn and trained again: the control is repaired in closed form.
    repair = node.repair if node.paper is None else Repair(lam=slicepack.LAM, wpos=slicepack.WPOS)
    return node.replace(select="random", seed=1, paper=None, repair=repair)
