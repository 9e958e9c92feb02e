"""The chains of blocks that the indexed zoos of a market offer for an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sarto.devices import count
from sarto.engines.reassembly import (
    Assembler,
    Donor,
    Entry,
    Making,
    Partition,
    Piece,
    Wish,
    Zoo,
    best_chains,
    layout,
    tidy,
    with_r2,
)
from sarto.errors import GraphError, InfeasibleError, RequestError
from sarto.graph import block, features, restrict
from sarto.market import Store
from sarto.market.indices import ProbeIndex
from sarto.pipeline.indexed_zoo import parting_of, zoo_of
from sarto.pipeline.indexing import indices
from sarto.types import (
    BlockNode,
    Budget,
    ChainNode,
    Cost,
    HeadNode,
    Learnware,
    Plan,
    PlanNode,
    Preprocessing,
    SourceNode,
    Stitching,
)

ENGINE = "reassembly"
#: Chains that are proposed.
PROPOSED = 6
#: Zoos of at most so many models are also judged by directed stitch errors, not by CKA alone.
DIRECTED_UP_TO = 40
#: What donors have that are only counted.
_NO_INPUTS = Tensor()


@dataclass(frozen=True, eq=False)
class Wanted:
    """What an order asks of chains: its classes, the samples that heads are fitted on, and its budget."""

    classes: tuple[str, ...]
    samples_digest: str
    wish: Wish
    ids: tuple[str, ...] | None = None
    seed: int = 0


def propose_chains(store: Store, wanted: Wanted, n: int = PROPOSED) -> list[Plan]:
    """Plans of the best chains of at least two donors that each index of the market offers, best first.

    Chains end in the own classifier of a donor that knows all the classes, or in a ridge head on the features of the
    last donor, fitted on the order's samples. Reads shapes and signatures, no weights.
    """
    found: list[Plan] = []
    for name in indices(store).names():
        index = indices(store).get(name)
        try:
            zoo, learnwares = zoo_of(store, index, wanted.classes, wanted.ids)
            parting = parting_of(zoo, seed=wanted.seed)
            if len(zoo.entries) <= DIRECTED_UP_TO:
                zoo = with_r2(zoo, parting, _features(index))
            for own in (True, False):
                found += _chains(zoo, learnwares, parting, index, wanted, n, own=own)
        except (RequestError, InfeasibleError):
            # This index has nothing for the order; other engines may.
            continue
    return found


@dataclass(frozen=True, eq=False)
class Chains:
    """The indexed zoos of a market, as orders ask them."""

    store: Store

    def plans(
        self, classes: Sequence[str], samples_digest: str, budget: Budget, input_shape: Sequence[int]
    ) -> list[Plan]:
        """Plans for classes under a budget, of donors that read images of one shape; none without an index."""
        if not indices(self.store).names():
            return []
        ids = tuple(
            item.id
            for item in self.store.learnwares()
            if isinstance(item.preprocessing, Preprocessing) and item.input_shape == tuple(input_shape)
        )
        # Milliseconds are predicted for whole plans; here they are no limit.
        summed = budget.replace(latency_ms=None)
        return propose_chains(self.store, Wanted(tuple(classes), samples_digest, Wish(budget=summed), ids))


def _chains(
    zoo: Zoo,
    learnwares: Sequence[Learnware],
    parting: Partition,
    index: ProbeIndex,
    wanted: Wanted,
    n: int,
    *,
    own: bool,
) -> list[Plan]:
    pairs = zip(zoo.entries, learnwares, strict=True)
    kept = replace(
        zoo, entries=tuple(_with_tail(entry, held, wanted.classes, own=own) for entry, held in pairs)
    )
    wish = replace(
        wanted.wish, sides=replace(wanted.wish.sides, least_donors=max(2, wanted.wish.sides.least_donors))
    )
    try:
        found = layout(kept, parting, wish)
        choices = best_chains(found.problem, n).choices
    except InfeasibleError:
        return []
    donors = [Donor(e.key, e.graph, e.anatomy, _NO_INPUTS) for e in kept.entries if e.graph is not None]
    maker = Assembler(donors, Making(wish.fit, fold=wish.fold))
    plans = []
    for choice in choices:
        pieces = tidy(found.chain(choice.path))
        try:
            plans.append(_plan(maker, pieces, learnwares, index, wanted, own=own))
        except GraphError:
            continue
    return plans


def _features(index: ProbeIndex) -> dict[int, NDArray[np.float32]]:
    """Pooled features of every place of an index, by its row; memory-mapped."""
    found: dict[int, NDArray[np.float32]] = {}
    for model in index.models():
        found |= {model.first_row + i: values for i, values in enumerate(index.features(model))}
    return found


def _with_tail(entry: Entry, held: Learnware, classes: Sequence[str], *, own: bool) -> Entry:
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
        cost, note = count(restrict(sketch, rows)), f"{told}, classifier of {tail.name}"
    else:
        nodes["features"] = BlockNode(of="chain")
        nodes["head"] = HeadNode(
            of="features", kind="ridge", classes=wanted.classes, samples=wanted.samples_digest
        )
        below = features(sketch)
        cost = _with_head(count(block(sketch, end=below.value)), below.width, len(wanted.classes))
        note = f"{told}, new head"
    return Plan(
        nodes=nodes,
        out="head",
        predicted=cost.replace(basis="predicted"),
        engine=ENGINE,
        note=f"chain {note}",
    )


def _with_head(cost: Cost, width: int, n_classes: int) -> Cost:
    head = n_classes * (width + 1)
    return cost.replace(
        params=cost.params + head,
        flops=cost.flops + 2 * n_classes * width,
        size_bytes=cost.size_bytes + 4 * head,
        memory_bytes=max(cost.memory_bytes, 4 * (width + n_classes)),
    )
