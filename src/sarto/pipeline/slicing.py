"""How a slice of a plan is cut: from a donor and samples to a fragment, which is stocked and found again by its key."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from sarto.engines.slicepack import Evidence, Readings, RepairSettings, make_fragment, read_donor
from sarto.errors import GraphError
from sarto.graph import ModelGraph, Selection, block, features, uniform_counts
from sarto.market import Labelled, Store
from sarto.pipeline.environment import versions
from sarto.pipeline.papering import train_fragment
from sarto.pipeline.progress import Progress, silent
from sarto.types import Learnware, SliceNode


@dataclass(frozen=True, eq=False)
class Cut:
    """What a slice is cut from, and what it is fitted on.

    Attributes:
        learnware: whose model it is.
        graph: the whole donor, images in [0, 1] to logits.
        key: of the plan's node that gives this graph.
        samples: what the choice and the repair read.
        to_inputs: from samples to what the graph reads.
    """

    learnware: Learnware
    graph: ModelGraph
    key: str
    samples: Labelled
    to_inputs: Callable[[Labelled], Tensor]

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that the readings tell apart: the donor's where the samples hold exactly those, else the samples'."""
        own, found = self.learnware.classes, self.samples.classes
        return own if set(own) == set(found) else found


@dataclass
class Slicer:
    """Makes fragments in closed form; a donor is read once for all of its slices."""

    store: Store
    progress: Progress = silent
    _readings: dict[tuple[str, str], Readings] = field(default_factory=dict)

    def slice(self, node: SliceNode, key: str, cut: Callable[[], Cut]) -> ModelGraph:
        """The fragment of a node: the stocked one, else a new one, which is stocked under the key of its plan.

        Args:
            cut: donor and samples; asked for only where the fragment is not stocked.

        Raises:
            StoreError: the stocked one is damaged, or writing failed.
            GraphError: the donor has no such groups, or not so many units.
        """
        stocked = self.store.fragment(key)
        if stocked is not None:
            return stocked
        graph, lineage = self.make(node, cut())
        self.store.put_fragment(key, graph, lineage)
        return graph

    def make(self, node: SliceNode, cut: Cut) -> tuple[ModelGraph, dict[str, Any]]:
        """A new fragment and its lineage in plain JSON; its seconds leave out reading the donor, which all share."""
        doing = "drawing random units for" if node.select == "random" else "slicing"
        self.progress(f"{doing} {', '.join(node.classes) or 'all classes'} out of {cut.learnware.name}", 0, 1)
        if node.paper is None:
            self.read(cut)
        begun = time.perf_counter()
        polished = list[Evidence]()
        graph, selection = self._fragment(node, cut, polished.append)
        lineage = lineage_of(node, cut, graph, selection, time.perf_counter() - begun)
        if polished:
            lineage["polish"] = asdict(polished[0])
        return graph, lineage

    def _fragment(
        self, node: SliceNode, cut: Cut, tell: Callable[[Evidence], None]
    ) -> tuple[ModelGraph, Selection]:
        keep = resolve_keep(cut.graph, node)
        if node.paper is not None:
            ordered = cut.samples.only(cut.classes)
            return train_fragment(
                node,
                cut.graph,
                cut.to_inputs(ordered),
                torch.from_numpy(ordered.labels.copy()),
                cut.classes,
                keep,
                self.progress,
                own_outputs=cut.classes == cut.learnware.classes,
            )
        repair = node.repair
        settings = RepairSettings(**repair.model_dump(exclude={"fit"})) if repair is not None else None
        return make_fragment(
            self.read(cut),
            [cut.classes.index(cls) for cls in node.classes],
            keep,
            criterion=node.select,
            repair=settings,
            wpos=repair.wpos if repair is not None else RepairSettings().wpos,
            beta=_betas(cut.graph, node),
            seed=node.seed,
            tell=tell,
        )

    def read(self, cut: Cut) -> Readings:
        """What the donor's readers read on the samples; one pass for all slices of it."""
        at = (cut.key, cut.samples.digest)
        if at not in self._readings:
            ordered = cut.samples.only(cut.classes)
            labels = torch.from_numpy(ordered.labels.copy())
            self._readings[at] = read_donor(cut.graph, cut.to_inputs(ordered), labels, len(cut.classes))
        return self._readings[at]


def lineage_of(
    node: SliceNode, cut: Cut, graph: ModelGraph, selection: Selection, seconds: float
) -> dict[str, Any]:
    """How a fragment was made, in plain JSON: donor, samples, settings, kept units, seconds and versions.

    `of` is the key of what it was cut from; `params` are those of its extractor, which is what a pack takes.
    """
    donor = cut.learnware
    extractor = block(graph, end=features(graph).value)
    return {
        "learnware": donor.id,
        "name": donor.name,
        "donor": {"graph_hash": donor.graph_hash, "weights_hash": donor.weights_hash},
        "of": cut.key,
        "classes": list(node.classes),
        "samples": node.samples,
        "plan": node.model_dump(mode="json"),
        "kept": {name: len(units) for name, units in selection.kept.items()},
        "params": sum(extractor.tensors[name].numel() for name in extractor.parameters),
        "seconds": round(seconds, 4),
        "versions": dict(versions()),
    }


def resolve_keep(graph: ModelGraph, node: SliceNode) -> dict[str, int | tuple[int, ...]]:
    """What a slice keeps of every channel group it names; "*" is a ratio for all the others.

    Raises:
        GraphError: a group that the graph does not have, or more units than it has.
    """
    keep: dict[str, int | tuple[int, ...]] = {}
    star = node.keep.get("*")
    if isinstance(star, float):
        keep.update(uniform_counts(graph, star))
    for name, amount in node.keep.items():
        if name == "*":
            continue
        group = graph.analysis.group(name)
        if isinstance(amount, tuple):
            keep[group.id] = amount
            continue
        count = amount if type(amount) is int else max(1, round(amount * group.size))
        if count > group.size:
            raise GraphError(f"group {name!r} has {group.size} units, the plan keeps {count}", where=name)
        keep[group.id] = count
    return keep


def _betas(graph: ModelGraph, node: SliceNode) -> dict[str, float] | None:
    """Beta of each group that a threshold decides on; None for other choices."""
    if node.select != "threshold":
        return None
    star = node.keep.get("*")
    found = dict.fromkeys(uniform_counts(graph, star), star) if isinstance(star, float) else {}
    named = {name: amount for name, amount in node.keep.items() if name != "*"}
    return found | {
        graph.analysis.group(name).id: amount for name, amount in named.items() if isinstance(amount, float)
    }
