"""Sizes of a graph's axes as products of unit counts, evaluated for many subnets at once without building one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sarto.errors import RequestError
from sarto.graph.expressions import AxisExpr, Fixed, Product, Unit
from sarto.graph.rules._context import BATCH

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Size:
    """A number times entries of a table, each named by its place: the size of one axis, or of many multiplied."""

    factor: float = 1.0
    parts: tuple[int, ...] = ()

    def times(self, *others: Size) -> Size:
        """The product of sizes."""
        every = (self, *others)
        return Size(
            math.prod(size.factor for size in every),
            tuple(sorted(part for size in every for part in size.parts)),
        )

    def scaled(self, factor: float) -> Size:
        """The size times a number."""
        return Size(self.factor * factor, self.parts)


@dataclass(frozen=True, slots=True)
class _Units:
    group: str


@dataclass(frozen=True, slots=True)
class _Total:
    parts: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class _Stair:
    size: Size


@dataclass
class SizeTable:
    """What the sizes of a graph are made of: units of groups, sums of axes, and axes rounded up to a stair.

    Attributes:
        groups: sliceable groups with their full number of units; the columns of a matrix of counts.
        batch: samples in one call.
    """

    groups: Mapping[str, int]
    batch: int = 1
    _entries: list[_Units | _Total | _Stair] = field(default_factory=list)
    _places: dict[_Units | _Total | _Stair, int] = field(default_factory=dict)
    _planned: tuple[int, tuple[Places, Places, Places, Floats, Places, list[int]]] | None = None

    def axis(self, expr: AxisExpr) -> Size:
        """The size of an axis."""
        if isinstance(expr, Fixed):
            times, rest = divmod(expr.size, BATCH)
            return Size(float(times * self.batch if rest == 0 else expr.size))
        if isinstance(expr, Unit):
            return Size(1.0, (self._place(_Units(expr.group)),))
        parts = tuple(self.axis(part) for part in expr.parts)
        if isinstance(expr, Product):
            return Size().times(*parts)
        if not any(part.parts for part in parts):
            return Size(sum(part.factor for part in parts))
        return Size(1.0, (self._place(_Total(parts)),))

    def elements(self, axes: Sequence[AxisExpr]) -> Size:
        """The number of elements of a tensor."""
        return Size().times(*(self.axis(axis) for axis in axes))

    def stair(self, size: Size) -> Size:
        """The size rounded up to whole vectors; how wide they are is said when it is evaluated."""
        return Size(1.0, (self._place(_Stair(size)),))

    def follows(self, size: Size) -> tuple[int, ...]:
        """What a size depends on: equal for sizes that are multiples of each other, whatever the counts are."""
        return tuple(part for part in size.parts if not self._is_constant(part))

    def rows(self, counts: Sequence[Counts]) -> Floats:
        """Unit counts as a matrix, shape (subnets, groups); groups that are not named keep all units.

        Raises:
            RequestError: a group is unknown, or a count is not between 0 and its units; all problems at once.
        """
        problems = []
        for place, given in enumerate(counts):
            for group, count in given.items():
                size = self.groups.get(group)
                if size is None:
                    problems.append(f"counts[{place}]: {group!r} is no sliceable group of this graph")
                elif not 0 <= count <= size:
                    problems.append(f"counts[{place}].{group}: must be from 0 to {size}, got {count}")
        if problems:
            raise RequestError(problems[0], problems=problems[:20])
        rows = [[given.get(group, size) for group, size in self.groups.items()] for given in counts]
        return np.array(rows, float).reshape(len(counts), len(self.groups))

    def stepped(self, rows: Floats, step: int) -> Floats:
        """Unit counts rounded up to multiples of a step, or to the whole group; shape (subnets, groups)."""
        sizes = np.array(list(self.groups.values()), float)
        return np.minimum(np.ceil(rows / step) * step, sizes) if step > 1 else rows

    def evaluate(self, rows: Floats, width: int) -> Floats:
        """Every entry of the table, shape (1 + entries, subnets); the first row is ones.

        Args:
            rows: unit counts, shape (subnets, groups).
            width: stairs are multiples of it.
        """
        units, columns, plain, factors, parts, rest = self._plan()
        found = np.ones((1 + len(self._entries), len(rows)))
        found[units] = rows.T[columns]
        # Stairs over units, the usual case, all at once.
        found[plain] = np.ceil(factors * found[parts].prod(axis=1) / width) * width
        for place in rest:
            entry = self._entries[place - 1]
            if isinstance(entry, _Total):
                found[place] = np.sum([_value(part, found) for part in entry.parts], axis=0)
            elif isinstance(entry, _Stair):
                found[place] = np.ceil(_value(entry.size, found) / width) * width
        return found

    def _plan(self) -> tuple[Places, Places, Places, Floats, Places, list[int]]:
        """Rows of the units and their columns; rows of plain stairs, their factors and parts; all other rows."""
        if self._planned is None or self._planned[0] != len(self._entries):
            columns = {group: place for place, group in enumerate(self.groups)}
            units = {n: columns[e.group] for n, e in enumerate(self._entries, 1) if isinstance(e, _Units)}
            plain = {
                place: entry.size
                for place, entry in enumerate(self._entries, 1)
                if isinstance(entry, _Stair) and all(part + 1 in units for part in entry.size.parts)
            }
            factors, parts = monomials(list(plain.values()))
            rest = [n for n in range(1, 1 + len(self._entries)) if n not in units and n not in plain]
            plan = (_indices(units), _indices(units.values()), _indices(plain), factors[:, None], parts, rest)
            self._planned = (len(self._entries), plan)
        return self._planned[1]

    def _place(self, entry: _Units | _Total | _Stair) -> int:
        if entry not in self._places:
            self._places[entry] = len(self._entries)
            self._entries.append(entry)
        return self._places[entry]

    def _is_constant(self, part: int) -> bool:
        entry = self._entries[part]
        return isinstance(entry, _Stair) and not self.follows(entry.size)


def monomials(sizes: Sequence[Size]) -> tuple[Floats, Places]:
    """Factors, shape (sizes,), and rows of a table that are multiplied, shape (sizes, most); row 0 is ones."""
    most = max((len(size.parts) for size in sizes), default=0) or 1
    places = np.zeros((len(sizes), most), np.int64)
    for row, size in enumerate(sizes):
        places[row, : len(size.parts)] = [part + 1 for part in size.parts]
    return np.array([size.factor for size in sizes], float), places


def _indices(places: Iterable[int]) -> Places:
    return np.array(list(places), np.int64)


def _value(size: Size, found: Floats) -> Floats:
    return size.factor * np.prod(found[[0, *(part + 1 for part in size.parts)]], axis=0)
