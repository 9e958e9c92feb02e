"""The front of an indexed zoo: what chains of blocks and whole donors are worth against one of their costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from sarto.engines.reassembly import Layout, Sides, Wish, Zoo, layout, pareto, tidy, with_r2
from sarto.errors import RequestError
from sarto.market import Store
from sarto.market.indices import ProbeIndex
from sarto.pipeline.indexed_zoo import usable
from sarto.pipeline.reassembling import CUT_OFF, DIRECTED_UP_TO, features_of, with_tail
from sarto.types import Budget, Learnware

Resource = Literal["params", "flops", "size_bytes"]
#: A limit that nothing reaches, so that a cost is counted.
_UNREACHED = 2**53


@dataclass(frozen=True)
class FrontPoint:
    """A chain of blocks or a whole donor.

    Attributes:
        donors: of each block; one name: a whole donor.
        blocks: (first place, last place) of each block in its donor; None: the image, or the classes.
        value: mean skill of the donors, less what joints should lose; no measured accuracy.
        cost: in the front's resource, stitches and head in it.
        on_front: whether nothing that costs no more is worth more.
    """

    donors: tuple[str, ...]
    blocks: tuple[tuple[str | None, str | None], ...]
    value: float
    cost: int
    on_front: bool


@dataclass(frozen=True)
class ZooFront:
    """Points of a zoo, cheapest first: the front, and the whole donors that are not on it.

    Attributes:
        notes: what is taken for granted of the models, which are left out, why there are fewer blocks than usual, and
            whether the search was cut off.
        exact: False: the search was cut off, so that cheaper points may be missing.
    """

    index: str
    resource: Resource
    k: int
    points: tuple[FrontPoint, ...]
    notes: tuple[str, ...] = ()
    exact: bool = True


def zoo_front(
    store: Store,
    index: ProbeIndex,
    resource: Resource = "params",
    *,
    classes: Sequence[str] = (),
    k: int | None = None,
    most: int = 20,
) -> ZooFront:
    """The chains and donors that nobody beats in value at no more of one cost, and the other donors beside them.

    Exact, but where a search is cut off, which the notes say.

    Args:
        classes: what has to be told apart; none: the classes of whichever donor ends the chain.
        k: blocks of each model; None: up to four.
        most: points of the front, at most, the dearest ones.

    Raises:
        RequestError: fewer than two models are left.
        InfeasibleError: k blocks are too many for a model, or no model knows the classes.
    """
    held = usable(store, index, classes)
    zoo, learnwares = held.zoo, held.learnwares
    parting, notes = held.parted(k)
    if len(zoo.entries) <= DIRECTED_UP_TO:
        zoo = with_r2(zoo, parting, features_of(index))
    if classes:
        pairs = zip(zoo.entries, learnwares, strict=True)
        zoo = replace(zoo, entries=tuple(with_tail(entry, held, classes, own=True) for entry, held in pairs))
    wish = Wish(budget=Budget.parse({resource: _UNREACHED}), sides=Sides(least_donors=1))
    found = layout(zoo, parting, wish)
    sweep = pareto(found.problem, resource, most=most)
    if sweep.cut_off is not None:
        told = "cheaper points may be missing, or some be dearer than need be"
        notes = (*notes, f"{CUT_OFF} after {sweep.cut_off:,} partial chains: {told}")
    front = [_point(found, zoo, learnwares, choice.path, True) for choice in sweep.choices]
    whole = [_whole(found, i) for i in range(len(zoo.entries))]
    donors = [_point(found, zoo, learnwares, path, False) for path in whole if path is not None]
    known = {point.blocks + point.donors for point in front}
    points = [*front, *(point for point in donors if point.blocks + point.donors not in known)]
    ranked = tuple(sorted(points, key=lambda p: (p.cost, -p.value)))
    return ZooFront(index.name, resource, parting.k, ranked, notes, sweep.cut_off is None)


def _whole(found: Layout, donor: int) -> tuple[int, ...] | None:
    """The choice that is a donor itself; None where it has no block in some stage, or may not end the chain."""
    path = []
    for stage in found.pieces:
        here = [place for place, piece in enumerate(stage) if piece.donor == donor]
        if not here:
            return None
        path.append(here[0])
    return tuple(path)


def _point(
    found: Layout, zoo: Zoo, learnwares: Sequence[Learnware], path: Sequence[int], on_front: bool
) -> FrontPoint:
    pieces = tidy(found.chain(path))

    def place(donor: int, number: int | None) -> str | None:
        return None if number is None else zoo.entries[donor].anatomy.places[number].value

    return FrontPoint(
        donors=tuple(learnwares[piece.donor].name for piece in pieces),
        blocks=tuple((place(p.donor, p.start), place(p.donor, p.end)) for p in pieces),
        value=found.problem.value(path),
        cost=round(found.problem.costs(path)[0]),
        on_front=on_front,
    )


def draw_front(found: ZooFront, path: Path) -> None:
    """Write the front as .svg or .png.

    Raises:
        RequestError: another kind of file.
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise RequestError(f"a picture is an .svg or .png file, got {path.name!r}", where=str(path))
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    front = [point for point in found.points if point.on_front]
    axes.step([p.cost for p in front], [p.value for p in front], where="post", color="0.7", zorder=1)
    for marker, colour, text, chains in (("o", "C0", "chain", True), ("s", "C1", "donor as it is", False)):
        chosen = [p for p in found.points if (len(p.donors) > 1) == chains]
        axes.scatter(
            [p.cost for p in chosen], [p.value for p in chosen], marker=marker, color=colour, label=text
        )
        for p in chosen if not chains else ():
            axes.annotate(
                p.donors[0], (p.cost, p.value), textcoords="offset points", xytext=(5, -9), fontsize=8
            )
    axes.set_xlabel(found.resource)
    axes.set_ylabel("value (skill less joints), not measured")
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
