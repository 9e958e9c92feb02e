"""Indexed zoos of a market, the chains of blocks that they offer for an order, and how such a chain is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sarto.devices import count
from sarto.engines.reassembly import (
    Anatomy,
    Assembler,
    Donor,
    Entry,
    Fit,
    Limits,
    Making,
    Partition,
    Piece,
    Place,
    Sketcher,
    Wish,
    Zoo,
    anatomy,
    best_chains,
    choose_k,
    dissect,
    layout,
    probe,
    tidy,
    with_r2,
)
from sarto.engines.reassembly.signatures import BATCH, SKETCH, signature_length
from sarto.errors import GraphError, InfeasibleError, RequestError, ShapeError, StoreError
from sarto.graph import ModelGraph, block, features, normalise, restrict
from sarto.market import Intake, Labelled, Samples, Store
from sarto.market.indices import Indices, ProbeIndex
from sarto.pipeline.intakes import intake_of
from sarto.pipeline.progress import Progress, silent
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
from sarto.types.reassembly import IndexedModel, PlaceRecord, ProbeIndexAbout

#: Folder of the indices in a market's folder.
FOLDER = "indices"
ENGINE = "reassembly"
#: Probe images of an index that names no number.
N_PROBES = 256
#: Blocks that models are parted into where nobody says how many, and chains that are proposed.
BLOCKS, PROPOSED = 4, 6
#: From so many cut points on, a zoo is dissected by sketches instead of whole signatures.
SKETCHED_FROM = 4_000
#: Zoos of at most so many models are also judged by directed stitch errors, not by CKA alone.
DIRECTED_UP_TO = 40
#: Share of its model's parameters, in units of an equal share, that a block may have more.
SLACK = 0.8


@dataclass(frozen=True)
class Indexing:
    """What an indexing did.

    Attributes:
        added: names of the models that were added.
        known: those that were there already, or a copy of them.
        skipped: those that can't be indexed, and why.
    """

    added: tuple[str, ...]
    known: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def indices(store: Store) -> Indices:
    """The indexed zoos of a market."""
    return Indices(store.path / FOLDER)


def index_zoo(
    store: Store,
    name: str,
    which: Sequence[str] = (),
    *,
    probes: Samples | None = None,
    n_probes: int = N_PROBES,
    batch: int = BATCH,
    cells: int = 1,
    progress: Progress = silent,
) -> Indexing:
    """Make an index, or add to it what it misses; interrupted, it goes on where it was.

    Args:
        name: of the index.
        which: learnwares; none: all that read images.
        probes: unlabelled images; None: those of the index, or of a new one a draw from what learnwares came with.
        n_probes: of a new index without images of its own.
        batch: images in one Gram matrix; see `sarto.engines.reassembly.signature`.

    Raises:
        RequestError: too few probe images (says how many are needed), or no learnware can be indexed.
        StoreError: the index was made with other probe images, or can't be written.
    """
    learnwares = [store.get(item) for item in which] if which else list(store.learnwares())
    images = [item for item in learnwares if isinstance(item.preprocessing, Preprocessing)]
    found = indices(store)
    if name in found.names():
        index = found.get(name)
        if probes is not None and probes.digest != index.about.probe_hash:
            raise StoreError(
                f"index {name!r} was made with other probe images; similarities between them mean nothing: leave the "
                "images out, or give the new index another name",
                where=name,
            )
        held = index.probes()
    else:
        held = probes if probes is not None else _drawn(store, images, n_probes)
        _check_probes(held, batch)
        index = found.create(_about(name, held, batch, cells), held)
    known = {(m.graph_hash, m.weights_hash) for m in index.models()}
    added, there, skipped = list[str](), list[str](), list[tuple[str, str]]()
    skipped += [
        (item.name, "it reads texts; zoos are indexed with images")
        for item in learnwares
        if item not in images
    ]
    for place, item in enumerate(images):
        progress(f"indexing {item.name}", place, len(images))
        if (item.graph_hash, item.weights_hash) in known:
            there.append(item.name)
            continue
        try:
            _enter(store, index, item, held)
        except (GraphError, RequestError, ShapeError) as error:
            skipped.append((item.name, str(error)))
            continue
        added.append(item.name)
        known.add((item.graph_hash, item.weights_hash))
    progress("indexing", len(images), len(images))
    if not added and not there:
        told = (
            "; ".join(f"{item}: {why}" for item, why in skipped)
            or "the market holds no learnware that reads images"
        )
        raise RequestError(f"nothing was indexed: {told}")
    return Indexing(tuple(added), tuple(there), tuple(skipped))


def zoo_of(
    store: Store, index: ProbeIndex, classes: Sequence[str] = (), only: Sequence[str] | None = None
) -> tuple[Zoo, tuple[Learnware, ...]]:
    """The zoo of an index as the solver sees it, and the learnware of each entry.

    A donor that was removed from the market is left out; so is one whose file is another now.

    Args:
        classes: a model's own classifier may end a chain where it knows all of these.
        only: ids of the learnwares that may be used; None: all.

    Raises:
        RequestError: fewer than two models are left.
    """
    by_hash = {(item.graph_hash, item.weights_hash): item for item in reversed(store.learnwares())}
    models = index.models()
    rows = sum(len(model.places) for model in models)
    vectors = np.asarray(index.signatures() if rows < SKETCHED_FROM else index.sketches())
    entries, learnwares = list[Entry](), list[Learnware]()
    for model in models:
        held = by_hash.get((model.graph_hash, model.weights_hash))
        if held is None or (only is not None and held.id not in only):
            continue
        table = anatomy_of(model)
        numbers = np.arange(model.first_row, model.first_row + len(model.places))
        entries.append(
            Entry(
                held.id,
                table,
                numbers,
                model.skill or 0.0,
                ready_graph(store, held),
                set(classes) <= set(held.classes),
            )
        )
        learnwares.append(held)
    if len(entries) < 2:
        gone = len(models) - len(entries)
        raise RequestError(
            f"index {index.name!r} has {len(entries)} models that can be used"
            + (f" ({gone} were removed from the market, or read something else)" if gone else "")
            + ": a reassembly needs two; index more with sarto zoo index"
        )
    return Zoo(tuple(entries), vectors), tuple(learnwares)


def anatomy_of(model: IndexedModel) -> Anatomy:
    """The places and costs that an index wrote down."""
    places = tuple(
        Place(p.value, p.layout, p.channels, (p.rows, p.columns), p.prefix, p.channels_last, p.dtype)
        for p in model.places
    )
    return Anatomy(places, model.params, model.flops, model.peaks, model.sizes)


def ready_graph(store: Store, learnware: Learnware) -> ModelGraph:
    """A donor as it reads images in [0, 1]."""
    said = learnware.preprocessing
    if not isinstance(said, Preprocessing):
        raise RequestError(f"{learnware.name!r} reads texts; blocks are taken from models that read images")
    return normalise(store.graph(learnware.id), said.mean, said.std)


def parting_of(zoo: Zoo, k: int | None = None, *, slack: float | None = SLACK, seed: int = 0) -> Partition:
    """The joint dissection of a zoo: into k blocks, or as many of `BLOCKS` as all models have cut points for.

    Raises:
        InfeasibleError: k blocks are too many for a model.
    """
    if k is not None:
        return dissect(zoo, Limits(k, slack), seed=seed)
    for tried in range(BLOCKS, 1, -1):
        try:
            return dissect(zoo, Limits(tried, slack), seed=seed)
        except InfeasibleError:
            continue
    raise InfeasibleError("no model of this zoo can be parted into two blocks: none has two cut points")


def steadiest_blocks(
    store: Store, index: ProbeIndex, ks: Sequence[int] = (2, 3, 4, 5, 6), *, seed: int = 0
) -> int:
    """The number of blocks whose dissection changes least with the probe images.

    Raises:
        RequestError: the index has fewer than two batches of probe images, or fewer than two models are left.
    """
    zoo, _ = zoo_of(store, index)
    size = index.about.batch * (index.about.batch - 1) // 2
    cuts = replace(zoo.cuts(), vectors=np.asarray(index.signatures()))
    return choose_k(cuts, Limits(2, SLACK), ks, size=size, seed=seed)[0]


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


_NO_INPUTS = Tensor()


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


def chain_graph(donors: Sequence[tuple[str, ModelGraph]], node: ChainNode, inputs: Tensor) -> ModelGraph:
    """The model of a chain node.

    Args:
        donors: key and graph of each model that the node reads, all on one input.
        inputs: the probe images as all of them read them.

    Raises:
        GraphError: a joint names a value that is no cut point of its donor.
    """
    keys = list(dict.fromkeys(key for key, _ in donors))
    graphs = dict(donors)
    made = [Donor(key, graphs[key], anatomy(graphs[key]), inputs) for key in keys]
    pieces, start = list[Piece](), None
    for i, (key, _) in enumerate(donors):
        place = keys.index(key)
        end = _number(made[place], node.joints[i][0]) if i < len(node.joints) else None
        pieces.append(Piece(place, start, end))
        if i < len(node.joints):
            start = _number(made[keys.index(donors[i + 1][0])], node.joints[i][1])
    said = node.stitch
    making = Making(
        Fit(said.lam, said.rank, said.bias, said.kernel, said.match),
        sequential=said.sequential,
        random=said.random,
    )
    return Assembler(made, making).graph(pieces, keep_cuts=True)


def probes_of(store: Store, digest: str) -> Labelled | None:
    """The probe images of an index by their hash; None where no index has them."""
    for name in indices(store).names():
        index = indices(store).get(name)
        if index.about.probe_hash == digest:
            return index.probes()
    return None


def chain_parts(
    graph: ModelGraph, donors: Sequence[Learnware], n_joints: int
) -> list[tuple[str, str | None, int]]:
    """(name, learnware id, parameters) of each block and stitch of a built chain, in order; then of what is left."""
    sizes: dict[str, int] = {}
    for name in graph.parameters:
        sizes[name.partition(".")[0]] = sizes.get(name.partition(".")[0], 0) + graph.tensors[name].numel()
    parts: list[tuple[str, str | None, int]] = []
    for i, donor in enumerate(donors):
        if i and sizes.get(f"s{i}"):
            parts.append((f"stitch {i}", None, sizes[f"s{i}"]))
        parts.append((f"{donor.name}: block {i + 1} of {n_joints + 1}", donor.id, sizes.get(f"b{i}", 0)))
    rest = sum(size for prefix, size in sizes.items() if not _is_part(prefix))
    return [*parts, ("head", None, rest)] if rest else parts


def _is_part(prefix: str) -> bool:
    return prefix[:1] in ("b", "s") and prefix[1:].isdigit()


@dataclass(frozen=True)
class MappedModel:
    """A model of a map: its places, the set of each piece between them (-1: none), and where blocks begin and end."""

    name: str
    places: tuple[str, ...]
    params: tuple[int, ...]
    sets: tuple[int, ...]
    bounds: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ZooMap:
    """Which parts of a zoo are interchangeable.

    Attributes:
        mean_similarity: of a block to its set, between -2 and 2.
        widened: models that can't keep the size limit, and the slack that each was given.
        cka: between all places of all models, in their order.
    """

    index: str
    k: int
    mean_similarity: float
    widened: tuple[tuple[str, float], ...]
    models: tuple[MappedModel, ...]
    cka: tuple[tuple[float, ...], ...]


def similarity_map(store: Store, index: ProbeIndex, k: int | None = None) -> ZooMap:
    """The dissection of an index and the CKA between all its places.

    Raises:
        RequestError: fewer than two models are left.
        InfeasibleError: k blocks are too many for a model.
    """
    zoo, learnwares = zoo_of(store, index)
    parting = parting_of(zoo, k)
    chosen = np.asarray(zoo.vectors[np.concatenate([entry.rows for entry in zoo.entries])])
    models = tuple(
        MappedModel(
            learnware.name,
            tuple(place.value for place in entry.anatomy.places),
            entry.anatomy.params,
            tuple(parting.pieces(i, len(entry.anatomy.places)).tolist()),
            tuple((int(a), int(b)) for a, b in parting.bounds[i]),
        )
        for i, (entry, learnware) in enumerate(zip(zoo.entries, learnwares, strict=True))
    )
    return ZooMap(
        index.name,
        parting.k,
        parting.value / (len(models) * parting.k),
        tuple((learnwares[i].name, slack) for i, slack in parting.fixed),
        models,
        tuple(tuple(row) for row in np.round(chosen @ chosen.T, 4).tolist()),
    )


def _number(donor: Donor, value: str) -> int:
    found = donor.anatomy.number.get(value)
    if found is None:
        raise GraphError(
            f"{value!r} is no cut point where a stitch can stand; sarto inspect lists them", where=value
        )
    return found


def _enter(store: Store, index: ProbeIndex, item: Learnware, held: Samples) -> None:
    graph = ready_graph(store, item)
    table = anatomy(graph)
    intake: Intake = intake_of(store, item)
    found = probe(graph, table, intake.tensor(held), batch=index.about.batch, cells=index.about.cells)
    sketches = Sketcher(index.about.length, index.about.sketch)(found.signatures)
    skill = sum(item.skill.values()) / len(item.skill) if item.skill else None
    model = IndexedModel(
        learnware=item.id,
        name=item.name,
        graph_hash=item.graph_hash,
        weights_hash=item.weights_hash,
        places=tuple(
            PlaceRecord(
                value=p.value,
                layout=p.layout,
                channels=p.channels,
                rows=p.grid[0],
                columns=p.grid[1],
                prefix=p.prefix,
                channels_last=p.channels_last,
                dtype=p.dtype,
            )
            for p in table.places
        ),
        params=table.params,
        flops=table.flops,
        sizes=table.sizes,
        peaks=table.peaks,
        first_row=0,
        first_number=0,
        digest=item.graph_hash,
        skill=skill,
        licence=item.licence,
    )
    index.add(model, found.signatures, sketches, found.features, held.digest)


def _about(name: str, held: Samples, batch: int, cells: int) -> ProbeIndexAbout:
    length = signature_length(len(held), batch)
    return ProbeIndexAbout(
        name=name,
        probe_hash=held.digest,
        n_probes=len(held),
        batch=batch,
        cells=cells,
        length=length,
        sketch=min(SKETCH, length),
    )


def _check_probes(held: Samples, batch: int) -> None:
    if len(held) < batch:
        raise RequestError(
            f"an index with batches of {batch} needs at least {batch} probe images, got {len(held)}: give more with "
            "--probes, or smaller batches with --batch"
        )


def _drawn(store: Store, learnwares: Sequence[Learnware], n: int) -> Samples:
    """Images that learnwares came with, without their labels: the most common size, spread over the learnwares.

    Raises:
        RequestError: no learnware came with images.
    """
    parts: list[Samples] = []
    for item in learnwares:
        if item.samples_hash is not None:
            found = store.samples(item.id)
            if isinstance(found, Samples):
                parts.append(found)
    if not parts:
        raise RequestError("no learnware came with images; give the probe images with --probes")
    shapes = [part.images.shape[1:] for part in parts]
    common = max(set(shapes), key=lambda shape: (shapes.count(shape), shape))
    images = np.concatenate([part.images for part in parts if part.images.shape[1:] == common])
    images = np.unique(images.reshape(len(images), -1), axis=0).reshape(-1, *common)
    order = np.random.default_rng(0).permutation(len(images))[:n]
    return Samples(images[np.sort(order)], np.zeros(len(order), np.int64), ("probe",))
