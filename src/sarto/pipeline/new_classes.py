"""Classes that no stocked learnware knows: the order's samples have them, and donors that read these give features."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sarto.errors import RequestError, ShapeError, closest, suggest
from sarto.market import Intake, Labelled, Store, read_samples
from sarto.pipeline.donor_rules import meant
from sarto.pipeline.intakes import intake_of, joint_problems
from sarto.pipeline.reassembling import ENGINE as CHAINS
from sarto.types import Learnware, Request

#: Samples of each class that a new head needs: one of each is left out to try it.
LEAST = 2
#: Engines that propose models under a new head.
ENGINES = ("slicepack", CHAINS, "baselines")
#: Names that are told in a row.
_MOST = 12


@dataclass(frozen=True, eq=False)
class NewClasses:
    """What an order with classes that nobody knows is made from.

    Attributes:
        names: these classes, in the order of the task.
        samples: the order's own, of all classes that they have.
        together: the learnwares that read the samples, and that one model can read for.
        apart: the others that read them; a model of one of these has no part of those.
        intakes: learnware id -> what it reads, of all of these.
        near: new class -> a known one whose name is much like it.
    """

    names: tuple[str, ...]
    samples: Labelled
    together: tuple[Learnware, ...]
    apart: tuple[Learnware, ...]
    intakes: Mapping[str, Intake]
    near: Mapping[str, str]

    def note(self, samples: Labelled) -> str:
        """What the order is told of its new classes.

        Args:
            samples: those that heads are fitted on.
        """
        told = [
            f"{cls} (did you mean {self.near[cls]!r}?)" if cls in self.near else cls for cls in self.names
        ]
        return (
            f"{some(told, most=len(self.near) + _MOST)} {'is' if len(told) == 1 else 'are'} known to no stocked model: "
            f"a new head is fitted on the {len(samples)} {samples.noun}s given"
        )


def some(names: Sequence[str], most: int = _MOST) -> str:
    """Names in a row; the rest is counted where there are more than `most`."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def find_new(
    request: Request,
    unknown: Mapping[str, str],
    store: Store,
    learnwares: Mapping[str, Learnware],
    problems: list[str],
) -> NewClasses | None:
    """The new classes of an order, and who reads its samples; None where it has none, or none that can be.

    Args:
        unknown: class that nobody knows -> what is said where the order's samples don't have it either.
        learnwares: those that the order may use, by id.
        problems: what is found is added to them.
    """
    if not unknown:
        return None
    own = _own_samples(request, tuple(unknown), problems)
    known = {cls for item in learnwares.values() for cls in item.classes}
    near = {cls: found for cls in unknown if (found := closest(cls, known - {cls})) is not None}
    names = tuple(cls for cls in unknown if own is not None and cls in own.classes)
    for cls, said in unknown.items():
        if cls not in names:
            problems.append(said if cls in near else said + _way_out(request, cls, own))
    if not names or own is None:
        return None
    problems += _few(request, names, own, unknown)
    if not set(ENGINES) & set(request.engines):
        problems.append(
            f"engines: {some(names)} {'is' if len(names) == 1 else 'are'} known to no stocked model, so there is "
            f"no subnet, and {', '.join(request.engines)} can't help: name slicepack (pruned donors under a new head), "
            "baselines (whole ones under one) or reassembly (chains of blocks under one)"
        )
    intakes, refused = readers(store, learnwares.values(), own)
    if not intakes:
        why = "; ".join(f"{some(who)}: {reason}" for reason, who in _by_reason(refused).items())
        problems.append(
            f"samples: no donor that is allowed reads the {own.noun}s in {request.samples} ({why or 'none is allowed'})"
        )
        return None
    musts = meant(learnwares.values(), request.donors.must)
    problems += [
        f"donors.must: {item.name!r} must be used, but can't read the {own.noun}s in {request.samples}: "
        f"{refused[item.name]}"
        for item in musts
        if item.name in refused
    ]
    reading = [learnwares[id_] for id_ in intakes]
    together = read_together(reading, intakes, {item.id for item in musts})
    apart = tuple(item for item in reading if item not in together)
    return NewClasses(names, own, together, apart, intakes, {cls: near[cls] for cls in names if cls in near})


def readers(
    store: Store, learnwares: Collection[Learnware], samples: Labelled
) -> tuple[dict[str, Intake], dict[str, str]]:
    """Learnware id -> what it reads, of those that can read samples; name -> why not, of the others.

    Raises:
        StoreError: a vocabulary is missing or damaged.
    """
    found, refused = dict[str, Intake](), dict[str, str]()
    few = samples.take(1)
    for item in learnwares:
        kind = item.preprocessing.TAG
        if kind != samples.noun:
            refused[item.name] = f"it reads {kind}s, these are {samples.noun}s"
            continue
        intake = intake_of(store, item)
        why = _unreadable(item, intake, few)
        if why is None:
            found[item.id] = intake
        else:
            refused[item.name] = why
    return found, refused


def read_together(
    donors: Sequence[Learnware], intakes: Mapping[str, Intake], musts: Collection[str]
) -> tuple[Learnware, ...]:
    """The largest group of donors that one model can read for, of those with most that must be used.

    Donors that read alike are never parted. A group is begun with each kind of them, and takes in the others in turn,
    first those that resize images: they go together with each other, and with others of their own size alone.

    Args:
        musts: ids of learnwares that must be used.
    """
    kinds = dict[tuple[object, str], list[Learnware]]()
    for item in donors:
        kinds.setdefault((item.input_shape, intakes[item.id].preprocessing.to_json()), []).append(item)
    in_turn = sorted(
        kinds.values(), key=lambda like: getattr(like[0].preprocessing, "resize", "") != "bilinear"
    )
    groups = []
    for first in in_turn:
        group = [first]
        for other in in_turn:
            if other is not first and not joint_problems([like[0] for like in (*group, other)]):
                group.append(other)
        groups.append([item for like in group for item in like])
    best = max(groups, key=lambda group: (sum(item.id in musts for item in group), len(group)))
    ids = {item.id for item in best}
    return tuple(item for item in donors if item.id in ids)


def _own_samples(request: Request, unknown: Sequence[str], problems: list[str]) -> Labelled | None:
    if request.samples is None:
        return None
    try:
        return read_samples(Path(request.samples))
    except RequestError as error:
        problems.append(
            f"{error}. Classes that no stocked model knows ({some(unknown)}) need labelled samples, at least {LEAST} "
            "of each class"
        )
        return None


def _way_out(request: Request, cls: str, own: Labelled | None) -> str:
    """What may be done about a class that neither a model nor the order's samples have."""
    if request.samples is None:
        return (
            f"; a class that nobody knows can be ordered with labelled samples of the order's own, at least {LEAST} of "
            "each class (samples: PATH, or --samples PATH)"
        )
    if own is None:
        return ""
    return f", and {request.samples} has no samples of it{suggest(cls, own.classes)}"


def _few(request: Request, names: Sequence[str], own: Labelled, unknown: Collection[str]) -> Iterator[str]:
    """Too few samples of a wanted class for a new head, known classes too: the head tells all of them apart."""
    why = f"a new head needs at least {LEAST} of each class, for {some(names)} {'is' if len(names) == 1 else 'are'} "
    why += "known to no stocked model"
    counts = own.counts
    for cls in dict.fromkeys(name for _, name in request.task.wanted):
        n = counts.get(cls, 0)
        if n == 0 and cls not in unknown:
            yield f"samples: {request.samples} has none of class {cls!r}{suggest(cls, own.classes)}; {why}"
        elif 0 < n < LEAST:
            yield f"samples: {request.samples} has {n} {own.noun} of class {cls!r}; {why}"
    k = request.samples_per_class
    if k is not None and k < LEAST:
        yield f"samples_per_class: is {k}; {why}"


def _unreadable(item: Learnware, intake: Intake, samples: Labelled) -> str | None:
    """Why a learnware can't read samples; None where it can."""
    try:
        shape = tuple(intake.tensor(samples).shape[1:])
    except (RequestError, ShapeError) as error:
        return "; ".join(error.problems) or error.detail
    if shape != tuple(item.input_shape):
        return f"it reads {'x'.join(map(str, item.input_shape))}, these are {'x'.join(map(str, shape))}"
    return None


def _by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    for name, reason in refused.items():
        found.setdefault(reason, []).append(name)
    return found
