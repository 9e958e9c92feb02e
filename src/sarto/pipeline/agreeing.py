"""Which chains of an order are built: those that still behave most like the donors that their classifiers come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sarto.engines.reassembly import Likeness, likeness
from sarto.errors import GraphError, RequestError, ShapeError
from sarto.pipeline.builder import Builder
from sarto.pipeline.choose import Plans
from sarto.pipeline.progress import Progress, silent
from sarto.pipeline.reassembling import BUILT
from sarto.types import ChainNode, HeadNode, Plan, SliceNode, SourceNode

#: What keeps a single chain from being built, and no other.
_REFUSED = (GraphError, RequestError, ShapeError)


@dataclass(frozen=True)
class Chosen:
    """The chains of an order that are built.

    Attributes:
        plans: with what was found out about each, in words: those under a donor's own classifier, those under a new
            head, then a slice of one, of which nothing is said.
        drawn: a chain that was drawn at random and is none of them; None where there is none.
        left_out: which can't be built, and why.
    """

    plans: tuple[tuple[Plan, str], ...] = ()
    drawn: Plan | None = None
    left_out: tuple[str, ...] = ()

    @property
    def told(self) -> dict[str, str]:
        """Key of a plan -> what was found out about its chain."""
        return {plan.key(): told for plan, told in self.plans}

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "plans": [{"plan": plan.model_dump(mode="json"), "told": told} for plan, told in self.plans],
            "drawn": self.drawn.model_dump(mode="json") if self.drawn is not None else None,
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Chosen:
        """What `to_plain` wrote."""
        return cls(
            tuple((Plan.parse(item["plan"]), item["told"]) for item in data["plans"]),
            Plan.parse(data["drawn"]) if data["drawn"] is not None else None,
            tuple(data["left_out"]),
        )


def choose_chains(builder: Builder, plans: Plans, progress: Progress = silent) -> Chosen:
    """The whole chains of an order that diverge least from their last donors, of each kind so many as are built.

    Every whole chain that is listed is stitched and asked on the probe images of its stitches, labels unread. One that
    can't be made is left out and told, and the next one takes its place. What is built for this, the builder keeps.

    Reference:
        The first step of `sarto.engines.reassembly.cascade`; its second, a head with one of each class left out,
        follows when the chosen ones are scored.
    """
    return _Choosing(builder, plans, progress).chosen()


@dataclass(eq=False)
class _Choosing:
    """The choice of one order's chains.

    Attributes:
        likenesses: key of a chain -> how much it is like its last donor.
        failed: keys of chains that can't be made.
        left_out: what is told of those that can't be built.
    """

    builder: Builder
    plans: Plans
    progress: Progress
    likenesses: dict[str, Likeness] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)

    def chosen(self) -> Chosen:
        slices = [plan for plan in self.plans.chains if _sliced(plan)]
        whole = [plan for plan in self.plans.chains if not _sliced(plan)]
        kinds = ([p for p in whole if _own_classifier(p)], [p for p in whole if not _own_classifier(p)])
        self._ask(kinds, (*self.plans.drawn, *slices))
        found: list[tuple[Plan, str]] = []
        for kind in kinds:
            ranked = self._ranked(kind)
            for plan in self._made(ranked, BUILT):
                told = self._told(plan, ranked.index(plan) + 1, len(ranked), kind.index(plan) + 1)
                found.append((plan, told))
        found += [(plan, "") for plan in self._made(slices, 1)]
        taken = {plan.key() for plan, _ in found}
        others = [plan for plan in self.plans.drawn if plan.key() not in taken]
        drawn = next(self._made(others, 1), None)
        return Chosen(tuple(found), drawn, tuple(dict.fromkeys(self.left_out)))

    def _ask(self, kinds: Sequence[Sequence[Plan]], needed: Sequence[Plan]) -> None:
        """Ask the chain of every plan once; those that can't be among the built ones are let go of."""
        every = {_chain(plan)[1]: plan for kind in kinds for plan in kind}
        kept = {_chain(plan)[1] for plan in needed}
        for place, (key, plan) in enumerate(every.items()):
            self.progress(
                "stitching chains of blocks, to see how they agree with their donors", place, len(every)
            )
            try:
                self.likenesses[key] = _likeness(self.builder, plan)
            except _REFUSED as error:
                self._refuse(plan, error)
                self.builder.forget(key)
            best = {_chain(plan)[1] for kind in kinds for plan in self._ranked(kind)[:BUILT]}
            for other in self.likenesses.keys() - best - kept:
                self.builder.forget(other)

    def _ranked(self, kind: Sequence[Plan]) -> list[Plan]:
        """Those that were asked, the least divergence first; of equals the one listed first."""
        asked = [plan for plan in kind if _chain(plan)[1] in self.likenesses]
        return sorted(asked, key=lambda plan: self.likenesses[_chain(plan)[1]].divergence)

    def _made(self, plans: Sequence[Plan], n: int) -> Iterator[Plan]:
        """The first n plans that can be built."""
        for plan in plans:
            if n == 0:
                return
            if _chain(plan)[1] in self.failed:
                continue
            self.progress(f"building {plan.note}", 0, 1)
            try:
                self.builder.build(plan)
            except _REFUSED as error:
                self._refuse(plan, error)
                continue
            n -= 1
            yield plan

    def _refuse(self, plan: Plan, error: GraphError | RequestError | ShapeError) -> None:
        _, key, node = _chain(plan)
        name = plan.note.partition("; ")[0]
        if key not in self.likenesses:
            # No head helps where the chain itself can't be made.
            self.failed.add(key)
            name = f"chain {' -> '.join(self._name(plan, of) for of in node.of)}"
        self.left_out.append(f"{name} is not built: {error.detail}")

    def _name(self, plan: Plan, of: str) -> str:
        """Name of a model that a chain reads; of one that is no whole donor, its name in the plan."""
        node = plan.nodes[of]
        return self.builder.store.get(node.of).name if isinstance(node, SourceNode) else of

    def _told(self, plan: Plan, rank: int, n: int, listed: int) -> str:
        _, key, node = _chain(plan)
        found, tail = self.likenesses[key], self._name(plan, node.of[-1])
        return (
            f"agrees with {tail} on {found.agreement:.0%} of {len(self.builder.images(node.samples))} probe images; of "
            f"{n} chains number {rank} by divergence from it ({found.divergence:.2g}), number {listed} as listed by "
            "additive value"
        )


def _sliced(plan: Plan) -> bool:
    return any(isinstance(node, SliceNode) for node in plan.nodes.values())


def _own_classifier(plan: Plan) -> bool:
    return any(isinstance(node, HeadNode) and node.kind == "restrict" for node in plan.nodes.values())


def _likeness(builder: Builder, plan: Plan) -> Likeness:
    """How much the chain of a plan is like its last donor on the probe images.

    Raises:
        GraphError, RequestError, ShapeError: it can't be made, or gives numbers that are none.
    """
    name, _, node = _chain(plan)
    probes = builder.images(node.samples)
    made, wanted = (builder.features(plan, of, probes) for of in (name, node.of[-1]))
    found = likeness(made, wanted)
    if not math.isfinite(found.divergence):
        raise GraphError("it or its last donor gives NaN or infinity for the probe images")
    return found


def _chain(plan: Plan) -> tuple[str, str, ChainNode]:
    """Name, key and node of the chain in a plan."""
    for name, node in plan.nodes.items():
        if isinstance(node, ChainNode):
            return name, plan.subkeys()[name], node
    raise RequestError("the plan has no chain of blocks")
