"""The chains of blocks that the indexed zoos of a market offer for an order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sarto.devices import count
from sarto.devices.profiling import Predictor
from sarto.engines.reassembly import (
    Assembler,
    Choice,
    Donor,
    Entry,
    Layout,
    Making,
    Partition,
    Piece,
    Sides,
    Wish,
    Zoo,
    best_by_milp,
    best_chains,
    conflict,
    layout,
    random_chains,
    tidy,
    with_r2,
)
from sarto.errors import GraphError, InfeasibleError, RequestError
from sarto.graph import ModelGraph, block, features, restrict
from sarto.market import Store
from sarto.market.indices import ProbeIndex
from sarto.pipeline.chain_slices import sliced_chains
from sarto.pipeline.donor_rules import meant, why_not
from sarto.pipeline.indexed_zoo import Usable, told_guess, usable
from sarto.pipeline.indexing import indices
from sarto.pipeline.predicting import PlanPredictor
from sarto.types import (
    BlockNode,
    Budget,
    ChainNode,
    Cost,
    DonorRules,
    HeadNode,
    Learnware,
    Parting,
    Plan,
    PlanNode,
    Preprocessing,
    SourceNode,
    Stitching,
)
from sarto.types.profile import DeviceProfile

ENGINE = "reassembly"
#: Name of the distilled student among an order's baselines.
STUDENT = "student"
#: Whole chains that each index proposes under a donor's own classifier, and as many under a new head.
PROPOSED = 12
#: Of those under a donor's own classifier, and of those under a new head, so many are built.
BUILT = 2
#: Chains that are drawn at random until some are enough for one to be none of those built.
DRAWN = 16
#: In the note of a plan whose search looked at as many partial chains as it may before its list was complete.
CUT_OFF = "search cut off"
#: Zoos of at most so many models are also judged by directed stitch errors, not by CKA alone.
DIRECTED_UP_TO = 40
#: Into what blocks models are parted where nobody says.
ALIKE = Parting()
#: What donors have that are only counted.
_NO_INPUTS = Tensor()


@dataclass(frozen=True, eq=False)
class Wanted:
    """What an order asks of chains: its classes, the samples that heads are fitted on, its budget and its donors.

    Attributes:
        donor_samples: learnware id -> digest of the samples that its slices are fitted on; of others, the order's.
        timing: of a profiled device; None: milliseconds are not predicted, and are no limit here.
        parting: into what blocks the models are parted.
    """

    classes: tuple[str, ...]
    samples_digest: str
    wish: Wish
    ids: tuple[str, ...] | None = None
    seed: int = 0
    rules: DonorRules = field(default_factory=DonorRules)
    timing: PlanPredictor | None = None
    donor_samples: Mapping[str, str] = field(default_factory=dict)
    parting: Parting = ALIKE


@dataclass(frozen=True)
class Offered:
    """The chains that the indices of a market have for an order.

    Attributes:
        plans: best first for each index: those under a donor's own classifier, slices of the best of all of these,
            then those under a new head.
        drawn: chains drawn at random out of all that keep the order's limits, for the control of choosing.
        why_not: for each index that offers no whole chain, in words, with its notes.
        notes: what was taken for granted of the models of the other indices, which were left out, and whether models
            were parted into fewer blocks for want of cut points.
        has_index: whether there was an index to look in.
    """

    plans: tuple[Plan, ...] = ()
    drawn: tuple[Plan, ...] = ()
    why_not: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    has_index: bool = True


def propose_chains(store: Store, wanted: Wanted, n: int = PROPOSED) -> Offered:
    """The best chains of at least two donors that each index of the market offers.

    Chains end in the own classifier of a donor that knows all the classes, or in a ridge head on the features of the
    last donor, fitted on the order's samples. Reads shapes and signatures, no weights.
    """
    plans, drawn, refused, noted = list[Plan](), list[Plan](), list[str](), list[str]()
    for name in indices(store).names():
        index = indices(store).get(name)
        here, reasons, whole, notes = list[Plan](), list[str](), 0, tuple[str, ...]()
        try:
            found = usable(store, index, wanted.classes, wanted.ids)
            zoo, learnwares, notes = found.zoo, found.learnwares, found.notes
            told = replace(wanted, wish=replace(wanted.wish, sides=_sides(found, wanted, store)))
            parting, notes = found.parted_as(wanted.parting, index, wanted.seed)
            if len(zoo.entries) <= DIRECTED_UP_TO:
                zoo = with_r2(zoo, parting, features_of(index))
            if wanted.timing is not None and wanted.wish.budget.latency_ms is not None:
                timed = (with_latency(entry, wanted.timing.profile) for entry in zoo.entries)
                zoo = replace(zoo, entries=tuple(timed))
            for own in (True, False):
                offer = _Offer(zoo, learnwares, parting, index, told, own, found.guessed)
                sliced = offer.sliced() if own else []
                try:
                    best = offer.best(n)
                    here, whole = here + best, whole + len(best)
                    drawn += offer.drawn()
                except InfeasibleError as error:
                    head = "a donor's own classifier" if own else "a new head"
                    reasons.append(f"under {head}: {error}")
                here += sliced
        except (RequestError, InfeasibleError) as error:
            reasons.append(str(error))
        plans += here
        if not whole:
            refused += [f"index {name}: {reason}" for reason in dict.fromkeys([*reasons, *notes])]
        else:
            noted += [f"index {name}: {note}" for note in notes]
    return Offered(tuple(plans), tuple(drawn), tuple(refused), tuple(noted))


@dataclass(frozen=True, eq=False)
class Chains:
    """The indexed zoos of a market, as orders ask them."""

    store: Store

    def offered(
        self,
        classes: Sequence[str],
        samples_digest: str,
        budget: Budget,
        input_shape: Sequence[int],
        rules: DonorRules,
        seed: int = 0,
        timing: PlanPredictor | None = None,
        donor_samples: Mapping[str, str] | None = None,
        only: Collection[str] | None = None,
        parting: Parting = ALIKE,
    ) -> Offered:
        """Chains for classes under a budget, of donors that read images of one shape; none without an index.

        Args:
            only: ids of the learnwares that may be used, whatever images they read; None: all that read this shape.
            timing: of a profiled device: blocks are chosen by its milliseconds too, and plans say what they should
                take.
        """
        if not indices(self.store).names():
            return Offered(
                why_not=("the market has no index; make one with sarto zoo index",), has_index=False
            )
        ids = tuple(
            item.id
            for item in self.store.learnwares()
            if isinstance(item.preprocessing, Preprocessing)
            and (item.input_shape == tuple(input_shape) if only is None else item.id in only)
        )
        wish = Wish(budget=budget if timing is not None else budget.replace(latency_ms=None))
        wanted = Wanted(
            tuple(classes), samples_digest, wish, ids, seed, rules, timing, dict(donor_samples or {}), parting
        )
        return propose_chains(self.store, wanted)


def _sides(found: Usable, wanted: Wanted, store: Store) -> Sides:
    """An order's rules about donors, by the number of each in a zoo; a chain has at least two.

    Raises:
        InfeasibleError: donors that must be used are not in the zoo; names each.
    """
    rules, learnwares = wanted.rules, found.learnwares
    there = {*(item.name for item in learnwares), *(item.id for item in learnwares)}
    files = {(item.graph_hash, item.weights_hash): item.name for item in learnwares}
    missing, told = list[str](), list[str]()
    for name in rules.must:
        if name in there:
            continue
        asked = meant(store.learnwares(), (name,))
        copied = [item for item in asked if (item.graph_hash, item.weights_hash) in files]
        out = {**found.left_out, **found.absent}
        low = [item for item in asked if item.name in out]
        if copied:
            same = files[copied[0].graph_hash, copied[0].weights_hash]
            told.append(f"{name} must be used, but is a copy of {same}, which is indexed: name that one")
        elif low:
            told.append(f"{name} must be used, but {out[low[0].name]}")
        else:
            missing.append(name)
    if missing:
        told.append(
            f"{', '.join(missing)} must be used, but is not among its models that can be: index it with sarto zoo index"
        )
    if told:
        raise InfeasibleError("; ".join(told))
    numbers = {item.id: i for i, item in enumerate(learnwares)}
    return Sides(
        most_donors=rules.most,
        least_donors=max(2, rules.least),
        must=frozenset(numbers[item.id] for item in meant(learnwares, rules.must)),
        avoid=frozenset(numbers[item.id] for item in learnwares if why_not(item, rules) is not None),
    )


@dataclass(frozen=True, eq=False)
class _Offer:
    """What one index has for an order.

    Attributes:
        own: chains under the own classifier of their last donor; else under a new head.
        guessed: name of a donor whose skill nobody measured -> what it is taken to have.
    """

    zoo: Zoo
    learnwares: Sequence[Learnware]
    parting: Partition
    index: ProbeIndex
    wanted: Wanted
    own: bool
    guessed: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def layout(self) -> Layout:
        """The problem, under the heads that are wanted.

        Raises:
            InfeasibleError: no classifier may end the chain.
        """
        pairs = zip(self.zoo.entries, self.learnwares, strict=True)
        entries = tuple(with_tail(entry, held, self.wanted.classes, own=self.own) for entry, held in pairs)
        return layout(replace(self.zoo, entries=entries), self.parting, self.wanted.wish)

    def best(self, n: int) -> list[Plan]:
        """Plans of the best chains; where the search was cut off before there were n, their notes say so.

        Raises:
            InfeasibleError: no chain keeps the limits; says what conflicts. Or the search was cut off before the first.
        """
        problem, differ = self.layout.problem, self.wanted.rules.differ
        try:
            if problem.sides.must or differ > 1:
                found = best_by_milp(problem, n, differ=differ)
            else:
                found = best_chains(problem, n)
        except InfeasibleError as error:
            raise self._told(error) from None
        looked = f"{CUT_OFF} after {found.n_expanded:,} partial chains"
        if not found.choices and not found.exact:
            raise InfeasibleError(
                f"{looked}, before one that keeps every limit came up; whether there is one is not known: raise the "
                "budget, ask less of donors, or index fewer models under another name"
            )
        cut = () if found.exact else (f"{looked}: there may be further chains",)
        return [self._noted(plan, *cut) for plan in self._plans(found.choices)]

    def sliced(self) -> list[Plan]:
        """Slices of the best chain that any budget allows, each of fewer units; none where no classifier may end it.

        The first comes whole too where the budget allows it; where it does not, a slice may still keep the budget. None
        where chains must differ: slices of one chain have the same blocks.
        """
        if self.wanted.rules.differ > 1:
            return []
        wish = self.wanted.wish
        free = replace(self, wanted=replace(self.wanted, wish=replace(wish, budget=Budget())))
        try:
            problem = free.layout.problem
            best = best_by_milp(problem, 1) if problem.sides.must else best_chains(problem, 1)
        except InfeasibleError:
            return []
        found = list[Plan]()
        for choice in best.choices:
            pieces = tidy(free.layout.chain(choice.path))
            tail = self.learnwares[pieces[-1].donor]
            samples = self.wanted.donor_samples.get(tail.id, self.wanted.samples_digest)
            plan = next(free._plans([choice]), None)
            if plan is None:
                continue
            sketch = self._maker.sketch(pieces)
            for sliced, small, cost in sliced_chains(
                plan, sketch, self.wanted.classes, tail.classes, samples
            ):
                timed = sliced.replace(predicted=_timed(cost, small, self.wanted))
                found.append(self._noted(timed))
        return found

    def drawn(self) -> list[Plan]:
        """Chains drawn at random, one more than are built where chance finds as many."""
        listed = random_chains(self.layout.problem, DRAWN, seed=self.wanted.seed)
        return [self._noted(plan) for plan in islice(self._plans(listed), BUILT + 1)]

    def _told(self, error: InfeasibleError) -> InfeasibleError:
        """The error with the constraints that conflict."""
        names = [item.name for item in self.learnwares]
        clash = conflict(self.layout.problem, names)
        if not clash:
            return error
        told = f"No chain of {self.parting.k} blocks keeps {clash[0]}, whatever else is asked."
        if len(clash) > 1:
            told = f"These can't be kept together, any one fewer can: {', '.join(clash)}."
        return InfeasibleError(
            f"{error.detail.rstrip('.')}. {told}", floor=error.floor, nearest=error.nearest, where=error.where
        )

    @cached_property
    def _maker(self) -> Assembler:
        donors = [
            Donor(e.key, e.graph, e.anatomy, _NO_INPUTS) for e in self.zoo.entries if e.graph is not None
        ]
        wish = self.wanted.wish
        return Assembler(donors, Making(wish.fit, fold=wish.fold))

    def _plans(self, choices: Iterable[Choice]) -> Iterator[Plan]:
        for choice in choices:
            pieces = tidy(self.layout.chain(choice.path))
            try:
                plan = _plan(self._maker, pieces, self.learnwares, self.index, self.wanted, own=self.own)
            except GraphError:
                continue
            yield plan

    def _noted(self, plan: Plan, *more: str) -> Plan:
        """The plan with what was taken for granted of its donors in its note, and more."""
        used = [item.name for item in self.learnwares if item.id in plan.learnwares]
        told = [
            f"skill of {name} unknown, {told_guess(self.guessed[name])}"
            for name in used
            if name in self.guessed
        ]
        return plan.replace(note="; ".join([plan.note, *told, *more]))


def features_of(index: ProbeIndex) -> dict[int, NDArray[np.float32]]:
    """Pooled features of every place of an index, by its row; memory-mapped."""
    found: dict[int, NDArray[np.float32]] = {}
    for model in index.models():
        found |= {model.first_row + i: values for i, values in enumerate(index.features(model))}
    return found


def with_latency(entry: Entry, profile: DeviceProfile) -> Entry:
    """The entry with what a device should take for everything before each place, in milliseconds."""
    if entry.graph is None:
        return entry
    sketch, predictor = entry.graph.sketch(), Predictor(profile)
    fronts = [block(sketch, end=place.value) for place in entry.anatomy.places]
    taken = tuple(predictor.predict(graph).middle for graph in (*fronts, sketch))
    return replace(entry, latency_ms=taken)


def with_tail(entry: Entry, held: Learnware, classes: Sequence[str], *, own: bool) -> Entry:
    """The entry with what its head costs in place of its own: its own rows of the wanted classes, or a new head."""
    if entry.graph is None or (own and not entry.tail):
        return entry
    sketch = entry.graph.sketch()
    whole = count(sketch)
    if own:
        head = count(restrict(sketch, [held.classes.index(cls) for cls in classes]))
    else:
        below = features(sketch)
        head = _with_head(count(block(sketch, end=below.value)), below.width, len(classes))
    added = {
        name: float(getattr(head, name) - getattr(whole, name)) for name in ("params", "flops", "size_bytes")
    }
    return replace(entry, tail=True, head=added)


def _plan(
    maker: Assembler,
    pieces: Sequence[Piece],
    learnwares: Sequence[Learnware],
    index: ProbeIndex,
    wanted: Wanted,
    *,
    own: bool,
) -> Plan:
    nodes: dict[str, PlanNode] = {}
    names = []
    for piece in pieces:
        name = f"donor_{piece.donor}"
        nodes[name] = SourceNode(of=learnwares[piece.donor].id)
        names.append(name)
    joints = tuple(
        (maker.place(before, end=True).value, maker.place(after, end=False).value)
        for before, after in pairwise(pieces)
    )
    fit = maker.making.fit
    stitch = Stitching(lam=fit.lam, rank=fit.rank, bias=fit.bias, kernel=fit.kernel, match=fit.match)
    nodes["chain"] = ChainNode(
        of=tuple(names),
        joints=joints,
        stitch=stitch,
        samples=index.about.probe_hash,
    )
    told = " -> ".join(learnwares[piece.donor].name for piece in pieces)
    sketch = maker.sketch(pieces)
    if own:
        tail = learnwares[pieces[-1].donor]
        nodes["head"] = HeadNode(of="chain", kind="restrict", classes=wanted.classes)
        rows = [tail.classes.index(cls) for cls in wanted.classes]
        whole = restrict(sketch, rows)
        cost, note = count(whole), f"{told}, classifier of {tail.name}"
    else:
        nodes["features"] = BlockNode(of="chain")
        nodes["head"] = HeadNode(
            of="features", kind="ridge", classes=wanted.classes, samples=wanted.samples_digest
        )
        # Its milliseconds are taken to be those of the classifier in its place.
        whole, below = sketch, features(sketch)
        cost = _with_head(count(block(sketch, end=below.value)), below.width, len(wanted.classes))
        note = f"{told}, new head"
    return Plan(
        nodes=nodes,
        out="head",
        predicted=_timed(cost, whole, wanted),
        engine=ENGINE,
        note=f"chain {note}",
    )


def _timed(cost: Cost, sketch: ModelGraph, wanted: Wanted) -> Cost:
    """A counted cost as a prediction, with milliseconds where the order's device has a profile."""
    if wanted.timing is not None:
        cost = wanted.timing.cost(cost, Predictor(wanted.timing.profile).predict(sketch))
    return cost.replace(basis="predicted")


def _with_head(cost: Cost, width: int, n_classes: int) -> Cost:
    head = n_classes * (width + 1)
    return cost.replace(
        params=cost.params + head,
        flops=cost.flops + 2 * n_classes * width,
        size_bytes=cost.size_bytes + 4 * head,
        memory_bytes=max(cost.memory_bytes, 4 * (width + n_classes)),
    )
