"""Stocking fragments: each class of each learnware sliced ahead of orders, so that orders only pack them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sarto.engines.slicepack import HALF, SHARES, slice_node
from sarto.errors import RequestError, StoreError, suggest
from sarto.market import Store
from sarto.market.rows import Fragment
from sarto.pipeline.crew import (
    Failed,
    Made,
    Piece,
    by_donor,
    piece_plan,
    useful_processes,
    work_alone,
    work_together,
)
from sarto.pipeline.progress import Progress, silent
from sarto.types import Learnware, Plan, SliceNode, SourceNode, WidthCost


def usual_shares(shares: Sequence[float] = SHARES) -> tuple[float, ...]:
    """The shares of a donor's extractor that an order without limits builds fragments of: see `choose.to_build`."""
    first = max(share for share in shares if share < 1.0)
    return (first, *sorted((share for share in shares if share <= HALF * first), reverse=True)[:1])


#: What is stocked where nothing else is said.
STOCK_SHARES = usual_shares()
#: A round whose donors' forward passes, one a fragment, come to less than this is done before other processes start.
TOGETHER_FLOPS = 2 * 10**11


@dataclass(frozen=True)
class Stocking:
    """What a round of stocking did.

    Attributes:
        made: fragments that were sliced now, in the order in which they were finished.
        present: those that were stocked before.
        failed: those that could not be made; the others are stocked nevertheless.
        skipped: learnwares that were passed over, each with its reason.
        seconds: of the whole round.
    """

    made: tuple[Made, ...]
    present: tuple[Piece, ...]
    failed: tuple[Failed, ...]
    skipped: tuple[str, ...]
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "made": [
                {**_piece(made.piece), "params": made.params, "seconds": made.seconds} for made in self.made
            ],
            "present": [_piece(piece) for piece in self.present],
            "failed": [
                {**_piece(failed.piece), "reason": failed.reason, "left": failed.left}
                for failed in self.failed
            ],
            "skipped": list(self.skipped),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Pruned:
    """Fragments that were removed, each key with its reason, and the bytes that nobody else needed."""

    removed: tuple[tuple[str, str], ...]
    freed_bytes: int

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "pruned": [{"key": key, "reason": reason} for key, reason in self.removed],
            "freed_bytes": self.freed_bytes,
        }


def stock_fragments(
    store: Store,
    names: Sequence[str] = (),
    *,
    sizes: Sequence[float] = STOCK_SHARES,
    classes: Sequence[str] = (),
    samples_per_class: int | None = None,
    processes: int | None = None,
    again: bool = False,
    progress: Progress = silent,
) -> Stocking:
    """Slice what is missing; each fragment is stocked as soon as it is made, so that nothing finished is ever lost.

    A fragment is looked up by the key of its plan: other samples, settings or donors give other keys.

    Args:
        names: of learnwares; none: all that have samples of each of their classes.
        sizes: shares of the donor's extractor.
        classes: only these; none: all.
        samples_per_class: the first k samples of each class, as in orders that say so; None: all of them.
        processes: how many may work at once, one thread each; 1: this process, with its threads; None: one a core
            where there is much to do.
        again: slice and replace also what is stocked.

    Raises:
        RequestError: unknown learnwares, classes or sizes, learnwares without samples; all problems at once.
        StoreError: the market can't be read.
    """
    begun = time.perf_counter()
    pieces, skipped = pieces_of(
        store, names, sizes=sizes, classes=classes, samples_per_class=samples_per_class, processes=processes
    )
    progress("looking for fragments", 0, len(pieces))
    present = frozenset[str]() if again else store.sound_fragments(piece.key for piece in pieces)
    todo = [piece for piece in pieces if piece.key not in present]
    made, failed = list[Made](), list[Failed]()
    done = len(pieces) - len(todo)

    def begin(piece: Piece) -> None:
        progress(f"slicing {piece.cls} out of {piece.name}", done + len(made) + len(failed), len(pieces))

    at_once = min(
        _worthwhile(store, todo) if processes is None else processes, useful_processes(by_donor(todo))
    )
    if at_once <= 1:
        outcomes = work_alone(store, todo, begin, replace=again)
    else:
        outcomes = work_together(store, todo, begin, processes=at_once, replace=again)
    for outcome in outcomes:
        if isinstance(outcome, Made):
            made.append(outcome)
        else:
            failed.append(outcome)
        last = outcome.piece
        progress(f"sliced {last.cls} out of {last.name}", done + len(made) + len(failed), len(pieces))
    return Stocking(
        tuple(made),
        tuple(piece for piece in pieces if piece.key in present),
        tuple(with_left(store, failed)),
        tuple(skipped),
        time.perf_counter() - begun,
    )


def with_left(store: Store, failed: Sequence[Failed]) -> Iterator[Failed]:
    """Fragments that failed, each with what the market has in its place."""
    stocked = store.sound_fragments(item.piece.key for item in failed)
    there = {donor.id for donor in store.learnwares()} if failed else set()
    for item in failed:
        if item.piece.learnware not in there:
            yield replace(item, left="removed")
        elif item.piece.key in stocked:
            yield replace(item, left="older")
        else:
            yield item


def pieces_of(
    store: Store,
    names: Sequence[str] = (),
    *,
    sizes: Sequence[float] = STOCK_SHARES,
    classes: Sequence[str] = (),
    samples_per_class: int | None = None,
    processes: int | None = None,
) -> tuple[list[Piece], list[str]]:
    """The fragments that a call asks for, each once, grouped by learnware; and which learnwares are passed over, why.

    Raises:
        RequestError: names every problem.
        StoreError: a learnware's samples can't be read.
    """
    problems = list(_number_problems(sizes, samples_per_class, processes))
    chosen, skipped = _learnwares(store, names, problems)
    known = sorted({cls for donor in chosen or store.learnwares() for cls in donor.classes})
    problems += [
        f"--classes: no chosen learnware knows {cls!r}{suggest(cls, known)}"
        for cls in dict.fromkeys(classes)
        if known and cls not in known
    ]
    if names and classes:
        problems += [
            f"learnware {donor.name!r} knows none of {', '.join(classes)} (it knows {', '.join(donor.classes)})"
            for donor in chosen
            if not set(classes) & set(donor.classes)
        ]
    for donor in chosen:
        problems += _width_problems(donor, sizes)
    if not chosen and not problems:
        problems += skipped
    if problems:
        raise RequestError("no fragments can be stocked", problems=problems)
    pieces: dict[str, Piece] = {}
    for donor in chosen:
        wanted = [cls for cls in donor.classes if not classes or cls in classes]
        for piece in _pieces(store, donor, wanted, sizes, samples_per_class) if wanted else ():
            pieces.setdefault(piece.key, piece)
    return list(pieces.values()), skipped


def stale_fragments(store: Store, names: Sequence[str] = ()) -> tuple[tuple[Fragment, str], ...]:
    """Fragments that no order will ask for again, each with the reason.

    They come from no learnware that is there, were repaired with a strength that this version would not choose, or
    stand under a key of an older version. Fragments of other samples, widths, sets of classes and ways of choosing
    units stay: orders may ask for them.

    Args:
        names: only of these learnwares; none: all, and what belongs to no learnware.

    Raises:
        RequestError: unknown learnwares; all of them at once.
    """
    problems: list[str] = []
    asked = _named(store, names, problems)
    if problems:
        raise RequestError("no fragments can be removed", problems=problems)
    donors = {donor.id: donor for donor in store.learnwares()}
    wanted = {donor.id for donor in asked}
    return tuple(
        (fragment, reason)
        for fragment in store.fragments()
        if (not names or wanted & {*fragment.learnwares, fragment.lineage.get("learnware")})
        and (reason := _stale(fragment, donors)) is not None
    )


def prune_fragments(store: Store, names: Sequence[str] = ()) -> Pruned:
    """Remove what `stale_fragments` finds.

    Raises:
        RequestError: unknown learnwares; all of them at once.
    """
    stale = stale_fragments(store, names)
    removed, freed_bytes = store.remove_fragments(fragment.key for fragment, _ in stale)
    return Pruned(tuple((f.key, why) for f, why in stale if f.key in set(removed)), freed_bytes)


def share_of(fragment: Fragment, donor: Learnware | None) -> float | None:
    """The stocked size that a fragment has; None where its widths are none of the donor's."""
    kept = fragment.lineage.get("plan", {}).get("keep")
    return next((width.ratio for width in donor.widths if dict(width.keep) == kept), None) if donor else None


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pieces(
    store: Store,
    donor: Learnware,
    classes: Sequence[str],
    sizes: Sequence[float],
    samples_per_class: int | None,
) -> Iterator[Piece]:
    own = store.samples(donor.id)
    samples = own if samples_per_class is None else own.take(samples_per_class)
    widths = {width.ratio: width for width in donor.widths if width.objective == "params"}
    for cls in classes:
        for share in sorted(set(sizes), reverse=True):
            node = slice_node(widths[share].keep, samples.digest).replace(classes=(cls,))
            key = piece_plan(donor.id, node).subkeys()["slice"]
            yield Piece(key, donor.id, donor.name, cls, share, node, samples_per_class)


def _worthwhile(store: Store, todo: Sequence[Piece]) -> int:
    """One process a core where there is enough to do for them to be worth starting."""
    donors = {donor.id: donor for donor in store.learnwares()}
    flops = 0
    for piece in todo:
        donor = donors[piece.learnware]
        flops += donor.cost.flops * sum(donor.n_samples.values())
    return cores() if flops > TOGETHER_FLOPS else 1


def _number_problems(
    sizes: Sequence[float], samples_per_class: int | None, processes: int | None
) -> Iterator[str]:
    if not sizes:
        yield "--sizes: name at least one share of the extractor, for instance 0.5"
    for size in sizes:
        if not 0.0 < size < 1.0:
            yield f"--sizes: {size:g} is no share; it must lie between 0 and 1, for instance 0.25"
    if samples_per_class is not None and samples_per_class < 1:
        yield f"--samples-per-class: must be at least 1, got {samples_per_class}"
    if processes is not None and processes < 1:
        yield f"--processes: must be at least 1, got {processes}"


def _named(store: Store, names: Sequence[str], problems: list[str]) -> list[Learnware]:
    found: dict[str, Learnware] = {}
    for name in names:
        try:
            donor = store.get(name)
        except StoreError as error:
            problems.append(str(error))
        else:
            found[donor.id] = donor
    return list(found.values())


def _learnwares(store: Store, names: Sequence[str], problems: list[str]) -> tuple[list[Learnware], list[str]]:
    """Learnwares to slice; those that can't be are a problem where they were named, else passed over."""
    listed = _named(store, names, problems) if names else list(store.learnwares())
    if not names and not listed:
        problems.append("the market is empty; stock a model with `sarto add`")
    chosen, skipped = list[Learnware](), list[str]()
    for donor in listed:
        reason = _unfit(donor)
        if reason is None:
            chosen.append(donor)
        else:
            (problems if names else skipped).append(f"learnware {donor.name!r} {reason}")
    return chosen, skipped


def _unfit(donor: Learnware) -> str | None:
    if donor.samples_hash is None:
        return "has no samples to slice it with; add it again with some, or give them with each order"
    missing = [cls for cls in donor.classes if not donor.n_samples.get(cls)]
    if missing:
        return (
            f"has no samples of {', '.join(missing)}; slicing tells each class from all others, so orders bring their "
            "own samples for it"
        )
    if not _widths(donor):
        return "has no channel group that can be sliced; orders take it whole"
    return None


def _width_problems(donor: Learnware, sizes: Sequence[float]) -> list[str]:
    known = sorted((width.ratio for width in _widths(donor)), reverse=True)
    return [
        f"--sizes: {size:g} is none of the sizes of learnware {donor.name!r}; orders take one of "
        f"{', '.join(f'{ratio:g}' for ratio in known)}"
        for size in sizes
        if 0.0 < size < 1.0 and size not in known
    ]


def _widths(donor: Learnware) -> list[WidthCost]:
    """The sizes of a learnware that are shares of its parameters, without the whole."""
    return [width for width in donor.widths if width.ratio < 1.0 and width.objective == "params"]


def _stale(fragment: Fragment, donors: dict[str, Learnware]) -> str | None:
    lineage = fragment.lineage
    donor = donors.get(str(lineage.get("learnware", "")))
    if donor is None:
        gone = not fragment.learnwares or not set(fragment.learnwares) <= donors.keys()
        return "its learnware was removed" if gone else None
    if lineage.get("of") is None:
        return "made by an older version, which did not say what it was cut from"
    if lineage["of"] != _source_key(donor):
        return None
    try:
        node = SliceNode.parse(lineage["plan"])
    except (RequestError, KeyError):
        return "made by another version, whose plans differ"
    if piece_plan(donor.id, node).subkeys()["slice"] != fragment.key:
        return "made by another version, whose keys differ"
    today = slice_node({"*": 0.5}, str(node.samples)).repair
    if node.paper is not None or node.repair is None or today is None or node.repair.towards != today.towards:
        return None
    # What orders may ask for in several ways (sequential or not, polished, ...) is no older setting.
    older = [name for name in ("lam", "wpos") if getattr(node.repair, name) != getattr(today, name)]
    return f"repaired with other settings ({', '.join(older)})" if older else None


def _source_key(donor: Learnware) -> str:
    return Plan(nodes={"donor": SourceNode(of=donor.id)}, out="donor").subkeys()["donor"]


def _piece(piece: Piece) -> dict[str, Any]:
    return {
        "key": piece.key,
        "learnware": piece.learnware,
        "name": piece.name,
        "class": piece.cls,
        "share": piece.share,
    }


def describe_fragments(store: Store, names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """What is known of each stocked fragment in plain JSON, oldest first.

    Args:
        names: only those of these learnwares; none: all.

    Raises:
        StoreError: there is no such learnware.
    """
    donors = {donor.id: donor for donor in store.learnwares()}
    wanted = {store.get(name).id for name in names}
    found = []
    for fragment in store.fragments():
        lineage = fragment.lineage
        donor = donors.get(str(lineage.get("learnware", "")))
        if wanted and not wanted & set(fragment.learnwares):
            continue
        plan = lineage.get("plan", {})
        found.append(
            {
                "key": fragment.key,
                "learnware": lineage.get("learnware"),
                "name": donor.name if donor is not None else lineage.get("name"),
                "classes": lineage.get("classes", []),
                "share": share_of(fragment, donor),
                "params": lineage.get("params"),
                "select": plan.get("select"),
                "samples": lineage.get("samples"),
                "kept": lineage.get("kept", {}),
                "seconds": lineage.get("seconds"),
                "versions": lineage.get("versions", {}),
                "created": fragment.created,
            }
        )
    return found
