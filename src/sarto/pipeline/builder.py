"""The interpreter of plans: from an expression over stocked objects to one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sarto.errors import GraphError, RequestError, StoreError
from sarto.graph import (
    ModelGraph,
    block,
    branch,
    features,
    normalise,
)
from sarto.market import Intake, Labelled, Store
from sarto.pipeline.adapting import adapt
from sarto.pipeline.chaining import Chains, chain_parts, chain_spans, trained_chain
from sarto.pipeline.heading import fit_node, put_head, restrict_head
from sarto.pipeline.indexing import probes_of
from sarto.pipeline.intakes import Giver, intake_of, joint_intake, sources
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.slicing import Cut, Slicer
from sarto.pipeline.subnets import Subnets
from sarto.training import FittedHead
from sarto.types import (
    BlockNode,
    BranchNode,
    ChainNode,
    HeadNode,
    Learnware,
    Plan,
    Preprocessing,
    SliceNode,
    SourceNode,
    SubnetNode,
    TextPreprocessing,
    TuneNode,
)

#: Samples that run at once when features are computed.
BATCH = 256


@dataclass(frozen=True, eq=False)
class Assembly:
    """A built plan.

    Attributes:
        graph: images in [0, 1], shape (batch, channels, height, width), or token ids (batch, length), to logits;
            those of a fitted head are calibrated.
        intake: how samples become what the graph reads.
        classes: what the logits stand for.
        head: the fitted head with what leaving samples out says of it; None where nothing was fitted.
        parts: (name, learnware id, classes, parameters) of every member, then the head.
    """

    plan: Plan
    graph: ModelGraph
    intake: Intake
    classes: tuple[str, ...]
    head: FittedHead | None
    parts: tuple[tuple[str, str | None, tuple[str, ...], int], ...]


@dataclass
class Builder:
    """Builds plans over one market and a set of samples; what several plans share is built once.

    Attributes:
        samples: digest -> samples that plans may name.
        checkpoints: folder where trainings of chains leave checkpoints and go on from; None: they leave none.
    """

    store: Store
    samples: Mapping[str, Labelled]
    progress: Progress = silent
    checkpoints: Path | None = None
    _graphs: dict[str, ModelGraph] = field(default_factory=dict)
    _features: dict[tuple[str, str, str], Tensor] = field(default_factory=dict)
    _intakes: dict[tuple[str, ...], Intake] = field(default_factory=dict)
    _heads: dict[str, FittedHead] = field(default_factory=dict)
    _chains: Chains = field(default_factory=Chains)
    _slicer: Slicer = field(init=False)
    subnets: Subnets = field(init=False)

    def __post_init__(self) -> None:
        self._slicer = Slicer(self.store, self.progress)
        self.subnets = Subnets(self.store)

    def build(self, plan: Plan) -> Assembly:
        """The model of a plan.

        Raises:
            RequestError: the plan gives no logits, or names samples that are not at hand.
            StoreError: a learnware is missing or damaged.
            GraphError: an operation is not possible on the donor.
        """
        if plan.classes is None:
            raise RequestError(
                "a plan that is built ends in a head; this one gives features or a whole donor"
            )
        keys = plan.subkeys()
        graph = self._graph(plan, plan.out, keys)
        classes = self._output_classes(plan)
        intake = self.intake(plan)
        return Assembly(
            plan, graph, intake, classes, self._heads.get(keys[plan.out]), self._parts(plan, graph, keys)
        )

    def intake(self, plan: Plan, name: str | None = None) -> Intake:
        """What the graph of a plan, or of one of its nodes, reads.

        Raises:
            RequestError: the donors can't be read for together.
        """
        donors = tuple(dict.fromkeys(sources(plan, name or plan.out)))
        if donors not in self._intakes:
            found = [(giver, intake_of(self.store, giver)) for giver in map(self._giver, donors)]
            self._intakes[donors] = joint_intake(found)
        return self._intakes[donors]

    def features(self, plan: Plan, name: str, samples: Labelled) -> Tensor:
        """Features (n, width) of samples at a node of a plan, computed once per node and set of samples.

        The samples go the way that they go in the whole plan, where donors may read smaller images than the plan. Those
        of parts side by side are computed part by part, so that plans that share a part share its features.
        """
        node = plan.nodes[name]
        if isinstance(node, BranchNode) and node.join == "concat":
            return torch.cat([self.features(plan, member, samples) for member in node.of], 1)
        intake = self.intake(plan)
        key = (plan.subkeys()[name], samples.digest, intake.preprocessing.to_json())
        if key not in self._features:
            graph = self._graph(plan, name, plan.subkeys())
            self._features[key] = run(adapt(graph, self.intake(plan, name), intake), intake.tensor(samples))
        return self._features[key]

    def logits(self, plan: Plan, samples: Labelled) -> Tensor:
        """Logits (n, classes) of a plan; features of members are computed once for all plans that share them."""
        node = plan.nodes[plan.out]
        if not isinstance(node, HeadNode) or node.kind == "restrict":
            return run(self.build(plan).graph, self.intake(plan).tensor(samples))
        head = self.fit(plan, node, plan.subkeys()[plan.out]).head
        return head.scores(self.features(plan, node.of, samples)) / head.temperature

    def forget(self, key: str) -> None:
        """Let go of what a node gives, by its key; it is built again where it is asked for."""
        self._graphs.pop(key, None)

    def members(self, plan: Plan, head: HeadNode) -> list[str]:
        """The nodes whose features a head reads, side by side."""
        below = plan.nodes[head.of]
        return list(below.of) if isinstance(below, BranchNode) else [head.of]

    def _graph(self, plan: Plan, name: str, keys: Mapping[str, str]) -> ModelGraph:
        key = keys[name]
        if key not in self._graphs:
            self._graphs[key] = self._make(plan, name, keys)
        return self._graphs[key]

    def _make(self, plan: Plan, name: str, keys: Mapping[str, str]) -> ModelGraph:
        node = plan.nodes[name]
        if isinstance(node, SourceNode):
            learnware = self.store.get(node.of)
            return ready(self.store.graph(node.of), learnware.preprocessing)
        if isinstance(node, SubnetNode):
            return self._subnet(plan, name, node)
        if isinstance(node, ChainNode):
            return self._chain(plan, name, node, keys)
        if isinstance(node, TuneNode):
            return self._tune(plan, name, node, keys)
        if isinstance(node, SliceNode):
            return self._slicer.slice(node, keys[name], lambda: self.cut(plan, node, keys))
        if isinstance(node, BlockNode):
            below = self._graph(plan, node.of, keys)
            return block(below, end=features(below).value)
        if isinstance(node, BranchNode):
            intake = self.intake(plan, name)
            members = [adapt(self._graph(plan, of, keys), self.intake(plan, of), intake) for of in node.of]
            return branch(members, node.join)
        return self._head(plan, node, keys[name], keys)

    def _subnet(self, plan: Plan, name: str, node: SubnetNode) -> ModelGraph:
        if node.samples is None:
            return self.subnets.graph(node)
        samples = self._samples_of(node.samples, "subnet's batch norms")
        return self.subnets.graph(node, self.intake(plan, name).tensor(samples))

    def _chain(self, plan: Plan, name: str, node: ChainNode, keys: Mapping[str, str]) -> ModelGraph:
        """A chain of blocks; each donor reads what the whole plan reads."""
        probes = self.images(node.samples)
        intake = self.intake(plan, name)
        donors = [
            (keys[of], adapt(self._graph(plan, of, keys), self.intake(plan, of), intake)) for of in node.of
        ]
        read = f"{node.samples} {intake.preprocessing.to_json()}"
        return self._chains.graph(donors, node, intake.tensor(probes), read)

    def images(self, digest: str) -> Labelled:
        """Samples at hand, or the probe images of an index, by their hash.

        Raises:
            RequestError: there are none.
        """
        found = self.samples.get(digest) or probes_of(self.store, digest)
        if found is None:
            raise RequestError(
                f"the chain is stitched on probe images {digest}, which no index of the market holds: index the zoo "
                "again, or plan anew"
            )
        return found

    def hold(self, samples: Labelled) -> None:
        """Keep further samples at hand, so that plans may name them."""
        self.samples = {**self.samples, samples.digest: samples}

    def _tune(self, plan: Plan, name: str, node: TuneNode, keys: Mapping[str, str]) -> ModelGraph:
        """A chain of blocks after a training; its last model, as a whole, teaches it features."""
        intake, below = self.intake(plan, name), self._graph(plan, node.of, keys)
        held = [self.images(digest) for digest in node.samples]
        self.progress(f"training a chain, {node.epochs} epochs", 0, 1)
        inputs = torch.cat([intake.tensor(part) for part in held])
        folder = self.checkpoints / keys[name][7:23] if self.checkpoints is not None else None
        if node.towards == "labels":
            classes = plan.kinds[name].classes or ()
            labels = torch.cat([_labels(part, classes) for part in held])
            return trained_chain(below, node, inputs, labels=labels, folder=folder)
        chained = plan.nodes[node.of]
        while isinstance(chained, SliceNode | TuneNode):
            chained = plan.nodes[chained.of]
        if not isinstance(chained, ChainNode):
            raise GraphError("only a chain of blocks has a last model to learn from")
        tail = chained.of[-1]
        teacher = adapt(self._graph(plan, tail, keys), self.intake(plan, tail), intake)
        wanted = run(block(teacher, end=features(teacher).value), inputs)
        return trained_chain(below, node, inputs, wanted=wanted, folder=folder)

    def _giver(self, id_: str) -> Giver:
        """A learnware or a supernet; learnwares' ids are looked up first, there are more of them."""
        try:
            return self.store.get(id_)
        except StoreError:
            if all(id_ != one.id for one in self.store.supernets):
                raise
            return self.store.supernets.get(id_)

    def cut(self, plan: Plan, node: SliceNode, keys: Mapping[str, str]) -> Cut:
        """What a slice of a plan is cut from; keys are those of the plan's nodes."""
        source = self._source_below(plan, node)
        if not isinstance(source, Learnware):
            raise GraphError(
                "a subnet is as small as it was asked for; ask for another limit in place of a slice"
            )
        samples = self._samples_of(node.samples, f"slice of {source.name!r}")
        whole = self._graph(plan, node.of, keys)
        return Cut(source, whole, keys[node.of], samples, self.intake(plan, node.of).tensor)

    def _head(self, plan: Plan, node: HeadNode, key: str, keys: Mapping[str, str]) -> ModelGraph:
        below = self._graph(plan, node.of, keys)
        if node.kind == "restrict":
            return restrict_head(below, node, self._source_below(plan, node))
        return put_head(below, self.fit(plan, node, key))

    def fit(self, plan: Plan, node: HeadNode, key: str) -> FittedHead:
        """The head of a plan, fitted on its samples; each member of a branch gets one scale."""
        if key not in self._heads:
            samples = self._samples_of(node.samples, "head").only(node.classes)
            blocks = [self.features(plan, member, samples) for member in self.members(plan, node)]
            self._heads[key] = fit_node(node, blocks, samples)
        return self._heads[key]

    def _source_below(self, plan: Plan, node: SliceNode | HeadNode | BlockNode) -> Giver:
        below = plan.nodes[node.of]
        while isinstance(below, SliceNode | HeadNode | BlockNode | ChainNode | TuneNode):
            # What a chain's outputs stand for, its last model says.
            below = plan.nodes[below.of[-1] if isinstance(below, ChainNode) else below.of]
        if not isinstance(below, SourceNode | SubnetNode):
            raise GraphError("a part of several donors has no classes of its own")
        return self._giver(below.of)

    def _samples_of(self, digest: str | None, what: str) -> Labelled:
        found = self.samples.get(digest or "")
        if found is None:
            known = ", ".join(sorted(self.samples)) or "none"
            raise RequestError(
                f"the {what} is fitted on samples {digest}, which are not at hand (known: {known}); give them with "
                "--samples, or plan anew"
            )
        return found

    def _output_classes(self, plan: Plan) -> tuple[str, ...]:
        if plan.classes is None:
            raise RequestError("the plan does not say which classes its outputs stand for")
        return plan.classes

    def _parts(
        self, plan: Plan, graph: ModelGraph, keys: Mapping[str, str]
    ) -> tuple[tuple[str, str | None, tuple[str, ...], int], ...]:
        total = count_params(graph)
        chained = next((node for node in plan.nodes.values() if isinstance(node, ChainNode)), None)
        if chained is not None:
            ids = [next(sources(plan, of)) for of in chained.of]
            found = chain_parts(graph, [self._giver(id_) for id_ in ids], len(chained.joints))
            return tuple((name, id_, (), params) for name, id_, params in found)
        parts: list[tuple[str, str | None, tuple[str, ...], int]] = []
        joined: list[ModelGraph] = []
        before = 0
        for member, node in plan.nodes.items():
            if not isinstance(node, BlockNode):
                continue
            # What donors share is stored once: it counts for the first part that brings it.
            joined.append(self._member(plan, member, keys))
            together = count_params(branch(joined))
            learnware = self._source_below(plan, node)
            below = plan.nodes[node.of]
            sliced = isinstance(below, SliceNode)
            classes = below.classes if isinstance(below, SliceNode) else ()
            alike = "pruned extractor" if sliced else "whole extractor"
            name = f"{learnware.name}: {', '.join(classes) or alike}"
            parts.append((name, learnware.id, classes, together - before))
            before = together
        if not parts and plan.supernets:
            held = self.store.supernets.get(plan.supernets[0])
            return ((f"{held.name}: subnet", held.id, (), total),)
        if not parts:
            learnware = self.store.get(plan.learnwares[0])
            return ((f"{learnware.name}: whole model", learnware.id, (), total),)
        return (*parts, ("head", None, (), total - before))

    def _member(self, plan: Plan, name: str, keys: Mapping[str, str]) -> ModelGraph:
        return adapt(self._graph(plan, name, keys), self.intake(plan, name), self.intake(plan))

    def spans(self, plan: Plan) -> tuple[tuple[float, float], ...]:
        """Of each block of a plan's chain, first to last: the shares of its donor's FLOPs before it begins and ends."""
        chained = next((node for node in plan.nodes.values() if isinstance(node, ChainNode)), None)
        if chained is None:
            return ()
        keys = plan.subkeys()
        return chain_spans([self._graph(plan, of, keys) for of in chained.of], chained.joints)

    def members_of(self, plan: Plan) -> tuple[ModelGraph, ...]:
        """The extractors that a plan packs, each as it is alone behind what the plan reads."""
        keys = plan.subkeys()
        return tuple(
            self._member(plan, name, keys) for name, node in plan.nodes.items() if isinstance(node, BlockNode)
        )


def _labels(samples: Labelled, classes: tuple[str, ...]) -> Tensor:
    """Places of the samples' classes among a model's, shape (n,)."""
    missing = [cls for cls in samples.classes if cls not in classes]
    if missing:
        raise RequestError(
            f"the samples to train on hold {', '.join(missing)}, which the model does not tell"
        )
    return torch.tensor([classes.index(samples.classes[label]) for label in samples.labels])


def count_params(graph: ModelGraph) -> int:
    """Trainable parameters of a graph."""
    return sum(graph.tensors[name].numel() for name in graph.parameters)


def ready(graph: ModelGraph, preprocessing: Preprocessing | TextPreprocessing) -> ModelGraph:
    """A donor as it reads images in [0, 1]: normalisation in front. One that reads token ids as it is."""
    if isinstance(preprocessing, TextPreprocessing):
        return graph
    return normalise(graph, preprocessing.mean, preprocessing.std)


def run(graph: ModelGraph, inputs: Tensor) -> Tensor:
    """The graph's single output on inputs of any number, a batch at a time."""
    outputs = [graph(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
    tensors = [output for output in outputs if isinstance(output, Tensor)]
    return torch.cat(tensors)
