"""Where everything of the picture goes: columns in rows, rows broken at cut points, arcs over what they skip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sarto.pipeline.anatomy.values import Anatomy, Step

#: Widest row of columns, in pixels, and the height of the widest layer.
ROW_WIDTH, TALLEST = 890.0, 118.0
#: How much columns may be spread or squeezed to fill a row.
SPREAD, SQUEEZE = 2.6, 0.55
_GAP, _EMPTY = 7.0, 12.0
_WIDTHS = {"input": 8.0, "layer": 13.0, "norm": 4.0, "weights": 4.0, "join": 9.0}
_ARC_GAP = 7.0


@dataclass(frozen=True)
class Bar:
    """A step as a bar that stands on the base line of its row, from `bottom` to `top` pixels above it."""

    step: Step
    left: float
    right: float
    bottom: float
    top: float


@dataclass(frozen=True)
class Link:
    """A value on its way from one bar to another.

    Attributes:
        top: height of the arc above the base line; None where the two are neighbours.
    """

    source: Bar
    target: Bar
    top: float | None


@dataclass(frozen=True)
class Span:
    """A stretch of a row, from left to right; `number` is that of the block or stage it shows."""

    number: int
    left: float
    right: float


@dataclass(frozen=True)
class Row:
    """One row of the picture.

    Attributes:
        height: of the highest bar or arc above the base line.
        blocks: stretches of the blocks; they touch at the cuts.
        stages: stretches of equal space, by the place of the step that names each.
        goes_on: whether another row follows, so that its right end is a cut too.
    """

    bars: tuple[Bar, ...]
    links: tuple[Link, ...]
    blocks: tuple[Span, ...]
    stages: tuple[Span, ...]
    height: float
    right: float
    goes_on: bool


Column = tuple[int, ...]


def scale(anatomy: Anatomy) -> Callable[[float], float]:
    """Channels -> height in pixels, by the square root; the widest column is `TALLEST`."""
    widest = max(
        (
            sum(anatomy.steps[at].channels for at in column)
            for column in columns(anatomy.steps)
            if anatomy.steps[column[0]].kind != "join"
        ),
        default=1,
    )
    return lambda channels: max(2.0, TALLEST * math.sqrt(channels / max(1, widest))) if channels else 0.0


def rows_of(anatomy: Anatomy) -> tuple[Row, ...]:
    """The rows of the picture, top to bottom, with everything in its place."""
    found = columns(anatomy.steps)
    by_block: list[list[Column]] = [[] for _ in anatomy.blocks] or [[]]
    for column in found:
        by_block[anatomy.steps[column[0]].block].append(column)
    widths = [_width(anatomy, block) for block in by_block]
    broken = _break(widths)
    factor = ROW_WIDTH / max(sum(widths[first:last]) for first, last in broken)
    factor = min(SPREAD, max(SQUEEZE, factor))
    height = scale(anatomy)
    stages = stages_of(anatomy.steps)
    return tuple(
        _row(anatomy, by_block, range(first, last), factor, height, stages, goes_on=last < len(by_block))
        for first, last in broken
    )


def columns(steps: Sequence[Step]) -> tuple[Column, ...]:
    """Places of the steps of each column: parallel layers that read the same and go to the same share one."""
    readers: dict[str, list[str]] = {}
    for step in steps:
        for name in step.reads:
            readers.setdefault(name, []).append(step.id)
    found: list[list[int]] = []
    for place, step in enumerate(steps):
        before = steps[found[-1][0]] if found else None
        if (
            before is not None
            and step.kind == before.kind == "layer"
            and (step.reads, readers.get(step.id), step.block)
            == (before.reads, readers.get(before.id), before.block)
            and step.id in readers
        ):
            found[-1].append(place)
        else:
            found.append([place])
    return tuple(tuple(column) for column in found)


def stages_of(steps: Sequence[Step]) -> tuple[int, ...]:
    """For each step, the place of the step that names its stage: neighbours with equally many positions in space.

    Where values meet no stage begins, so that a table of attention scores is none. What is pooled to one position and
    then spread over the space again (squeeze and excite) stays in its stage.
    """
    runs: list[list[int]] = []
    for place, step in enumerate(steps):
        follows = step.kind in ("join", "weights")
        if runs and (follows or steps[runs[-1][0]].positions == step.positions):
            runs[-1].append(place)
        else:
            runs.append([place])
    joined: list[list[int]] = []
    for at, run in enumerate(runs):
        if joined and (
            steps[run[0]].positions == steps[joined[-1][0]].positions
            or (steps[run[0]].positions == 1 and at + 1 < len(runs))
        ):
            joined[-1].extend(run)
        else:
            joined.append(list(run))
    names = [0] * len(steps)
    for run in joined:
        named = max(
            (at for at in run if steps[at].positions == steps[run[0]].positions),
            key=lambda at: (at + 1 == len(steps) or steps[at + 1].block > steps[at].block, at),
        )
        for at in run:
            names[at] = named
    return tuple(names)


def _width(anatomy: Anatomy, block: Sequence[Column]) -> float:
    return sum(_WIDTHS[anatomy.steps[column[0]].kind] + _GAP for column in block) or _EMPTY


def _break(widths: Sequence[float]) -> list[tuple[int, int]]:
    """Blocks of each row, as (first, last + 1): as few rows as the width allows, of nearly equal length."""
    total = sum(widths)
    count = max(1, math.ceil(total * 0.8 / ROW_WIDTH))
    starts, reached, block = [0], 0.0, 0
    for row in range(1, count):
        aim = total * row / count
        while block < len(widths) and reached + widths[block] / 2 < aim:
            reached += widths[block]
            block += 1
        if starts[-1] < block < len(widths):
            starts.append(block)
    return list(pairwise([*starts, len(widths)]))


def _row(
    anatomy: Anatomy,
    by_block: Sequence[Sequence[Column]],
    blocks: range,
    factor: float,
    height: Callable[[float], float],
    stages: Sequence[int],
    *,
    goes_on: bool,
) -> Row:
    steps, gap = anatomy.steps, _GAP * factor
    bars: dict[str, Bar] = {}
    spans: list[Span] = []
    strips: list[Span] = []
    order: list[Column] = []
    x = 0.0
    first = by_block[blocks.start]
    for name in _from_outside(
        steps, [at for number in blocks for column in by_block[number] for at in column]
    ):
        # What the row before made comes in at the left edge; it has no bar of its own here.
        step = next(step for step in steps if step.id == name)
        bars[name] = Bar(step, 0.0, 0.0, 0.0, height(step.channels))
        order.append((steps.index(step),))
        x = gap if first else 0.0
    coming = frozenset(bars)
    for number in blocks:
        begun = strips[-1].right if strips else 0.0
        for column in by_block[number]:
            wide = _WIDTHS[steps[column[0]].kind] * factor
            bottom = 0.0
            for at in column:
                # Stacked bars share the height of their sum, so that a stack can be compared with a single bar.
                together = height(sum(steps[place].channels for place in column))
                share = steps[at].channels / max(1, sum(steps[place].channels for place in column))
                top = bottom + together * share
                bars[steps[at].id] = Bar(steps[at], x + gap / 2, x + gap / 2 + wide, bottom, top)
                bottom = top
            if spans and spans[-1].number == stages[column[0]]:
                spans[-1] = Span(spans[-1].number, spans[-1].left, x + wide + gap)
            else:
                spans.append(Span(stages[column[0]], x if spans else 0.0, x + wide + gap))
            order.append(column)
            x += wide + gap
        if not by_block[number]:
            x += _EMPTY * factor
            if spans:
                spans[-1] = Span(spans[-1].number, spans[-1].left, x)
        strips.append(Span(number, begun, x))
    links = tuple(_links(steps, order, bars))
    tops = [bar.top for bar in bars.values()] + [link.top for link in links if link.top is not None]
    return Row(
        tuple(bar for name, bar in bars.items() if name not in coming),
        links,
        tuple(strips),
        tuple(spans),
        max(tops, default=0.0),
        x,
        goes_on,
    )


def _from_outside(steps: Sequence[Step], inside: Sequence[int]) -> list[str]:
    """Steps that others read and that are not among them."""
    held = {steps[at].id for at in inside}
    return list(dict.fromkeys(name for at in inside for name in steps[at].reads if name not in held))


def _links(steps: Sequence[Step], order: Sequence[Column], bars: dict[str, Bar]) -> Iterator[Link]:
    """The links of a row; short arcs lie below the long ones that span them."""
    where = {steps[at].id: place for place, column in enumerate(order) for at in column}
    tops = [max(bars[steps[at].id].top for at in column) for column in order]
    far: list[tuple[int, int, str, str]] = []
    for place, column in enumerate(order):
        seen: set[str] = set()
        for at in column:
            for name in steps[at].reads:
                if name not in where or name in seen or where[name] >= place:
                    continue
                seen.add(name)
                if place - where[name] == 1:
                    yield Link(bars[name], bars[steps[at].id], None)
                else:
                    far.append((where[name], place, name, steps[column[-1]].id))
    drawn: list[tuple[int, int, float]] = []
    for first, last, name, reader in sorted(far, key=lambda arc: (arc[1] - arc[0], arc[0])):
        crossed = [top for one, two, top in drawn if one < last and two > first]
        top = max([*tops[first : last + 1], *crossed], default=0.0) + _ARC_GAP
        drawn.append((first, last, top))
        yield Link(bars[name], bars[reader], top)
