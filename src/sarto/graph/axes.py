"""The axis algebra: each axis of each tensor is a product or a sum of atoms, found by unification.

Used during analysis only; `sarto.graph.analysis` compiles the result to plain data.

An *axis* is a tuple of atoms, outermost first; an axis of size one is the empty tuple. An *atom* is a leaf, or has
been refined: into a product of atoms (a view split it) or into a sum of axes laid end to end (a cat made it, or a
slice cut it). Two atoms that were unified are one atom from then on. A refinement is seen by every axis that
mentions the atom, because `resolve` looks it up each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


class Atom:
    """A factor of an axis. Mutable during analysis: it can be refined, merged and pinned."""

    __slots__ = ("parent", "pins", "product", "size", "terms")

    def __init__(self, size: int, pins: Iterable[str] = ()) -> None:
        self.size = size
        self.parent: Atom | None = None
        self.product: Axis | None = None
        self.terms: list[Axis] | None = None
        self.pins: list[str] = list(pins)

    @property
    def is_leaf(self) -> bool:
        return self.product is None and self.terms is None

    def __repr__(self) -> str:
        form = f"={self.product}" if self.product else f"=sum{self.terms}" if self.terms else ""
        return f"<{self.size}{'!' if self.pins else ''}{form}>"


Axis = tuple[Atom, ...]


def fresh(size: int, pin: str | None = None) -> Axis:
    """A new axis of that size; pinned at once where a reason is given."""
    return () if size == 1 else (Atom(size, [pin] if pin else ()),)


def root(atom: Atom) -> Atom:
    """The atom that stands for this one after all merges."""
    while atom.parent is not None:
        if atom.parent.parent is not None:
            atom.parent = atom.parent.parent
        atom = atom.parent
    return atom


def resolve(axis: Sequence[Atom]) -> list[Atom]:
    """The axis as leaves and sums, products flattened."""
    flat: list[Atom] = []
    for atom in axis:
        top = root(atom)
        if top.product is not None:
            flat.extend(resolve(top.product))
        else:
            flat.append(top)
    return flat


def size(axis: Sequence[Atom]) -> int:
    """Number of positions of an axis."""
    return math.prod(atom.size for atom in axis)


def pin(axis: Sequence[Atom], why: str) -> None:
    """Make every leaf below the axis impossible to slice, and remember the reason."""
    for atom in resolve(axis):
        if atom.terms is not None:
            for term in atom.terms:
                pin(term, why)
        elif why not in atom.pins:
            atom.pins.append(why)


def is_pinned(axis: Sequence[Atom]) -> bool:
    """Whether no position of the axis can be sliced."""
    return all(
        all(is_pinned(term) for term in atom.terms) if atom.terms is not None else bool(atom.pins)
        for atom in resolve(axis)
    )


def refine_product(atom: Atom, outer: int, inner: int, why: str) -> tuple[Axis, Axis] | None:
    """Write an atom as outer x inner; None (and pinned) where that is impossible.

    A sum can be factored when every part divides by `inner` (concatenated heads: their inner factors become one), or
    when it has `outer` equal parts of size `inner` (channel shuffle, gated units: the parts become one).
    """
    atom = root(atom)
    if atom.product is not None:
        taken, rest = carve(resolve([atom]), outer, why)
        return (taken, rest) if taken is not None else None
    if atom.terms is None:
        left, right = fresh(outer), fresh(inner)
        atom.product = left + right
        for part in (left, right):
            for reason in atom.pins:
                pin(part, reason)
        return left, right
    terms = atom.terms
    if all(size(term) % inner == 0 for term in terms):
        outers: list[Axis] = []
        shared: Axis | None = None
        for term in terms:
            head, tail = carve(resolve(term), size(term) // inner, why)
            if head is None:
                return None
            outers.append(head)
            if shared is None:
                shared = tail
            else:
                unify(shared, tail, why)
        top = Atom(outer)
        top.terms = outers
        atom.terms = None
        atom.product = (top, *(shared or ()))
        return (top,), shared or ()
    if len(terms) == outer and all(size(term) == inner for term in terms):
        for term in terms[1:]:
            unify(terms[0], term, why)
        counter = fresh(outer, f"{why}: counts {outer} equal parts")
        first = terms[0]
        atom.terms = None
        atom.product = counter + tuple(first)
        return counter, tuple(first)
    pin([atom], why)
    return None


def carve(atoms: list[Atom], outer: int, why: str) -> tuple[Axis | None, Axis]:
    """Part a list of atoms into a first factor of size `outer` and the rest; (None, ()) and pinned if impossible."""
    taken: list[Atom] = []
    queue = list(atoms)
    need = outer
    while need > 1:
        if not queue:
            return None, ()
        head = root(queue.pop(0))
        if head.product is not None:
            queue[:0] = resolve([head])
            continue
        if need % head.size == 0:
            taken.append(head)
            need //= head.size
        elif head.size % need == 0:
            parts = refine_product(head, need, head.size // need, why)
            if parts is None:
                pin(atoms, why)
                return None, ()
            taken.extend(parts[0])
            queue[:0] = list(parts[1])
            need = 1
        else:
            pin(atoms, why)
            return None, ()
    return tuple(taken), tuple(queue)


def cut(axis: Sequence[Atom], offset: int, why: str) -> tuple[Axis, Axis] | None:
    """Part an axis at a position into left and right; None (and pinned) where the position splits an inner factor."""
    total = size(axis)
    if offset <= 0:
        return (), tuple(axis)
    if offset >= total:
        return tuple(axis), ()
    atoms = resolve(axis)
    head, inner = atoms[0], atoms[1:]
    width = size(inner)
    if offset % width:
        pin(atoms, why)
        return None
    position = offset // width
    if head.terms is None:
        left, right = fresh(position), fresh(head.size - position)
        # A part of size one still has to be told from nothing: keep it as an explicit atom.
        left = left or (Atom(1),)
        right = right or (Atom(1),)
        for part in (left, right):
            for reason in head.pins:
                pin(part, reason)
        head.terms = [left, right]
    terms = head.terms
    done = 0
    for place, term in enumerate(terms):
        if position == done:
            return _joined(terms[:place], inner), _joined(terms[place:], inner)
        if position < done + size(term):
            parts = cut(term, position - done, why)
            if parts is None:
                return None
            terms[place : place + 1] = [_kept(parts[0]), _kept(parts[1])]
            return _joined(terms[: place + 1], inner), _joined(terms[place + 1 :], inner)
        done += size(term)
    return tuple(axis), ()


def add(parts: Sequence[Sequence[Atom]]) -> Axis:
    """The axis that lays the parts end to end."""
    whole = [_kept(tuple(part)) for part in parts]
    if len(whole) == 1:
        return whole[0]
    atom = Atom(sum(size(part) for part in whole))
    atom.terms = whole
    return (atom,)


def unify(one: Sequence[Atom], two: Sequence[Atom], why: str) -> None:
    """Make two axes of equal size the same axis; where their structures do not fit, pin both."""
    left, right = resolve(one), resolve(two)
    while left and right:
        a, b = root(left.pop(0)), root(right.pop(0))
        if a.product is not None:
            left[:0] = resolve([a])
            right.insert(0, b)
        elif b.product is not None:
            right[:0] = resolve([b])
            left.insert(0, a)
        elif a.size == b.size:
            _join(a, b, why)
        elif 1 in (a.size, b.size):
            # A part of size one holds a single position and no unit: it is passed over.
            (right if a.size == 1 else left).insert(0, b if a.size == 1 else a)
        else:
            large, small = (a, b) if a.size > b.size else (b, a)
            parts = None
            if large.size % small.size == 0:
                parts = refine_product(large, small.size, large.size // small.size, why)
            if parts is None:
                pin([a, *left], why)
                pin([b, *right], why)
                return
            if large is a:
                left[:0] = [*parts[0], *parts[1]]
                right.insert(0, b)
            else:
                right[:0] = [*parts[0], *parts[1]]
                left.insert(0, a)


def _join(a: Atom, b: Atom, why: str) -> None:
    """Merge two atoms of equal size, neither of which is a product."""
    if a is b:
        return
    if a.terms is None and b.terms is None:
        b.parent = a
        a.pins.extend(reason for reason in b.pins if reason not in a.pins)
        return
    if a.terms is None or b.terms is None:
        leaf, whole = (a, b) if a.terms is None else (b, a)
        if _mentions(whole, leaf):
            pin([whole], why)
            return
        leaf.parent = whole
        for reason in leaf.pins:
            pin([whole], reason)
        return
    bounds = sorted(set(_bounds(a)) | set(_bounds(b)))
    for bound in bounds:
        if cut([a], bound, why) is None or cut([b], bound, why) is None:
            pin([a], why)
            pin([b], why)
            return
    for x, y in zip(a.terms or [], b.terms or [], strict=True):
        unify(x, y, why)
    b.terms = None
    b.parent = a


def _mentions(whole: Atom, leaf: Atom) -> bool:
    return any(
        inner is leaf or (inner.terms is not None and _mentions(inner, leaf))
        for term in whole.terms or []
        for inner in resolve(term)
    )


def _bounds(atom: Atom) -> list[int]:
    done, found = 0, []
    for term in (atom.terms or [])[:-1]:
        done += size(term)
        found.append(done)
    return found


def _joined(terms: Sequence[Axis], inner: Sequence[Atom]) -> Axis:
    return (*add(terms), *inner) if terms else ()


def _kept(axis: Axis) -> Axis:
    """Parts of a sum keep an explicit atom even when their size is one."""
    return axis if axis else (Atom(1),)
