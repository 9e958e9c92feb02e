"""The lock-file of a delivered chain: what its tensors come from, by hash, so that they can be made again."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sarto.errors import StoreError
from sarto.market import Store
from sarto.pipeline.artifact import GRAPH
from sarto.pipeline.indexing import probes_of
from sarto.pipeline.reassembling import CUT_OFF
from sarto.types import ChainNode, Donor, Plan, Report, Request, SliceNode, TuneNode, Value
from sarto.types.fields import Frozen, Name, Positive, Several, Sha, Text, Version, Whole

LOCK = "lock.json"
#: Of the files that hold the graph and its tensors.
GRAPH_FILE, WEIGHTS_FILE = f"{GRAPH}/graph.json", f"{GRAPH}/weights.safetensors"


class ProbeSet(Value):
    """Unlabelled images that stitches are fitted on, by their hash."""

    digest: Sha
    n_images: Positive


class Lock(Value):
    """What a chain was made from and what came out.

    Attributes:
        lock: version of this layout.
        donors: with the hashes of their graphs and weights.
        probes: what the stitches are fitted on.
        samples_digest: of the order's samples, which a new head is fitted on.
        taken: class -> id of the learnware that it was taken from, None where nobody knew it; empty in locks from
            before this was kept.
        seed: of everything that is drawn.
        solver: who chose the blocks, what fits the stitches, and how the chain was trained, if it was.
        versions: of sarto, python, torch, ...
        graph_hash, weights_hash: of the delivered files.
    """

    lock: Version = 1
    request: Request
    plan: Plan
    donors: Several[Donor]
    probes: Several[ProbeSet]
    samples_digest: Sha | None = None
    taken: Frozen[Name, Sha | None] = Field(default_factory=dict, validate_default=True)
    seed: Whole = 0
    solver: Frozen[Name, Text] = Field(default_factory=dict, validate_default=True)
    versions: Frozen[Name, Text]
    threads: Positive
    graph_hash: Sha
    weights_hash: Sha


def lock_of(store: Store, report: Report, *, given: bool) -> Lock | None:
    """The lock of a delivered model; None where it has no chain of blocks.

    Args:
        given: whether the plan was given, so that nothing chose the blocks.
    """
    chains = [node for node in report.plan.nodes.values() if isinstance(node, ChainNode)]
    if not chains:
        return None
    probes = []
    for digest in dict.fromkeys(node.samples for node in chains):
        images = probes_of(store, digest)
        if images is not None:
            probes.append(ProbeSet(digest=digest, n_images=len(images)))
    trained = [node for node in report.plan.nodes.values() if isinstance(node, TuneNode)]
    rules = report.request.donors
    search = "integer program (HiGHS)" if rules.must or rules.differ > 1 else "A* with completion bounds"
    search += f", {CUT_OFF}" if CUT_OFF in report.plan.note else ""
    if not any(isinstance(node, SliceNode) for node in report.plan.nodes.values()):
        search += ", of its list the least divergence from the last donor"
    return Lock(
        request=report.request,
        plan=report.plan,
        donors=report.lineage,
        probes=tuple(probes),
        samples_digest=report.requirement.samples_digest,
        taken={
            **dict.fromkeys(report.requirement.new),
            **{offer.cls: offer.learnware for offer in report.requirement.offers},
        },
        seed=report.request.seed,
        solver={
            "blocks": "a given plan" if given else search,
            "stitches": "; ".join(dict.fromkeys(_fit(node) for node in chains)),
            **({"training": _training(trained[0])} if trained else {}),
        },
        versions=dict(report.environment.versions),
        threads=report.environment.threads,
        graph_hash=report.hashes[GRAPH_FILE],
        weights_hash=report.hashes[WEIGHTS_FILE],
    )


def _fit(node: ChainNode) -> str:
    said = node.stitch
    if said.random is not None:
        return f"random, seed {said.random}"
    strength = "strength by cross-validation" if said.lam is None else f"strength {said.lam:g}"
    return f"{said.fit} of {said.kernel} x {said.kernel}, {strength}"


def _training(node: TuneNode) -> str:
    return (
        f"AdamW, {node.epochs} epochs in batches of {node.batch}, step size {node.rate:g}, {node.scope}, towards "
        f"{node.towards}, seed {node.seed}"
    )


def read_lock(path: Path) -> Lock:
    """The lock in a file, or in the folder of a delivered model.

    Raises:
        StoreError: there is none.
        RequestError: it can't be read.
    """
    file = path / LOCK if path.is_dir() else path
    if not file.is_file():
        raise StoreError(
            f"no lock-file at {file}; models with chains of blocks have one, others are made again from their plan "
            "with sarto build",
            where=str(file),
        )
    return Lock.read(file)
