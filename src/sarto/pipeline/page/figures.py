"""The figure of a report: accuracy against parameters, one mark a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

from sarto.pipeline.page.labels import Box, place
from sarto.pipeline.page.svg import SETTINGS, write_svg
from sarto.pipeline.page.wording import clipped, compact, percent
from sarto.types import Interval, Row

WIDTH, HEIGHT, TEXT = 720.0, 410.0, 9.0
#: Colours of the figure, and the value of the page's style that each stands for.
INK, MUTED, LINE, PAPER = "#010101", "#010102", "#010103", "#010104"
ROLE_COLOURS = {
    "pick": "#020201",
    "plan": "#020202",
    "donor": "#020203",
    "probe": "#020204",
    "ensemble": "#020205",
    "finetune": "#020206",
    "control": "#020207",
    "trivial": "#020208",
    "baseline": "#020209",
}
STYLE = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    **{colour: f"var(--role-{role})" for role, colour in ROLE_COLOURS.items()},
}
_MARKERS = {"donor": "s", "probe": "^", "ensemble": "D", "finetune": "v", "baseline": "P", "control": "X"}
#: Rows whose names the figure shows; a longer comparison is read in its table.
MOST_LABELS = 24


@dataclass(frozen=True)
class Mark:
    """A row as the figure draws it; `x` is None for a row without a model."""

    row: Row
    accuracy: float
    interval: Interval | None
    x: float | None = None


def accuracy_figure(rows: Sequence[Row], limit: int | None = None) -> str:
    """SVG of accuracy (on the order's samples, else held out) against parameters; empty where nothing is known.

    Args:
        limit: of the parameters, where the budget has one.
    """
    known = [mark for row in rows if (mark := _mark(row)) is not None]
    if not known:
        return ""
    spots = _spots([mark.row for mark in known], limit)
    drawn = [
        Mark(mark.row, mark.accuracy, mark.interval, spots[mark.row.name])
        for mark in known
        if mark.row.name in spots
    ]
    levels = [mark for mark in known if mark.row.name not in spots]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.075, 0.12, 0.905, 0.85))
        _scales(axes, drawn or known, list(spots.values()), limit)
        texts = [*_levels(axes, levels), *_budget(axes, limit)]
        for mark in drawn:
            _draw(axes, mark)
        _label(axes, drawn, texts)
    pick = next((mark for mark in known if mark.row.role == "pick"), known[0])
    told = f"Accuracy against parameters; {pick.row.name}: {percent(pick.accuracy)}"
    return write_svg(figure, name="accuracy", title=escape(told, quote=True), colours=STYLE)


def _mark(row: Row) -> Mark | None:
    if row.accuracy_loto is not None:
        return Mark(row, row.accuracy_loto, row.interval)
    if row.accuracy_heldout is not None:
        return Mark(row, row.accuracy_heldout, row.heldout_interval)
    return None


def _spots(rows: Sequence[Row], limit: int | None) -> dict[str, float]:
    """log10 of the parameters; marks of nearly equal size are moved apart so that all bars can be seen."""
    logs = sorted(
        (math.log10(row.cost.params), row.name)
        for row in rows
        if row.cost is not None and row.cost.params > 0
    )
    if not logs:
        return {}
    ends = [log for log, _ in logs] + ([math.log10(limit)] if limit else [])
    step = max(0.25, max(ends) - min(ends)) / 50
    runs: list[list[tuple[float, str]]] = []
    for log, name in logs:
        if runs and log - runs[-1][-1][0] < step:
            runs[-1].append((log, name))
        else:
            runs.append([(log, name)])
    return {
        name: sum(log for log, _ in run) / len(run) + step * (at - (len(run) - 1) / 2)
        for run in runs
        for at, (_, name) in enumerate(run)
    }


def _scales(axes: Axes, marks: Sequence[Mark], spots: Sequence[float], limit: int | None) -> None:
    lows = [mark.interval.low if mark.interval else mark.accuracy for mark in marks]
    lows += [mark.row.accuracy_heldout for mark in marks if mark.row.accuracy_heldout is not None]
    bottom = max(0.0, math.floor((min(lows) - 0.03) * 10) / 10)
    axes.set_ylim(bottom, 1.02)
    ends = [*spots, *([math.log10(limit)] if limit else [])] or [5.0]
    margin = max(0.12, 0.14 * (max(ends) - min(ends)))
    axes.set_xlim(min(ends) - 1.6 * margin, max(ends) + 1.2 * margin)
    axes.xaxis.set_major_locator(FixedLocator([math.log10(tick) for tick in _ticks(*axes.get_xlim())]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(round(10**value))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MultipleLocator(0.1 if bottom < 0.75 else 0.05))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.set_xlabel("parameters (log scale)", color=MUTED, fontsize=TEXT)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=TEXT, length=0, pad=5)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers of parameters inside the axis, at most eight; `low` and `high` are their log10."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    found: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = [step * 10.0**power for power in powers for step in steps]
        found = [tick for tick in every if low < math.log10(tick) < high]
        if len(found) <= 8:
            return found
    return found[:: math.ceil(len(found) / 8)]


def _levels(axes: Axes, levels: Sequence[Mark]) -> list[Box]:
    """Rows without a model as level lines; the boxes of their texts, which stand at the left.

    Levels below the axis are told in its lowest line.
    """
    boxes: list[Box] = []
    ends, lowest = axes.get_xlim(), axes.get_ylim()[0]
    ordered = sorted(levels, key=lambda mark: mark.accuracy)
    for mark in ordered:
        if mark.accuracy < lowest:
            continue
        colour = ROLE_COLOURS[mark.row.role]
        axes.plot(ends, [mark.accuracy] * 2, color=colour, linewidth=1, dashes=(2, 3), zorder=1)
        boxes += _told(axes, _level_text(mark), ends[0], mark.accuracy, boxes)
    below = [_level_text(mark) for mark in reversed(ordered) if mark.accuracy < lowest]
    if below:
        boxes += _told(axes, f"below: {clipped('; '.join(below), 60)}", ends[0], lowest, boxes)
    return boxes


def _level_text(mark: Mark) -> str:
    return f"{clipped(mark.row.name, 34)}, {percent(mark.accuracy)}"


def _told(axes: Axes, text: str, x: float, y: float, taken: Sequence[Box]) -> tuple[Box, Box]:
    """Writes a text above a level, or beneath where others stand there; the boxes of the text and of the level."""
    left, level = _point(axes, x, y)
    width, height = _size(text)
    ceiling = _point(axes, x, axes.get_ylim()[1])[1]

    def is_free(bottom: float) -> bool:
        here = Box(left, bottom, left + width, bottom + height)
        return not any(box.overlap(here) for box in taken)

    above = (level + 2.0 + step for step in range(int(max(1.0, ceiling - level - height))))
    beneath = (level - 2.0 - height - step for step in range(round(HEIGHT)))
    bottom = next(filter(is_free, (*above, *beneath)), level + 2.0)
    _text(axes, left + 2, bottom + height / 2, text, "left", MUTED)
    return Box(left, bottom, left + width + 6, bottom + height), Box(left, level - 0.7, WIDTH, level + 0.7)


def _budget(axes: Axes, limit: int | None) -> list[Box]:
    """The limit as an upright line; the boxes of its text and of the line."""
    if not limit:
        return []
    low, high = axes.get_ylim()
    x, floor = _point(axes, math.log10(limit), low)
    axes.plot([math.log10(limit)] * 2, (low, high), color=MUTED, linewidth=1, dashes=(5, 3), zorder=1)
    text = f"budget {compact(limit)}"
    width, height = _size(text)
    _text(axes, x + 5, floor + 4 + height / 2, text, "left", MUTED)
    top = _point(axes, 0.0, high)[1]
    return [Box(x + 3, floor + 2, x + width + 8, floor + height + 5), Box(x - 1, floor, x + 1, top)]


def _draw(axes: Axes, mark: Mark) -> None:
    colour, picked, x = ROLE_COLOURS[mark.row.role], mark.row.role == "pick", mark.x or 0.0
    if mark.interval is not None:
        ends = (mark.interval.low, mark.interval.high)
        width = 3.0 if picked else 1.6
        axes.plot([x, x], ends, color=colour, linewidth=width, alpha=0.5, solid_capstyle="round", zorder=3)
    if picked:
        axes.plot(
            [x], [mark.accuracy], "o", color=colour, markersize=19, alpha=0.2, markeredgewidth=0, zorder=3
        )
    axes.plot(
        [x],
        [mark.accuracy],
        _MARKERS.get(mark.row.role, "o"),
        color=colour,
        markersize=10 if picked else 7.5,
        markeredgecolor=PAPER,
        markeredgewidth=1.2,
        zorder=5 if picked else 4,
    )
    if mark.row.accuracy_heldout is not None and mark.row.accuracy_loto is not None:
        held = [mark.row.accuracy_heldout]
        axes.plot([x], held, "_", color=INK, markersize=11, markeredgewidth=1.6, zorder=6)


def _label(axes: Axes, marks: Sequence[Mark], texts: Sequence[Box]) -> None:
    """Names of the marks, the pick's first, then from the most accurate down."""
    ordered = sorted(marks, key=lambda mark: (mark.row.role != "pick", -mark.accuracy))[:MOST_LABELS]
    points = [_point(axes, mark.x or 0.0, mark.accuracy) for mark in ordered]
    names = [clipped(mark.row.name, 36) for mark in ordered]
    bold = [mark.row.role == "pick" for mark in ordered]
    sizes = [_size(name, bold=heavy) for name, heavy in zip(names, bold, strict=True)]
    (left, bottom), (right, top) = axes.transAxes.transform((0, 0)), axes.transAxes.transform((1, 1))
    frame = Box(left, bottom + 2, right + 6, top + 4)
    obstacles = [*texts, *(box for mark in marks for box in _covered(axes, mark))]
    spots = place(points, sizes, obstacles, frame)
    for mark, name, heavy, point, spot in zip(ordered, names, bold, points, spots, strict=True):
        box, colour = spot.box, ROLE_COLOURS[mark.row.role]
        if spot.distance > 20:
            near = (min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top))
            _leader(axes, point, near, colour)
        x = {"left": box.left, "right": box.right, "center": (box.left + box.right) / 2}[spot.side]
        _text(axes, x, (box.bottom + box.top) / 2, name, spot.side, colour if heavy else INK, bold=heavy)


def _covered(axes: Axes, mark: Mark) -> list[Box]:
    x, y = _point(axes, mark.x or 0.0, mark.accuracy)
    boxes = [Box(x - 7, y - 6, x + 7, y + 6)]
    if mark.interval is not None:
        low, high = (_point(axes, 0.0, end)[1] for end in (mark.interval.low, mark.interval.high))
        boxes.append(Box(x - 2.5, low, x + 2.5, high))
    if mark.row.accuracy_heldout is not None:
        held = _point(axes, 0.0, mark.row.accuracy_heldout)[1]
        boxes.append(Box(x - 7, held - 2, x + 7, held + 2))
    return boxes


def _leader(axes: Axes, point: tuple[float, float], near: tuple[float, float], colour: str) -> None:
    look: Mapping[str, object] = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.7}
    axes.annotate(
        "",
        xy=point,
        xytext=near,
        xycoords="figure pixels",
        textcoords="figure pixels",
        arrowprops={**look, "shrinkA": 1, "shrinkB": 4},
        zorder=2,
    )


def _point(axes: Axes, x: float, y: float) -> tuple[float, float]:
    found = axes.transData.transform((x, y))
    return float(found[0]), float(found[1])


def _size(text: str, *, bold: bool = False) -> tuple[float, float]:
    """Width and height of a label in points; letters of east Asia are about twice as wide."""
    letters = sum(1.0 if ord(letter) < 0x2E80 else 1.8 for letter in text)
    return letters * TEXT * (0.58 if bold else 0.53), TEXT * 1.3


def _text(axes: Axes, x: float, y: float, text: str, side: str, colour: str, *, bold: bool = False) -> None:
    axes.annotate(
        text,
        xy=(x, y),
        xycoords="figure pixels",
        ha=side,
        va="center",
        fontsize=TEXT,
        color=colour,
        fontweight="bold" if bold else "normal",
        annotation_clip=False,
        zorder=7,
    )
