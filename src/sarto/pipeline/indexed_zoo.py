"""An indexed zoo as the solver sees it, and its joint dissection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

import numpy as np

from sarto.engines.reassembly import (
    Anatomy,
    Entry,
    Limits,
    Partition,
    Place,
    Zoo,
    choose_k,
    dissect,
)
from sarto.errors import InfeasibleError, RequestError
from sarto.market import Store
from sarto.market.indices import ProbeIndex
from sarto.pipeline.indexing import ready_graph, shallow
from sarto.types import Learnware, Parting
from sarto.types.reassembly import IndexedModel

#: Blocks that models are parted into where nobody says how many.
BLOCKS = 4
#: From so many cut points on, a zoo is dissected by sketches instead of whole signatures.
SKETCHED_FROM = 4_000
#: Share of its model's parameters, in units of an equal share, that a block may have more.
SLACK = 0.8
#: Skill of every model of a zoo in which nobody measured any.
UNKNOWN = 0.5


@dataclass(frozen=True, eq=False)
class Usable:
    """What of an index can be used.

    Attributes:
        zoo: as the solver sees it.
        learnwares: of each entry of the zoo.
        guessed: names of those whose skill nobody measured -> what they are taken to have.
        left_out: names of those that are in the market, but can't be parted into blocks -> why.
        absent: names of those that were indexed, and are not in the market now, or read other images -> why.
    """

    zoo: Zoo
    learnwares: tuple[Learnware, ...]
    guessed: Mapping[str, float]
    left_out: Mapping[str, str]
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is taken for granted of the models, and which are left out, in words."""
        return (
            *(f"{name} is left out: {why}" for name, why in {**self.left_out, **self.absent}.items()),
            *(
                f"{name} came without samples, so its skill is not known: {told_guess(skill)}"
                for name, skill in self.guessed.items()
            ),
        )

    def parted_as(
        self, wanted: Parting, index: ProbeIndex, seed: int = 0
    ) -> tuple[Partition, tuple[str, ...]]:
        """The joint dissection that an order asks for, and all notes; see `parted`.

        Raises:
            RequestError: the steadiest number of blocks is asked of an index with one batch of probe images.
            InfeasibleError: so many blocks are too many for a model.
        """
        if wanted.blocks != "steady":
            return self.parted(wanted.blocks, skip=wanted.skip, seed=seed)
        k = steadiest(self.zoo, index, skip=wanted.skip, seed=seed)
        parting, notes = self.parted(k, skip=wanted.skip, seed=seed)
        told = f"models are parted into {k} blocks: of 2 to 6 so many change least with the probe images"
        return parting, (*notes, told)

    def parted(
        self,
        k: int | None = None,
        *,
        slack: float | None = SLACK,
        skip: float | None = None,
        seed: int = 0,
    ) -> tuple[Partition, tuple[str, ...]]:
        """The joint dissection, see `parting_of`, and all notes: those of the zoo, and why it has fewer blocks.

        Raises:
            InfeasibleError: k blocks are too many for a model; names those that have too few cut points.
        """
        most = {
            held.name: len(entry.anatomy.places) - 1
            for entry, held in zip(self.zoo.entries, self.learnwares, strict=True)
        }
        short = [f"{name} at most {n}" for name, n in most.items() if k is not None and n < k]
        if short and skip is None:
            raise InfeasibleError(
                f"{k} blocks are too many: by their cut points {', '.join(short)}; take {min(most.values())}, or let "
                "models skip sets",
                floor={"k": min(most.values())},
            )
        parting = parting_of(self.zoo, k, slack=slack, skip=skip, seed=seed)
        if k is not None or parting.k >= BLOCKS:
            return parting, self.notes
        counts = {
            held.name: len(entry.anatomy.places)
            for entry, held in zip(self.zoo.entries, self.learnwares, strict=True)
        }
        few = ", ".join(f"{name} has {n}" for name, n in counts.items() if n <= parting.k + 1)
        told = f"models are parted into {parting.k} blocks, not {BLOCKS}, for want of cut points: {few}"
        return parting, (*self.notes, told)


def told_guess(skill: float) -> str:
    """What a model whose skill is not known is taken to have, in words."""
    return f"taken as {skill:.0%} right, the median of its zoo"


def zoo_of(
    store: Store, index: ProbeIndex, classes: Sequence[str] = (), only: Sequence[str] | None = None
) -> tuple[Zoo, tuple[Learnware, ...]]:
    """The zoo of an index as the solver sees it, and the learnware of each entry; see `usable`."""
    found = usable(store, index, classes, only)
    return found.zoo, found.learnwares


def usable(
    store: Store, index: ProbeIndex, classes: Sequence[str] = (), only: Sequence[str] | None = None
) -> Usable:
    """The models of an index that chains may be made of.

    A donor that was removed from the market is left out, and so is one whose file is another now, unless a copy of it
    is there: the first in the market takes its place. A donor that can't be parted into two blocks is left out and
    told. A donor's skill is the mean over the wanted classes that it knows, else over all of its classes; one that came
    without samples is taken to have the median skill of the others, and half where nobody's is known.

    Args:
        classes: what is wanted: a model's own classifier may end a chain where it knows all of these.
        only: ids of the learnwares that may be used; None: all.

    Raises:
        RequestError: fewer than two models are left; says which were left out, and why.
    """
    copies, others = dict[tuple[str, str], list[Learnware]](), dict[tuple[str, str], Learnware]()
    names = set[str]()
    for item in store.learnwares():
        names.add(item.name)
        if only is None or item.id in only:
            copies.setdefault((item.graph_hash, item.weights_hash), []).append(item)
        else:
            others[item.graph_hash, item.weights_hash] = item
    models = index.models()
    rows = sum(len(model.places) for model in models)
    vectors = np.asarray(index.signatures() if rows < SKETCHED_FROM else index.sketches())
    there, left_out = list[tuple[IndexedModel, Learnware]](), dict[str, str]()
    absent = dict[str, str]()
    for model in models:
        same = copies.get((model.graph_hash, model.weights_hash), [])
        held = next((item for item in same if item.id == model.learnware), next(iter(same), None))
        why = shallow(len(model.places))
        if held is not None and why is not None:
            left_out[held.name] = why
        elif held is not None:
            there.append((model, held))
        elif (other := others.get((model.graph_hash, model.weights_hash))) is not None:
            absent[other.name] = "it reads other images than the order's"
        elif model.name in names:
            absent[model.name] = (
                "the market has another model of that name now; index it with sarto zoo index"
            )
        else:
            absent[model.name] = "it was removed from the market"
    if len(there) < 2:
        gone = len(models) - len(there) - len(left_out)
        raise RequestError(
            f"index {index.name!r} has {len(there)} models that can be used"
            + (f" ({gone} were removed from the market, or read something else)" if gone else "")
            + "".join(f"; {name} is left out: {why}" for name, why in left_out.items())
            + ": a reassembly needs two; index more with sarto zoo index"
        )
    skills = [_skill(model, held, classes) for model, held in there]
    known = [skill for skill in skills if skill is not None]
    middle = median(known) if known else UNKNOWN
    entries = [
        Entry(
            held.id,
            anatomy_of(model),
            np.arange(model.first_row, model.first_row + len(model.places)),
            middle if skill is None else skill,
            ready_graph(store, held),
            set(classes) <= set(held.classes),
        )
        for (model, held), skill in zip(there, skills, strict=True)
    ]
    learnwares = tuple(held for _, held in there)
    guessed = {held.name: middle for held, skill in zip(learnwares, skills, strict=True) if skill is None}
    return Usable(Zoo(tuple(entries), vectors), learnwares, guessed, left_out, absent)


def _skill(model: IndexedModel, held: Learnware, classes: Sequence[str]) -> float | None:
    """Mean skill on the wanted classes that a model knows, else on all of its own; None: nobody measured any."""
    if not held.skill:
        return model.skill
    wanted = [held.skill[cls] for cls in classes if cls in held.skill]
    return fmean(wanted or held.skill.values())


def anatomy_of(model: IndexedModel) -> Anatomy:
    """The places and costs that an index wrote down."""
    places = tuple(
        Place(p.value, p.layout, p.channels, (p.rows, p.columns), p.prefix, p.channels_last, p.dtype)
        for p in model.places
    )
    return Anatomy(places, model.params, model.flops, model.peaks, model.sizes)


def parting_of(
    zoo: Zoo,
    k: int | None = None,
    *,
    slack: float | None = SLACK,
    skip: float | None = None,
    seed: int = 0,
) -> Partition:
    """The joint dissection of a zoo: into k blocks, or as many of `BLOCKS` as all models have cut points for.

    Args:
        skip: what a set that a model has no block in counts; see `Parting`.

    Raises:
        InfeasibleError: k blocks are too many for a model.
    """
    if k is not None:
        return dissect(zoo, Limits(k, slack, skip), seed=seed)
    for tried in range(BLOCKS, 1, -1):
        try:
            return dissect(zoo, Limits(tried, slack, skip), seed=seed)
        except InfeasibleError:
            continue
    raise InfeasibleError("this zoo has models that can't be parted into two blocks: leave them out of it")


def steadiest(
    zoo: Zoo,
    index: ProbeIndex,
    ks: Sequence[int] = (2, 3, 4, 5, 6),
    *,
    skip: float | None = None,
    seed: int = 0,
) -> int:
    """The number of blocks whose dissection of a zoo of an index changes least with the probe images.

    Raises:
        RequestError: the index has fewer than two batches of probe images.
    """
    size = index.about.batch * (index.about.batch - 1) // 2
    cuts = replace(zoo.cuts(), vectors=np.asarray(index.signatures()))
    return choose_k(cuts, Limits(2, SLACK, skip), ks, size=size, seed=seed)[0]
